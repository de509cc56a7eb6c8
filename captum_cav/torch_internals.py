"""What torch does around the operations of a forward pass, set aside while it is followed.

Compiled code runs as it was written, activation checkpointing keeps what it would recompute, custom autograd functions
show the operations that they are made of, and backward hooks, which are for gradients, do not run.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import BackwardHook

Apply = Callable[[type[torch.autograd.Function], tuple[Any, ...], dict[str, Any]], Any]


class OwnFunction(torch.autograd.Function):
    """An autograd function that belongs to a rule: applied as torch does, also while the model's own are followed."""

    apply = torch.autograd.Function.__dict__["apply"]


class _Shared:
    """A setting of the whole process: the first thread that needs it makes it, the last puts it back.

    Args:
        make: makes the setting; the context that it returns puts it back.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._made = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._made.enter_context(self._make())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._made.close()


def _uncompiled() -> AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()  # nothing was compiled in this process, or it cannot be told apart
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Following(threading.local):
    """How this thread applies custom autograd functions, unless it is at rest; None as torch does."""

    apply: Apply | None = None
    at_rest: Callable[[], bool]


_following = _Following()


@contextmanager
def _opened() -> Iterator[None]:
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if _following.apply is None or _following.at_rest():
            return original.__get__(None, cls)(*args, **kwargs)
        return _following.apply(cls, args, kwargs)

    def unless_followed(set_up: Callable[[BackwardHook, Any], Any]) -> Callable[[BackwardHook, Any], Any]:
        return lambda hook, values: set_up(hook, values) if _following.apply is None else values

    set_up = BackwardHook.setup_input_hook, BackwardHook.setup_output_hook
    torch.autograd.Function.apply = classmethod(apply)
    BackwardHook.setup_input_hook, BackwardHook.setup_output_hook = map(unless_followed, set_up)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original
        BackwardHook.setup_input_hook, BackwardHook.setup_output_hook = set_up  # type: ignore[method-assign]


_eagerly, _openly = _Shared(_uncompiled), _Shared(_opened)


@contextmanager
def set_aside(apply: Apply, at_rest: Callable[[], bool]) -> Iterator[None]:
    """Run compiled code as it was written, in all threads, and custom autograd functions by ``apply``, in this one.

    Args:
        apply: takes a function, its arguments and its keyword arguments.
        at_rest: whether to run them as torch does, for now.
    """
    with _eagerly(), _openly():
        before = _following.apply, getattr(_following, "at_rest", at_rest)
        _following.apply, _following.at_rest = apply, at_rest
        try:
            yield
        finally:
            _following.apply, _following.at_rest = before


def run_as_written(
    function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, set[int]]:
    """Run the forward pass of a custom autograd function like any other code; its backward pass is not used.

    Returns:
        What it gave, and the identities of the tensors that it called constants.
    """
    with torch.enable_grad():
        if function.setup_context is not torch.autograd.Function.setup_context:
            return function.forward(*args, **kwargs), set()
        context = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in args)  # type: ignore[attr-defined]
        output = function.forward(context, *args, **kwargs)
        return output, set(map(id, getattr(context, "non_differentiable", ())))


def apply_unfollowed(function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a custom autograd function as torch does."""
    before, _following.apply = _following.apply, None
    try:
        return function.apply(*args, **kwargs)
    finally:
        _following.apply = before


def age_of(tensor: torch.Tensor) -> int:
    """When in its thread a tensor's operation was recorded: later ones have larger numbers. Private to torch."""
    assert tensor.grad_fn is not None
    number: int = tensor.grad_fn._sequence_nr()
    return number


def now() -> int:
    """The age of what is recorded now."""
    with torch.enable_grad():
        return age_of(torch.zeros((), device="cpu", requires_grad=True) + 0)


def innermost_called() -> torch.nn.Module | None:
    """The innermost module that this thread is in a call of, by the stack; None outside."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not torch.nn.Module._call_impl.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


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
        return _AS_THEY_ARE
    return saved_tensors_hooks(_as_is, _as_is)


_AS_THEY_ARE = nullcontext()


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
