"""Norms that a model writes out: the statistics of a tensor, and the tensor divided by such a statistic.

As in :mod:`captum_cav.operations.written_out`, each function takes an operation that is about to run. It leaves a form
on the output, or it returns the norm that the operation completes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import written_activations
from captum_cav.operations.forms import (
    Form,
    Recogniser,
    What,
    all_dims_of,
    chained,
    completed,
    form_of,
    is_reduced,
    keep,
    keep_statistic,
    leave,
    replay_of,
)
from captum_cav.operations.surrogates import standardised
from captum_cav.propagation.operation import Operation


def mean(operation: Operation) -> Operation | None:
    """``mean``: of squares, or of any other tensor."""
    x = operation.argument(0, "input")
    if not leave_size(operation, x):
        leave(operation, What.MEAN, x, ((x, None),), dims=all_dims_of(operation, x))
    return None


def leave_size(operation: Operation, x: torch.Tensor) -> bool:
    """Leave the form of a mean or a sum of squares. Returns whether ``x`` holds squares."""
    form = form_of(operation, x, What.SQUARES)
    if form is not None:
        leave_statistic(operation, form.before, x, form, all_dims_of(operation, x))
    return form is not None


def leave_statistic(
    operation: Operation, of: torch.Tensor, x: torch.Tensor, form: Form | None, dims: tuple[int, ...]
) -> None:
    """Leave the form of a statistic: the size of a tensor, or the spread of the tensor from which a mean was taken.

    Args:
        operation: the operation that makes the statistic.
        of: the tensor whose size the statistic tells.
        x: the argument of the operation.
        form: the form of ``x`` in terms of ``of``. None if both are the same tensor.
        dims: the dimensions over which the statistic is taken.
    """
    centred = form_of(operation, of, What.CENTRED)
    if centred is None or centred.dims != dims:
        leave(operation, What.SIZE, of, ((x, form),), dims=dims)
    else:
        leave(operation, What.SPREAD, centred.before, ((x, chained(centred, form)),), dims=dims)


def size(order: str) -> Recogniser:
    """The recogniser of a norm of vectors. A norm of order 1 sums exponentials.

    Args:
        order: the name of the argument with the order of the norm.
    """

    def recognise(operation: Operation) -> Operation | None:
        x = operation.argument(0, "input")
        dims = all_dims_of(operation, x, 2)
        exponentials = form_of(operation, x, What.EXPONENTIAL)
        if exponentials is not None and len(dims) == 1 and operation.argument(1, order) == 1:
            leave(
                operation,
                What.SUM_OF_EXPONENTIALS,
                exponentials.before,
                ((x, exponentials),),
                dims=dims,
                of=exponentials,
            )
        else:
            leave_statistic(operation, x, x, None, dims)
        return None

    return recognise


def spread(operation: Operation) -> Operation | None:
    """A variance or a deviation."""
    x = operation.argument(0, "input")
    dims = all_dims_of(operation, x)
    centred = form_of(operation, x, What.CENTRED)
    if centred is None or centred.dims != dims:
        leave(operation, What.SPREAD, x, ((x, None),), dims=dims)
    else:
        leave(operation, What.SPREAD, centred.before, ((x, centred),), dims=dims)
    return None


def leave_squares(operation: Operation, x: torch.Tensor) -> None:
    """Leave the form of squares, or of the square of a mean."""
    form = form_of(operation, x, What.MEAN)
    if form is None:
        leave(operation, What.SQUARES, x, ((x, None),))
    else:
        keep(operation, x, form, What.SQUARED_MEAN)


def root(operation: Operation) -> Operation | None:
    """``sqrt``: of a mean of squares or a variance, or of any other tensor."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, What.SIZE, What.SPREAD)
    return written_activations.function(operation) if form is None else of_statistic(operation, x, form)


def of_statistic(operation: Operation, x: torch.Tensor, form: Form, what: What | None = None) -> Operation | None:
    """A function of each element of a statistic, such as the root of a variance plus a number.

    A norm divides by the output, and the number belongs to the norm. Elsewhere the output carries, and the number is a
    constant.

    Args:
        operation: the operation.
        x: its argument.
        form: the form of the argument.
        what: what the output is. None for what the argument is.
    """
    written_activations.function(operation)
    keep_statistic(operation, x, form, what)
    return None


def norm(operation: Operation, x: Any, statistic: torch.Tensor, form: Form, scale: torch.Tensor) -> Operation | None:
    """A norm: ``x``, or ``x - mean``, divided by a statistic of ``x`` that is a constant.

    Args:
        operation: the last operation of the norm.
        x: what is divided.
        statistic: the divisor, or its reciprocal.
        form: the form of the statistic.
        scale: the reciprocal of the divisor, without a graph.
    """
    if not isinstance(x, torch.Tensor) or not is_reduced(statistic, x, form.dims) or operation.in_place:
        return None
    centred = form_of(operation, x, What.CENTRED)
    if x is form.before:
        centred = None
    elif centred is None or centred.before is not form.before or centred.dims != form.dims:
        return None
    dims = () if centred is None else centred.dims

    def by_default(norm: Operation) -> torch.Tensor:
        (source,) = norm.sources
        return standardised(source, norm.evaluate(source.detach()), scale, None, dims)

    parts = ((x, centred), (statistic, form))
    fused = F.rms_norm if centred is None else F.layer_norm
    found = completed(operation, fused, form.before, replay_of(operation, parts), rule=by_default)
    if found is not None:
        leave(operation, What.NORMED, form.before, parts)
        found.handoff = operation.handoff
    return found


def norm_with_bias(operation: Operation, x: torch.Tensor, bias: torch.Tensor) -> Operation | None:
    """The bias of a norm belongs to the norm."""

    def by_default(norm: Operation) -> Any:
        output = norm.value()
        norm.add_constant(output, bias)
        return output

    if operation.in_place or bias.dim() > x.dim():
        return None
    return completed(operation, F.layer_norm, x, replay_of(operation, ((x, None),)), rule=by_default)
