"""What torch does around the operations of a forward pass, set aside while it is followed: compiling, checkpointing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks


class _Eager:
    """Compiled functions and modules run as they were written, as long as any thread needs it.

    The stance of the compiler is one for all threads: the first to need it sets it, the last puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._stance = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
            yield  # nothing was compiled in this process
            return
        with self._lock:
            if not self._running:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._stance.close()


eagerly = _Eager()


def hooks_on_saved_tensors() -> Any:
    """What decides how tensors are kept for the backward pass, or None; private to torch, so only looked at here."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def saving_as_is(since: Any) -> AbstractContextManager[Any]:
    """Keep tensors for the backward pass as they are where the model would recompute them.

    Activation checkpointing throws away what an operation saves and runs it again in the backward pass, where nobody
    follows it.

    Args:
        since: :func:`hooks_on_saved_tensors` before the model ran; the caller's own are left alone.
    """
    here = hooks_on_saved_tensors()
    if here is None or here == since:
        return nullcontext()
    return saved_tensors_hooks(_as_is, _as_is)


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
