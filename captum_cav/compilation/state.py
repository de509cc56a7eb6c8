"""The state of a model that a recording depends on: its modules, their attributes, hooks, parameters and buffers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from captum_cav.errors import RecordingError
from captum_cav.propagation.forward import names_in
from captum_cav.torch_graphs import hook_registries, places_of_tensors, submodules
from captum_cav.torch_internals import modules_of, version_of


def modules_behind(forward_func: Callable[..., Any], called: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The modules that a model may call, each once.

    Args:
        forward_func: the model, a method of a module, or any function.
        called: the modules that a function called.
    """
    roots = [forward_func, getattr(forward_func, "__self__", None), *called]
    found = {module: None for root in roots if isinstance(root, torch.nn.Module) for module in modules_of(root)}
    return list(found)


def named(forward_func: Callable[..., Any], module: torch.nn.Module | None) -> str:
    """How a message names the module in which something happened."""
    if module is None:
        return "outside of all modules"
    names = [name for name in names_in(forward_func)(module) if name]
    kind = type(module).__name__
    return f"in module {names[0]!r} ({kind})" if names else f"in the module {kind}"


class ModelState:
    """What a model was like when a recording was made, except the numbers of its tensors.

    Values of attributes are compared. What changes inside of a list or of another object is not noticed.

    Args:
        modules: the modules of the model.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        entries = [vars(module) for module in modules]
        entries += [children for module in modules if (children := submodules(module))]
        self._entries: list[dict[str, Any]] = entries
        self._before: list[dict[str, Any]] = [dict(each) for each in entries]
        #: Attributes that hold tensors, or change in each forward pass: they are left out.
        self._changing: list[tuple[dict[str, Any], dict[str, Any], frozenset[str]]] = []
        self._absent = [
            (tensors, name)
            for module in modules
            for tensors in places_of_tensors(module)[:2]
            for name, value in tensors.items()
            if value is None
        ]
        self._hooks = [hooks for _, hooks in hook_registries(modules)]
        self._hook_count = sum(map(len, self._hooks))

    def is_same(self) -> bool:
        """Whether the model is as it was."""
        try:
            return (
                all(map(operator.eq, self._entries, self._before))
                and sum(map(len, self._hooks)) == self._hook_count
                and all(tensors.get(name) is None for tensors, name in self._absent)
                and all(_without(now, names) == _without(then, names) for now, then, names in self._changing)
            )
        except (RuntimeError, ValueError, TypeError):  # Some values, such as arrays, cannot be compared as a whole.
            return False

    def settle(self) -> None:
        """Forget the attributes that forward passes changed meanwhile, such as counters: a replay does not run them."""
        entries, before = self._entries, self._before
        self._entries, self._before = [], []
        for now, then in zip(entries, before, strict=True):
            names = {
                name
                for name in {*now, *then}
                if isinstance(now.get(name), torch.Tensor)
                or isinstance(then.get(name), torch.Tensor)
                or now.get(name, _MISSING) is not then.get(name, _MISSING)
            }
            if names:
                self._changing.append((now, then, frozenset(names)))
            else:
                self._entries.append(now)
                self._before.append(then)


_MISSING = object()


def _without(entries: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def check_hooks(forward_func: Callable[..., Any], modules: Sequence[torch.nn.Module]) -> None:
    """Refuse hooks that a replay would not run. Hooks of torch itself, such as those of a weight norm, are recorded.

    Raises:
        RecordingError: names the module.
    """
    for module, hooks in hook_registries(modules):
        for hook in hooks.values():
            if str(getattr(hook, "__module__", "")).startswith("torch.nn.utils."):
                continue
            where = "on all modules" if module is None else named(forward_func, module)
            raise RecordingError(
                f"a forward hook is {where}, which a replay would not call; remove the hook, or attribute without "
                "captum_cav.compile."
            )


class Constants:
    """The tensors that a recording uses besides its inputs: parameters, buffers, and tensors found elsewhere.

    Parameters, buffers and tensors among the attributes of a module are looked up by name in each call.

    Args:
        tensors: what the recording used.
        modules: the modules of the model.
        frozen: whether the numbers are part of the recording.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], modules: Sequence[torch.nn.Module], frozen: bool = False
    ) -> None:
        places = {
            id(value): (place, name)
            for module in modules
            for place in places_of_tensors(module)
            for name, value in place.items()
            if isinstance(value, torch.Tensor)
        }
        self._tensors = list(tensors)
        self._found = [(index, *places[id(tensor)]) for index, tensor in enumerate(tensors) if id(tensor) in places]
        self._kinds = _kinds([self._tensors[index] for index, _, _ in self._found])
        self._versions = list(map(version_of, tensors)) if frozen else None

    def current(self) -> list[torch.Tensor]:
        """The tensors as they are now, which must be of the same kinds."""
        tensors = self.now()
        assert tensors is not None
        return tensors

    def now(self) -> list[torch.Tensor] | None:
        """The tensors as they are now. None if one of them is of another kind, or frozen and changed."""
        tensors = self._tensors.copy()
        try:
            found = [place[name] for _, place, name in self._found]
            if _kinds(found) != self._kinds:
                return None
        except (AttributeError, KeyError, TypeError):  # One is no tensor any more.
            return None
        for (index, _, _), tensor in zip(self._found, found, strict=True):
            tensors[index] = tensor
        if self._versions is not None:
            is_same = all(map(operator.is_, tensors, self._tensors))
            if not is_same or list(map(version_of, tensors)) != self._versions:
                return None
        return tensors


_dtype, _device = operator.attrgetter("dtype"), operator.attrgetter("device")


def _kinds(tensors: Sequence[torch.Tensor]) -> tuple[list[Any], ...]:
    """Types, devices and layouts. A shape takes longer to read than the strides with the number of elements."""
    return (
        list(map(_dtype, tensors)),
        list(map(_device, tensors)),
        list(map(torch.Tensor.stride, tensors)),
        list(map(torch.Tensor.numel, tensors)),
    )
