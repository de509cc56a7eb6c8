"""Everything that torch calls private, in one place.

While a model is explained, some of what torch puts around a model must not act. Compiled code runs as it was written.
Activation checkpoints keep what they would compute again. Custom autograd functions show the operations of which they
are made. Backward hooks, which are meant for gradients, do not run.

``tests/test_torch_internals.py`` pins each private name that is used here.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import BackwardHook

__all__ = [
    "DERIVING_MODULES",
    "TORCH_MODULES",
    "Apply",
    "Overload",
    "OwnFunction",
    "acts_as_in_training",
    "age_of",
    "apply_as_torch_does",
    "base_of",
    "body_of",
    "has_old_backward_hook",
    "hooks_on_saved_tensors",
    "innermost_called",
    "is_called_by",
    "keeps_version",
    "modules_of",
    "now",
    "overload_name",
    "own_parameters",
    "patched_torch",
    "run_as_written",
    "save_as_they_are",
    "tree_leaves",
    "tree_map",
    "was_written_into",
]

Apply = Callable[[type[torch.autograd.Function], tuple[Any, ...], dict[str, Any]], Any]
#: An operation as ``torch.ops`` gives it, with its types of arguments.
Overload = torch._ops.OpOverload
#: Modules of torch whose functions are operations by their plain names.
TORCH_MODULES = (
    "torch._C",
    "torch.nn",
    "torch._tensor",
    "torch.functional",
    "torch._ops.aten",
    "torch._ops.torchvision",
)
#: Modules of torch that take derivatives for their callers.
DERIVING_MODULES = ("torch.autograd.functional", "torch._functorch")
#: While it is active, writing into a tensor does not count for autograd.
keeps_version = _unsafe_preserve_version_counter


class OwnFunction(torch.autograd.Function):
    """An autograd function of a rule. Torch applies it as ever, also while the model's own functions are followed."""

    apply = torch.autograd.Function.__dict__["apply"]


# Around a whole pass ------------------------------------------------------------------------------------------------


class _SharedSetting:
    """A setting of the whole process. The first thread that needs the setting makes it, the last one puts it back.

    Args:
        make: makes the setting, and returns a context that puts the setting back.
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
        return nullcontext()  # Nothing was compiled in this process, or this torch cannot switch compiled code off.
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Following(threading.local):
    """How this thread applies custom autograd functions; None as torch does."""

    apply: Apply | None = None
    at_rest: Callable[[], bool]


_following = _Following()


@contextmanager
def _patched_functions() -> Iterator[None]:
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


_run_eagerly, _run_openly = _SharedSetting(_uncompiled), _SharedSetting(_patched_functions)


@contextmanager
def patched_torch(apply: Apply, at_rest: Callable[[], bool]) -> Iterator[None]:
    """Run compiled code as it was written, in all threads, and custom autograd functions by ``apply``, in this thread.

    Args:
        apply: takes a function, its arguments and its keyword arguments.
        at_rest: whether to run custom autograd functions as torch does, for now.
    """
    with _run_eagerly(), _run_openly():
        before = _following.apply, getattr(_following, "at_rest", at_rest)
        _following.apply, _following.at_rest = apply, at_rest
        try:
            yield
        finally:
            _following.apply, _following.at_rest = before


def run_as_written(
    function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, set[int]]:
    """Run the forward pass of a custom autograd function like any other code. Its backward pass is not used.

    Returns:
        What the forward pass gave, and the identities of the tensors that it called constants.
    """
    with torch.enable_grad():
        if function.setup_context is not torch.autograd.Function.setup_context:
            return function.forward(*args, **kwargs), set()
        context = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in args)  # type: ignore[attr-defined]
        output = function.forward(context, *args, **kwargs)
        return output, set(map(id, getattr(context, "non_differentiable", ())))


def apply_as_torch_does(function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a custom autograd function as torch does."""
    before, _following.apply = _following.apply, None
    try:
        return function.apply(*args, **kwargs)
    finally:
        _following.apply = before


# Functions ----------------------------------------------------------------------------------------------------------


def overload_name(function: Overload) -> tuple[str, str]:
    """Module and plain name of an operation of ``torch.ops``."""
    return f"torch._ops.{function.namespace}", function._opname


def _no_override(*_: object) -> bool:
    return False


def body_of(function: types.FunctionType) -> Callable[..., Any]:
    """A Python function of torch without its own override check, so that a mode sees the operations inside."""
    unchecked = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _no_override
    )
    body = types.FunctionType(
        function.__code__,
        {**function.__globals__, **unchecked},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def innermost_called() -> torch.nn.Module | None:
    """The innermost module in whose call this thread is, read off the stack; None outside of modules."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not torch.nn.Module._call_impl.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def is_called_by(modules: tuple[str, ...], depth: int) -> bool:
    """Whether the code so many frames above belongs to one of some modules or their parts.

    Args:
        modules: names of modules.
        depth: 1 for the function that asks, 2 for its caller, and so on.
    """
    name: str = sys._getframe(depth).f_globals.get("__name__", "")
    return name.startswith(modules)


# Modules ------------------------------------------------------------------------------------------------------------


def modules_of(root: torch.nn.Module) -> Iterable[torch.nn.Module]:
    """Every module of a model once, each before its children.

    ``torch.nn.Module.modules`` also builds qualified names, which takes long compared with the run of a small network.
    """
    found: dict[torch.nn.Module, None] = {}
    waiting: list[torch.nn.Module | None] = [root]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting += reversed(module._modules.values())
    return found


def own_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of a module, without those of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter


def acts_as_in_training(module: torch.nn.Module) -> bool:
    """Whether a module acts at random or changes its own statistics when it runs."""
    return module.training and _differs_in_training(module)


def has_old_backward_hook(module: torch.nn.Module) -> bool:
    """Whether a module has a hook of ``register_backward_hook``, which torch attaches to operations in the module."""
    return bool(module._backward_hooks) and module._is_full_backward_hook is False


def _differs_in_training(module: torch.nn.Module) -> bool:
    if _estimates_spectral_norm(module):
        return True
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _BatchNorm):
        return module.track_running_stats
    return isinstance(module, torch.nn.RReLU)


def _estimates_spectral_norm(module: torch.nn.Module) -> bool:
    """Whether a module updates its estimate of the largest singular value in training; torch has two such kinds."""
    if type(module).__name__ == "_SpectralNorm":
        return type(module).__module__ == "torch.nn.utils.parametrizations"
    return any(type(hook).__module__ == "torch.nn.utils.spectral_norm" for hook in module._forward_pre_hooks.values())


# Tensors ------------------------------------------------------------------------------------------------------------


def age_of(tensor: torch.Tensor) -> int:
    """When in its thread the operation of a tensor was recorded. Later operations have larger numbers."""
    assert tensor.grad_fn is not None
    number: int = tensor.grad_fn._sequence_nr()
    return number


def now() -> int:
    """The age of what is recorded now."""
    with torch.enable_grad():
        return age_of(torch.zeros((), device="cpu", requires_grad=True) + 0)


def base_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor of which a tensor is a view, or None."""
    return tensor._base


def was_written_into(tensor: torch.Tensor) -> bool:
    """Whether anything was written into a tensor since the tensor was made."""
    return bool(tensor._version)


def hooks_on_saved_tensors() -> Any:
    """What decides how tensors are saved for the backward pass, or None."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def save_as_they_are(since: Any) -> AbstractContextManager[Any]:
    """Save tensors for the backward pass as they are, also where the model would compute them again.

    An activation checkpoint throws away what an operation saves, and runs the operation again in the backward pass,
    where nobody follows it.

    Args:
        since: :func:`hooks_on_saved_tensors` before the model ran. The caller's own hooks stay.
    """
    here = hooks_on_saved_tensors()
    if here is None or here == since:
        return _NOTHING_TO_DO
    return saved_tensors_hooks(_as_it_is, _as_it_is)


_NOTHING_TO_DO = nullcontext()


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
