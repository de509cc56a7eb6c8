"""Values with a given backward pass. The surrogates of all operations are built from these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from captum_cav.torch_internals import OwnFunction, is_batched, is_graph_kept, keeps_version

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
        value: the value, without a graph. Or a function that computes the value. It runs without a graph.
        backward: takes the coefficients of the value, and gives a tensor of coefficients, or None, for each input. The
            graph keeps this function and all tensors in it. So the function must contain no tensor with a graph, and no
            large tensor that it could compute in the backward pass.
        inputs: the tensors to which the coefficients go.

    Returns:
        The value, in the graph.

    Example::

        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> y = with_backward(x.detach() ** 2, lambda coefficients: (3 * coefficients,), x)
        >>> torch.autograd.grad(y, x)
        (tensor([3.]),)
    """
    output: torch.Tensor = _WithBackward.apply(value, backward, *inputs)
    return output


class _InPlace(OwnFunction):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, backward: Backward) -> torch.Tensor:
        ctx.of_input = backward
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (passed,) = ctx.of_input(coefficients)
        return passed, None


def in_place_with_backward(x: torch.Tensor, backward: Backward) -> torch.Tensor:
    """A tensor unchanged, as :func:`with_backward` gives it, but the same tensor. Nothing is copied.

    Args:
        x: the tensor, which autograd must have recorded.
        backward: takes the coefficients of the tensor, and gives those of the tensor before.
    """
    with keeps_version(x):  # Autograd may have saved the tensor, whose numbers stay.
        output: torch.Tensor = _InPlace.apply(x, backward)
    return output


def scaled(value: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """The value unchanged. Its coefficients are multiplied with a number, or with a fixed tensor that broadcasts."""
    return with_backward(value.detach(), lambda coefficients: (coefficients * factor,), value)


def standardised(
    x: torch.Tensor, value: Value, scale: torch.Tensor, weight: torch.Tensor | None, centred: tuple[int, ...]
) -> torch.Tensor:
    """A value ``(x - mean) * scale * weight``, with the scale as a constant.

    Args:
        x: the input.
        value: the value, as for :func:`with_backward`.
        scale: one number for all elements that have a common mean.
        weight: one factor for each element. None for no factors.
        centred: the dimensions over which the mean is taken. Empty for no mean.
    """

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        # All elements with a common mean have the same scale, so the scale may be applied after the mean.
        if weight is None or torch.is_grad_enabled():
            coefficients = coefficients if weight is None else coefficients * weight
            if centred:
                coefficients = coefficients - coefficients.mean(centred, keepdim=True)
            return (coefficients * scale,)
        # In place, because a fresh tensor costs as much as two passes over a tensor.
        coefficients = coefficients * weight
        if centred:
            coefficients -= coefficients.mean(centred, keepdim=True)
        return (coefficients.mul_(scale),)

    return with_backward(value, backward, x)


class _LateSlope(OwnFunction):
    """Every smooth activation passes here, so this class does without the calls that :class:`_WithBackward` makes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, slope: Callable[[], torch.Tensor]) -> torch.Tensor:
        ctx.slope = slope
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        slope = ctx.slope()
        # In place, because a fresh tensor costs as much as two passes over a tensor.
        if torch.is_grad_enabled() or is_batched(coefficients):
            return coefficients * slope, None, None
        return slope.mul_(coefficients), None, None


def with_late_slope(x: torch.Tensor, value: torch.Tensor, slope: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A value whose coefficients reach ``x`` times a slope. Only the backward pass computes the slope.

    So the forward pass stores no tensor for the slope. For a gate the slope is never computed, because the backward
    pass does not reach the gate.

    Args:
        x: the input.
        value: the value, without a graph.
        slope: computes the slope as a fresh tensor.
    """
    output: torch.Tensor = _LateSlope.apply(x, value, slope)
    return output


def _times_saved(coefficients: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Coefficients times a slope that the graph saved. The last backward pass overwrites the slope.

    A fresh tensor would cost as much as two passes over a tensor.
    """
    is_in_use = torch.is_grad_enabled() or is_batched(coefficients) or is_graph_kept()
    if is_in_use or coefficients.shape != slope.shape or coefficients.dtype != slope.dtype:
        return coefficients * slope
    return slope.mul_(coefficients)


class _Sloped(OwnFunction):
    """Autograd saves the slopes, so that the backward pass frees them one after the other."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, slopes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*slopes)
        ctx.shapes = [x.shape for x in inputs]
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slopes = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        return None, None, *(_times_saved(coefficients, slope).sum_to_size(shape) for slope, shape in slopes)


def with_slopes(value: torch.Tensor, inputs: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """A value whose coefficients reach several inputs, each times its slope. The inputs broadcast to the value.

    The slopes are fresh tensors, which nothing else uses.
    """
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
        return _times_saved(coefficients, slope), None


def written_over(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A tensor after an operation wrote its value into it. Its coefficients reach the old tensor times a slope.

    The slope is a fresh tensor, which nothing else uses.
    """
    output: torch.Tensor = _WrittenOver.apply(x, slope)
    return output
