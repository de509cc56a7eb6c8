"""An attribution inside a model's forward pass: it is right, and to the outer one its result is a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from captum_cav.errors import (
    UnsupportedOperationError,
)
from tests.support.networks import fixed
from tests.support.small_networks import picture, residual_net
from tests.support.tensors import tensors_of

# Threads, processes, random numbers ----------------------------------------------------------------------------------


def test_an_attribution_inside_an_attribution() -> None:
    """The same layers are tapped within and without, by other rules."""
    inner, x = residual_net(), picture()
    explain = LayerCAV(inner, "block1", rules="gamma")

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.given: torch.Tensor | None = None
            self.made: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.made = explain.attribute(x, 1) if self.given is None else self.given
            return self.inner(x) * self.made.sum((1, 2, 3)).unsqueeze(1)

    net = Outer()
    expected = explain.attribute(x, 1)
    found = LayerCAV(net, ["inner.block1", "inner.flatten"]).attribute(x, 2, return_convergence_delta=True)
    assert torch.equal(net.made, expected)
    net.given = expected
    again = LayerCAV(net, ["inner.block1", "inner.flatten"]).attribute(x, 2, return_convergence_delta=True)
    assert all(map(torch.equal, tensors_of(found), tensors_of(again)))


X = fixed(3, 4, seed=5)


def inner_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Guided(nn.Module):
    """Weighs its input with what a network inside says of it."""

    def __init__(self, explain: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.explain = inner_net(), explain
        self.last = nn.Linear(4, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x * self.explain(self.inner, x))


WAYS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "InputCAV": lambda net, x: InputCAV(net).attribute(x, 1),
    "LayerCAV": lambda net, x: LayerCAV(net, "0").attribute(x, 1).sum(1, keepdim=True),
    "several targets": lambda net, x: LayerCAV(net, "1").attribute_targets(x, [0, 2])[1].sum(1, keepdim=True),
    "NeuronCAV": lambda net, x: NeuronCAV(net, "0").attribute(x, 3),
    "with delta": lambda net, x: InputCAV(net).attribute(x, 1, return_convergence_delta=True)[0],
    "verify": lambda net, x: torch.full_like(x.detach(), float(verify(net, x, 1).ok)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_inner_attribution_is_right_and_a_constant(way: str) -> None:
    torch.manual_seed(1)
    net = Guided(WAYS[way])
    maps = WAYS[way](inner_net(), X)
    parts = (X * maps * net.last.weight[1]).detach()
    expected = parts / (parts.sum(1, keepdim=True) + net.last.bias[1]).detach()
    ratios, delta = InputCAV(net).attribute(X, 1, return_convergence_delta=True)
    torch.testing.assert_close(ratios, expected, rtol=1e-10, atol=1e-12)
    assert delta.abs().max() < 1e-12
    torch.testing.assert_close(NeuronCAV(net, "last").attribute(X, 1), expected, rtol=1e-10, atol=1e-12)
    assert verify(net, X, 1).ok


def test_an_inner_attribution_that_fails_does_not_harm_the_outer_one() -> None:
    def explain(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UnsupportedOperationError):
            InputCAV(lambda x: torch.special.i0(x).sum(1)).attribute(x)
        return torch.full_like(x.detach(), 2.0)

    net = Guided(explain)
    ratios = InputCAV(net).attribute(X, 1)
    scores = net(X)[:, 1:].detach()
    torch.testing.assert_close(ratios, (2 * X * net.last.weight[1] / scores).detach())


def test_attributions_nested_three_deep() -> None:
    def deeper(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return InputCAV(Guided(WAYS["InputCAV"])).attribute(x, 0)

    torch.manual_seed(1)
    net = Guided(deeper)
    torch.manual_seed(2)
    assert InputCAV(net).attribute(X, 1, return_convergence_delta=True)[1].abs().max() < 1e-12


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x).sum(1)


class Asking(nn.Module):
    """Asks for the contributions of what is no module of its own."""

    def __init__(self, score: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.score = [score]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return InputCAV(self.score[0]).attribute(x)


@pytest.mark.parametrize(
    ("score", "where"),
    [(lambda x: torch.special.i0(x).sum(1), ""), (Unknown(), " in the module Unknown")],
    ids=["function", "module"],
)
def test_the_module_that_asks_is_not_named_as_the_place_of_failure(
    score: Callable[[torch.Tensor], torch.Tensor], where: str
) -> None:
    with pytest.raises(UnsupportedOperationError) as caught:
        Asking(score)(X)
    assert str(caught.value).startswith(f"'special_i0'{where} has no rule")
