"""Forms: what a tensor is in terms of an earlier tensor. They tell functions that a model writes out.

A softmax may be written as ``exp(z) / exp(z).sum(-1, keepdim=True)``, and an RMS norm as
``x * rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)``. The same function must give the same map. So each operation that
may be a part of such a function leaves a form on its output, such as "the exponential of ``z``" or "the sum of these
exponentials". The operation that completes the function then gets the rule of the fused function, from the value before
the first part to the value of the last part. The forward pass does not change: each operation computes its own value.

:mod:`captum_cav.operations.written_out` says which operations leave and which complete which form.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.tensors import is_same_memory
from captum_cav.torch_internals import base_of, version_of

#: Gives the fused function that an operation completes, or None.
Recogniser: TypeAlias = Callable[[Operation], "Operation | None"]
#: Computes a tensor from the earlier tensor.
Replay: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Replays(Protocol):
    """How a tensor is computed from an earlier tensor."""

    def replay(self) -> Replay:
        """Computes the tensor from the earlier tensor."""
        ...


#: The arguments of an operation that depend on the earlier tensor, each with its form. None for the tensor itself.
Parts: TypeAlias = tuple[tuple[torch.Tensor, Replays | None], ...]


class What(enum.Enum):
    """What a tensor is, in terms of the tensor before."""

    #: A function of each element of the tensor before, with numbers as its only constants: ``k x + b``, or any other.
    #: The form of ``x + b`` names all dimensions, along which ``b`` is the same.
    AFFINE = enum.auto()
    ELEMENTWISE = enum.auto()
    #: The output of an activation between layers. What follows it is a function of its own.
    ACTIVATION = enum.auto()
    #: ``exp(z)``, perhaps times a constant.
    EXPONENTIAL = enum.auto()
    #: ``1 + exp(z)``.
    ONE_PLUS_EXPONENTIAL = enum.auto()
    #: The sum of exponentials over a dimension, and its reciprocal.
    SUM_OF_EXPONENTIALS = enum.auto()
    INVERSE_SUM_OF_EXPONENTIALS = enum.auto()
    LOG_SUM_EXP = enum.auto()
    SOFTMAX = enum.auto()
    LOG_SOFTMAX = enum.auto()
    SIGMOID = enum.auto()
    LOG_SIGMOID = enum.auto()
    #: ``z - c``, where ``c`` is the same along some dimensions. A softmax along them does not depend on ``c``.
    SHIFTED = enum.auto()
    #: The mean over some dimensions, and the square of that mean.
    MEAN = enum.auto()
    SQUARED_MEAN = enum.auto()
    #: ``x - mean``.
    CENTRED = enum.auto()
    #: The squares of ``x``, or of ``x - mean``.
    SQUARES = enum.auto()
    CENTRED_SQUARES = enum.auto()
    #: How large ``x`` is over some dimensions: a mean or sum of squares, perhaps its root, perhaps plus a number.
    SIZE = enum.auto()
    INVERSE_SIZE = enum.auto()
    #: The same for ``x - mean``: a variance or a deviation.
    SPREAD = enum.auto()
    INVERSE_SPREAD = enum.auto()
    #: The output of a norm, perhaps times a constant.
    NORMED = enum.auto()


#: Functions that squash a score. What they squash is called a logit.
SQUASHED = frozenset({What.SOFTMAX, What.LOG_SOFTMAX, What.SIGMOID, What.LOG_SIGMOID})


class Form(Handoff):
    """What a tensor is in terms of an earlier tensor.

    Args:
        what: what the tensor is.
        before: the earlier tensor.
        call: the operation that made the tensor, as a function of the earlier tensor.
        version: the version of the tensor. If it has another version, the model wrote into it, and the form is void.
        dims: the dimensions over which the form sums.
        of: the form of the tensor that is summed, if the form belongs to this one tensor only.
        by: the tensor by which another tensor was shifted.
        is_shifted: whether the operation that made the tensor adds a number.
        bound: no value is further from 0 than this number.
        is_reversed: whether a score is squashed with the opposite sign.
        moves: the operations that moved or picked elements of a squashed score, in this order.

    Attributes:
        of_elements: of a statistic, the form in terms of the statistic before any number was added.
    """

    is_for_all = False

    def __init__(
        self,
        what: What,
        before: torch.Tensor,
        call: Call,
        version: int,
        dims: tuple[int, ...] = (),
        of: Form | None = None,
        by: torch.Tensor | None = None,
        is_shifted: bool = False,
        bound: float = math.inf,
        is_reversed: bool = False,
        moves: tuple[Replay, ...] = (),
    ) -> None:
        self.what = what
        self.before = before
        self.dims = dims
        self.of = of
        self.by = by
        self.is_shifted = is_shifted
        self.bound = bound
        self.is_reversed = is_reversed
        self.moves = moves
        self.of_elements: Form | None = None
        self._call = call
        self._version = version
        self._version_before = version_of(before)

    def holds_for(self, tensor: torch.Tensor) -> bool:
        """Whether the model wrote neither into the tensor nor into the tensor before."""
        return version_of(tensor) == self._version and version_of(self.before) == self._version_before

    def is_by(self, other: Any) -> bool:
        """Whether a tensor was shifted by another tensor, or by a view of it."""
        if self.by is None or not isinstance(other, torch.Tensor):
            return False
        return other is self.by or base_of(other) is self.by or base_of(self.by) is other

    def is_same_as(self, other: Form | None) -> bool:
        """Whether two tensors were computed alike from the same tensor, so that they are equal."""
        return self is other or (
            other is not None and self.before is other.before and self._call.is_same_as(other._call)
        )

    @property
    def is_of_two(self) -> bool:
        """Whether the operation takes two tensors that depend on the tensor before."""
        return self._call.is_of_two

    def replay(self) -> Replay:
        """Computes the tensor from the tensor before. The function keeps no tensor with a graph."""
        return self._call.replay()

    def logits(self) -> torch.Tensor:
        """What was squashed, in the shape of the squashed tensor."""
        logits = -self.before if self.is_reversed else self.before
        for move in self.moves:
            logits = move(logits)
        return logits


class _Slot(NamedTuple):
    """The place of an argument that depends on the earlier tensor."""

    replays: Replays | None


class Call:
    """An operation as a function of an earlier tensor.

    Args:
        operation: the operation.
        parts: its arguments that depend on the earlier tensor, each with its form. None as a form means that the
            argument is the earlier tensor.
    """

    def __init__(self, operation: Operation, parts: Parts) -> None:
        # The operation itself is not stored, because it may hold a form that holds this call.
        self._function, self._in_place, self._parts = operation.function, operation.in_place, parts
        self._args = (None, *operation.args[1:]) if operation.in_place else operation.args
        self._kwargs = operation.kwargs

    @property
    def is_of_two(self) -> bool:
        """Whether two arguments depend on the earlier tensor."""
        return len(self._parts) == 2

    def is_same_as(self, other: Call) -> bool:
        """Whether both are the same function of the earlier tensor."""
        if self._function is not other._function or len(self._args) != len(other._args):
            return False
        if self._in_place or other._in_place or self._kwargs or other._kwargs:
            return False
        pairs = zip(map(self._slot, self._args), map(other._slot, other._args), strict=True)
        return all(_is_same(one, two) for one, two in pairs)

    def replay(self) -> Replay:
        """The function. It keeps no tensor with a graph."""
        function, in_place = self._function, self._in_place
        args = [_filler(self._slot(value)) for value in self._args]
        if in_place:
            args[0] = _filler(_Slot(self._parts[0][1]))
        kwargs = {key: _filler(self._slot(value)) for key, value in self._kwargs.items()}

        def replay(x: torch.Tensor) -> torch.Tensor:
            filled = [fill(x) for fill in args]
            if in_place:
                filled[0] = filled[0].clone()
            output: torch.Tensor = function(*filled, **{key: fill(x) for key, fill in kwargs.items()})
            return output

        return replay

    def _slot(self, value: Any) -> Any:
        """An argument, or its place if it depends on the earlier tensor."""
        if not isinstance(value, torch.Tensor):
            return value
        for tensor, replays in self._parts:
            if value is tensor:
                return _Slot(replays)
        return value.detach()


def _filler(value: Any) -> Callable[[torch.Tensor], Any]:
    """Gives an argument for a value of the earlier tensor."""
    if not isinstance(value, _Slot):
        return lambda x: value
    return (lambda x: x) if value.replays is None else value.replays.replay()


def _is_same(one: Any, two: Any) -> bool:
    if isinstance(one, _Slot) and isinstance(two, _Slot):
        if isinstance(one.replays, Form) and isinstance(two.replays, Form):
            return one.replays.is_same_as(two.replays)
        return one.replays is two.replays
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return is_same_memory(one, two)
    return not isinstance(one, torch.Tensor) and not isinstance(two, torch.Tensor) and bool(one == two)


def replay_of(operation: Operation, parts: Parts) -> Replay:
    """The operation as a function of an earlier tensor. See :class:`Call`."""
    return Call(operation, parts).replay()


def form_of(operation: Operation, value: Any, *among: What) -> Form | None:
    """The form of an argument of an operation, or None.

    Args:
        operation: the operation.
        value: the argument.
        among: the forms that count. Any form if none are given.
    """
    if not isinstance(value, torch.Tensor):
        return None
    handoff = operation.handoff_of(value)
    form = None if handoff is None else form_among(handoff)
    if form is None or form.is_final:
        return None
    return form if (not among or form.what in among) and form.holds_for(value) else None


def form_among(handoff: Handoff) -> Form | None:
    """The form among all that was left for an output, or None."""
    return next((one for one in handoff.all() if isinstance(one, Form)), None)


def leave(
    operation: Operation,
    what: What,
    before: torch.Tensor,
    parts: Parts,
    *,
    dims: tuple[int, ...] = (),
    of: Form | None = None,
    by: torch.Tensor | None = None,
    is_shifted: bool = False,
    bound: float = math.inf,
    is_reversed: bool = False,
    moves: tuple[Replay, ...] = (),
    view_of: torch.Tensor | None = None,
) -> None:
    """Leave a form on the output of an operation.

    Args:
        operation: the operation.
        what, before, dims, of, by, is_shifted, bound, is_reversed, moves: see :class:`Form`.
        parts: see :class:`Call`.
        view_of: the tensor of which the output may be a view. Both then have one version.
    """
    written = operation.args[0] if operation.in_place else view_of
    if operation.in_place:
        if written is before:
            return  # The operation writes over the tensor before.
        # The output is the written tensor. A form must not hold its own tensor.
        first = next((replays for tensor, replays in parts if tensor is written), None)
        parts = ((before, first), *(part for part in parts if part[0] is not written))
    version = (0 if written is None else version_of(written)) + operation.in_place
    call = Call(operation, parts)
    operation.handoff = Form(what, before, call, version, dims, of, by, is_shifted, bound, is_reversed, moves)


class _Chain(NamedTuple):
    first: Replays
    second: Replays

    def replay(self) -> Replay:
        first, second = self.first.replay(), self.second.replay()
        return lambda x: second(first(x))


def chained(first: Replays, second: Replays | None) -> Replays:
    """One form after another: the second is in terms of the tensor that the first describes."""
    return first if second is None else _Chain(first, second)


def completed(
    operation: Operation,
    fused: Callable[..., Any] | None,
    before: torch.Tensor,
    replay: Replay,
    *settings: Any,
    rule: Surrogate | None = None,
) -> Operation | None:
    """The fused function that an operation completes.

    Args:
        operation: the last operation of the function.
        fused: the torch function that does the same. None for the rules of the last operation.
        before: the tensor that enters the function.
        replay: computes the function.
        settings: the further arguments of the fused function that its rules read.
        rule: the default rule. None for that of the fused function.

    Returns:
        The fused function as an operation on ``before``. None if a layer that is explained lies inside the function, or
        if the operation writes into the tensor before.
    """
    taps = operation.taps_of(before)
    if any(operation.taps_of(source) != taps for source in operation.sources) or not operation.carries(before):
        return None
    if operation.in_place and operation.args[0].untyped_storage() is before.untyped_storage():
        return None
    value: torch.Tensor = operation.plain_value()
    saved = operation.save(before.detach())

    def function(x: torch.Tensor, *settings: Any) -> torch.Tensor:
        if not x.requires_grad:
            return value.clone()
        return with_backward(value, lambda coefficients: (_derived(replay, saved.value, coefficients),), x)

    return operation.rewritten(fused, function, before, *settings, rule=rule)


def _derived(replay: Replay, x: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """The coefficients times the derivative of a replay."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(replay(leaf), leaf, coefficients, create_graph=coefficients.requires_grad)[0]


# What several recognisers need ---------------------------------------------------------------------------------------


def dims_of(operation: Operation, x: torch.Tensor, position: int = 1) -> tuple[int, ...] | None:
    """The dimensions over which a function reduces a tensor, or None if it takes all values.

    Args:
        operation: a reduction.
        x: the tensor.
        position: the position of the argument ``dim``.
    """
    dims = operation.argument(position, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    return None if dims is None else tuple(dim % x.dim() for dim in dims)


def all_dims_of(operation: Operation, x: torch.Tensor, position: int = 1) -> tuple[int, ...]:
    """The dimensions over which a function reduces a tensor, in order. See :func:`dims_of`."""
    dims = dims_of(operation, x, position)
    return tuple(sorted(dims)) if dims else tuple(range(x.dim()))


def is_reduced(statistic: torch.Tensor, x: torch.Tensor, dims: tuple[int, ...]) -> bool:
    """Whether a statistic broadcasts along the dimensions over which it was taken."""
    shape = statistic.shape
    return len(shape) == x.dim() and all(
        dim < len(shape) and (shape[dim] == 1 or statistic.stride(dim) == 0) for dim in dims
    )


def keep_statistic(operation: Operation, x: torch.Tensor, form: Form, what: What | None = None) -> None:
    """Like :func:`keep`, for a function of each element of a statistic, which has left its own form."""
    of_elements = operation.handoff
    keep(operation, x, form, what)
    statistic = operation.handoff
    if isinstance(statistic, Form) and isinstance(of_elements, Form):
        statistic.of_elements = of_elements


def keep(operation: Operation, x: torch.Tensor, form: Form, what: What | None = None) -> None:
    """Leave the form of an argument on the output, or another form of the same tensor before."""
    leave(
        operation,
        what or form.what,
        form.before,
        ((x, form),),
        dims=form.dims,
        of=form.of,
        is_reversed=form.is_reversed,
        moves=form.moves,
    )
