"""Marks: for each tensor of a forward pass, the tapped layers before it and its traits.

Each tensor that depends on the inputs has a :class:`Mark` of the running pass as an attribute. The mark tells three
kinds of tensors apart, which autograd cannot tell apart:

- A tensor with taps is a *carrier*: it carries contributions of a tapped layer.
- A tensor without taps depends on the inputs, but *bypasses* the tapped layers.
- A tensor without a mark is a *constant*, whose share is measured.

A tensor that requires grad and has no mark was made by an operation that the propagation did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from captum_cav.propagation.traits import Trait
from captum_cav.torch_internals import base_of

_ATTRIBUTE = "_captum_cav_mark"
_NONNEGATIVE: int = Trait.NONNEGATIVE.value


class Handoff:
    """What the rule of an operation leaves for the rules of the operations that take its output.

    Attributes:
        consumers: how many operations took the output.
        rectifiers: how many of these operations give 0 where the output is below 0.
        is_for_all: whether any operation may use the handoff. If not, only those whose row recognises functions.
        beside: what else was left for the same output, or None.
        is_final: whether no later operation may use the handoff, but only what follows the forward pass.
    """

    is_for_all = True

    consumers = 0
    rectifiers = 0
    beside: Handoff | None = None
    is_final = False

    def all(self) -> Iterator[Handoff]:
        """All that was left for the same output."""
        handoff: Handoff | None = self
        while handoff is not None:
            yield handoff
            handoff = handoff.beside

    @property
    def is_rectified(self) -> bool:
        """Whether values below 0 have no contribution, because only rectifiers took the output."""
        return 0 < self.consumers == self.rectifiers


class Overwritten(Handoff):
    """The handoff of a tensor into which something was written unseen. Operations that take the tensor are refused.

    Args:
        error: makes the error.
    """

    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error

    @property
    def consumers(self) -> int:  # type: ignore[override]
        """Raises the error, because an operation takes the tensor."""
        raise self._error()


class Mark(NamedTuple):
    """What is known of a tensor.

    Attributes:
        run: identity of the pass that made the mark. Marks of other passes do not count.
        taps: bit set of the tapped layers whose contributions the tensor carries. 0 if the tensor bypasses them.
        traits: the :class:`captum_cav.propagation.traits.Trait` flags of the tensor, as an integer.
        handoff: what the rule of the operation that made the tensor left for the next rule, or None.
    """

    run: object
    taps: int
    traits: int
    handoff: Handoff | None = None


def get_mark(tensor: torch.Tensor, run: object) -> Mark | None:
    """The tensor's mark in the pass ``run``. None for a constant."""
    mark: Mark | None = getattr(tensor, _ATTRIBUTE, None)
    return mark if mark is not None and mark.run is run else None


def clear_mark(tensor: torch.Tensor) -> None:
    """Take the mark off a tensor that is a constant now, as after ``x.detach_()``."""
    if hasattr(tensor, _ATTRIBUTE):
        delattr(tensor, _ATTRIBUTE)


def refuse_further_use(tensor: torch.Tensor, run: object, error: Callable[[], Exception]) -> None:
    """Let the pass refuse all operations that take a tensor, or the tensor of which it is a view.

    Args:
        tensor: a tensor into which something was written unseen.
        run: identity of the pass.
        error: makes the error.
    """
    for one in (tensor, base_of(tensor)):
        mark = None if one is None else get_mark(one, run)
        if mark is not None:
            setattr(one, _ATTRIBUTE, mark._replace(handoff=Overwritten(error)))


def set_mark(tensor: torch.Tensor, mark: Mark, *, written: bool = False) -> None:
    """Mark a tensor.

    Args:
        tensor: the tensor.
        mark: its mark.
        written: whether an operation wrote into the tensor. If the tensor is a view, its base was written into, too.
            The base then gets the taps of both, and the traits that both have.
    """
    setattr(tensor, _ATTRIBUTE, mark)
    base = base_of(tensor) if written else None
    if base is not None and base.requires_grad:
        before = get_mark(base, mark.run)
        if before is None:  # The base was a constant, and may hold any values outside of the view.
            merged = mark._replace(traits=mark.traits & ~_NONNEGATIVE, handoff=None)
        else:
            merged = Mark(mark.run, mark.taps | before.taps, mark.traits & before.traits)
        setattr(base, _ATTRIBUTE, merged)


def let_be_constant(tensor: torch.Tensor) -> None:
    """Let a tensor be a constant from now on, if it can lose its graph.

    The graph of a view belongs to its base, and the leaf of a tap must stay in the graph.
    """
    if not tensor.requires_grad:
        setattr(tensor, _ATTRIBUTE, None)
    elif tensor.grad_fn is not None and base_of(tensor) is None:
        setattr(tensor, _ATTRIBUTE, None)
        tensor.detach_()
