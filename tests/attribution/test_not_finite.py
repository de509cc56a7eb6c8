"""NaN and infinity: the sample and the module that gave them are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import (
    InputError,
    ModelError,
)
from tests.support.errors import raising, refused
from tests.support.networks import fixed
from tests.support.small_networks import Apply, every_way, net_around, samples, small_net
from tests.support.tensors import assert_same

Attribution = Callable[..., Any]


# Inputs --------------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_sample(attribute: Attribution, value: float) -> None:
    net, x = small_net(), samples(3)
    x[1, 2] = value
    with refused(ValueError, "inputs holds NaN or infinity in sample 1;", "expected finite numbers", model=net):
        attribute(net, x)
    x[2, 0] = value
    with refused(ValueError, "in samples 1, 2;", model=net):
        attribute(net, x)


def test_the_input_that_is_not_finite_is_named() -> None:
    bad = torch.tensor([[1.0], [float("nan")]])
    with refused(ValueError, "inputs[1] holds NaN or infinity in sample 1"):
        InputCAV(lambda x, y: x + y).attribute((torch.ones(2, 1), bad))


# Numbers that are not finite, scores near zero -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_or_infinity_in_the_input(value: float) -> None:
    net, x = small_net(), samples(3)
    x[2, 1] = value
    said = r"^inputs holds NaN or infinity in sample 2; expected finite numbers\.$"
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        with raising(InputError, ValueError, said, net):
            attribution.attribute(x, 0)
    with raising(InputError, ValueError, r"inputs\[1\] holds NaN or infinity in samples 0, 1"):
        InputCAV(lambda x, y: x + y).attribute((torch.ones(2, 1), torch.full((2, 1), value)))


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Overflow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1e4).exp()


def logs_of(*rows: list[float]) -> tuple[nn.Sequential, torch.Tensor]:
    """A net that hands its input on, takes logarithms, hands them on and sums."""
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), Log()), Log(), nn.Linear(2, 1)).double()
    return net, torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("normalize", ["score", "abs", None])
def test_nan_arising_inside(normalize: Any) -> None:
    """The first module that gives such a number is named, though every later one does too; so is the sample."""
    net, x = logs_of([3.0, 4.0], [0.5, 4.0], [1.0, 4.0], [-1.0, 4.0])
    ways = {
        "layer": LayerCAV(net, "0", normalize=normalize),
        "late layer": LayerCAV(net, ["2", "3"], normalize=normalize),
        "inputs": InputCAV(net, normalize=normalize),
    }
    for samples_, said in (
        ([0, 1], r"the score is not finite in sample 1: NaN or infinity first comes out of module '2' \(Log\)"),
        ([0, 2], r"the score is not finite in sample 1: NaN or infinity first comes out of module '2' \(Log\)"),
        ([1, 0, 3], r"the score is not finite in samples 0, 2: .* first comes out of module '1\.1' \(Log\)"),
    ):
        for attribution in ways.values():
            with raising(ModelError, RuntimeError, said, net):
                attribution.attribute(x[samples_], 0)
    with raising(ModelError, RuntimeError, r"the neuron's value is not finite in sample 1: .* module '2' \(Log\)", net):
        NeuronCAV(net, "2", normalize=normalize).attribute(x[:2], 0)


def test_an_infinite_weight_is_found_though_the_score_is_finite() -> None:
    net, x = small_net(), samples()
    net[0].weight.data[0] = -math.inf
    net[0].bias.data[0] = 0
    x = x.abs()
    assert net(x).isfinite().all()
    said = (
        r"the contributions at the inputs are not finite in samples 0, 1: .* first comes out of module '0' \(Linear\)"
    )
    with raising(ModelError, RuntimeError, said, net):
        InputCAV(net).attribute(x, 0)


@pytest.mark.parametrize("end", [nn.Tanh(), nn.ReLU6(), nn.Hardtanh(), Apply(lambda x: x.clamp(max=3))], ids=repr)
def test_an_overflow_that_is_saturated_afterwards(end: nn.Module) -> None:
    net, x = net_around(Overflow(), end), samples().double()
    assert net(x).isfinite().all()
    assert net.middle[0](net.first(x)).isinf().any()
    said = r"are not finite in samples? .*: NaN or infinity first comes out of module 'middle\.0' \(Overflow\)"
    with raising(ModelError, RuntimeError, said, net):
        LayerCAV(net, "middle.0").attribute(x, 0)

    def with_constants(x: torch.Tensor) -> torch.Tensor:
        """What no finite ratio reaches is a constant, and counts as one."""
        z = net.first(x)
        infinite = net.middle[0](z).isinf()
        finite = net.middle[0](torch.where(infinite, 0.0, z))
        return net.last(torch.where(infinite, net.middle(z).detach(), end(finite)))

    found, expected = (
        InputCAV(model).attribute(x, 0, return_convergence_delta=True) for model in (net, with_constants)
    )
    assert_same(found, expected)
    assert found[1].abs().max() < 1e-12


def test_nan_that_the_model_removes() -> None:
    """Where nothing of it reaches the score, a value that is not finite contributes nothing."""

    def removed(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x.log(), 0.5)

    def never_made(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.5)

    x = samples().double()
    found, expected = (
        InputCAV(net_around(Apply(function))).attribute(x, 0, return_convergence_delta=True)
        for function in (removed, never_made)
    )
    assert_same(found, expected)
    assert found[0].isfinite().all()
    assert found[1].abs().max() < 1e-12


def test_infinity_that_belongs_to_the_model() -> None:
    """Masked attention scores are infinite; nothing is wrong."""
    x = fixed(2, 5, 3)

    def masked(x: torch.Tensor) -> torch.Tensor:
        scores = (x @ x.transpose(1, 2)).masked_fill(~torch.ones(5, 5).tril().bool(), -math.inf)
        return (scores.softmax(2) @ x)[:, -2]

    found, delta = InputCAV(masked).attribute(x, 1, return_convergence_delta=True)
    weights = (x[:, 3:4] @ x.transpose(1, 2))[:, 0, :4].softmax(1)
    expected = torch.zeros_like(x)
    expected[:, :4, 1] = weights * x[:, :4, 1] / (weights * x[:, :4, 1]).sum(1, keepdim=True)
    assert_same(found, expected)
    assert delta.abs().max() < 1e-12


def test_a_function_has_no_module_to_name() -> None:
    with raising(ModelError, RuntimeError, r"the score is not finite in sample 1: .* between its modules"):
        InputCAV(lambda x: x.log().sum(1)).attribute(torch.tensor([[2.0, 3.0], [-1.0, 2.0]]))
