"""The rules of activations, pass-through and mean slope, against their formulas written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from tests.support.networks import fixed
from tests.support.surrogates import TOLERANCE, differs, summed
from tests.support.tensors import largest

Function = Callable[..., torch.Tensor]


# Pass-through --------------------------------------------------------------------------------------------------------


def test_pass_through_is_equation_7() -> None:
    """R_i = R_j for i = j: what the output has, the input gets, whatever the function is."""
    x, weight = fixed(3, 4), fixed(4, 2, seed=2)
    for function in (torch.tanh, F.gelu, F.relu, torch.sigmoid, lambda x: x * torch.tanh(x) + 1, torch.cos):

        class Activation(nn.Module):
            def forward(self, x: torch.Tensor, function: Function = function) -> torch.Tensor:
                return function(x)

        net = Activation()
        found = InputCAV(lambda x, net=net: net(x) @ weight, rules={net: rules.PassThroughRule()}, normalize=None)
        torch.testing.assert_close(found.attribute(x, 1), function(x) * weight[:, 1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("key", [torch.relu, nn.ReLU], ids=["function", "type"])
@pytest.mark.parametrize("inplace", [False, True])
def test_pass_through_passes_on_the_relevance_of_a_unit_that_is_off(key: Any, inplace: bool) -> None:
    """Behind it, the flat rule gives 1 of 4 of each output to every unit, on or off."""
    x = torch.tensor([[1.0, -2.0, 3.0, -0.5]], dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), nn.ReLU(inplace), nn.Linear(4, 1, bias=False)).double()
    score = net(x.clone()).item()
    flat = {nn.Linear: rules.FlatRule()}
    found = LayerCAV(net, "0", rules={**flat, key: rules.PassThroughRule()}, normalize=None).attribute(x, 0)
    torch.testing.assert_close(found, torch.full_like(x, score / 4), rtol=1e-9, atol=0)
    default = LayerCAV(net, "0", rules=flat, normalize=None).attribute(x, 0)
    torch.testing.assert_close(default, (x > 0) * found, rtol=1e-9, atol=0)


def test_pass_through_at_zero_gives_the_value_without_a_limit_to_the_constants() -> None:
    """sigmoid(0) = 1/2 did not come from the 0; tanh(0) = 0 did not come from anywhere."""
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    for function, constant in ((torch.sigmoid, 0.5), (torch.cos, 1.0), (torch.tanh, 0.0)):
        cav = InputCAV(lambda x, f=function: f(x).sum(1), rules={function: rules.PassThroughRule()}, normalize=None)
        found, delta = cav.attribute(x, return_convergence_delta=True)
        torch.testing.assert_close(found, torch.stack([torch.zeros(1), function(x[:, 1])], 1).double())
        assert delta.abs() < 1e-12
        assert function(x).sum() - found.sum() == pytest.approx(constant)


def test_a_unit_whose_sum_cancels_passes_nothing_on_without_a_limit() -> None:
    """1 * 2 - 2 * 1 = 0: its summands would get infinite shares of sigmoid(0) = 1/2, opposite and equal."""
    x, weight = torch.tensor([[2.0, 1.0, 0.5]]).double(), torch.tensor([[1.0, -2.0, 0.0], [1.0, 1.0, 1.0]]).double()
    cav = InputCAV(
        lambda x: torch.sigmoid(F.linear(x, weight)).sum(1),
        rules={torch.sigmoid: rules.PassThroughRule()},
        normalize=None,
    )
    found, delta = cav.attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(found, x * torch.sigmoid(x.sum()) / x.sum(), rtol=1e-12, atol=1e-15)
    assert delta.abs() < 1e-12


def test_pass_through_of_a_norm_is_the_identity_rule() -> None:
    x = fixed(2, 6)
    for rule in (rules.PassThroughRule(), rules.NormRule("identity")):
        found = InputCAV(lambda x: F.layer_norm(x, (6,)), rules={F.layer_norm: rule}, normalize=None).attribute(x, 2)
        expected = torch.zeros_like(x)
        expected[:, 2] = F.layer_norm(x, (6,))[:, 2]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


# Mean slope ----------------------------------------------------------------------------------------------------------


ACTIVATIONS: dict[str, tuple[Any, Function]] = {
    "relu": (torch.relu, F.relu),
    "relu in place": (torch.relu, lambda z: torch.relu_(z)),
    "relu, an option": (F.relu, lambda z: F.relu(z, inplace=True)),
    "relu6": (F.relu6, F.relu6),
    "relu6 as a module": (F.hardtanh, lambda z: nn.ReLU6(inplace=True)(z)),
    "silu": (F.silu, F.silu),
    "silu in place": (F.silu, lambda z: F.silu(z, inplace=True)),
    "gelu": (F.gelu, F.gelu),
    "gelu by tanh": (F.gelu, lambda z: F.gelu(z, approximate="tanh")),
    "leaky relu in place": (F.leaky_relu, lambda z: F.leaky_relu(z, 0.2, True)),
}


POOLINGS: dict[str, Function] = {
    "F.adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, 1),
    "F.adaptive_avg_pool2d by name": lambda y: F.adaptive_avg_pool2d(y, output_size=(1, 1)),
    "AdaptiveAvgPool2d": lambda y: nn.AdaptiveAvgPool2d((1, 1))(y),
    "mean": lambda y: y.mean((2, 3)),
    "torch.mean": lambda y: torch.mean(y, dim=[-1, -2], keepdim=True),
    "F.avg_pool2d": lambda y: F.avg_pool2d(y, 4),
    "AvgPool2d": lambda y: nn.AvgPool2d(kernel_size=(4, 4))(y),
    "dropout between": lambda y: F.dropout(y, 0.5, training=False).mean((2, 3)),
    "dropouts between": lambda y: F.adaptive_avg_pool2d(F.dropout2d(nn.Dropout(0.3).eval()(y), 0.5, False), 1),
}


def slope_by_slope(z: torch.Tensor, function: Function, weight: torch.Tensor, target: int) -> torch.Tensor:
    """``R_z = z c_y mean(f(z) / z)``, one position after the other."""
    value, found = function(z.clone()).flatten(2), torch.zeros_like(z).flatten(2)
    flat = z.flatten(2)
    samples, channels, positions = flat.shape
    for n, c in itertools.product(range(samples), range(channels)):
        slopes = [float(value[n, c, i] / flat[n, c, i]) for i in range(positions)]
        for i in range(positions):
            found[n, c, i] = flat[n, c, i] * weight[target, c] / positions * sum(slopes) / positions
    return found.reshape(z.shape)


@pytest.mark.parametrize(
    ("activation", "pooling"),
    [
        *[(name, "F.adaptive_avg_pool2d") for name in ACTIVATIONS],
        *[("relu", name) for name in POOLINGS],
        ("relu in place", "dropouts between"),
        ("gelu", "AvgPool2d"),
    ],
)
def test_the_mean_slope_is_each_positions_slope(activation: str, pooling: str) -> None:
    key, function = ACTIVATIONS[activation]
    z, weight, bias = 4 * fixed(2, 3, 4, 4), fixed(5, 3, seed=2), fixed(5, seed=3)  # some of them above 6
    score = lambda z: F.linear(POOLINGS[pooling](function(z * 1.0)).flatten(1), weight, bias)  # noqa: E731
    cav = InputCAV(score, rules={key: rules.MeanSlopeRule()}, normalize=None)
    expected = slope_by_slope(z, function, weight, 4)
    found, delta = cav.attribute(z, 4, return_convergence_delta=True)
    assert (found - expected).abs().max() < TOLERANCE * largest(expected)
    assert delta.abs().max() < 1e-12
    assert differs(expected, InputCAV(score, normalize=None).attribute(z, 4))


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((9,), lambda y: F.adaptive_avg_pool1d(y, 1)),
        ((9,), lambda y: y.mean(-1)),
        ((9,), nn.AvgPool1d(9)),
        ((3, 4, 2), lambda y: F.adaptive_avg_pool3d(y, (1, 1, 1))),
        ((3, 4, 2), lambda y: y.mean((2, 3, 4), keepdim=True)),
        ((3, 4, 2), nn.AvgPool3d((3, 4, 2))),
    ],
    ids=["adaptive_avg_pool1d", "mean, 1-d", "AvgPool1d", "adaptive_avg_pool3d", "mean, 3-d", "AvgPool3d"],
)
def test_the_mean_slope_of_signals_and_of_volumes(shape: tuple[int, ...], pool: Function) -> None:
    z, weight = fixed(2, 3, *shape), fixed(5, 3, seed=2)
    score = lambda z: F.linear(pool(F.gelu(z)).flatten(1), weight)  # noqa: E731
    found = InputCAV(score, rules={F.gelu: rules.MeanSlopeRule()}, normalize=None).attribute(z, 4)
    expected = slope_by_slope(z, F.gelu, weight, 4)
    assert (found - expected).abs().max() < TOLERANCE * largest(expected)
    assert differs(expected, InputCAV(score, normalize=None).attribute(z, 4))


@pytest.mark.parametrize(
    "pool",
    [
        lambda y: (y * 2).mean((2, 3)) / 2,
        lambda y: y.mean(3).mean(2),
        lambda y: torch.einsum("nchw->nc", y) / 16,
        lambda y: y.permute(0, 2, 3, 1).flatten(1, 2).clone().mean(1),
        lambda y: F.conv2d(y, torch.full((3, 1, 4, 4), 1 / 16, dtype=y.dtype), groups=3).flatten(1),
    ],
    ids=["scaled", "mean of means", "einsum", "tokens", "convolution"],
)
def test_a_pooling_is_found_however_it_is_written(pool: Function) -> None:
    z, weight = fixed(2, 3, 4, 4), fixed(5, 3, seed=2)
    score = lambda z: F.linear(pool(F.gelu(z)), weight)  # noqa: E731
    found = InputCAV(score, rules={F.gelu: rules.MeanSlopeRule()}, normalize=None).attribute(z, 4)
    expected = slope_by_slope(z, F.gelu, weight, 4)
    assert (found - expected).abs().max() < TOLERANCE * largest(expected)


def test_a_map_with_mean_slopes_does_not_depend_on_the_other_samples() -> None:
    """All coefficients of the first sample are equal. Those of the second sample are not."""
    along = torch.stack([torch.ones(4), torch.arange(4.0)]).double()[:, None]
    z, chosen = fixed(2, 3, 4), {F.gelu: rules.MeanSlopeRule()}
    together = InputCAV(lambda z: (F.gelu(z) * along).sum(2), rules=chosen, normalize=None).attribute(z, 1)
    for number in range(2):
        alone = InputCAV(lambda z: (F.gelu(z) * along[number : number + 1]).sum(2), rules=chosen, normalize=None)  # noqa: B023
        torch.testing.assert_close(together[number : number + 1], alone.attribute(z[number : number + 1], 1))
    assert differs(together, InputCAV(lambda z: (F.gelu(z) * along).sum(2), normalize=None).attribute(z, 1))


@pytest.mark.parametrize("other", ["carries", "weighs", "is looked at"])
def test_slopes_are_averaged_only_where_all_comes_through_one_pooling(other: str) -> None:
    """What else carries keeps each position its slope; a gate made of the mean, or a statistic, is no pooling."""

    def score(z: torch.Tensor) -> torch.Tensor:
        y = F.relu(z)
        along = (y * torch.arange(1.0, 13.0, dtype=z.dtype).reshape(3, 4)).sum((1, 2))
        if other == "carries":
            return y.mean(2)[:, 0] + along
        if other == "weighs":
            return (y * y.mean(2, keepdim=True).sigmoid())[:, 0, 1:].amax(1)
        y.mean(2)
        return along

    z = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (
        InputCAV(score, rules=chosen, normalize=None).attribute(z, return_convergence_delta=True)
        for chosen in ({F.relu: rules.MeanSlopeRule()}, None)
    )
    torch.testing.assert_close(found, expected)
    assert found[0].abs().sum() > 0


def test_the_mean_slope_counts_the_rest_of_the_positions_as_a_constant() -> None:
    """3 and -1: the mean slope is 1/2, the ReLU gave 3 / 2, the positions carry (3 - 1) / 2 / 2."""
    z = torch.tensor([[[3.0, -1.0]]], dtype=torch.float64)
    cav = InputCAV(lambda z: F.relu(z).mean(2), rules={F.relu: rules.MeanSlopeRule()}, normalize=None)
    found, delta = cav.attribute(z, 0, return_convergence_delta=True)
    assert found.tolist() == [[[0.75, -0.25]]]
    assert delta.tolist() == [0.0]


@pytest.mark.parametrize(
    "behind",
    [
        lambda y: F.max_pool2d(y, 4),
        lambda y: F.avg_pool2d(y, 2),
        lambda y: F.adaptive_avg_pool2d(y, 2),
        lambda y: F.avg_pool2d(y, 3, stride=1, padding=1),
        lambda y: y.flatten(1),
        lambda y: F.avg_pool2d(y, 4, stride=1, padding=2),
    ],
    ids=[
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "avg_pool2d, same size",
        "flatten",
        "windows in the padding",
    ],
)
def test_without_global_average_pooling_the_default_rule_is_used(behind: Function) -> None:
    z = fixed(2, 3, 4, 4)
    score = summed(lambda z: behind(F.gelu(z)))
    with_rule = InputCAV(score, rules={F.gelu: rules.MeanSlopeRule()}, normalize=None).attribute(z)
    assert torch.equal(with_rule, InputCAV(score, normalize=None).attribute(z))


class Pooled(nn.Module):
    """Two convolutions, the second of them pooled, and a linear head."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.last = nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU(inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.last(self.relu(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("inplace", [False, True])
def test_at_the_pre_activation_the_mean_slope_is_grad_cam_without_its_relu(inplace: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, plain = Pooled(inplace).double(), Pooled(False).double()
        plain.load_state_dict(net.state_dict())
    x = fixed(3, 2, 9, 9)
    for target in range(3):
        maps = LayerCAV(net, "last", rules={nn.ReLU: rules.MeanSlopeRule()}, normalize="abs").attribute(
            x, target, attr_dim_summation=True
        )
        grad_cam = LayerGradCam(plain, plain.last).attribute(x, target, relu_attributions=False).detach()
        assert (grad_cam < 0).any()
        factors = (maps.flatten(1) * grad_cam.flatten(1)).sum(1) / grad_cam.flatten(1).square().sum(1)
        assert (factors > 0).all()
        assert (maps - factors.reshape(-1, 1, 1, 1) * grad_cam).abs().max() < TOLERANCE * largest(maps)
        torch.testing.assert_close(factors, 1 / net(x)[:, target].detach().abs())
        before = LayerCAV(net, "relu", rules={"*": rules.MeanSlopeRule()}, normalize="abs", call=-1).attribute(
            x, target, attribute_to_layer_input=True, attr_dim_summation=True
        )
        torch.testing.assert_close(before, maps)


def test_the_form_of_an_activation_does_not_pass_its_pooling() -> None:
    """The number behind the mean belongs to no activation."""
    z = torch.tensor([[[3.0, -1.0]]])
    found = InputCAV(lambda z: F.softplus(z).mean(2) + 1, rules="pinpoint", normalize=None).attribute(z, 0)
    torch.testing.assert_close(found.sum(), (z * (F.softplus(z) / z).mean() / 2).sum())
