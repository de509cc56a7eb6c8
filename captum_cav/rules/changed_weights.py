"""Weights and inputs that are changed by their sign, from which rules compute sums of positive or absolute summands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.torch_internals import OwnFunction, is_batched


class _Absolute(OwnFunction):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.abs()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        signs: torch.Tensor = x.detach().sgn()
        # In place, because a fresh tensor costs as much as two passes over a tensor.
        if torch.is_grad_enabled() or is_batched(gradient):
            return gradient * signs
        return signs.mul_(gradient)


class SignedWeights(NamedTuple):
    """Changes weights ``w`` by their sign.

    Let ``w'`` be the weights of one sign, with 0 in the place of the others. The changed weights are ``w'``, or
    ``w + factor * w'`` if ``keeps_all``.
    """

    keeps_all: bool
    factor: float

    def apply(self, weight: torch.Tensor, of_positive: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """The changed weights. They are written into ``out`` if that is a tensor."""
        changed = torch.clamp(weight, min=0, out=out) if of_positive else torch.clamp(weight, max=0, out=out)
        return torch.add(weight, changed, alpha=self.factor, out=changed) if self.keeps_all else changed


class AbsoluteWeights:
    """Changes weights to their absolute values."""

    def apply(self, weight: torch.Tensor, of_positive: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """The changed weights. They are written into ``out`` if that is a tensor."""
        return torch.abs(weight, out=out)


# A changed copy of a large weight would cost more than the product with that weight.
_WEIGHTS_AT_ONCE = 1 << 20


class _ChangedLinear(OwnFunction):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        change: SignedWeights | AbsoluteWeights,
        of_positive: bool,
    ) -> torch.Tensor:
        ctx.weights = weight, change, of_positive
        return torch.cat([F.linear(x, rows) for rows in _changed_rows(*ctx.weights)], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        start, total = 0, torch.zeros((), dtype=gradient.dtype, device=gradient.device)
        for rows in _changed_rows(*ctx.weights):
            total = total + gradient[..., start : start + len(rows)] @ rows
            start += len(rows)
        return total, None, None, None


def absolute(x: torch.Tensor) -> torch.Tensor:
    """The absolute value. In the backward pass, torch's own function would make one more fresh tensor."""
    absolute: torch.Tensor = _Absolute.apply(x)
    return absolute


def is_large(weight: torch.Tensor) -> bool:
    """Whether a changed copy of a weight would cost more than :func:`changed_linear`."""
    return weight.numel() > _WEIGHTS_AT_ONCE and not weight.is_cuda


def changed_linear(
    x: torch.Tensor, weight: torch.Tensor, change: SignedWeights | AbsoluteWeights, of_positive: bool
) -> torch.Tensor:
    """A linear layer with changed weights. Only some rows of the weight are changed at a time.

    Args:
        x: the input, shape (..., inputs).
        weight: shape (outputs, inputs).
        change: changes the weight.
        of_positive: whether the weights above 0 are changed, or those below 0.
    """
    sums: torch.Tensor = _ChangedLinear.apply(x, weight, change, of_positive)
    return sums


def _changed_rows(
    weight: torch.Tensor, change: SignedWeights | AbsoluteWeights, of_positive: bool
) -> Iterator[torch.Tensor]:
    """The changed rows of a weight, some at a time. Unless autograd records them, all use the same memory."""
    count = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
    memory = None if torch.is_grad_enabled() else weight.new_empty(count, weight.shape[1])
    for rows in torch.split(weight, count):
        yield change.apply(rows, of_positive, None if memory is None else memory[: len(rows)])
