"""Functions instead of modules, constants that require gradients, and derivatives inside a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    LayerError,
    UnsupportedOperationError,
)
from tests.support.errors import raising
from tests.support.networks import fixed
from tests.support.small_networks import Apply, net_around, samples, seeded, small_net
from tests.support.tensors import assert_same
from tests.support.traces import left_as_it_was

Function = Callable[[torch.Tensor], Any]


class Functional(nn.Module):
    """Two branches that are added, joined, flattened and averaged, by functions or by modules."""

    def __init__(self, by_modules: bool) -> None:
        super().__init__()
        with seeded():
            self.stem, self.branch, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(2 * 4 * 4 * 4, 3)
        self.relu, self.gelu, self.pool, self.flatten = nn.ReLU(), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()
        self.by_modules = by_modules

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_modules:
            x = self.relu(self.stem(x))
            y = self.gelu(self.branch(x)).add(x)
            joined = torch.concatenate([self.pool(x), self.pool(y)], 1)
            return self.head(self.flatten(joined))
        x = F.relu(F.conv2d(x, self.stem.weight, self.stem.bias))
        y = F.gelu(F.conv2d(x, self.branch.weight, self.branch.bias)) + x
        halves = [z.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) for z in (x, y)]
        return F.linear(torch.flatten(torch.cat(halves, 1), 1), self.head.weight, self.head.bias)


def test_functional_operations_have_the_maps_of_modules() -> None:
    net, twin, x = Functional(False).double(), Functional(True).double(), fixed(2, 2, 10, 10)
    found, expected = (InputCAV(model).attribute(x, 1, return_convergence_delta=True) for model in (net, twin))
    assert_same(found, expected)
    assert found[1].abs().max() < 1e-12
    for layer in ("stem", "branch", "head"):
        with raising(LayerError, ValueError, rf"layer '{layer}' was not reached by the forward pass", net):
            LayerCAV(net, layer).attribute(x, 1)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Tensors(list[torch.Tensor]):
    pass


@pytest.mark.parametrize(
    "group", [tuple, Tensors, lambda pair: Pair(*pair)], ids=["tuple", "class of a list", "named tuple"]
)
def test_tensors_are_found_in_every_tuple_and_list(group: Callable[[list[torch.Tensor]], Any]) -> None:
    x = fixed(2, 4)
    expected = InputCAV(lambda x: torch.cat([x, x.sin()], 1)).attribute(x, 5)
    assert torch.equal(InputCAV(lambda x: torch.cat(group([x, x.sin()]), 1)).attribute(x, 5), expected)


def cubes(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum()


def derivative_of_a_copy(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(cubes(x), x)[0]


DERIVATIVES: dict[str, Function] = {
    "torch.func.grad": torch.func.grad(cubes),
    "torch.func.vmap": torch.func.vmap(lambda row: 3 * row**2),
    "autograd.functional.jacobian": lambda x: torch.autograd.functional.jacobian(cubes, x),
    "autograd.grad of a copy": derivative_of_a_copy,
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
@pytest.mark.parametrize("at", ["layer", "inputs"])
def test_derivatives_inside_the_model(derivative: Function, at: str) -> None:
    """It computes what it computes without, and what hides in a derivative is a constant, followed, or refused."""
    net, x = small_net().double(), samples().double()

    def energetic(derivative: Function) -> Function:
        return lambda x: net(x) + derivative(x).sum(1, keepdim=True)

    def explain(model: Function) -> Any:
        attribution = InputCAV(model) if at == "inputs" else LayerCAV(model, net[1])
        return attribution.attribute(x, 1, return_convergence_delta=True)

    in_full = explain(energetic(lambda x: 3 * x**2))
    as_a_constant = explain(energetic(lambda x: (3 * x**2).detach()))
    with left_as_it_was(net, x):
        try:
            found = explain(energetic(derivative))
        except UnsupportedOperationError as refusal:
            said = r"captum_cav c(annot|ould not) (see|follow)|'grad' has no rule"
            assert re.search(said, str(refusal))  # noqa: PT017
            return
    expected = in_full if torch.allclose(found[0], in_full[0]) else as_a_constant
    assert_same(found[0], expected[0])
    if at == "inputs":  # at a layer, what bypasses it and what is constant are told apart by the delta alone
        assert_same(found[1], expected[1])


@pytest.mark.parametrize("derivative", [DERIVATIVES[name] for name in DERIVATIVES if "vmap" not in name])
def test_a_derivative_says_what_is_wrong(derivative: Function) -> None:
    net, x = net_around(Apply(derivative)), samples().double()
    said = (
        r"^The model takes derivatives in its forward pass in module 'middle\.0' \(Apply\), which captum_cav cannot "
        r"follow\. Write that step in torch operations, or"
    )
    with raising(UnsupportedOperationError, NotImplementedError, said, net):
        InputCAV(net).attribute(x, 1)


@pytest.mark.parametrize("by", ["method", "attribute"])
def test_a_constant_that_requires_grad_is_a_constant(by: str) -> None:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        shift = torch.full_like(x, 0.5)
        if by == "method":
            shift.requires_grad_()
        else:
            shift.requires_grad = True
        return x + shift

    x = samples().double()
    found, expected = (
        InputCAV(net_around(Apply(shift))).attribute(x, 1, return_convergence_delta=True)
        for shift in (shifted, lambda x: x + 0.5)
    )
    assert_same(found, expected)


def test_requires_grad_inside_the_model_changes_nothing() -> None:
    """As models do in front of checkpoints: what comes of the inputs is followed anyway."""

    def asking(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x.requires_grad_())

    net, twin, x = net_around(Apply(asking)), net_around(nn.GELU()), samples().double()
    for layer in ("first", "middle", "last"):
        found, expected = (
            LayerCAV(model, layer).attribute(x, 1, return_convergence_delta=True) for model in (net, twin)
        )
        assert_same(found, expected)
    assert_same(InputCAV(net).attribute(x, 1), InputCAV(twin).attribute(x, 1))
