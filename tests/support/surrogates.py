"""Contributions of a function against the same function written out by hand.

Written out by hand means: input x gradient of the same function, in float64, in which everything that the rule holds
constant is detached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from tests.support.tensors import largest

Function = Callable[..., torch.Tensor]


#: A contribution may differ from its formula by this much of the largest.
TOLERANCE = 1e-10


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


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3 * largest(one))


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
