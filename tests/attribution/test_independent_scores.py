"""Scores that do not depend on the layer or on the inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from tests.support.errors import refused
from tests.support.small_networks import samples, seeded

Way = Callable[[nn.Module, nn.Module, torch.Tensor], torch.Tensor]


class Beside(nn.Module):
    """A score that is computed from layers "first", "side" and "head" in some way."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        with seeded():
            self.first, self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self.side, self.head, self.first(x))


def computed_before(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    scores = head(x)
    side(x)
    return scores


def layer_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = side(x)
    return head(y)


def head_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = side(x)
    with torch.no_grad():
        return head(y)


def all_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return head(side(x))


INDEPENDENT: dict[str, Way] = {
    "computed-before": computed_before,
    "head-under-no_grad": head_under_no_grad,
    "all-under-no_grad": all_under_no_grad,
    "detached": lambda side, head, x: head(side(x).detach()),
    "data": lambda side, head, x: head(side(x).data),
    "copied": lambda side, head, x: head(torch.tensor(side(x).tolist())),
    "detached-branch": lambda side, head, x: head(x + side(x).detach()),
    "gate": lambda side, head, x: head(x * side(x).sigmoid()),
}


independent = pytest.mark.parametrize("way", list(INDEPENDENT.values()), ids=list(INDEPENDENT))


CUTTING: dict[str, Way] = {
    "layer-under-no_grad": layer_under_no_grad,
    **{way: INDEPENDENT[way] for way in ("head-under-no_grad", "all-under-no_grad", "detached", "data", "copied")},
}


cut = pytest.mark.parametrize("way", list(CUTTING.values()), ids=list(CUTTING))


@independent
def test_a_layer_that_the_score_does_not_depend_on_is_refused(way: Way) -> None:
    net = Beside(way)
    said = ("the score does not depend on", "'side'", "computed before the layer, under torch.no_grad(), from detached")
    for layers in ("side", ["side", "head"], ["first", "side"]):
        with refused(RuntimeError, *said, model=net):
            LayerCAV(net, layers).attribute(samples(), 0)


def test_a_layer_under_no_grad_is_explained_if_the_model_uses_its_output() -> None:
    frozen, twin = Beside(layer_under_no_grad), Beside(lambda side, head, x: head(side(x)))
    found, delta = LayerCAV(frozen, "side").attribute(samples(), 0, return_convergence_delta=True)
    torch.testing.assert_close(found, LayerCAV(twin, "side").attribute(samples(), 0))
    assert delta.abs().max() < 1e-5
    with refused(RuntimeError, "the score does not depend on layer 'first'", model=frozen):
        LayerCAV(frozen, ["first", "side"]).attribute(samples(), 0)


@cut
def test_inputs_that_the_score_does_not_depend_on_are_refused(way: Way) -> None:
    net = Beside(way)
    with refused(RuntimeError, "the score does not depend on the inputs", "under torch.no_grad()", model=net):
        InputCAV(net).attribute(samples(), 0)
    with refused(RuntimeError, "the score does not depend on the inputs", model=net):
        NeuronCAV(net, "head").attribute(samples(), 0)


@independent
def test_materialize_grads_gives_zeros_for_such_a_layer(way: Way) -> None:
    net, x = Beside(way), samples()
    materialize = {"grad_kwargs": {"materialize_grads": True}}
    assert torch.equal(LayerCAV(net, "side").attribute(x, 0, **materialize), torch.zeros(2, 4))
    at_side, at_head = LayerCAV(net, ["side", "head"]).attribute(x, 0, **materialize)
    assert torch.equal(at_side, torch.zeros(2, 4))
    torch.testing.assert_close(at_head, torch.tensor([[1.0, 0.0, 0.0]]).repeat(2, 1))


@cut
def test_materialize_grads_gives_zeros_for_such_inputs(way: Way) -> None:
    ratios = InputCAV(Beside(way)).attribute(samples(), 0, grad_kwargs={"materialize_grads": True})
    assert torch.equal(ratios, torch.zeros(2, 4))


@independent
def test_materialize_grads_says_what_bypasses_such_a_layer(way: Way) -> None:
    _, delta = LayerCAV(Beside(way), "side").attribute(
        samples(), 0, return_convergence_delta=True, grad_kwargs={"materialize_grads": True}
    )
    torch.testing.assert_close(delta, torch.ones(2))
