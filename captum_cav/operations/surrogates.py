"""Values with a backward pass of their own: what the surrogates of all operations are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from captum_cav.torch_internals import OwnFunction

#: Gives the coefficients of the inputs for the coefficients of the value.
Backward: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor | None, ...]]
Value: TypeAlias = torch.Tensor | Callable[[], torch.Tensor]


class _WithBackward(OwnFunction):
    @staticmethod
    def forward(ctx: Any, value: Value, backward: Backward, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.of_inputs = backward
        return value.detach() if isinstance(value, torch.Tensor) else value()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.of_inputs(coefficients)


def with_backward(value: Value, backward: Backward, *inputs: torch.Tensor) -> torch.Tensor:
    """A value whose backward pass is a function.

    Args:
        value: the value, without a graph; or a function that computes the value, and runs without a graph.
        backward: gives one coefficient tensor, or None, for each input. The graph keeps this function and all that the
            function holds. So the function must hold no tensor with a graph, and no large tensor that it could work
            out itself.
        inputs: the tensors to which the coefficients go.

    Example::

        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> y = with_backward(x.detach() ** 2, lambda coefficients: (3 * coefficients,), x)
        >>> torch.autograd.grad(y, x)
        (tensor([3.]),)
    """
    output: torch.Tensor = _WithBackward.apply(value, backward, *inputs)
    return output


def scaled(value: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """The value unchanged, its coefficients times a number, or times fixed numbers that broadcast."""
    return with_backward(value.detach(), lambda coefficients: (coefficients * factor,), value)


def with_late_slope(x: torch.Tensor, value: torch.Tensor, slope: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A value whose coefficients reach ``x`` times a slope that only the backward pass works out.

    So the forward pass keeps no tensor for the slope. The slope of what only weighs is never worked out, because the
    backward pass does not reach it.

    Args:
        x: the input.
        value: the value.
        slope: gives a fresh tensor.
    """

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        found = slope()
        # Memory is dear: a fresh tensor costs as much as two passes over a tensor.
        return (coefficients * found if torch.is_grad_enabled() else found.mul_(coefficients),)

    return with_backward(value, backward, x)


class _Sloped(OwnFunction):
    """The slopes are saved as autograd saves tensors, so that the backward pass frees them one after the other."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, slopes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*slopes)
        ctx.shapes = [x.shape for x in inputs]
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        return None, None, *((coefficients * slope).sum_to_size(shape) for slope, shape in found)


def with_slopes(value: torch.Tensor, inputs: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """A value whose coefficients reach several inputs, each times its slope. The inputs broadcast to the value."""
    output: torch.Tensor = _Sloped.apply(value, slopes, *inputs)
    return output


class _WrittenOver(OwnFunction):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slope,) = ctx.saved_tensors
        return coefficients * slope, None


def written_over(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A tensor over which an operation wrote its value. Its coefficients reach the tensor before, times a slope."""
    output: torch.Tensor = _WrittenOver.apply(x, slope)
    return output
