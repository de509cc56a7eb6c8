"""Functions that a model writes out: softmax, sigmoid, log-sum-exp, norms, and activations with a gate of their input.

Each public function here is the ``recognise`` of some rows of the table, or makes one. It takes an operation that is
about to run. It leaves a form on the output, or it returns the fused function that the operation completes (see
:mod:`captum_cav.operations.forms`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import written_activations
from captum_cav.operations.forms import (
    SQUASHED,
    Form,
    Parts,
    Recogniser,
    Replays,
    What,
    chained,
    completed,
    dims_of,
    form_of,
    is_reduced,
    keep,
    keep_statistic,
    leave,
    replay_of,
)
from captum_cav.operations.written_norms import leave_size, leave_squares, norm, norm_with_bias, of_statistic, root
from captum_cav.propagation.operation import Operation

_INVERSES = {
    What.SUM_OF_EXPONENTIALS: What.INVERSE_SUM_OF_EXPONENTIALS,
    What.SIZE: What.INVERSE_SIZE,
    What.SPREAD: What.INVERSE_SPREAD,
}
_STATISTICS = frozenset({*_INVERSES, *_INVERSES.values(), What.LOG_SUM_EXP, What.MEAN, What.SQUARED_MEAN})
#: What stays the same if the tensor is multiplied with a number, and with a constant tensor.
_SCALABLE = frozenset({What.EXPONENTIAL, What.SIZE, What.SPREAD, What.INVERSE_SIZE, What.INVERSE_SPREAD, What.NORMED})
_WEIGHTED = frozenset({What.EXPONENTIAL, What.NORMED})


# Arguments ----------------------------------------------------------------------------------------------------------


def _operands(operation: Operation) -> tuple[Any, Any]:
    return operation.argument(0, "input"), operation.argument(1, "other")


def _source_first(operation: Operation) -> tuple[Any, Any]:
    """The two operands, one that depends on the inputs first."""
    a, b = _operands(operation)
    return (a, b) if a is operation.sources[0] else (b, a)


def _are_plain(operation: Operation) -> bool:
    """Whether two tensors without a form depend on the inputs, as in most sums and products."""
    sources = operation.sources
    return len(sources) == 2 and form_of(operation, sources[0]) is None and form_of(operation, sources[1]) is None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Fused functions ----------------------------------------------------------------------------------------------------


def squashes(what: What) -> Recogniser:
    """The recogniser of a function that squashes its input.

    Args:
        what: what its output is.
    """

    def recognise(operation: Operation) -> Operation | None:
        x = operation.argument(0, "input")
        dims = dims_of(operation, x) or ()
        base, before = _before_softmax(operation, x, dims) if dims else (x, None)
        if before is None:
            found = None
        else:
            found = completed(operation, operation.function, base, replay_of(operation, ((x, before),)), *dims)
        leave(operation, what, base, ((x, before),), dims=dims)
        return found and _with_handoff_of(operation, found)

    return recognise


def _squashed(
    operation: Operation, what: What, fused: Callable[..., Any], form: Form, parts: Parts, is_reversed: bool = False
) -> Operation | None:
    """A squashing function that an operation completes.

    Args:
        operation: the operation.
        what: what its output is.
        fused: the torch function that does the same.
        form: a form of a part of the function.
        parts: see :class:`captum_cav.operations.forms.Form`.
        is_reversed: whether the value before is squashed with the opposite sign.
    """
    if not form.dims:
        found = _of_each_element(operation, fused, form, parts)
        leave(operation, what, form.before, parts, is_reversed=is_reversed)
        return _with_handoff_of(operation, found)
    base, before = _before_softmax(operation, form.before, form.dims)
    parts = _behind(before, parts)
    leave(operation, what, base, parts, dims=form.dims, is_reversed=is_reversed)
    return _with_handoff_of(operation, completed(operation, fused, base, replay_of(operation, parts), *form.dims))


def _of_each_element(operation: Operation, fused: Callable[..., Any], form: Form, parts: Parts) -> Operation | None:
    """A function of each element that an operation completes. See :func:`_squashed`."""
    leave(operation, What.ELEMENTWISE, form.before, parts)
    return _with_handoff_of(operation, completed(operation, fused, form.before, replay_of(operation, parts)))


def _behind(before: Replays | None, parts: Parts) -> Parts:
    """Parts in terms of a still earlier tensor."""
    if before is None:
        return parts
    return tuple((tensor, chained(before, part)) for tensor, part in parts)


def _with_handoff_of(operation: Operation, found: Operation | None) -> Operation | None:
    """A fused function with the form that was left on the operation that completes it. None if there is no function."""
    if found is None:
        operation.handoff = None
    else:
        found.handoff = operation.handoff
    return found


def _before_softmax(operation: Operation, x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, Form | None]:
    """The tensor before a shift that is the same along some dimensions, and the form of the shifted tensor."""
    form = form_of(operation, x, What.SHIFTED, What.CENTRED, What.AFFINE)
    if form is None or not dims or not set(dims) <= set(form.dims):
        return x, None
    return form.before, form


# Exponentials and logarithms ----------------------------------------------------------------------------------------


def exponential(operation: Operation) -> Operation | None:
    """``exp(z)``. The exponential of a log-softmax is a softmax, and that of a log-sigmoid a sigmoid."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, What.LOG_SOFTMAX, What.LOG_SIGMOID)
    if form is None or form.moves:
        leave(operation, What.EXPONENTIAL, x, ((x, None),))
        return None
    if form.what is What.LOG_SIGMOID:
        return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((x, form),), form.is_reversed)
    return _squashed(operation, What.SOFTMAX, torch.softmax, form, ((x, form),), form.is_reversed)


def logarithm(operation: Operation) -> Operation | None:
    """``log``: of a sum of exponentials, of ``1 + exp(z)``, of a softmax, of a sigmoid."""
    x = operation.argument(0, "input")
    form = form_of(operation, x)
    if form is None or form.moves:
        return written_activations.function(operation)
    parts = ((x, form),)
    if form.what is What.SUM_OF_EXPONENTIALS:
        leave(operation, What.LOG_SUM_EXP, form.before, parts, dims=form.dims)
        found = completed(operation, torch.logsumexp, form.before, replay_of(operation, parts), *form.dims)
        return _with_handoff_of(operation, found)
    if form.what is What.ONE_PLUS_EXPONENTIAL:
        return _of_each_element(operation, F.softplus, form, parts)
    if form.what is What.SOFTMAX:
        return _squashed(operation, What.LOG_SOFTMAX, torch.log_softmax, form, parts, form.is_reversed)
    if form.what is What.SIGMOID:
        return _squashed(operation, What.LOG_SIGMOID, F.logsigmoid, form, parts, form.is_reversed)
    return written_activations.function(operation)


def logarithm_of_one_more(operation: Operation) -> Operation | None:
    """``log1p(exp(z))`` is softplus."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, What.EXPONENTIAL)
    if form is None:
        return written_activations.function(operation)
    return _of_each_element(operation, F.softplus, form, ((x, form),))


def log_sum_exp(operation: Operation) -> Operation | None:
    """``logsumexp`` over one dimension."""
    x = operation.argument(0, "input")
    dims = dims_of(operation, x)
    if dims is not None and len(dims) == 1:
        leave(operation, What.LOG_SUM_EXP, x, ((x, None),), dims=dims)
    return None


def is_exponential(operation: Operation, x: torch.Tensor) -> bool:
    """Whether an argument is an exponential, or 1 plus an exponential."""
    return form_of(operation, x, What.EXPONENTIAL, What.ONE_PLUS_EXPONENTIAL) is not None


# Means and sums -----------------------------------------------------------------------------------------------------


def total(operation: Operation) -> Operation | None:
    """``sum``: of squares, or of exponentials over one dimension."""
    x = operation.argument(0, "input")
    form, dims = form_of(operation, x, What.EXPONENTIAL), dims_of(operation, x)
    if form is None:
        leave_size(operation, x)
    elif dims is not None and len(dims) == 1:
        leave(operation, What.SUM_OF_EXPONENTIALS, form.before, ((x, form),), dims=dims, of=form)
    return None


# Powers -------------------------------------------------------------------------------------------------------------


def square(operation: Operation) -> Operation | None:
    """``square``: of a mean, or of any other tensor."""
    leave_squares(operation, operation.argument(0, "input"))
    return None


def reciprocal(operation: Operation) -> Operation | None:
    """``reciprocal`` and ``rsqrt``: of a statistic, of ``exp(z)``, of ``1 + exp(z)``."""
    x = operation.argument(0, "input")
    form = form_of(operation, x)
    if form is not None and form.what in _INVERSES:
        return of_statistic(operation, x, form, _INVERSES[form.what])
    if form is not None and form.what is What.EXPONENTIAL:
        return _of_each_element(operation, torch.exp, form, ((x, form),))
    if form is not None and form.what is What.ONE_PLUS_EXPONENTIAL and operation.name != "rsqrt":
        return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((x, form),), is_reversed=True)
    return written_activations.function(operation)


def one_over(operation: Operation) -> Operation | None:
    """``1 / x``. Other numbers are decomposed into a reciprocal and a product."""
    _, other = _operands(operation)
    return reciprocal(operation) if _is_number(other) and other == 1 else None


def power(operation: Operation) -> Operation | None:
    """``x ** number``: a square, a root, a reciprocal, or another function of each element."""
    x, exponent = operation.argument(0, "input"), operation.argument(1, "exponent")
    if not _is_number(exponent) or not isinstance(x, torch.Tensor):
        return None
    if exponent == 2:
        return square(operation)
    if exponent < 0:
        is_reciprocal = exponent == -1 or form_of(operation, x, *_INVERSES) is not None
        return reciprocal(operation) if is_reciprocal else written_activations.function(operation)
    return root(operation)


# Sums and differences of two ----------------------------------------------------------------------------------------


def addition(operation: Operation) -> Operation | None:
    """``a + b``: a number and a statistic, 1 and ``exp(z)``, a bias and a norm, two functions of each element."""
    if operation.kwargs or _are_plain(operation):
        return None
    x, other = _source_first(operation)
    form = form_of(operation, x)
    if _is_number(other):
        found = written_activations.shifted(operation, x)
        if form is not None and form.what in _INVERSES:
            keep_statistic(operation, x, form)
        if form is not None and form.what is What.EXPONENTIAL and other == 1:
            leave(operation, What.ONE_PLUS_EXPONENTIAL, form.before, ((x, form),), of=form)
        return found and _with_handoff_of(operation, found)
    for a, b in ((x, other), (other, x)):
        exponentials = form_of(operation, a, What.LOG_SUM_EXP)
        shift = None if exponentials is None else form_of(operation, exponentials.before, What.SHIFTED)
        if exponentials is not None and shift is not None and shift.is_by(b):
            # c + logsumexp(z - c) = logsumexp(z)
            parts = ((a, chained(shift, exponentials)),)
            leave(operation, What.LOG_SUM_EXP, shift.before, parts, dims=exponentials.dims)
            replay = replay_of(operation, parts)
            found = completed(operation, torch.logsumexp, shift.before, replay, *exponentials.dims)
            return _with_handoff_of(operation, found)
    if len(operation.sources) == 1:
        is_normed = form is not None and form.what is What.NORMED
        return norm_with_bias(operation, x, other) if is_normed and isinstance(other, torch.Tensor) else None
    return written_activations.of_two(operation, x, other)


def difference(operation: Operation) -> Operation | None:
    """``a - b``: a tensor and its mean or its log-sum-exp, a mean of squares and a squared mean, 1 and a sigmoid."""
    if operation.kwargs:
        return None
    a, b = _operands(operation)
    if operation.name == "rsub":
        a, b = b, a
    if _is_number(b):
        return written_activations.shifted(operation, a)
    form = form_of(operation, b)
    if _is_number(a):
        if a == 1 and form is not None and form.what is What.SIGMOID and not form.moves:
            # 1 - sigmoid(z) = sigmoid(-z)
            return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((b, form),), not form.is_reversed)
        return written_activations.shifted(operation, b)
    if form is not None and form.what is What.SQUARED_MEAN:
        squares = form_of(operation, a, What.SIZE)
        if squares is not None and squares.before is form.before and squares.dims == form.dims:
            leave(operation, What.SPREAD, form.before, ((a, squares), (b, form)), dims=form.dims)
        return None
    parts = ((a, None), (b, form))
    if form is not None and form.what is What.LOG_SOFTMAX and a is form.before and not form.moves:
        # z - log_softmax(z) = logsumexp(z)
        return completed(operation, torch.logsumexp, a, replay_of(operation, parts), *form.dims)
    if form is not None and a is form.before and is_reduced(b, a, form.dims):
        if form.what is What.LOG_SUM_EXP:
            return _squashed(operation, What.LOG_SOFTMAX, torch.log_softmax, form, parts)
        if form.what is What.MEAN:
            leave(operation, What.CENTRED, a, parts, dims=form.dims)
            return None
    found = written_activations.of_two(operation, a, b) if len(operation.sources) == 2 else None
    if operation.handoff is None and operation.depends_on_inputs(a) and isinstance(b, torch.Tensor):
        _leave_shifted(operation, a, b)
    return found


def _leave_shifted(operation: Operation, x: torch.Tensor, by: torch.Tensor) -> None:
    """Leave the form of a tensor from which a tensor was taken that is the same along some dimensions."""
    missing = x.dim() - by.dim()
    dims = tuple(dim for dim in range(x.dim()) if dim < missing or by.shape[dim - missing] == 1)
    if dims:
        leave(operation, What.SHIFTED, x, ((x, None),), dims=dims, by=by)


# Products and quotients ---------------------------------------------------------------------------------------------


def product(operation: Operation) -> Operation | None:
    """``a * b``: squares, weighted forms, a norm, a softmax, an activation with a gate of its input."""
    a, b = _operands(operation)
    if a is b:
        leave_squares(operation, a)
        return None
    if _are_plain(operation):
        return None
    if len(operation.sources) == 1:
        x, factor = _source_first(operation)
        _leave_weighted(operation, x, factor)
        return None
    for x, factor in ((a, b), (b, a)):
        form = form_of(operation, factor)
        if form is not None and form.what is What.INVERSE_SUM_OF_EXPONENTIALS:
            return _softmax(operation, x, factor, form)
        if form is not None and form.what in (What.INVERSE_SIZE, What.INVERSE_SPREAD):
            return norm(operation, x, factor, form, factor.detach())
    return written_activations.of_two(operation, a, b)


def quotient(operation: Operation) -> Operation | None:
    """``a / b``: weighted forms, a norm, a softmax, a sigmoid."""
    a, b = _operands(operation)
    if operation.kwargs.get("rounding_mode") is not None:
        return None
    if not isinstance(b, torch.Tensor) or not operation.depends_on_inputs(b):
        _leave_weighted(operation, a, 1 / b if _is_number(b) and b else b)
        return None
    form = form_of(operation, b)
    if form is not None and form.what is What.SUM_OF_EXPONENTIALS:
        return _softmax(operation, a, b, form)
    if form is not None and form.what in _INVERSES:
        return norm(operation, a, b, form, b.detach().reciprocal())
    if form is not None and form.what is What.ONE_PLUS_EXPONENTIAL:
        exponentials = form_of(operation, a, What.EXPONENTIAL)
        if exponentials is not None and exponentials.is_same_as(form.of):
            return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((a, exponentials), (b, form)))
    return written_activations.of_two(operation, a, b) if len(operation.sources) == 2 else None


def _leave_weighted(operation: Operation, x: torch.Tensor, factor: Any) -> None:
    """Leave a form that stays the same if the tensor is multiplied with a constant."""
    form = form_of(operation, x)
    if _is_number(factor):
        written_activations.scaled(operation, x, factor)
        if form is not None and (factor == 1 or form.what in _SCALABLE):
            keep_statistic(operation, x, form)
    elif form is not None and form.what in _WEIGHTED:
        keep(operation, x, form)


def _softmax(operation: Operation, x: Any, divisor: torch.Tensor, form: Form) -> Operation | None:
    exponentials = form_of(operation, x, What.EXPONENTIAL)
    if exponentials is None or not exponentials.is_same_as(form.of) or not is_reduced(divisor, x, form.dims):
        return None
    return _squashed(operation, What.SOFTMAX, torch.softmax, form, ((x, exponentials), (divisor, form)))


# Views, selections and bounds ---------------------------------------------------------------------------------------


def moved(operation: Operation) -> Operation | None:
    """A view, a selection or another type of number: a statistic stays one, and a squashed score stays one."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, *_STATISTICS, *SQUASHED)
    if form is not None:
        leave(
            operation,
            form.what,
            form.before,
            ((x, form),),
            dims=form.dims,
            of=form.of,
            is_reversed=form.is_reversed,
            moves=(*form.moves, replay_of(operation, ((x, None),))),
            view_of=x,
        )
    return None


def bounded(operation: Operation) -> Operation | None:
    """``clamp``: an activation, or a bound that keeps a statistic away from 0."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, *_INVERSES)
    return written_activations.activation(operation) if form is None else of_statistic(operation, x, form)
