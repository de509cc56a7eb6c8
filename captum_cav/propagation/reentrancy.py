"""Attributions that a model calls in its own forward pass, and attributions inside compiled code."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from captum_cav.errors import ModelError
from captum_cav.process_settings import give_back_lock
from captum_cav.propagation.dispatch import Propagation
from captum_cav.torch_internals import end_innermost_mode, function_modes

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Running(threading.local):
    """What attributions do in this thread.

    Attributes:
        propagation: the propagation in whose forward pass this thread is.
        is_untraced: whether a compiler was told not to trace it.
        has_part: whether the model gets a part of the batch that is explained.
    """

    propagation: Propagation | None = None
    is_untraced = False
    has_part = False


_running = _Running()


@contextmanager
def running(propagation: Propagation) -> Iterator[None]:
    """Note that the forward pass of a propagation runs in this thread."""
    _running.propagation = propagation
    try:
        yield
    finally:
        _running.propagation = None


@contextmanager
def batch_in_parts() -> Iterator[None]:
    """Note that the model gets a part of the batch that is explained in this thread."""
    before, _running.has_part = _running.has_part, True
    try:
        yield
    finally:
        _running.has_part = before


def has_part() -> bool:
    """Whether the model gets a part of the batch that is explained in this thread."""
    return _running.has_part


def current() -> Propagation | None:
    """The propagation in whose forward pass this thread is, or None."""
    return _running.propagation


def node_of(tensor: torch.Tensor) -> Any:
    """The node of autograd that made a tensor, also while the model is explained. None for a tensor without a graph.

    Whoever reads ``tensor.grad_fn`` in an explained forward pass gets a node whose hooks never run.
    """
    propagation = current()
    if propagation is None:
        return tensor.grad_fn
    with propagation.paused():
        return tensor.grad_fn


def suspends_outer_attribution(attribution: Callable[_P, _R]) -> Callable[_P, _R]:
    """A decorator for attributions, so that a model may call them in a forward pass that is being explained.

    While the inner attribution runs, the outer propagation is suspended. The result of the inner attribution counts as
    a constant. A compiler that traces the code around the attribution does not trace the attribution.

    Python may raise KeyboardInterrupt before any line, also before the line that leaves a context. So contexts are not
    enough, and the decorator restores what an attribution changes in the thread. It does so twice, in case that the
    first time is interrupted.
    """

    @functools.wraps(attribution)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            if _running.is_untraced:  # Export traces everything, although a compiler would not.
                raise ModelError(
                    "attribute() was called inside torch.export, which records no numbers; export the model without "
                    "the attribution."
                )
            untraced: Callable[_P, _R] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
            _running.is_untraced = True
            try:
                return untraced(*args, **kwargs)
            finally:
                _running.is_untraced = False
        modes = function_modes()
        while modes and isinstance(modes[-1], Propagation) and modes[-1].is_finished:
            modes.pop()
            end_innermost_mode()
        outer = _running.propagation
        if outer is not None and outer.is_finished:
            outer = None
        is_grad_enabled, has_outer_part = torch.is_grad_enabled(), _running.has_part

        def restore() -> None:
            for _ in function_modes()[len(modes) :]:
                end_innermost_mode()
            if torch.is_grad_enabled() is not is_grad_enabled:
                torch.set_grad_enabled(is_grad_enabled)
            _running.propagation, _running.has_part = outer, has_outer_part
            if outer is not None:
                outer.is_suspended = False
            give_back_lock()

        try:
            try:
                _running.propagation, _running.has_part = None, False
                if outer is not None:
                    outer.is_suspended = True
                return attribution(*args, **kwargs)
            finally:
                restore()
        finally:
            restore()

    return call
