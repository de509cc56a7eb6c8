"""The state of a model that a recording depends on: its modules, their attributes, hooks, parameters and buffers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from captum_cav.errors import RecordingError
from captum_cav.propagation.forward import names_in
from captum_cav.torch_graphs import call_state, hook_registries, places_of_tensors, submodules
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


class _Attributes(NamedTuple):
    """Some entries of a dictionary, and what they were."""

    entries: dict[str, Any]
    size: int
    names: tuple[str, ...]
    read: Callable[[dict[str, Any]], tuple[Any, ...]]
    values: tuple[Any, ...]

    def is_same(self) -> bool:
        entries = self.entries
        if len(entries) != self.size:
            return False
        try:
            return all(map(operator.is_, self.read(entries), self.values))
        except KeyError:
            return False


def _attributes(entries: dict[str, Any], names: Sequence[str]) -> _Attributes:
    if len(names) > 1:
        read: Callable[..., Any] = operator.itemgetter(*names)
    elif names:
        name = names[0]
        read = lambda values: (values[name],)  # noqa: E731
    else:
        read = _nothing
    return _Attributes(entries, len(entries), tuple(names), read, read(entries))


def _nothing(entries: dict[str, Any]) -> tuple[Any, ...]:
    return ()


class ModelState:
    """What a model was like when a recording was made, except the numbers of its tensors.

    Attributes are compared by identity. What changes inside of an attribute, such as a list, is not noticed.

    Args:
        modules: the modules of the model.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self.modules = modules
        self._attributes: list[_Attributes] = []
        for module in modules:
            entries, names = call_state(module)
            self._attributes.append(_attributes(entries, names))
            children = submodules(module)
            if children:
                self._attributes.append(_attributes(children, list(children)))
            for tensors in places_of_tensors(module)[:2]:
                absent = [name for name, value in tensors.items() if value is None]
                if absent:
                    self._attributes.append(_attributes(tensors, absent))
        registries = hook_registries(modules)
        self._hooks = [hooks for _, hooks in registries]
        self._hook_count = sum(map(len, self._hooks))

    def is_same(self) -> bool:
        """Whether the model is as it was."""
        return sum(map(len, self._hooks)) == self._hook_count and all(each.is_same() for each in self._attributes)

    def settle(self) -> None:
        """Forget the attributes that forward passes changed meanwhile, such as counters: a replay does not run them."""
        settled = []
        for each in self._attributes:
            same = [
                name
                for name, value in zip(each.names, each.values, strict=True)
                if each.entries.get(name, _MISSING) is value
            ]
            settled.append(_attributes(each.entries, same))
        self._attributes = settled


_MISSING = object()


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
        self._kinds = [_kind(self._tensors[index]) for index, _, _ in self._found]
        self._versions = [version_of(tensor) for tensor in tensors] if frozen else None

    def now(self) -> list[torch.Tensor] | None:
        """The tensors as they are now. None if one of them is of another kind, or frozen and changed."""
        tensors = self._tensors.copy()
        for (index, place, name), kind in zip(self._found, self._kinds, strict=True):
            tensor = place.get(name)
            if tensor is None or _kind(tensor) != kind:
                return None
            tensors[index] = tensor
        if self._versions is not None:
            is_same = all(map(operator.is_, tensors, self._tensors))
            if not is_same or [version_of(tensor) for tensor in tensors] != self._versions:
                return None
        return tensors


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()
