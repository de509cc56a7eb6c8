"""The rules of activations, pooling, norms, products, sums and attention against their formulas written out.

By hand means here: loops over windows and positions, or input x gradient of the same function with what the rule holds
constant detached, in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import CAVTypeError, ModelError, OptionError, TargetError
from tests.support.networks import fixed

Function = Callable[..., torch.Tensor]
#: A contribution may differ from its formula by this much of the largest.
TOLERANCE = 1e-10


pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(surrogate: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Input x gradient of the sum of what a function returns; 0 for inputs that it holds constant."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(surrogate(*leaves).sum(), leaves, allow_unused=True)
    return tuple(
        torch.zeros_like(x) if gradient is None else x * gradient for x, gradient in zip(inputs, gradients, strict=True)
    )


def summed(function: Function) -> Function:
    """A sum for each sample, with weights of its own so that no two outputs count alike."""

    def score(*inputs: torch.Tensor) -> torch.Tensor:
        y = function(*inputs).flatten(1)
        return (y * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)).sum(1)

    return score


def value_under_rules(function: Function, chosen: dict[Any, Any], *inputs: torch.Tensor) -> torch.Tensor:
    """What a function returns while its rules are at work: what a last layer that hands it on gives to the score."""
    firsts, last = [nn.Identity() for _ in inputs], nn.Identity()

    def score(*inputs: torch.Tensor) -> torch.Tensor:
        return last(function(*(first(x) for first, x in zip(firsts, inputs, strict=True)))).flatten(1).sum(1)

    cav = LayerCAV(score, [*firsts, last], rules=chosen, normalize=None)
    return cav.attribute(inputs, grad_kwargs={"materialize_grads": True})[-1]


def check(function: Function, surrogate: Function, chosen: dict[Any, Any], *inputs: torch.Tensor) -> torch.Tensor:
    """Under its rules, a function has its value, and its inputs the contributions of one written out by hand.

    Returns:
        What of each sample's score neither they nor the constants explain.
    """
    value = function(*inputs)
    torch.testing.assert_close(surrogate(*inputs), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value_under_rules(function, chosen, *inputs), value, rtol=1e-12, atol=1e-14)
    expected = by_hand(summed(surrogate), *inputs)
    cav = InputCAV(summed(function), rules=chosen, normalize=None)
    found, delta = cav.attribute(inputs, return_convergence_delta=True)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < TOLERANCE * max(map(largest, expected))
    return delta


def conserved(function: Function, surrogate: Function, chosen: dict[Any, Any], *inputs: torch.Tensor) -> None:
    """:func:`check`, and contributions and the constants' shares add up to the score."""
    delta = check(function, surrogate, chosen, *inputs)
    assert (delta.abs() < TOLERANCE * (1 + summed(function)(*inputs).abs())).all()


def largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max())


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3 * largest(one))


# Pass-through ------------------------------------------------------------------------------------------------------


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
def test_pass_through_hands_on_what_a_unit_that_is_off_was_given(key: Any, inplace: bool) -> None:
    """Behind it, the flat rule gives 1 of 4 of each output to every unit, on or off."""
    x = torch.tensor([[1.0, -2.0, 3.0, -0.5]], dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), nn.ReLU(inplace), nn.Linear(4, 1, bias=False)).double()
    score = net(x.clone()).item()
    flat = {nn.Linear: rules.FlatRule()}
    found = LayerCAV(net, "0", rules={**flat, key: rules.PassThroughRule()}, normalize=None).attribute(x, 0)
    torch.testing.assert_close(found, torch.full_like(x, score / 4), rtol=1e-9, atol=0)
    default = LayerCAV(net, "0", rules=flat, normalize=None).attribute(x, 0)
    torch.testing.assert_close(default, (x > 0) * found, rtol=1e-9, atol=0)


def test_pass_through_at_zero_gives_the_constants_what_has_no_limit() -> None:
    """sigmoid(0) = 1/2 did not come from the 0; tanh(0) = 0 did not come from anywhere."""
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    for function, constant in ((torch.sigmoid, 0.5), (torch.cos, 1.0), (torch.tanh, 0.0)):
        cav = InputCAV(lambda x, f=function: f(x).sum(1), rules={function: rules.PassThroughRule()}, normalize=None)
        found, delta = cav.attribute(x, return_convergence_delta=True)
        torch.testing.assert_close(found, torch.stack([torch.zeros(1), function(x[:, 1])], 1).double())
        assert delta.abs() < 1e-12
        assert function(x).sum() - found.sum() == pytest.approx(constant)


def test_a_sum_that_cancels_before_an_activation_without_a_limit_has_nothing_to_hand_on() -> None:
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


# Mean slope --------------------------------------------------------------------------------------------------------

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


def test_the_mean_slope_has_what_the_positions_carry_less_as_a_constant() -> None:
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
        lambda y: (y * 2).mean((2, 3)),
        lambda y: y.mean((0, 2, 3), keepdim=True).expand(2, 3, 1, 1),
    ],
    ids=[
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "avg_pool2d, same size",
        "flatten",
        "windows in the padding",
        "something between",
        "samples, too",
    ],
)
def test_where_no_global_average_pooling_follows_the_default_stands(behind: Function) -> None:
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


# Pooling -----------------------------------------------------------------------------------------------------------


def windows(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool
) -> list[list[tuple[int, ...]]]:
    """The places of each window of a pooling, those in the padding left out, as torch lays them out."""
    by_dimension = []
    for size, k, s, p in zip(sizes, kernel, stride, padding, strict=True):
        room = size + 2 * p - k
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= size + p:  # a window must start inside the input or its left padding
            count -= 1
        starts = [number * s - p for number in range(count)]
        by_dimension.append([[i for i in range(start, start + k) if 0 <= i < size] for start in starts])
    return [list(itertools.product(*ranges)) for ranges in itertools.product(*by_dimension)]


def adaptive_windows(sizes: Sequence[int], outputs: Sequence[int]) -> list[list[tuple[int, ...]]]:
    by_dimension = [
        [list(range(k * size // count, -(-(k + 1) * size // count))) for k in range(count)]
        for size, count in zip(sizes, outputs, strict=True)
    ]
    return [list(itertools.product(*ranges)) for ranges in itertools.product(*by_dimension)]


def pooled_by_hand(
    x: torch.Tensor, places: list[list[tuple[int, ...]]], r: torch.Tensor, share: Callable[[list[float]], list[float]]
) -> torch.Tensor:
    """Each window's contribution shared out to its values."""
    found = torch.zeros_like(x)
    r = r.flatten(2)
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for j, window in enumerate(places):
            values = [float(x[n, c][place]) for place in window]
            for place, part in zip(window, share(values), strict=True):
                found[n, c][place] += part * r[n, c, j]
    return found


def proportional(values: list[float]) -> list[float]:
    total = sum(values)
    return [0.0 if total == 0 else value / total for value in values]


def uniform(values: list[float]) -> list[float]:
    return [1 / len(values)] * len(values)


SHARING = {"proportional": rules.ProportionalPoolingRule(), "uniform": rules.UniformPoolingRule()}
SIZES = {1: (9,), 2: (7, 6), 3: (5, 4, 4)}
# Kernel, stride, padding, whether sizes are rounded up.
PLANS: dict[str, tuple[int, int | None, int, bool]] = {
    "kernel": (2, None, 0, False),
    "kernel 3": (3, None, 0, False),
    "overlap": (3, 1, 0, False),
    "gaps": (2, 3, 0, False),
    "padding": (3, 2, 1, False),
    "ceil": (2, 2, 0, True),
    "ceil, padding": (3, 2, 1, True),
    "ceil, gaps": (2, 3, 1, True),
}


def pictures(dims: int, seed: int = 5) -> torch.Tensor:
    """As behind a ReLU: half of the values are 0, some windows have nothing else."""
    x = fixed(2, 2, *SIZES[dims], seed=seed).clamp(min=0)
    x[:, 0, ..., :2] = 0
    return x


def check_pooling(pool: Function, places: list[list[tuple[int, ...]]], kind: str, key: Any, x: torch.Tensor) -> None:
    """At the input, with a weight for each output of its own."""
    y = pool(x)
    assert y[0, 0].numel() == len(places)
    assert any(len(window) > 1 for window in places)
    weight = fixed(*y.shape[1:], seed=6)
    expected = pooled_by_hand(x, places, weight * y, {"proportional": proportional, "uniform": uniform}[kind])
    score = lambda x: (pool(x) * weight).flatten(1).sum(1)  # noqa: E731
    torch.testing.assert_close(score(x), expected.flatten(1).sum(1))
    cav = InputCAV(score, rules={key: SHARING[kind]}, normalize=None)
    found, delta = cav.attribute(x, return_convergence_delta=True)
    assert (found - expected).abs().max() < TOLERANCE * largest(expected)
    assert delta.abs().max() < 1e-12
    assert differs(expected, InputCAV(score, normalize=None).attribute(x))


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("plan", PLANS)
def test_windows_of_a_max_pooling_share(plan: str, dims: int, kind: str) -> None:
    kernel, stride, padding, ceil = PLANS[plan]
    pool = getattr(nn, f"MaxPool{dims}d")(kernel, stride, padding, ceil_mode=ceil)
    places = windows(SIZES[dims], [kernel] * dims, [stride or kernel] * dims, [padding] * dims, ceil)
    check_pooling(pool, places, kind, getattr(F, f"max_pool{dims}d"), pictures(dims))


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize(("dims", "outputs"), [(1, (4,)), (2, (3, 4)), (2, (1, 1)), (3, (2, 3, 1))])
def test_windows_of_an_adaptive_max_pooling_share(dims: int, outputs: tuple[int, ...], kind: str) -> None:
    pool = getattr(nn, f"AdaptiveMaxPool{dims}d")(outputs)
    places = adaptive_windows(SIZES[dims], outputs)
    check_pooling(pool, places, kind, getattr(F, f"adaptive_max_pool{dims}d"), pictures(dims))


@pytest.mark.parametrize("kind", SHARING)
def test_windows_with_sides_of_their_own_and_arguments_by_name(kind: str) -> None:
    places = windows(SIZES[2], (2, 3), (3, 1), (1, 0), False)
    pool = lambda x: F.max_pool2d(x, kernel_size=(2, 3), stride=(3, 1), padding=(1, 0))  # noqa: E731
    check_pooling(pool, places, kind, torch.max_pool2d, pictures(2))


@pytest.mark.parametrize("kind", SHARING)
def test_values_of_both_signs_share_as_the_formula_says(kind: str) -> None:
    x = fixed(2, 2, *SIZES[2], seed=8)
    places = windows(SIZES[2], (3, 3), (2, 2), (1, 1), False)
    net = nn.MaxPool2d(3, 2, 1)
    y = net(x)
    expected = pooled_by_hand(x, places, y, {"proportional": proportional, "uniform": uniform}[kind])
    found = InputCAV(lambda x: net(x).flatten(1).sum(1), rules={nn.MaxPool2d: SHARING[kind]}, normalize=None)
    assert (found.attribute(x) - expected).abs().max() < 1e-9 * largest(expected)


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("adaptive", [False, True])
def test_indices_that_a_pooling_returns_are_the_winners(kind: str, adaptive: bool) -> None:
    x = pictures(2)
    pool = nn.AdaptiveMaxPool2d((3, 4), True) if adaptive else nn.MaxPool2d(2, return_indices=True)
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, indices = self.pool(x)
            seen.append(indices)
            return y.flatten(1).sum(1)

    places = adaptive_windows(SIZES[2], (3, 4)) if adaptive else windows(SIZES[2], (2, 2), (2, 2), (0, 0), False)
    share = {"proportional": proportional, "uniform": uniform}[kind]
    found = InputCAV(Net(), rules={"pool": SHARING[kind]}, normalize=None).attribute(x)
    y, indices = pool(x)
    torch.testing.assert_close(found, pooled_by_hand(x, places, y, share))
    assert torch.equal(seen[0], indices)


@pytest.mark.parametrize("rule", SHARING.values(), ids=SHARING)
def test_windows_with_holes_are_refused(rule: rules.Rule) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, dilation=2)).double()
    cav = LayerCAV(net, "0", rules={"1": rule})
    with pytest.raises(OptionError, match=r"max_pool2d in module '1' \(MaxPool2d\) has dilation 2, over which no win"):
        cav.attribute(pictures(2), (0, 0, 0))
    one = nn.MaxPool2d(2, dilation=1)
    InputCAV(one, rules={nn.MaxPool2d: rule}, normalize=None).attribute(pictures(2), (0, 0, 0))


def test_the_winner_takes_all_is_the_default() -> None:
    x = pictures(2)
    score = summed(nn.MaxPool2d(3, 2, 1))
    found = InputCAV(score, rules={F.max_pool2d: rules.WinnerTakeAllRule()}, normalize=None).attribute(x)
    assert torch.equal(found, InputCAV(score, normalize=None).attribute(x))
    assert torch.equal(found, by_hand(score, x)[0])


# Norms -------------------------------------------------------------------------------------------------------------

WEIGHT, SHIFT = fixed(4, seed=11).abs() + 0.5, fixed(4, seed=12)
MEAN, VARIANCE = fixed(4, seed=13), fixed(4, seed=14).abs() + 0.5
WIDE, WIDE_SHIFT = fixed(6, seed=15), fixed(6, seed=16)


def standardised(x: torch.Tensor, dims: Any, eps: float = 1e-5) -> torch.Tensor:
    """The mean is linear, the deviation a constant."""
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()


def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    return standardised(x.reshape(len(x), groups, -1), -1).reshape(x.shape)


NORMS: dict[str, tuple[Any, Function, Function]] = {
    "layer_norm": (
        F.layer_norm,
        lambda x: F.layer_norm(x, (6,), WIDE, WIDE_SHIFT),
        lambda x: standardised(x, -1) * WIDE + WIDE_SHIFT,
    ),
    "rms_norm": (
        F.rms_norm,
        lambda x: F.rms_norm(x, (6,), WIDE, 1e-4),
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt().detach() * WIDE,
    ),
    "group_norm": (
        F.group_norm,
        lambda x: F.group_norm(x, 2, WEIGHT, SHIFT),
        lambda x: grouped(x, 2) * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "instance_norm": (
        F.instance_norm,
        lambda x: F.instance_norm(x, weight=WEIGHT, bias=SHIFT),
        lambda x: grouped(x, 4) * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "batch_norm": (
        F.batch_norm,
        lambda x: F.batch_norm(x, MEAN, VARIANCE, WEIGHT, SHIFT),
        lambda x: (x - MEAN[:, None]) / (VARIANCE[:, None] + 1e-5).sqrt() * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "local_response_norm": (
        F.local_response_norm,
        lambda x: F.local_response_norm(x, 3),
        lambda x: x * (F.local_response_norm(x, 3) / x).detach(),
    ),
    "normalize": (
        F.normalize,
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norms_statistic_is_a_constant(name: str) -> None:
    key, function, surrogate = NORMS[name]
    x = fixed(2, 4, 6)
    conserved(function, surrogate, {key: rules.NormRule("constant")}, x)
    conserved(function, surrogate, {}, x)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_as_the_identity_hands_everything_to_its_own_input(name: str) -> None:
    """R_i = R_j: the shift goes to the input, too, and nothing is left for constants."""
    key, function, _ = NORMS[name]
    x = fixed(2, 4, 6)
    conserved(function, lambda x: x * (function(x) / x).detach(), {key: rules.NormRule("identity")}, x)
    score = summed(function)
    identity = InputCAV(score, rules={key: rules.NormRule("identity")}, normalize=None).attribute(x)
    torch.testing.assert_close(identity.flatten(1).sum(1), score(x))
    default = InputCAV(score, normalize=None).attribute(x)
    # Proposition 3.4: where only a statistic divides, and nothing is taken off or added, the two are one.
    is_one = name in ("rms_norm", "local_response_norm", "normalize")
    assert (identity - default).abs().max() < TOLERANCE * largest(default) if is_one else differs(identity, default)


def test_a_norm_rule_is_for_norms_inside_a_module_only() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = fixed(2, 6)
    everywhere = InputCAV(net, rules={net: rules.NormRule("identity")}, normalize=None).attribute(x, 1)
    there = InputCAV(net, rules={"1": rules.NormRule("identity")}, normalize=None).attribute(x, 1)
    assert torch.equal(everywhere, there)
    assert differs(there, InputCAV(net, normalize=None).attribute(x, 1))


# Products ----------------------------------------------------------------------------------------------------------


def gated(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a, torch.sigmoid(b)


def through(x: torch.Tensor) -> torch.Tensor:
    """sigmoid, passing on."""
    return x * (torch.sigmoid(x) / x).detach()


def by_size(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """R_a = |a| / (|a| + |b|) R, and the same for b."""
    with torch.no_grad():
        of_a = a.abs() / (a.abs() + b.abs())
        y = a * b
    return a * (y * of_a / a).detach() + b * (y * (1 - of_a) / b).detach()


SHARES: dict[str, Callable[[torch.Tensor, torch.Tensor, Function], torch.Tensor]] = {
    "halves": lambda a, b, times: (times(a, b.detach()) + times(a.detach(), b)) / 2,
    "first": lambda a, b, times: times(a, b.detach()),
    "second": lambda a, b, times: times(a.detach(), b),
    "magnitude": lambda a, b, times: by_size(a, b),
}
PRODUCTS: dict[str, tuple[Any, Function]] = {
    "mul": (torch.mul, lambda a, b: a * b),
    "mul by name": (torch.mul, lambda a, b: torch.mul(input=a, other=b)),
    "mul_": (torch.Tensor.mul_, lambda a, b: (a * 1.0).mul_(b)),
    "*=": (torch.multiply, lambda a, b: a.clone().__imul__(b)),
    "matmul": (torch.matmul, lambda a, b: a @ b.transpose(-1, -2)),
    "bmm": (torch.bmm, lambda a, b: torch.bmm(a, b.transpose(1, 2))),
    "einsum": (torch.einsum, lambda a, b: torch.einsum("nij,nkj->nik", a, b)),
}


@pytest.mark.parametrize("share", [share for share in SHARES if share != "magnitude"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_two_signals(name: str, share: str) -> None:
    key, times = PRODUCTS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    conserved(times, lambda a, b: SHARES[share](a, b, times), {key: rules.ProductRule(share)}, a, b)


@pytest.mark.parametrize("name", ["mul", "mul by name", "mul_", "*="])
def test_a_product_by_magnitude(name: str) -> None:
    key, times = PRODUCTS[name]
    conserved(times, by_size, {key: rules.ProductRule("magnitude")}, fixed(2, 3, 4), fixed(2, 3, 4, seed=2))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 1))], ids=str)
def test_factors_of_a_product_broadcast(share: str, shapes: Any) -> None:
    a, b = fixed(*shapes[0]), fixed(*shapes[1], seed=2)
    surrogate = lambda a, b: SHARES[share](*torch.broadcast_tensors(a, b), torch.mul)  # noqa: E731
    conserved(torch.mul, surrogate, {torch.mul: rules.ProductRule(share)}, a, b)


@pytest.mark.parametrize("name", ["mul", "mul_", "matmul", "einsum"])
def test_gates_are_constants_by_default_and_halves_only_on_demand(name: str) -> None:
    key, times = PRODUCTS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    with_gate = lambda a, b: times(*gated(a, b))  # noqa: E731
    weighed = lambda a, b: times(a, torch.sigmoid(b).detach())  # noqa: E731
    conserved(with_gate, weighed, {key: rules.ProductRule("gates")}, a, b)
    conserved(with_gate, weighed, {}, a, b)
    halved = lambda a, b: SHARES["halves"](a, through(b), times)  # noqa: E731
    conserved(with_gate, halved, {key: rules.ProductRule("halves")}, a, b)


def test_a_zero_factor_gives_nothing_by_magnitude_and_breaks_nothing() -> None:
    a, b = torch.tensor([[0.0, 0.0, 2.0]]).double(), torch.tensor([[3.0, 0.0, 1.0]]).double()
    cav = InputCAV(lambda a, b: (a * b).sum(1), rules={torch.mul: rules.ProductRule("magnitude")}, normalize=None)
    of_a, of_b = cav.attribute((a, b))
    torch.testing.assert_close(of_a, torch.tensor([[0, 0, 4 / 3]]).double())
    torch.testing.assert_close(of_b, torch.tensor([[0, 0, 2 / 3]]).double())


def test_magnitudes_are_for_elementwise_products() -> None:
    cav = InputCAV(lambda a, b: (a @ b.T).sum(1), rules={torch.matmul: rules.ProductRule("magnitude")})
    with pytest.raises(OptionError, match=r"ProductRule\(share='magnitude'\) is for elementwise products; 'matmul' is"):
        cav.attribute((fixed(2, 3), fixed(2, 3)))


@pytest.mark.parametrize("share", ["gates", "halves", "first", "second", "magnitude"])
def test_a_product_with_a_constant_is_no_products_rules_affair(share: str) -> None:
    x, factor = fixed(2, 3), fixed(3, seed=2)
    found = InputCAV(lambda x: (x * factor).sum(1), rules={torch.mul: rules.ProductRule(share)}, normalize=None)
    torch.testing.assert_close(found.attribute(x), x * factor)


@pytest.mark.parametrize("share", ["gates", "halves", "first", "second", "magnitude"])
def test_a_square_written_as_a_product_keeps_its_contributions(share: str) -> None:
    x = fixed(2, 3)
    found = InputCAV(lambda x: (x * x).sum(1), rules={torch.mul: rules.ProductRule(share)}, normalize=None).attribute(x)
    torch.testing.assert_close(found, x * x)


@pytest.mark.parametrize("share", ["first", "second"])
def test_what_is_held_constant_passes_nothing_on(share: str) -> None:
    """Only the signal's branch carries; a layer in the other has nothing to do with the score."""
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}).double()
    chosen = {torch.mul: rules.ProductRule(share)}
    signal, weight = ("a", "b") if share == "first" else ("b", "a")
    x = fixed(2, 3)

    def score(x: torch.Tensor) -> torch.Tensor:
        return (net["a"](x) * net["b"](x)).sum(1)

    found = LayerCAV(score, net[signal], rules=chosen, normalize=None).attribute(x)
    torch.testing.assert_close(found, (net["a"](x) * net["b"](x)).detach())
    with pytest.raises(ModelError, match="the score does not depend on layer Linear"):
        LayerCAV(score, net[weight], rules=chosen, normalize=None).attribute(x)


# Sums --------------------------------------------------------------------------------------------------------------

NUMBER = 0.7
SUMS: dict[str, tuple[Any, Function, tuple[float, float]]] = {
    "add": (torch.add, lambda a, b: a + b, (1, 1)),
    "add, alpha": (torch.add, lambda a, b: torch.add(a, b, alpha=-3), (1, -3)),
    "add_": (torch.add, lambda a, b: (a * 1.0).add_(b, alpha=2), (1, 2)),
    "+=": (torch.Tensor.add, lambda a, b: a.clone().__iadd__(b), (1, 1)),
    "sub": (torch.sub, lambda a, b: a - b, (1, -1)),
    "sub, alpha": (torch.subtract, lambda a, b: torch.sub(a, b, alpha=0.5), (1, -0.5)),
    "sub_": (torch.sub, lambda a, b: (a * 1.0).sub_(b), (1, -1)),
    "rsub": (torch.rsub, lambda a, b: torch.rsub(a, b, alpha=2), (-2, 1)),
    "by name": (torch.add, lambda a, b: torch.add(input=a, other=b), (1, 1)),
}


def by_magnitude(a: torch.Tensor, b: torch.Tensor, factors: tuple[float, float]) -> torch.Tensor:
    """R_a = |a'| / (|a'| + |b'|) R, with a' and b' the summands; the sum itself is R."""
    with torch.no_grad():
        of_a, of_b = factors[0] * a, factors[1] * b
        total, size = of_a + of_b, of_a.abs() + of_b.abs()
        slopes = total * of_a.abs() / size / a, total * of_b.abs() / size / b
    return a * slopes[0] + b * slopes[1]


@pytest.mark.parametrize("name", SUMS)
def test_summands_share_by_their_magnitude(name: str) -> None:
    key, plus, factors = SUMS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    conserved(plus, lambda a, b: by_magnitude(a, b, factors), {key: rules.AdditionRule("magnitude")}, a, b)
    signed = lambda a, b: factors[0] * a + factors[1] * b  # noqa: E731
    conserved(plus, signed, {key: rules.AdditionRule("signed")}, a, b)
    conserved(plus, signed, {}, a, b)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 1)), ((2, 1, 1), (2, 3, 4))], ids=str)
def test_summands_broadcast(shapes: Any) -> None:
    a, b = fixed(*shapes[0]), fixed(*shapes[1], seed=2)
    surrogate = lambda a, b: by_magnitude(*torch.broadcast_tensors(a, b), (1, -1))  # noqa: E731
    conserved(torch.sub, surrogate, {torch.sub: rules.AdditionRule("magnitude")}, a, b)


CONSTANT = fixed(3, 4, seed=3)
WITH_CONSTANTS: dict[str, tuple[Function, Any, tuple[float, float]]] = {
    "x + c": (lambda x: x + CONSTANT, CONSTANT, (1, 1)),
    "c + x": (lambda x: CONSTANT + x, CONSTANT, (1, 1)),
    "c - x": (lambda x: CONSTANT - x, CONSTANT, (-1, 1)),
    "x - c, alpha": (lambda x: torch.sub(x, CONSTANT, alpha=2), CONSTANT, (1, -2)),
    "x += c": (lambda x: (x * 1.0).add_(CONSTANT), CONSTANT, (1, 1)),
    "x + 1": (lambda x: x + 1, 1, (1, 1)),
    "x + number": (lambda x: x + NUMBER, NUMBER, (1, 1)),
    "1 - x": (lambda x: 1 - x, 1, (-1, 1)),
    "number - x": (lambda x: NUMBER - x, NUMBER, (-1, 1)),
    "x - 1": (lambda x: x - 1, 1, (1, -1)),
    "x -= number": (lambda x: (x * 1.0).sub_(NUMBER), NUMBER, (1, -1)),
}
ALL_SUMS = dict.fromkeys((torch.add, torch.sub, torch.rsub), rules.AdditionRule("magnitude"))


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_a_constant_summand_has_its_share_in_the_account(name: str) -> None:
    plus, constant, factors = WITH_CONSTANTS[name]
    x = fixed(2, 3, 4)
    constant = torch.as_tensor(constant, dtype=torch.float64).expand(2, 3, 4)
    conserved(plus, lambda x: by_magnitude(x, constant, factors), ALL_SUMS, x)
    cav = InputCAV(summed(plus), rules=ALL_SUMS, normalize=None)
    assert differs(cav.attribute(x), InputCAV(summed(plus), normalize=None).attribute(x))


@pytest.mark.parametrize(
    "function",
    [lambda x: x + 0.3, lambda x: 0.3 - x, lambda x: x - 0.3, lambda x: (x * 1.0).add_(0.3)],
    ids=["add", "rsub", "sub", "add_"],
)
def test_a_number_keeps_all_its_digits(function: Function) -> None:
    x = fixed(2, 3)
    torch.testing.assert_close(value_under_rules(function, ALL_SUMS, x), function(x), rtol=1e-14, atol=1e-15)


def test_summands_that_cancel_or_are_zero_break_nothing() -> None:
    a, b = torch.tensor([[0.0, 2.0, 0.0, 1.0]]).double(), torch.tensor([[0.0, -2.0, 3.0, 3.0]]).double()
    cav = InputCAV(lambda a, b: (a + b).sum(1), rules=ALL_SUMS, normalize=None)
    of_a, of_b = cav.attribute((a, b))
    assert of_a.tolist() == [[0, 0, 0, 1]]
    assert of_b.tolist() == [[0, 0, 3, 3]]


def test_a_residual_connection_shares_by_magnitude_at_every_layer() -> None:
    net = nn.ModuleDict({"stem": nn.Linear(3, 4), "branch": nn.Linear(4, 4), "head": nn.Linear(4, 2)}).double()
    x = fixed(2, 3)

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = net["stem"](x)
        return net["head"](h + torch.tanh(net["branch"](h)))

    layers = [net["branch"], net["stem"]]
    found = LayerCAV(forward, layers, rules=ALL_SUMS, normalize=None).attribute(x, 1)
    h = net["stem"](x).detach()
    inner = net["branch"](h).detach()
    added = torch.tanh(inner)
    r = (h + added) * net["head"].weight[1].detach()
    of_branch, of_shortcut = (part.abs() / (h.abs() + added.abs()) * r for part in (added, h))
    torch.testing.assert_close(found[0], of_branch)
    coefficients = (of_branch / inner) @ net["branch"].weight.detach()
    torch.testing.assert_close(found[1], of_shortcut + h * coefficients)


# Attention ---------------------------------------------------------------------------------------------------------


def attention_by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None, carry: str
) -> torch.Tensor:
    """``softmax(q k^T s + mask) v``: for "all" every product halves, and softmax is differentiated."""
    halve = SHARES["halves"] if carry == "all" else lambda a, b, times: times(a, b)
    scores = halve(q, k.transpose(-2, -1), torch.matmul) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    weights = weights / weights.sum(-1, keepdim=True)
    return halve(weights, v, torch.matmul) if carry == "all" else weights.detach() @ v


Q, K, V = fixed(2, 4, 3, 5), fixed(2, 4, 6, 5, seed=2), fixed(2, 4, 6, 7, seed=3)
TRIANGLE = torch.ones(3, 6, dtype=torch.bool).tril()
BOOLEAN = (fixed(3, 6, seed=4) > 0) | TRIANGLE
ADDED = fixed(2, 1, 3, 6, seed=5)
ATTENTIONS: dict[str, tuple[dict[str, Any], torch.Tensor | None, float | None]] = {
    "plain": ({}, None, None),
    "scale": ({"scale": 0.9}, None, 0.9),
    "causal": ({"is_causal": True}, TRIANGLE, None),
    "boolean mask": ({"attn_mask": BOOLEAN}, BOOLEAN, None),
    "added mask": ({"attn_mask": ADDED}, ADDED, None),
}


@pytest.mark.parametrize("carry", ["values", "all"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_carries_by_the_formula(name: str, carry: str) -> None:
    options, mask, scale = ATTENTIONS[name]
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)  # noqa: E731
    surrogate = lambda q, k, v: attention_by_hand(q, k, v, mask, scale, carry)  # noqa: E731
    chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
    # The softmax keeps a part to itself where queries and keys carry.
    (conserved if carry == "values" else check)(attend, surrogate, chosen, Q, K, V)
    if carry == "values":
        conserved(attend, surrogate, {}, Q, K, V)


@pytest.mark.parametrize("carry", ["values", "all"])
def test_attention_of_grouped_queries(carry: str) -> None:
    k, v = K[:, :2], V[:, :2]
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
    surrogate = lambda q, k, v: attention_by_hand(  # noqa: E731
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), None, None, carry
    )
    chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
    (conserved if carry == "values" else check)(attend, surrogate, chosen, Q, k, v)


def test_self_attention_of_one_tensor_in_all_its_places() -> None:
    x = fixed(2, 4, 5)
    for carry in ("values", "all"):
        attend = lambda x: F.scaled_dot_product_attention(x, x, x)  # noqa: E731
        surrogate = lambda x, carry=carry: attention_by_hand(x, x, x, None, None, carry)  # noqa: E731
        chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
        (conserved if carry == "values" else check)(attend, surrogate, chosen, x)


@pytest.mark.parametrize("softmax", [F.softmax, torch.softmax, torch.Tensor.softmax], ids=["F", "torch", "Tensor"])
def test_attention_written_out_equals_attention_in_one(softmax: Function) -> None:
    def written(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return softmax(q @ k.transpose(-2, -1) / math.sqrt(5), -1) @ v

    for carry in ("values", "all"):
        share = "halves" if carry == "all" else "gates"
        chosen = {torch.softmax: rules.AttentionRule(carry), torch.matmul: rules.ProductRule(share)}
        surrogate = lambda q, k, v, carry=carry: attention_by_hand(q, k, v, None, None, carry)  # noqa: E731
        (conserved if carry == "values" else check)(written, surrogate, chosen, Q, K, V)


def test_the_softmax_passes_on_by_proposition_3_1() -> None:
    """R_i = x_i (R_i - s_i sum_j R_j), the R on the right those of the outputs."""
    x, weight = fixed(2, 4), fixed(4, seed=2)
    s = torch.softmax(x, 1)
    r = s * weight
    expected = x * (r - s * r.sum(1, keepdim=True))
    score = lambda x: (torch.softmax(x, 1) * weight).sum(1)  # noqa: E731
    found = InputCAV(score, rules={torch.softmax: rules.AttentionRule("all")}, normalize=None).attribute(x)
    torch.testing.assert_close(found, expected)


# Log-odds ----------------------------------------------------------------------------------------------------------

HEAD, BIAS = fixed(5, 4, seed=21), fixed(5, seed=22)


def linear_head(x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, HEAD, BIAS)


def log_odds(output: torch.Tensor, target: Sequence[int]) -> torch.Tensor:
    found = []
    for z, k in zip(output, target, strict=True):
        others = torch.cat([z[:k], z[k + 1 :]])
        found.append(z[k] - torch.log(others.exp().sum()))
    return torch.stack(found)


@pytest.mark.parametrize("target", [2, -1, (0,), [0, 4, 3], [(1,), (0,), (-2,)], torch.tensor([3, 3, 1])], ids=str)
def test_log_odds_weigh_the_other_classes_by_their_softmax(target: Any) -> None:
    x = fixed(3, 4)
    entries = target.tolist() if isinstance(target, torch.Tensor) else target
    entries = entries if isinstance(entries, list) else [entries] * 3
    indices = [(entry[0] if isinstance(entry, tuple) else entry) % 5 for entry in entries]
    expected = torch.zeros_like(x)
    for n, k in enumerate(indices):
        z = linear_head(x[n])
        others = [j for j in range(5) if j != k]
        for j in others:
            softmax = float(z[j].exp() / z[others].exp().sum())
            expected[n] -= softmax * x[n] * HEAD[j]
        expected[n] += x[n] * HEAD[k]
    cav = InputCAV(linear_head, score="log_odds", normalize=None)
    found, delta = cav.attribute(x, target, return_convergence_delta=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert delta.abs().max() < 1e-12  # the biases' share and the entropy of the others are accounted for
    score = log_odds(linear_head(x), indices)
    ratios, delta = InputCAV(linear_head, score="log_odds").attribute(x, target, return_convergence_delta=True)
    torch.testing.assert_close(ratios, expected / score[:, None], rtol=1e-12, atol=1e-13)
    assert delta.abs().max() < 1e-12
    by_size = InputCAV(linear_head, score="log_odds", normalize="abs").attribute(x, target)
    torch.testing.assert_close(by_size, expected / score[:, None].abs(), rtol=1e-12, atol=1e-13)


def test_log_odds_of_two_classes_are_their_difference() -> None:
    x = fixed(3, 4)
    score = lambda x: F.linear(x, HEAD[:2], BIAS[:2])  # noqa: E731
    found, delta = InputCAV(score, score="log_odds", normalize=None).attribute(x, 1, return_convergence_delta=True)
    torch.testing.assert_close(found, x * (HEAD[1] - HEAD[0]))
    assert delta.abs().max() < 1e-12


def test_log_odds_at_a_layer_of_a_network_and_for_many_targets() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x = fixed(3, 4)
    cav = LayerCAV(net, ["0", "1"], score="log_odds", normalize=None)
    h = net[1](net[0](x)).detach()
    for target, (maps, deltas) in zip(
        (0, [1, 2, 3]), cav.attribute_targets(x, [0, [1, 2, 3]], return_convergence_delta=True), strict=True
    ):
        leaf = h.clone().requires_grad_()
        indices = target if isinstance(target, list) else [target] * 3
        (gradient,) = torch.autograd.grad(log_odds(net[2](leaf), indices).sum(), leaf)
        for found, delta in zip(maps, deltas, strict=True):  # pass-through: the same before and behind the tanh
            torch.testing.assert_close(found, h * gradient)
            assert delta.abs().max() < 1e-12
        alone = cav.attribute(x, target)
        torch.testing.assert_close(alone, maps)


def test_classes_that_are_masked_out_do_not_count() -> None:
    x, mask = fixed(3, 4), torch.tensor([0, 0, -torch.inf, 0, -torch.inf]).double()
    score = lambda x: linear_head(x) + mask  # noqa: E731
    found, delta = InputCAV(score, score="log_odds", normalize=None).attribute(x, 1, return_convergence_delta=True)
    few = lambda x: linear_head(x)[:, [0, 1, 3]]  # noqa: E731
    torch.testing.assert_close(found, InputCAV(few, score="log_odds", normalize=None).attribute(x, 1))
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("score", "target", "shape"),
    [
        (lambda x: x.sum(1, keepdim=True), 0, r"\(3, 1\)"),
        (lambda x: x.sum(1, keepdim=True), None, r"\(3, 1\)"),
        (lambda x: x.sum(1), None, r"\(3,\)"),
        (lambda x: x.unsqueeze(1), (0, 2), r"\(3, 1, 4\)"),
        (lambda x: x.reshape(3, 2, 2), (1, 1), r"\(3, 2, 2\)"),
    ],
    ids=["one class", "one class, no target", "no classes", "tokens", "pixels"],
)
def test_log_odds_need_classes_to_compare(score: Function, target: Any, shape: str) -> None:
    for cav in (InputCAV(score, score="log_odds"), LayerCAV(score, nn.Identity(), score="log_odds")):
        if isinstance(cav, LayerCAV):
            cav = LayerCAV(lambda x, layer=cav.layer: score(layer(x)), cav.layer, score="log_odds")
        said = rf'score="log_odds" compares classes: expected .*\(N, classes\) with several classes, got {shape}; pass'
        with pytest.raises(TargetError, match=said):
            cav.attribute(fixed(3, 4), target)


def test_log_odds_need_a_target_and_a_score_that_is_known() -> None:
    with pytest.raises(TargetError, match="target is missing"):
        InputCAV(linear_head, score="log_odds").attribute(fixed(3, 4))
    for score in ("logits", None, "odds"):
        with pytest.raises(OptionError, match=rf'score is {score!r}; expected "output" or "log_odds"'):
            InputCAV(linear_head, score=score)
    with pytest.raises(TypeError, match="score"):
        NeuronCAV(nn.Linear(2, 2), "", score="log_odds")
    with pytest.raises(CAVTypeError, match="target is 'x'"):
        InputCAV(linear_head, score="log_odds").attribute(fixed(3, 4), "x")
