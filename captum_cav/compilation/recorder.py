"""An attribution whose passes can be recorded: it reads no number, and keeps what is to be checked afterwards."""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from captum_cav.attribution.backward import Propagated
from captum_cav.attribution.contributions import ContributionAttribution, Propagation
from captum_cav.attribution.input_checks import Arguments
from captum_cav.attribution.result_checks import refuse_independent
from captum_cav.attribution.scores import SelectedScores
from captum_cav.compilation.state import named
from captum_cav.errors import RecordingError
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.torch_graphs import (
    DispatchMode,
    aliased_arguments,
    is_random,
    plain_name,
    storage_key,
    unrecorded,
)
from captum_cav.torch_internals import innermost_called, tree_leaves


class Evidence(NamedTuple):
    """What the checks after a pass read, for one target.

    Attributes:
        what: what the scores are, with a verb, for messages.
        names: of the explained layers.
        selected: the scores that are explained.
        found: what the backward pass found.
    """

    what: str
    names: tuple[str, ...]
    selected: SelectedScores
    found: Propagated


class Recorder(ContributionAttribution):
    """Mixed into the class of an attribution: its passes read no number, and its checks come later.

    Attributes:
        evidence: what is to be checked, one entry for each target that was explained.
        one_by_one: whether each sample gets a backward pass of its own for its delta; None if that is not known yet.
    """

    evidence: list[Evidence]
    one_by_one: bool | None

    def _checked(self, propagation: Propagation, with_delta: bool) -> Propagated:
        if self.one_by_one is None:
            found, one_by_one = propagation.run(with_delta)
            if one_by_one:
                self.one_by_one = True
        else:
            found = propagation.back(one_by_one=self.one_by_one)
        if found.independent:
            refuse_independent(", ".join(propagation.names[place] for place in found.independent), found.weighed)
        plain: Any = (value.detach() if isinstance(value, torch.Tensor) else value for value in propagation.selected)
        selected = SelectedScores(*plain)
        self.evidence.append(Evidence(propagation.what, tuple(propagation.names), selected, found))
        return found

    def explain(self, arguments: Arguments, options: Sequence[Any]) -> tuple[Any, list[Evidence]]:
        """What ``attribute`` returns for some arguments, and what is to be checked."""
        self.evidence = []
        result = self._explain(arguments, *options)
        return result, self.evidence


@functools.cache
def _recorder_class(kind: type[ContributionAttribution]) -> type[Recorder]:
    return type(f"Recording{kind.__name__}", (Recorder, kind), {})


def recorder_of(attribution: ContributionAttribution) -> Recorder:
    """An attribution with the same model, layers and options that can be recorded."""
    recorder = copy.copy(attribution)
    recorder.__class__ = _recorder_class(type(attribution))  # type: ignore[arg-type]
    assert isinstance(recorder, Recorder)
    recorder.one_by_one = None
    return recorder


# What cannot be recorded ----------------------------------------------------------------------------------------------

_READING = frozenset({torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.__dlpack__})
_READING_OPERATIONS = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "allclose"})


class _Fixed:
    """Tensors that hang on nothing but shapes, such as positions. They are the same in each call."""

    def __init__(self) -> None:
        self._by_memory: dict[int, torch.Tensor] = {}

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, torch.Tensor) and storage_key(tensor) in self._by_memory

    def note(self, tensors: Sequence[torch.Tensor], are_fixed: bool) -> None:
        """Note that some tensors are fixed, or that they are not. Fixed tensors are kept, so that others are others."""
        for tensor in tensors:
            self._by_memory.pop(storage_key(tensor), None)
            if are_fixed:
                self._by_memory[storage_key(tensor)] = tensor


class _NumpyRefused(TorchFunctionMode):
    """Refuses to hand numbers to Python in ways that are no aten operations."""

    def __init__(self, refuse: Callable[[str], None], fixed: _Fixed) -> None:
        super().__init__()
        self._refuse, self._fixed = refuse, fixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING and args[0] not in self._fixed:
            self._refuse(f"reads the numbers of a tensor by {func.__name__}()")
        return func(*args, **(kwargs or {}))


class _Watching(DispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose replay would not do what the operation does."""

    def __init__(self, refuse: Callable[[str], None], fixed: _Fixed, kept: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refuse, self._fixed, self._kept = refuse, fixed, kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = plain_name(func), tree_leaves((args, kwargs))
        # Torch lifts a tensor that was made of numbers of Python.
        is_fixed = name == "lift_fresh" or all(leaf in self._fixed for leaf in given if isinstance(leaf, torch.Tensor))
        if name in _READING_OPERATIONS:
            if not (is_fixed or (name == "equal" and _notes_are_compared())):
                self._refuse("reads a number of a tensor, to decide what to do with it perhaps")
            with unrecorded():
                return func(*args, **kwargs)
        if is_random(func, args, kwargs):
            self._refuse(f"takes random numbers by {name}")
        if not is_fixed and _has_unknown_shape(func, name, args):
            self._refuse(f"makes a tensor whose shape depends on numbers, by {name}")
        for tensor in aliased_arguments(func, args, kwargs)[1]:
            if storage_key(tensor) in self._kept:
                self._refuse(f"writes into a parameter, a buffer or an argument by {name}")
        result = func(*args, **kwargs)
        self._fixed.note([leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)], is_fixed)
        return result


def _notes_are_compared() -> bool:
    """Whether the propagation looks for what the model noted on its modules, which decides nothing about the map."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") != _NOTES:
        frame = frame.f_back
    return frame.f_back is not None and innermost_called() is None


_NOTES = noted_tensors.__module__


def _has_unknown_shape(func: Any, name: str, args: Any) -> bool:
    """Whether the shape of a result hangs on numbers. Of an index, only a mask decides that."""
    if not {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
        return False
    masks = (torch.bool, torch.uint8)
    return name not in ("index", "index_put") or any(
        isinstance(index, torch.Tensor) and index.dtype in masks for index in args[1]
    )


@contextmanager
def only_recordable(forward_func: Callable[..., Any], kept: Sequence[torch.Tensor]) -> Iterator[None]:
    """A context in which everything raises that a replay would not do as the model does.

    Args:
        forward_func: the model, for the names of modules in messages.
        kept: tensors into which nothing may write.

    Raises:
        RecordingError: names the module.
    """

    def refuse(what: str) -> None:
        raise RecordingError(
            f"something {named(forward_func, innermost_called())} {what}, so a recording of one input would not hold "
            'for others. Attribute without captum_cav.compile, or pass on_break="eager".'
        )

    fixed = _Fixed()
    with _NumpyRefused(refuse, fixed), _Watching(refuse, fixed, frozenset(map(storage_key, kept))):
        yield


@contextmanager
def noting_calls(called: dict[torch.nn.Module, None]) -> Iterator[None]:
    """A context in which all modules that this thread calls are noted."""
    thread = threading.get_ident()

    def note(module: torch.nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            called[module] = None

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
