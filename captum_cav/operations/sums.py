"""Sums, joins, selections among several tensors, and averages. Summands that are no carriers are constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.operations import written_norms, written_out
from captum_cav.operations.forms import dims_of
from captum_cav.operations.gates import shifted
from captum_cav.operations.surrogates import with_backward
from captum_cav.operations.table import TABLE
from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Derivative, Kind, Numbers, Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import is_number, tensors_in


def additive(operation: Operation) -> Any:
    """Sums, joins and selections of several tensors, some of which may be constants.

    The constant part of the output is the operation's value if all tensors that depend on the inputs are 0.

    Args:
        operation: an operation that is linear in all its tensors together.

    Returns:
        The operation's value, which is its own surrogate.

    Source: Kakishita and Hattori, equations 1-4.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> inputs = (torch.tensor([3.]), torch.tensor([-1.]))
        >>> InputCAV(torch.add, rules={torch.add: rules.additive}).attribute(inputs)
        (tensor([1.5000]), tensor([-0.5000]))
    """
    if not (operation.counts_constants and _has_constant(operation)):
        return operation.value()
    args = operation.without_inputs(operation.args)
    if operation.in_place and args[0] is operation.args[0]:
        args = (args[0].clone(), *args[1:])
    output = operation.value()
    part = operation.function(*args, **{key: operation.without_inputs(v) for key, v in operation.kwargs.items()})
    if output is None:  # x[i] = y
        operation.add_constant(operation.args[0], args[0])
    else:
        operation.add_constant(output, part)
    return output


def _has_constant(operation: Operation) -> bool:
    """Whether a constant tensor or a number takes part in the operation."""
    arguments = [*operation.args, *operation.kwargs.values()]
    if any(is_number(tensor) and not operation.depends_on_inputs(tensor) for tensor in tensors_in(arguments)):
        return True
    numbers = operation.spec.numbers
    operands = operation.args[:2] if numbers is Numbers.OPERANDS else arguments
    return numbers is not Numbers.SETTINGS and any(isinstance(value, (int, float)) for value in operands)


class Poolable(Handoff):
    """The handoff of an activation to a global average pooling behind it."""

    def note(self, coefficients: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Note the coefficients that come through a pooling over some dimensions."""
        raise NotImplementedError


Dims = tuple[int, ...]


def averaging(pooled: Callable[[Operation, torch.Tensor], Dims | None]) -> Surrogate:
    """Rule of means, sums and average pooling, which are linear.

    An activation before a global average pooling may ask for the coefficients that come through the pooling.

    Args:
        pooled: takes an operation and its input. Gives the dimensions over which the operation averages all values, or
            None if it averages windows.
    """

    def rule(operation: Operation) -> Any:
        x = operation.argument(0, "input")
        before = operation.handoff_of(x)
        if isinstance(before, Poolable):
            dims = pooled(operation, x)
            if dims and 0 not in dims:
                return operation.on({id(x): _noting(x, before, dims)}).value()
        return operation.value()

    rule.__name__ = "averaging"
    return rule


def _noting(x: torch.Tensor, before: Poolable, dims: Dims) -> torch.Tensor:
    """The tensor unchanged. In the backward pass the activation before notes the coefficients of the pooling."""

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        before.note(coefficients, dims)
        return (coefficients,)

    return with_backward(x.detach(), backward, x)


def _pooled(spatial: int) -> Callable[[Operation, torch.Tensor], Dims | None]:
    def pooled(operation: Operation, x: torch.Tensor) -> Dims | None:
        if operation.argument(3, "padding", 0) not in (0, (0,) * spatial):
            return None
        sizes = _sizes(operation.argument(1, "kernel_size"), spatial)
        return tuple(range(x.dim() - spatial, x.dim())) if sizes == tuple(x.shape[-spatial:]) else None

    return pooled


def _pooled_adaptively(spatial: int) -> Callable[[Operation, torch.Tensor], Dims | None]:
    def pooled(operation: Operation, x: torch.Tensor) -> Dims | None:
        sizes = _sizes(operation.argument(1, "output_size"), spatial)
        return tuple(range(x.dim() - spatial, x.dim())) if sizes == (1,) * spatial else None

    return pooled


def _sizes(sizes: Any, spatial: int) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * spatial


def _additive(**more: Any) -> OperationSpec:
    return OperationSpec(
        rule=additive, is_as_is=True, derivative=Derivative.ALWAYS, keeps=Trait.GATE | Trait.WEIGHTS, **more
    )


def _averaging(pooled: Callable[[Operation, torch.Tensor], Dims | None], **more: Any) -> OperationSpec:
    keeps = Trait.GATE | Trait.WEIGHTS | Trait.NONNEGATIVE
    return OperationSpec(rule=averaging(pooled), is_as_is=True, derivative=Derivative.ALWAYS, keeps=keeps, **more)


# A sum of gates is a gate: mixed attention heads are still attention weights.
TABLE.register(
    "add|radd|iadd",
    _additive(
        keeps_without_constants=Trait.NONNEGATIVE,
        find_gate=shifted,
        numbers=Numbers.OPERANDS,
        kind=Kind.SUM,
        recognise=written_out.addition,
    ),
)
TABLE.register(
    "sub|subtract|isub rsub", _additive(numbers=Numbers.OPERANDS, kind=Kind.SUM, recognise=written_out.difference)
)
TABLE.register("cat concat concatenate stack hstack vstack", _additive(keeps_without_constants=Trait.NONNEGATIVE))
TABLE.register(
    """
    fill fill_diagonal where masked_fill index_fill setitem scatter pad constant_pad_nd
    """,
    _additive(numbers=Numbers.VALUES),
)
TABLE.register(
    """
    zero copy dstack column_stack row_stack masked_scatter index_put _unsafe_index_put index_add index_copy put
    scatter_add slice_scatter select_scatter diagonal_scatter as_strided_scatter block_diag complex cartesian_prod
    combinations
    """,
    _additive(),
)
TABLE.register("sum", _averaging(dims_of, recognise=written_out.total))
TABLE.register("mean", _averaging(dims_of, recognise=written_norms.mean, starts_function=True))
TABLE.register("avg_pool1d", _averaging(_pooled(1)))
TABLE.register("avg_pool2d", _averaging(_pooled(2)))
TABLE.register("avg_pool3d", _averaging(_pooled(3)))
TABLE.register("adaptive_avg_pool1d", _averaging(_pooled_adaptively(1)))
TABLE.register("adaptive_avg_pool2d _adaptive_avg_pool2d", _averaging(_pooled_adaptively(2)))
TABLE.register("adaptive_avg_pool3d _adaptive_avg_pool3d", _averaging(_pooled_adaptively(3)))
