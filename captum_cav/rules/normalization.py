"""Normalisations: the statistic that divides is a constant, the mean is linear.

Batch norm in evaluation mode is linear as it stands; its shift is a constant with a share of its own. Layer norm and
RMS norm have a surrogate each; the others are written out in their terms.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.propagation.operation import Operation, Rule


class _Standardised(torch.autograd.Function):
    """A value ``(x - mean) * scale * weight`` over some last dimensions, with the scale held constant."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        evaluate: Callable[[], torch.Tensor],
        scale: torch.Tensor,
        weight: torch.Tensor | None,
        centred_dims: tuple[int, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(scale, weight)
        ctx.centred_dims = centred_dims
        return evaluate()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        scale, weight = ctx.saved_tensors
        if weight is not None:
            coefficients = coefficients * weight
        # The scale is one number for all that is averaged over, so it may come after the mean.
        if ctx.centred_dims:
            coefficients = coefficients - coefficients.mean(ctx.centred_dims, keepdim=True)
        return coefficients * scale, None, None, None, None


def layer_norm(operation: Operation) -> Any:
    """Layer norm: centred over the last dimensions, over a deviation that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, bias = operation.argument(2, "weight"), operation.argument(3, "bias")
    epsilon = operation.argument(4, "eps", 1e-5)
    if operation.carries(weight) or operation.carries(bias):
        return operation.inside(lambda: _scaled_and_shifted(F.layer_norm(x, shape, eps=epsilon), weight, bias))
    value, _, scale = torch.native_layer_norm(x.detach(), shape, weight, bias, epsilon)
    output: torch.Tensor = _Standardised.apply(x, lambda: value, scale, weight, tuple(range(-len(shape), 0)))
    if bias is not None and not operation.depends_on_inputs(bias):
        operation.add_constant(output, bias)
    return output


def rms_norm(operation: Operation) -> Any:
    """RMS norm: over a root mean square that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, epsilon = operation.argument(2, "weight"), operation.argument(3, "eps")
    if operation.carries(weight):
        return operation.inside(lambda: F.rms_norm(x, shape, eps=epsilon) * weight)
    dims = tuple(range(-len(shape), 0))
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    scale = torch.rsqrt(x.detach().square().mean(dims, keepdim=True) + epsilon)
    return _Standardised.apply(x, operation.value, scale, weight, ())


def statistics_and_affine(operation: Operation) -> dict[str, Any]:
    """Input, running statistics, weight and bias of batch and instance norm.

    ``torch.nn.functional`` and ``torch`` order them differently.
    """
    statistics, affine = ("running_mean", "running_var"), ("weight", "bias")
    functional = isinstance(operation.function, FunctionType)
    order = ("input", *(statistics + affine if functional else affine + statistics))
    return {name: operation.argument(position, name) for position, name in enumerate(order)}


def batch_norm(operation: Operation) -> Any:
    """Batch norm: linear with running statistics; with the batch's own (none are kept), as layer norm."""
    given = statistics_and_affine(operation)
    x, mean, variance, weight, bias = (given[name] for name in _NORM_ARGUMENTS)
    epsilon = operation.argument(7, "eps", 1e-5)
    if operation.argument(5, "training", False):

        def of_the_batch() -> torch.Tensor:
            channels_first = x.transpose(0, 1)
            rows = channels_first.reshape(x.shape[1], -1)
            standard = F.layer_norm(rows, rows.shape[1:], eps=epsilon).reshape(channels_first.shape).transpose(0, 1)
            return _scaled_and_shifted(standard, _per_channel(weight, x), _per_channel(bias, x))

        return operation.inside(of_the_batch)
    if operation.carries(weight) or operation.carries(bias):
        return operation.inside(
            lambda: _scaled_and_shifted(
                F.batch_norm(x, mean, variance, eps=epsilon), _per_channel(weight, x), _per_channel(bias, x)
            )
        )
    scale = torch.rsqrt(variance + epsilon)
    scale = _per_channel(scale if weight is None else scale * weight, x)
    # Not torch's own gradient: on CPU it is wrong where the coefficients come in another memory layout than the input.
    output: torch.Tensor = _Standardised.apply(
        x, lambda: torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon, True), scale, None, ()
    )
    if operation.counts_constants:
        shift = -_per_channel(mean, x) * scale
        operation.add_constant(output, shift if bias is None else shift + _per_channel(bias, x))
    return output


def group_norm(operation: Operation) -> Any:
    """Group norm: layer norm of each group's values, written out."""
    x, groups, weight, bias = (
        operation.argument(position, name) for position, name in enumerate(("input", "num_groups", "weight", "bias"))
    )
    return operation.inside(_grouped, x, groups, weight, bias, operation.argument(4, "eps", 1e-5))


def instance_norm(operation: Operation) -> Any:
    """Instance norm: a group a channel, or batch norm where it uses running statistics."""
    given = statistics_and_affine(operation)
    x, mean, variance, weight, bias = (given[name] for name in _NORM_ARGUMENTS)
    epsilon = operation.argument(7, "eps", 1e-5)
    if not operation.argument(5, "use_input_stats", True):
        return operation.inside(F.batch_norm, x, mean, variance, weight, bias, eps=epsilon)
    return operation.inside(_grouped, x, x.shape[1], weight, bias, epsilon)


def _grouped(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    rows = x.reshape(x.shape[0], groups, -1)
    standard = F.layer_norm(rows, rows.shape[2:], eps=epsilon).reshape(x.shape)
    return _scaled_and_shifted(standard, _per_channel(weight, x), _per_channel(bias, x))


def _per_channel(values: Any, x: torch.Tensor) -> Any:
    return None if values is None else values.reshape(-1, *[1] * (x.dim() - 2))


def _scaled_and_shifted(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias")

RULES: dict[str, Rule] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    # Their own Python bodies divide by a statistic, which the rule of division holds constant.
    **dict.fromkeys(("local_response_norm", "normalize"), Operation.reentered),
}
