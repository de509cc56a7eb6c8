"""Marks the output of an operation. Its mark follows from the marks of the operation's inputs and from its row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch

from captum_cav.propagation.kinds import Numbers
from captum_cav.propagation.marks import Mark, clear_mark, get_mark, refuse_further_use, set_mark
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.table import Treatment
from captum_cav.propagation.taps import all_in_memory, memory_aliases
from captum_cav.propagation.trace import Trace
from captum_cav.propagation.traits import Trait
from captum_cav.propagation.unknown import overwritten
from captum_cav.tensors import as_plain, is_number, share_elements, tensors_in
from captum_cav.torch_internals import age_of, base_of, keeps_version

# All combinations of traits. To look one up is cheaper than to make one.
_FLAGS = tuple(Trait(traits) for traits in range(2 * max(trait.value for trait in Trait)))

#: The tensors that an operation takes and that depend on the inputs, with their marks.
Sources: TypeAlias = list[tuple[torch.Tensor, Mark]]


def mark_alike(output: Any, source: torch.Tensor, mark: Mark, treatment: Treatment, written: bool) -> None:
    """Mark the output of an operation that takes one tensor. The output keeps the tensor's mark, but for some traits.

    Args:
        output: the operation's output.
        source: the tensor that the operation takes.
        mark: the tensor's mark.
        treatment: what is known of the operation.
        written: whether the operation wrote into the tensor.
    """
    traits = mark.traits & treatment.keeps | treatment.makes
    if traits != mark.traits or mark.handoff is not None:
        mark = Mark(mark.run, mark.taps, traits)
    # ``detach_`` writes into a carrier: now it needs no grad.
    bypassing = not (source.requires_grad or mark.taps or treatment.spec.gives_constants)
    for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
        if (tensor.requires_grad or bypassing) and is_number(tensor):
            set_mark(tensor, mark, written=written)
        elif written:
            clear_mark(tensor)


def mark_result(
    trace: Trace, output: Any, operation: Operation, treatment: Treatment, sources: Sources, written: bool
) -> None:
    """Mark the output of an operation.

    Args:
        trace: the running pass.
        output: the operation's output, or the tensor into which the operation wrote.
        operation: the operation, after its rule ran.
        treatment: what is known of the operation.
        sources: the tensors that the operation takes and that depend on the inputs, with their marks.
        written: whether the operation wrote into a tensor.
    """
    taps, bypassing, traits, detached = 0, False, treatment.keeps, operation.detached
    for tensor, mark in sources:
        traits &= mark.traits
        if not (mark.taps or tensor.requires_grad):  # ``detach_`` writes into a carrier: now it needs no grad.
            bypassing = True
        elif id(tensor) not in detached:
            taps |= mark.taps
    if traits & treatment.drops_with_constants and _takes_constants(operation, len(sources)):
        traits &= ~treatment.drops_with_constants
    traits |= treatment.makes
    spec, handoff = operation.spec, operation.handoff
    if spec.find_gate is not None and sources:
        traits |= spec.find_gate(operation, _FLAGS[sources[0][1].traits]).value
    if handoff is None and spec.hands_on and len(sources) == 1:
        handoff = sources[0][1].handoff
    for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
        if is_number(tensor):
            if tensor.requires_grad:
                set_mark(tensor, Mark(trace.run, taps, traits, handoff), written=written)
            elif bypassing and not operation.is_constant and not spec.gives_constants:
                set_mark(tensor, Mark(trace.run, 0, traits), written=written)
            elif written:
                clear_mark(tensor)
            # Otherwise the tensor is a constant: a gate weighs only constants, or all sources are carriers, and the
            # operation detached the tensor.


def plain_with_mark(run: object, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a subclass as a plain tensor, with its mark: the model may have written into it before.

    Args:
        run: identity of the pass.
        tensor: the tensor.
    """
    plain = as_plain(tensor)
    if plain is not tensor:
        mark = get_mark(cast(torch.Tensor, base_of(plain)), run)
        if mark is not None:
            set_mark(plain, mark)
    return plain


def has_unmarked(run: object, output: Any) -> bool:
    """Whether a rule computed further with the output of the operations into which it decomposed its operation.

    Args:
        run: identity of the pass.
        output: what the rule returned.
    """
    return any(one.requires_grad and get_mark(one, run) is None for one in tensors_in(output))


def put_behind_taps(trace: Trace, written: torch.Tensor, refusal: Callable[[], Exception]) -> bool:
    """Before writing into a tensor: let the tensor come from the taps that took it over.

    A layer may pass its input on unchanged. Then the input and the layer's output are one tensor to the model, and what
    is written into the input is written into the output.

    Args:
        trace: the running pass.
        written: the tensor into which the model is about to write.
        refusal: gives the error for a tensor that several layers passed on side by side.

    Returns:
        Whether anything changed.
    """
    base = base_of(written)
    whole = written if base is None else base
    aliases = all_in_memory(whole)
    if len(aliases) < 2:
        return False
    taps = [0 if mark is None else mark.taps for mark in (get_mark(alias, trace.run) for alias in aliases)]
    for last in range(1, len(aliases)):
        for first in range(last):
            if taps[first] & ~taps[last] and share_elements(aliases[first], aliases[last]):
                raise refusal()
    later = aliases[[alias is whole for alias in aliases].index(True) + 1 :]
    for alias in later:
        _copy_graph(alias, whole)
        before, mark = get_mark(whole, trace.run), get_mark(alias, trace.run)
        if before is not None and mark is not None:
            set_mark(whole, Mark(trace.run, before.taps | mark.taps, before.traits & mark.traits))
    mark = get_mark(whole, trace.run)
    if later and mark is not None:
        set_mark(written, mark)
        # Torch brings a view up to date when somebody asks for its node, but not when somebody writes into the view.
        assert written.grad_fn is not None
    return bool(later)


def without_graph(constant: torch.Tensor, began: int, refusal: Callable[[], Exception]) -> torch.Tensor:
    """Before contributions are written into a constant with a graph of its own, such as a product of parameters.

    Args:
        constant: the constant.
        began: the age of the pass. Older tensors, and parameters, are the user's and stay as they are.
        refusal: gives the error for a tensor of the user's.

    Returns:
        The constant or, if it is a view, the same view of its base. The constant or its base has no graph any more.
    """
    base = base_of(constant)
    whole = constant if base is None else base
    if whole.is_leaf or type(constant) is not torch.Tensor or age_of(whole) <= began:
        raise refusal()
    whole.detach_()
    return constant if base is None else base.as_strided(constant.shape, constant.stride(), constant.storage_offset())


def follow_memory(trace: Trace, written: torch.Tensor) -> None:
    """After writing into a tensor: update the other tensors in its memory, which a tap separated from it."""
    base = base_of(written)
    whole = written if base is None else base
    if trace.audited is not None and written.requires_grad:
        trace.snapshots.update(written)
    for alias in memory_aliases(whole):
        # The copy puts the alias behind the writing operation in the graph. The numbers in its memory do not change.
        try:
            with keeps_version(alias):
                _copy_graph(whole, alias)
        except RuntimeError:  # The alias is one of several views that one function returned. Nobody may write there.
            refuse_further_use(alias, trace.run, functools.partial(overwritten, tuple(alias.shape), "The model"))
            continue
        mark = get_mark(whole, trace.run)
        if mark is not None:
            set_mark(alias, mark)
        if trace.audited is not None:
            trace.snapshots.share(whole, alias)


def _copy_graph(source: torch.Tensor, target: torch.Tensor) -> None:
    """Let the elements that two tensors share come from the first of them."""
    if source.numel() < target.numel():
        _part_like(target, source).copy_(source)
    else:
        target.copy_(_part_like(source, target))


def _part_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies where another tensor of the same memory lies."""
    if tensor.shape == other.shape and tensor.stride() == other.stride():
        return tensor
    return tensor.as_strided(other.shape, other.stride(), other.storage_offset())


def _takes_constants(operation: Operation, sources: int) -> bool:
    """Whether constants take part in an operation, besides the tensors that depend on the inputs."""
    arguments = [*operation.args, *operation.kwargs.values()]
    numbers = operation.spec.numbers is not Numbers.SETTINGS and any(
        isinstance(value, (int, float, complex)) for value in arguments
    )
    return numbers or len(tensors_in(arguments)) != sources
