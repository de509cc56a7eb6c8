"""Activations before a global average pooling: an activation learns that a pooling may follow it."""

from __future__ import annotations

from typing import Any

from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Operation


class Poolable(Handoff):
    """What an activation leaves for a global average pooling behind it.

    Attributes:
        may_be_pooled: whether an operation that averages took the output, perhaps after other operations moved it.
    """

    may_be_pooled = False


class _Passed(Handoff):
    """The activation before, for an operation that moved or averaged its output.

    Args:
        poolable: what the activation left.
    """

    def __init__(self, poolable: Poolable) -> None:
        self.poolable = poolable


def poolable_before(operation: Operation, x: Any) -> Poolable | None:
    """The activation that made an argument of an operation, if it asks for a pooling behind it."""
    before = operation.handoff_of(x)
    for handoff in () if before is None else before.all():
        if isinstance(handoff, Poolable):
            return handoff
        if isinstance(handoff, _Passed):
            return handoff.poolable
    return None


def note_average(operation: Operation, x: Any) -> None:
    """Tell the activation before that the operation may average its output."""
    before = poolable_before(operation, x)
    if before is not None:
        before.may_be_pooled = True
        hand_on(operation, x)


def hand_on(operation: Operation, x: Any) -> None:
    """Keep what the activation before asks for: the operation moves or averages its output."""
    before = poolable_before(operation, x)
    if before is None or operation.handoff is before:
        return
    # What the activation is in terms of an earlier tensor does not hold for the new tensor, so it is not handed on.
    passed, own = _Passed(before), operation.handoff
    if own is None or not own.is_for_all:
        passed.beside, operation.handoff = own, passed
    else:
        passed.beside, own.beside = own.beside, passed
