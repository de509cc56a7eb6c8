"""The rules of max pooling against loops over windows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.errors import OptionError
from tests.support.networks import fixed
from tests.support.surrogates import TOLERANCE, by_hand, differs, summed
from tests.support.tensors import largest

Function = Callable[..., torch.Tensor]


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
def test_windows_with_different_sides_and_arguments_by_name(kind: str) -> None:
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
    with pytest.raises(OptionError, match=r"max_pool2d in module '1' \(MaxPool2d\) has dilation 2, which this"):
        cav.attribute(pictures(2), (0, 0, 0))
    one = nn.MaxPool2d(2, dilation=1)
    InputCAV(one, rules={nn.MaxPool2d: rule}, normalize=None).attribute(pictures(2), (0, 0, 0))


def test_the_winner_takes_all_is_the_default() -> None:
    x = pictures(2)
    score = summed(nn.MaxPool2d(3, 2, 1))
    found = InputCAV(score, rules={F.max_pool2d: rules.WinnerTakeAllRule()}, normalize=None).attribute(x)
    assert torch.equal(found, InputCAV(score, normalize=None).attribute(x))
    assert torch.equal(found, by_hand(score, x)[0])
