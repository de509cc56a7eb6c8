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


def poolable_before(operation: Operation, x: Any) -> Poolable | None:
    """The activation that made an argument of an operation, if it asks for a pooling behind it."""
    before = operation.handoff_of(x)
    if before is not None and not isinstance(before, Poolable):
        before = before.beside
    return before if isinstance(before, Poolable) else None


def note_average(operation: Operation, x: Any) -> None:
    """Tell the activation before that the operation may average its output."""
    before = poolable_before(operation, x)
    if before is not None:
        before.may_be_pooled = True
        hand_on(operation, x)


def hand_on(operation: Operation, x: Any) -> None:
    """Keep what the activation before asks for: the operation moves or averages its output."""
    before = poolable_before(operation, x)
    if operation.handoff is None:
        operation.handoff = before
    elif operation.handoff is not before and before is not None:
        operation.handoff.beside = before
