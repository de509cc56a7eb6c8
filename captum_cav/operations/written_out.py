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
    leave,
    replay_of,
)
from captum_cav.operations.written_norms import leave_size, leave_squares, norm, norm_with_bias, root
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
_OF_EACH_ELEMENT = frozenset(
    {What.ELEMENTWISE, What.EXPONENTIAL, What.ONE_PLUS_EXPONENTIAL, What.SIGMOID, What.LOG_SIGMOID, What.SQUARES}
)


# Arguments ----------------------------------------------------------------------------------------------------------


def _operands(operation: Operation) -> tuple[Any, Any]:
    return operation.argument(0, "input"), operation.argument(1, "other")


def _source_first(operation: Operation) -> tuple[Any, Any]:
    """The two operands, the one that depends on the inputs first."""
    a, b = _operands(operation)
    return (a, b) if isinstance(a, torch.Tensor) and operation.depends_on_inputs(a) else (b, a)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Fused functions ----------------------------------------------------------------------------------------------------


def squashes(what: What, is_reversed: bool = False) -> Recogniser:
    """The recogniser of a function that squashes its input.

    Args:
        what: what its output is.
        is_reversed: whether it squashes the input with the opposite sign.
    """

    def recognise(operation: Operation) -> Operation | None:
        x = operation.argument(0, "input")
        leave(operation, what, x, ((x, None),), dims=dims_of(operation, x) or (), is_reversed=is_reversed)
        return None

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
    found = completed(operation, fused, form.before, replay_of(operation, parts), *form.dims)
    if found is not None:
        leave(operation, what, form.before, parts, dims=form.dims, is_reversed=is_reversed)
        found.handoff = operation.handoff
    return found


def each_element(operation: Operation) -> Operation | None:
    """A function of each element."""
    _leave_each_element(operation, operation.argument(0, "input"))
    return None


def _leave_each_element(operation: Operation, x: torch.Tensor) -> None:
    leave(operation, What.ELEMENTWISE, x, ((x, None),))


def each_element_again(operation: Operation) -> Operation | None:
    """A function of each element. It leaves a form only behind another function of each element."""
    x = operation.argument(0, "input")
    return None if form_of(operation, x, *_OF_EACH_ELEMENT) is None else each_element(operation)


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
        return None
    parts = ((x, form),)
    if form.what is What.SUM_OF_EXPONENTIALS:
        return _squashed(operation, What.LOG_SUM_EXP, torch.logsumexp, form, parts)
    if form.what is What.ONE_PLUS_EXPONENTIAL:
        return completed(operation, F.softplus, form.before, replay_of(operation, parts))
    if form.what is What.SOFTMAX:
        return _squashed(operation, What.LOG_SOFTMAX, torch.log_softmax, form, parts, form.is_reversed)
    if form.what is What.SIGMOID:
        return _squashed(operation, What.LOG_SIGMOID, F.logsigmoid, form, parts, form.is_reversed)
    return None


def logarithm_of_one_more(operation: Operation) -> Operation | None:
    """``log1p(exp(z))`` is softplus."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, What.EXPONENTIAL)
    if form is None:
        return each_element_again(operation)
    return completed(operation, F.softplus, form.before, replay_of(operation, ((x, form),)))


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
    if form is None:
        return None
    if form.what in _INVERSES:
        keep(operation, x, form, _INVERSES[form.what])
    elif form.what is What.EXPONENTIAL:
        return completed(operation, torch.exp, form.before, replay_of(operation, ((x, form),)))
    elif form.what is What.ONE_PLUS_EXPONENTIAL and operation.name != "rsqrt":
        return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((x, form),), is_reversed=True)
    return None


def power(operation: Operation) -> Operation | None:
    """``x ** number``: a square, a root, a reciprocal, or another function of each element."""
    x, exponent = operation.argument(0, "input"), operation.argument(1, "exponent")
    if not _is_number(exponent) or not isinstance(x, torch.Tensor):
        return None
    if exponent == 2:
        return square(operation)
    if exponent < 0:
        form = form_of(operation, x)
        is_sigmoid = form is not None and form.what is What.ONE_PLUS_EXPONENTIAL
        return None if is_sigmoid and exponent != -1 else reciprocal(operation)
    return each_element(operation) if form_of(operation, x, What.SIZE, What.SPREAD) is None else root(operation)


# Sums and differences of two ----------------------------------------------------------------------------------------


def addition(operation: Operation) -> Operation | None:
    """``a + b``: a number and a statistic, 1 and ``exp(z)``, a bias and a norm, two functions of each element."""
    if operation.kwargs:
        return None
    x, other = _source_first(operation)
    form = form_of(operation, x)
    if _is_number(other):
        if form is not None and form.what is What.EXPONENTIAL and other == 1:
            leave(operation, What.ONE_PLUS_EXPONENTIAL, form.before, ((x, form),), of=form)
        elif form is not None and form.what in _INVERSES:
            keep(operation, x, form)
        else:
            _leave_each_element(operation, x)
        return None
    if len(operation.sources) == 1:
        is_normed = form is not None and form.what is What.NORMED
        return norm_with_bias(operation, x, other) if is_normed and isinstance(other, torch.Tensor) else None
    if form is not None or form_of(operation, other) is not None:
        _leave_common(operation, x, other)
    return None


def _leave_common(operation: Operation, a: torch.Tensor, b: Any) -> None:
    """Leave the form of two functions of each element of the same tensor."""
    base, of_a = _base_of(operation, a)
    other, of_b = _base_of(operation, b)
    if base is other:
        leave(operation, What.ELEMENTWISE, base, ((a, of_a), (b, of_b)))


def _base_of(operation: Operation, x: Any) -> tuple[Any, Replays | None]:
    """The tensor of whose elements a tensor is a function, and the function. The tensor itself if there is none."""
    form = form_of(operation, x, *_OF_EACH_ELEMENT)
    if form is None or form.moves:
        return x, None
    base, replays = _base_of(operation, form.before)
    return base, form if replays is None else chained(replays, form)


def difference(operation: Operation) -> Operation | None:
    """``a - b``: a tensor and its mean or its log-sum-exp, a mean of squares and a squared mean, 1 and a sigmoid."""
    if operation.kwargs:
        return None
    a, b = _operands(operation)
    if operation.name == "rsub":
        a, b = b, a
    if _is_number(b):
        _leave_each_element(operation, a)
        return None
    form = form_of(operation, b)
    if form is None:
        return None
    if form.what is What.SIGMOID and _is_number(a) and a == 1:
        # 1 - sigmoid(z) = sigmoid(-z)
        found = _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((b, form),), not form.is_reversed)
        return None if form.moves else found
    if form.what is What.SQUARED_MEAN:
        squares = form_of(operation, a, What.SIZE)
        if squares is not None and squares.before is form.before and squares.dims == form.dims:
            leave(operation, What.SPREAD, form.before, ((a, squares), (b, form)), dims=form.dims)
    elif a is form.before and form.what in (What.MEAN, What.LOG_SUM_EXP) and is_reduced(b, a, form.dims):
        parts = ((a, None), (b, form))
        if form.what is What.LOG_SUM_EXP:
            return _squashed(operation, What.LOG_SOFTMAX, torch.log_softmax, form, parts)
        leave(operation, What.CENTRED, a, parts, dims=form.dims)
    return None


# Products and quotients ---------------------------------------------------------------------------------------------


def product(operation: Operation) -> Operation | None:
    """``a * b``: squares, weighted forms, a norm, a softmax, an activation with a gate of its input."""
    a, b = _operands(operation)
    if a is b:
        leave_squares(operation, a)
        return None
    if len(operation.sources) == 1:
        _leave_weighted(operation, *_source_first(operation))
        return None
    for x, factor in ((a, b), (b, a)):
        form = form_of(operation, factor)
        if form is not None and form.what is What.INVERSE_SUM_OF_EXPONENTIALS:
            return _softmax(operation, x, factor, form)
        if form is not None and form.what in (What.INVERSE_SIZE, What.INVERSE_SPREAD):
            return norm(operation, x, factor, form, factor.detach())
    return _activation(operation, a, b)


def quotient(operation: Operation) -> Operation | None:
    """``a / b``: weighted forms, a norm, a softmax, a sigmoid."""
    a, b = _operands(operation)
    if operation.kwargs.get("rounding_mode") is not None:
        return None
    if not isinstance(b, torch.Tensor) or not operation.depends_on_inputs(b):
        _leave_weighted(operation, a, b)
        return None
    form = form_of(operation, b)
    if form is None:
        return None
    if form.what is What.SUM_OF_EXPONENTIALS:
        return _softmax(operation, a, b, form)
    if form.what is What.ONE_PLUS_EXPONENTIAL:
        exponentials = form_of(operation, a, What.EXPONENTIAL)
        if exponentials is None or form.of is not exponentials:
            return None
        return _squashed(operation, What.SIGMOID, torch.sigmoid, form, ((a, exponentials), (b, form)))
    return norm(operation, a, b, form, b.detach().reciprocal()) if form.what in _INVERSES else None


def _leave_weighted(operation: Operation, x: torch.Tensor, factor: Any) -> None:
    """Leave a form that stays the same if the tensor is multiplied with, or divided by, a constant."""
    form = form_of(operation, x)
    if _is_number(factor):
        if form is not None and form.what in _SCALABLE:
            keep(operation, x, form)
        else:
            _leave_each_element(operation, x)
    elif form is not None and form.what in _WEIGHTED:
        keep(operation, x, form)


def _softmax(operation: Operation, x: Any, divisor: torch.Tensor, form: Form) -> Operation | None:
    exponentials = form_of(operation, x, What.EXPONENTIAL)
    if exponentials is None or form.of is not exponentials or not is_reduced(divisor, x, form.dims):
        return None
    return _squashed(operation, What.SOFTMAX, torch.softmax, form, ((x, exponentials), (divisor, form)))


def _activation(operation: Operation, a: torch.Tensor, b: torch.Tensor) -> Operation | None:
    """The product of a tensor and a gate of the same tensor: SiLU, GELU and Mish."""
    gate, x = (a, b) if operation.is_gate(a) else (b, a)
    if operation.in_place or operation.is_gate(x) or not operation.is_gate(gate):
        return None
    base, of_gate = _base_of(operation, gate)
    own, of_x = _base_of(operation, x)
    if of_gate is None or own is not base:
        return None
    is_silu = isinstance(of_gate, Form) and of_gate.what is What.SIGMOID and not of_gate.is_reversed and of_x is None
    replay = replay_of(operation, ((x, of_x), (gate, of_gate)))
    return completed(operation, F.silu if is_silu else F.gelu, base, replay)


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


def at_least(operation: Operation) -> Operation | None:
    """``clamp``: a bound from below keeps a statistic away from 0."""
    x = operation.argument(0, "input")
    form = form_of(operation, x, *_INVERSES)
    if form is not None:
        keep(operation, x, form)
        return None
    return each_element_again(operation)
