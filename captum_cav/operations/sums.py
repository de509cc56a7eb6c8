"""Sums, joins, selections among several tensors, and averages. Summands that are no carriers are constants."""

from __future__ import annotations

from typing import Any

from captum_cav.operations import written_norms, written_out
from captum_cav.operations.folding import summand_folded
from captum_cav.operations.gates import shifted
from captum_cav.operations.pooled import note_average
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative, Kind, Numbers
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.traits import FACTOR, Trait
from captum_cav.tensors import tensors_in


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
    is_bias = operation.spec.kind is Kind.SUM and len(operation.sources) == 1
    output = summand_folded(operation) if is_bias else None
    if output is not None:
        return output
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
    # Integers and booleans count, too: ``x + (x > 0)``. An index or a mask among them adds nothing.
    if not all(operation.depends_on_inputs(tensor) for tensor in tensors_in(arguments)):
        return True
    numbers = operation.spec.numbers
    operands = operation.args[:2] if numbers is Numbers.OPERANDS else arguments
    return numbers is not Numbers.SETTINGS and any(isinstance(value, (int, float, complex)) for value in operands)


def averaging(operation: Operation) -> Any:
    """Means, sums and average pooling, which are linear. An activation before a pooling may ask for the pooling."""
    note_average(operation, operation.argument(0, "input"))
    return operation.value()


def _additive(keeps: Trait = Trait.GATE | Trait.WEIGHTS, **more: Any) -> OperationSpec:
    return OperationSpec(rule=additive, is_as_is=True, derivative=Derivative.ALWAYS, keeps=keeps, **more)


def _placing(**more: Any) -> OperationSpec:
    """Puts elements of several tensors beside each other, each unchanged."""
    return _additive(FACTOR, **more)


def _averaging(**more: Any) -> OperationSpec:
    keeps = Trait.GATE | Trait.WEIGHTS | Trait.NONNEGATIVE
    return OperationSpec(rule=averaging, is_as_is=True, derivative=Derivative.ALWAYS, keeps=keeps, **more)


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
    "sub|subtract|isub rsub",
    _additive(find_gate=shifted, numbers=Numbers.OPERANDS, kind=Kind.SUM, recognise=written_out.difference),
)
TABLE.register("cat concat concatenate stack hstack vstack", _placing(keeps_without_constants=Trait.NONNEGATIVE))
TABLE.register(
    """
    fill fill_diagonal where masked_fill index_fill setitem scatter pad constant_pad_nd
    """,
    _placing(numbers=Numbers.VALUES),
)
TABLE.register(
    """
    zero copy dstack column_stack row_stack masked_scatter index_put _unsafe_index_put index_copy put
    slice_scatter select_scatter diagonal_scatter as_strided_scatter block_diag complex cartesian_prod combinations
    """,
    _placing(),
)
TABLE.register("index_add scatter_add", _additive())
TABLE.register("sum", _averaging(recognise=written_out.total))
TABLE.register("mean", _averaging(recognise=written_norms.mean, starts_function=True))
TABLE.register(
    """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool3d
    """,
    _averaging(),
)
