"""Normalisations: the statistic that divides is a constant, and the mean is linear.

Batch norm in evaluation mode is affine, and its shift is a constant. Layer norm and RMS norm have surrogates. The other
norms are decomposed into these three.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import guards
from captum_cav.operations.affine import AffineView
from captum_cav.operations.folding import ScaleAndShift, foldable_before, folded
from captum_cav.operations.surrogates import standardised, with_backward
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative, Kind
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.traits import Trait

_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias")


def layer_norm(operation: Operation) -> Any:
    """Layer norm: subtracts the mean over the last dimensions, and divides by a deviation that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, bias = operation.argument(2, "weight"), operation.argument(3, "bias")
    epsilon = operation.argument(4, "eps", 1e-5)
    if operation.carries(weight) or operation.carries(bias):
        return operation.decompose(lambda: _scaled_and_shifted(F.layer_norm(x, shape, eps=epsilon), weight, bias))
    value, _, scale = torch.native_layer_norm(x.detach(), shape, weight, bias, epsilon)
    output = standardised(x, value, scale, weight, tuple(range(-len(shape), 0)))
    if bias is not None and not operation.depends_on_inputs(bias):
        operation.add_constant(output, bias)
    return output


def rms_norm(operation: Operation) -> Any:
    """RMS norm: divides by a root mean square that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, epsilon = operation.argument(2, "weight"), operation.argument(3, "eps")
    if operation.carries(weight):
        return operation.decompose(lambda: F.rms_norm(x, shape, eps=epsilon) * weight)
    dims = tuple(range(-len(shape), 0))
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    scale = torch.rsqrt(x.detach().square().mean(dims, keepdim=True) + epsilon)
    return standardised(x, operation.value, scale, weight, ())


def statistics_and_affine(operation: Operation) -> tuple[Any, ...]:
    """The input, running mean, running variance, weight and bias of batch norm and instance norm.

    ``torch.nn.functional`` and ``torch`` have different orders of these arguments.
    """
    if isinstance(operation.function, FunctionType):
        return tuple([operation.argument(position, name) for position, name in enumerate(_ARGUMENTS)])
    order = enumerate(("input", "weight", "bias", "running_mean", "running_var"))
    x, weight, bias, mean, variance = [operation.argument(position, name) for position, name in order]
    return x, mean, variance, weight, bias


def inference_norm(operation: Operation) -> ScaleAndShift | None:
    """Batch norm as an affine operation. None in training mode, or if the weight or the bias carries contributions."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    if operation.argument(5, "training", False) or operation.carries(weight) or operation.carries(bias):
        return None
    scale = _scale(variance, weight, operation.argument(7, "eps", 1e-5))
    return ScaleAndShift(_per_channel(scale, x), _per_channel(_shift(mean, scale, bias), x))


def _view_batch_norm(operation: Operation) -> AffineView | None:
    if len(operation.sources) != 1:
        return None
    norm, x = inference_norm(operation), operation.sources[0]
    if norm is None or operation.argument(0, "input") is not x:
        return None
    assert norm.scale is not None
    return AffineView(x, norm.scale, norm.shift, torch.mul)


def _scale(variance: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    scale = (variance + epsilon).rsqrt_()
    return scale if weight is None else scale * weight


def _shift(mean: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    shift = -mean * scale
    return shift if bias is None else shift + bias


def batch_norm(operation: Operation) -> Any:
    """Batch norm: affine with running statistics. With the statistics of the batch it is like layer norm."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    epsilon = operation.argument(7, "eps", 1e-5)
    if operation.argument(5, "training", False):

        def of_the_batch() -> torch.Tensor:
            channels_first = x.transpose(0, 1)
            rows = channels_first.reshape(x.shape[1], -1)
            standard = F.layer_norm(rows, rows.shape[1:], eps=epsilon).reshape(channels_first.shape).transpose(0, 1)
            return _scaled_and_shifted(standard, _per_channel(weight, x), _per_channel(bias, x))

        return operation.decompose(of_the_batch)
    if operation.carries(weight) or operation.carries(bias):
        return operation.decompose(
            lambda: _scaled_and_shifted(
                F.batch_norm(x, mean, variance, eps=epsilon), _per_channel(weight, x), _per_channel(bias, x)
            )
        )
    before = foldable_before(operation, x.shape[1])
    if before is not None:
        norm = inference_norm(operation)
        assert norm is not None
        return folded(operation, norm, before)
    output = _in_evaluation(x, mean, variance, weight, bias, epsilon)
    if operation.counts_constants:
        shift = _per_channel(_shift(mean, _scale(variance, weight, epsilon), bias), x)
        operation.add_constant(output, shift)
    return output


def _in_evaluation(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """Batch norm with running statistics. The backward pass works out the factors.

    Torch's own gradient is not used. On CPU that gradient is wrong if the coefficients have another memory layout than
    the input.
    """

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        return (coefficients * _per_channel(_scale(variance, weight, epsilon), coefficients),)

    return with_backward(
        lambda: torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon, True), backward, x
    )


def group_norm(operation: Operation) -> Any:
    """Group norm, decomposed: layer norm over the values of each group."""
    x, groups, weight, bias = (
        operation.argument(position, name) for position, name in enumerate(("input", "num_groups", "weight", "bias"))
    )
    return operation.decompose(_grouped, x, groups, weight, bias, operation.argument(4, "eps", 1e-5))


def instance_norm(operation: Operation) -> Any:
    """Instance norm, decomposed: group norm with one group for each channel, or batch norm with running statistics."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    epsilon = operation.argument(7, "eps", 1e-5)
    if not operation.argument(5, "use_input_stats", True):
        return operation.decompose(F.batch_norm, x, mean, variance, weight, bias, eps=epsilon)
    return operation.decompose(_grouped, x, x.shape[1], weight, bias, epsilon)


def renorm(operation: Operation) -> Any:
    """``torch.renorm``: slices along a dimension, scaled down by a norm that is a constant."""
    x, p, dim, most = (operation.argument(i, name) for i, name in enumerate(("input", "p", "dim", "maxnorm")))
    others = [other for other in range(x.dim()) if other != dim % x.dim()]
    norms = torch.linalg.vector_norm(x.detach(), p, others, keepdim=True)
    return operation.decompose(torch.mul, x, torch.where(norms > most, most / (norms + 1e-7), 1.0))


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


def _guard(flag: str, default: bool) -> Callable[[Operation], None]:
    """A guard that refuses a norm that would change its running statistics.

    Args:
        flag: the name of the argument at position 5 that makes the norm change them.
        default: its default.
    """

    def guard(operation: Operation) -> None:
        if operation.argument(5, flag, default) and statistics_and_affine(operation)[1] is not None:
            guards.refuse(operation, "change its running statistics", f"pass {flag}=False to the function")

    return guard


# A standardised gate is a gate. A norm that is written by hand gives the same.
TABLE.register("layer_norm", OperationSpec(rule=layer_norm, keeps=Trait.GATE, kind=Kind.NORM))
TABLE.register("rms_norm", OperationSpec(rule=rms_norm, keeps=Trait.GATE, kind=Kind.NORM))
TABLE.register(
    "batch_norm",
    OperationSpec(
        rule=batch_norm,
        derivative=Derivative.ALWAYS,
        keeps=Trait.GATE,
        kind=Kind.CONVOLUTION | Kind.NORM,
        guard=_guard("training", False),
        view_as_affine=_view_batch_norm,
    ),
)
TABLE.register("group_norm", OperationSpec(rule=group_norm, keeps=Trait.GATE, kind=Kind.NORM))
TABLE.register(
    "instance_norm",
    OperationSpec(rule=instance_norm, keeps=Trait.GATE, kind=Kind.NORM, guard=_guard("use_input_stats", True)),
)
TABLE.register("renorm", OperationSpec(rule=renorm))
# Their Python bodies divide by a statistic. In the rule of division the divisor is a constant.
TABLE.register("local_response_norm normalize", OperationSpec(rule=Operation.decompose_body, kind=Kind.NORM))
