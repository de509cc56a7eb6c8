"""Attributions that a model calls in its own forward pass, and attributions inside compiled code."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from captum_cav.propagation.dispatch import Propagation

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Running(threading.local):
    """The propagation in whose forward pass this thread is."""

    propagation: Propagation | None = None


_running = _Running()


@contextmanager
def running(propagation: Propagation) -> Iterator[None]:
    """Note that the forward pass of a propagation runs in this thread."""
    _running.propagation = propagation
    try:
        yield
    finally:
        _running.propagation = None


def current() -> Propagation | None:
    """The propagation in whose forward pass this thread is, or None."""
    return _running.propagation


def suspends_outer_attribution(attribution: Callable[_P, _R]) -> Callable[_P, _R]:
    """A decorator for attributions, so that a model may call them in a forward pass that is being explained.

    While the inner attribution runs, the outer propagation is suspended. The result of the inner attribution counts as
    a constant. A compiler that traces the code around the attribution does not trace the attribution.
    """

    @functools.wraps(attribution)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            untraced: Callable[_P, _R] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
            return untraced(*args, **kwargs)
        with _suspended():
            return attribution(*args, **kwargs)

    return call


@contextmanager
def _suspended() -> Iterator[None]:
    """Suspend the propagation in whose forward pass this thread is."""
    outer, _running.propagation = _running.propagation, None
    if outer is not None:
        outer.is_suspended = True
    try:
        yield
    finally:
        _running.propagation = outer
        if outer is not None:
            outer.is_suspended = False
