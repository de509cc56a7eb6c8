"""Values that are zero or small by cancellation: the shares are the limits of equation 7."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.errors import (
    ScoreWarning,
)
from tests.support.small_networks import Apply, samples, seeded
from tests.support.tensors import assert_same

Function = Callable[[torch.Tensor], Any]


def ratios_by_hand(x: torch.Tensor, first: nn.Linear, activation: Function, last: nn.Linear) -> torch.Tensor:
    """Equations 1-7 for two layers without biases and one score, in float64."""
    x, first_weight, last_weight = x.double(), first.weight.detach().double(), last.weight.detach().double()
    y = x @ first_weight.T
    z = activation(y)
    score = z @ last_weight.T
    return torch.einsum("ni,ji,nj,j,nk->ni", x, first_weight, z / y, last_weight[0], 1 / score)


#: What f(y) / y tends to at 0, from below where it has two limits; 0 where f(0) is a constant's.
LIMITS: dict[str, tuple[nn.Module, float]] = {
    "ReLU": (nn.ReLU(), 0.0),
    "ReLU6": (nn.ReLU6(), 0.0),
    "LeakyReLU": (nn.LeakyReLU(0.125), 0.125),
    "GELU": (nn.GELU(), 0.5),
    "SiLU": (nn.SiLU(), 0.5),
    "Hardswish": (nn.Hardswish(), 0.5),
    "ELU": (nn.ELU(), 1.0),
    "Tanh": (nn.Tanh(), 1.0),
    "Sigmoid": (nn.Sigmoid(), 0.0),
    "Softplus": (nn.Softplus(), 0.0),
    "square": (Apply(torch.square), 0.0),
    "sqrt": (Apply(torch.sqrt), 0.0),
}


@pytest.mark.parametrize("act", [act for act, _ in LIMITS.values()], ids=LIMITS)
def test_a_unit_of_value_zero(act: nn.Module) -> None:
    """It contributes nothing: the map is that of the net without it, whose last bias holds what it gave."""
    with seeded():
        net = nn.Sequential(nn.Linear(4, 3), act, nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.abs_()
        net[0].weight[1] = 0
        net[0].bias[1] = 0
    without = nn.Sequential(nn.Linear(4, 2), act, nn.Linear(2, 2)).double()
    kept = [0, 2]
    with torch.no_grad():
        without[0].weight.copy_(net[0].weight[kept])
        without[0].bias.copy_(net[0].bias[kept])
        without[2].weight.copy_(net[2].weight[:, kept])
        without[2].bias.copy_(net[2].bias + net[2].weight[:, 1] * act(torch.zeros(1, dtype=torch.float64)))
    x = samples().double().abs()
    found, delta = InputCAV(net).attribute(x, 0, return_convergence_delta=True)
    assert_same(found, InputCAV(without).attribute(x, 0))
    assert delta.abs().max() < 1e-12
    at_unit = LayerCAV(net, "0").attribute(x, 0)[:, 1]
    assert torch.equal(at_unit.abs(), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(("act", "limit"), LIMITS.values(), ids=LIMITS)
def test_a_unit_of_value_zero_by_cancellation(act: nn.Module, limit: float) -> None:
    """Equation 7 divides 0 by 0 there; its limit is taken, so that what cancels is seen to."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), act, nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.25, 0.5]]))
        net[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    x = torch.full((1, 2), 2.0, dtype=torch.float64)
    nothing, other = act(torch.tensor([0.0, 1.5], dtype=torch.float64))
    found, delta = InputCAV(net).attribute(x, return_convergence_delta=True)
    shares = [[6 * limit + 0.5 * float(other) / 1.5, -6 * limit + float(other) / 1.5]]
    assert_same(found, torch.tensor(shares, dtype=torch.float64) / (3 * nothing + other))
    assert delta.abs().max() < 1e-12


def test_a_network_without_units() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: initializing zero-element tensors is a no-op
        net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    net[1].bias.data.fill_(2.0)
    ratios, delta = InputCAV(net).attribute(samples(), 0, return_convergence_delta=True)
    assert torch.equal(ratios.abs(), torch.zeros(2, 4))
    assert torch.equal(delta, torch.zeros(2)), "all of the score is the bias's"


def test_a_value_that_is_small_by_cancellation() -> None:
    """The paper divides by it and multiplies by it again; here nothing is lost on the way, in float32 either."""
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        last.weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0 + 2**-20], [1000.0, 1000.0 - 2**-13]])
    net = nn.Sequential(first, nn.Tanh(), last)
    expected = ratios_by_hand(x, first, torch.tanh, last)
    ratios, delta = InputCAV(net).attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(ratios.double(), expected, rtol=1e-6, atol=0)
    assert delta.abs().max() < 1e-4
    # As the score itself, the small value makes ratios large, as the paper's are, and a warning; they add up to 1.
    with pytest.warns(ScoreWarning, match="the score of samples 0, 1 is at or near zero"):
        alone, delta = InputCAV(first).attribute(x, 0, return_convergence_delta=True)
    assert torch.equal(alone, x * torch.tensor([1.0, -1.0]) / (x[:, :1] - x[:, 1:]))
    assert alone.abs().max() > 1e6
    assert delta.abs().max() == 0


def test_epsilon_is_the_stabilizer() -> None:
    """``y / (y + eps)`` of it comes through: 1e-3 of what 1e-6 is against an epsilon of 1e-3."""
    weights = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(weights)
    x = torch.tensor([[1.0 + 1e-6, 1.0]], dtype=torch.float64)
    found = InputCAV(net, rules={nn.Linear: rules.EpsilonRule(1e-3)}, normalize=None).attribute(x)
    y = float(x[0, 0] - x[0, 1])
    assert_same(found, x * weights * y / (y + 1e-3))
