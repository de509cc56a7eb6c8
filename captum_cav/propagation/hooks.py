"""Hooks on modules during one forward pass: they tap the layers, and follow the modules if that is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from captum_cav.process_settings import process_lock
from captum_cav.propagation.dispatch import Propagation
from captum_cav.propagation.module_calls import ModuleCalls
from captum_cav.torch_internals import remove_hooks

# Scripted modules refuse the methods of these names, but not the hooks.
_before, _after = torch.nn.Module.register_forward_pre_hook, torch.nn.Module.register_forward_hook


class Site(NamedTuple):
    """Where to tap: a module's output or input."""

    module: torch.nn.Module
    of_input: bool


class _Hook:
    """A hook on a module. If the model is copied during the forward pass, the copy gets a hook that does nothing."""

    def __init__(self, act: Callable[..., Any], owner: object) -> None:
        self._act = act
        self.owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._act(*args, **kwargs)

    def __reduce__(self) -> tuple[type[_Idle], tuple[()]]:
        return _Idle, ()


class _Idle:
    """A hook that does nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Hooks:
    """The hooks of one forward pass.

    Args:
        sites: where to tap.
        at_site: called with the number of a site and its input or output. Returns the value with which the model goes
            on.
        propagation: the propagation of the forward pass.
        follows_modules: whether to follow the forward pass through its modules. That slows each call of a module.
        at_module: called with each module, its arguments and its output. Returns the value with which the model goes
            on, or None for no change. None if nobody looks at all modules.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        at_site: Callable[[int, Any], Any],
        propagation: Propagation,
        follows_modules: bool,
        at_module: Callable[[torch.nn.Module, Any, Any], Any] | None,
    ) -> None:
        self._at_module = at_module
        self._at_site = at_site
        self._propagation = propagation
        self._follows_modules = follows_modules
        self._hooked: list[torch.nn.Module | None] = []
        self._calls = ModuleCalls(propagation)
        self._thread = threading.get_ident()
        self._tapped_before = {site.module for site in sites if site.of_input}
        self._ending: list[RemovableHandle] = []

    def register(self, sites: Sequence[Site]) -> None:
        """Register all hooks."""
        # RemovableHandle numbers its hooks without a lock. Two threads could get the same number, and one hook would
        # replace the other.
        with process_lock:
            if self._follows_modules:
                self._hooked.append(None)
                register_module_forward_pre_hook(self._enter)
                register_module_forward_hook(self._leave, always_call=True)
            if self._at_module is not None:
                self._hooked.append(None)
                register_module_forward_hook(self._look)
            for index, site in enumerate(sites):
                self._hooked.append(site.module)
                if site.of_input:
                    _before(site.module, _Hook(self._tap_input(index), self), with_kwargs=True)
                else:
                    _after(site.module, _Hook(self._tap_output(index), self))

    def remove(self) -> None:
        """Remove all hooks. May be called again if it was interrupted."""
        for module in self._hooked:
            remove_hooks(module, self._is_own)

    def _is_own(self, hook: object) -> bool:
        return getattr(hook, "owner" if isinstance(hook, _Hook) else "__self__", None) is self

    def _is_elsewhere(self) -> bool:
        """Whether another thread, or another attribution inside the model, calls the module."""
        return self._propagation.is_suspended or threading.get_ident() != self._thread

    def _enter(self, module: torch.nn.Module, args: Any) -> Any:
        if self._is_elsewhere():
            return None
        self._propagation.modules.enter(module)
        may_be_ruled = bool(self._propagation.modules.candidates) and module not in self._tapped_before
        return self._begin_call(module, args) if may_be_ruled else None

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        modules = self._propagation.modules
        if not self._is_elsewhere() and modules.innermost is module:
            if not self._propagation.is_paused:
                self._propagation.check_seen(output)
            modules.leave()

    def _look(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        assert self._at_module is not None
        return None if self._is_elsewhere() else self._at_module(module, args, output)

    def _begin_call(self, module: torch.nn.Module, args: Any) -> Any:
        copies = self._calls.begin(module, args)
        if copies is not None:
            hook = _Hook(self._end_call, self)
            self._hooked.append(module)
            with process_lock:
                handle = _after(module, hook, prepend=True, with_kwargs=True, always_call=True)
            self._ending.append(handle)
        return copies

    def _end_call(self, module: torch.nn.Module, args: Any, *kwargs_and_output: Any) -> Any:
        # Torch looks up late whether a hook takes keyword arguments. If another thread calls the module while this
        # hook is removed, that thread may call the hook without them.
        if self._is_elsewhere():
            return None
        self._ending.pop().remove()
        return self._calls.end(*kwargs_and_output)

    def _tap_output(self, index: int) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            return None if self._is_elsewhere() else self._at_site(index, output)

        return hook

    def _tap_input(self, index: int) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any = None) -> Any:
            if self._is_elsewhere():
                return None
            args, kwargs = self._at_site(index, (args, kwargs))
            # The call begins behind the tap, so that the module's rule meets what was tapped.
            return (self._begin_call(module, args) if self._follows_modules else None) or args, kwargs

        return hook


@contextmanager
def hooked(
    sites: Sequence[Site],
    at_site: Callable[[int, Any], Any],
    propagation: Propagation,
    follows_modules: bool,
    at_module: Callable[[torch.nn.Module, Any, Any], Any] | None = None,
) -> Iterator[None]:
    """Tap the modules of some sites in the forward pass of this thread, while this context is active.

    Args:
        sites: where to tap.
        at_site: called with the number of a site and its input or output. Returns the value with which the model goes
            on.
        propagation: the propagation of the forward pass.
        follows_modules: whether to follow the forward pass through its modules.
        at_module: called with each module, its arguments and its output. Returns the value with which the model goes
            on, or None for no change. None if nobody looks at all modules.
    """
    hooks = _Hooks(sites, at_site, propagation, follows_modules, at_module)
    try:
        try:
            hooks.register(sites)
            yield
        finally:
            hooks.remove()
    finally:
        hooks.remove()  # An interrupt may have come first.
