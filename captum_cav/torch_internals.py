"""All private names of torch that captum_cav uses, in one place.

While a model is explained, four features of torch must behave differently:

- Compiled code runs uncompiled.
- Activation checkpoints keep their values. They do not compute them again in the backward pass.
- Custom autograd functions run their forward pass like plain code, so that its operations are seen.
- Full backward hooks of modules do not run, because they expect gradients.

Older versions of torch lack some of these names. The code that uses such a name says what happens without it.
``tests/test_versions.py`` lists the names, and the first version that has each of them.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import BackwardHook

from captum_cav.process_settings import Patch, SharedSetting
from captum_cav.tensors import body_of, edge_of

__all__ = [
    "DERIVING_MODULES",
    "TORCH_MODULES",
    "WRAPPERS",
    "Apply",
    "Overload",
    "OverloadPacket",
    "OwnFunction",
    "active_transform",
    "acts_as_in_training",
    "age_of",
    "apply_as_torch_does",
    "base_of",
    "batched",
    "body_of",
    "edge_of",
    "end_innermost_mode",
    "function_modes",
    "has_old_backward_hook",
    "hooks_on_saved_tensors",
    "innermost_called",
    "is_batched",
    "is_called_by",
    "keeps_version",
    "may_note",
    "modules_of",
    "noting_places",
    "now",
    "overload_name",
    "own_parameters",
    "patched_torch",
    "remove_hooks",
    "run_as_written",
    "same_layer_versions",
    "save_as_they_are",
    "tree_leaves",
    "tree_map",
    "version_of",
]

Apply = Callable[[type[torch.autograd.Function], tuple[Any, ...], dict[str, Any]], Any]
#: An operation of ``torch.ops`` for certain types of arguments, such as ``torch.ops.aten.add.Tensor``.
Overload = torch._ops.OpOverload
#: All overloads of an operation together, such as ``torch.ops.aten.add``.
OverloadPacket = torch._ops.OpOverloadPacket
#: Python modules of torch whose functions have a plain name in the table of operations.
_OPS = ("torch._ops.aten", "torch._ops.torchvision", "torch._ops.bitsandbytes")
TORCH_MODULES = ("torch._C", "torch.nn", "torch._tensor", "torch.functional", *_OPS)
#: Python modules of torch that take derivatives for their callers.
DERIVING_MODULES = ("torch.autograd.functional", "torch._functorch")
#: Types of modules that wrap a whole model without a change to its results, and the attribute that holds the model.
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
#: A context in which autograd does not notice that the model writes into a tensor.
keeps_version = _unsafe_preserve_version_counter
#: Runs a function on all rows of a tensor at once, as a backward pass with ``is_grads_batched=True`` does. The function
#: may use autograd, and may return None. The backward pass may begin inside a graph, too.
batched = functools.partial(torch._vmap_internals._vmap, allow_none_pass_through=True)


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for several, as in a backward pass with ``is_grads_batched=True``, or in a ``vmap``."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_batchedtensor(tensor)


def is_graph_kept() -> bool:
    """Whether another backward pass may follow the one that runs now, so that what the graph saved must stay."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


class OwnFunction(torch.autograd.Function):
    """The base class of captum_cav's own autograd functions.

    Torch always applies them as usual, also while the custom autograd functions of a model are followed.
    """

    apply = torch.autograd.Function.__dict__["apply"]


# Around a whole pass ------------------------------------------------------------------------------------------------


def function_modes() -> list[TorchFunctionMode]:
    """The active function modes of this thread, the innermost last."""
    return [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())]


def end_innermost_mode() -> None:
    """End the innermost function mode of this thread."""
    torch._C._pop_torch_function_stack()


def remove_hooks(module: torch.nn.Module | None, is_own: Callable[[object], bool]) -> None:
    """Remove those hooks from a module for which ``is_own`` is true. None stands for the hooks of all modules.

    A handle would remove a hook, too. But an interrupt may come before anybody has the handle.
    """
    everywhere = torch.nn.modules.module
    registries: list[dict[int, Any]] = [everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks]
    options: list[dict[int, bool]] = [everywhere._global_forward_hooks_always_called]
    if module is not None:
        registries = [module._forward_hooks, module._forward_pre_hooks]
        options = [module._forward_hooks_with_kwargs, module._forward_hooks_always_called]
        options.append(module._forward_pre_hooks_with_kwargs)
    for registry in registries:
        for number in [number for number, hook in list(registry.items()) if is_own(hook)]:
            for option in options:
                option.pop(number, None)
            registry.pop(number, None)


def _uncompiled() -> AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # Nothing was compiled in this process.
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Following(threading.local):
    """How this thread applies custom autograd functions. ``apply`` is None if torch applies them."""

    apply: Apply | None = None
    at_rest: Callable[[], bool] = staticmethod(lambda: True)


_following = _Following()


def _unless_followed(original: Any) -> Any:
    """How functions are applied: by torch, unless this thread follows them."""

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if _following.apply is None or _following.at_rest():
            return original.__get__(None, cls)(*args, **kwargs)
        return _following.apply(cls, args, kwargs)

    return classmethod(apply)


def _not_hooked(set_up: Callable[[BackwardHook, Any], Any]) -> Callable[[BackwardHook, Any], Any]:
    return lambda hook, values: set_up(hook, values) if _following.apply is None else values


def _patched_functions() -> Patch:
    set_ups = ((BackwardHook, name, _not_hooked) for name in ("setup_input_hook", "setup_output_hook"))
    return Patch((torch.autograd.Function, "apply", _unless_followed), *set_ups)


#: Returns the innermost hooks on saved tensors. Torch has this function from version 2.8 on.
_innermost_hooks: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class _Entered(threading.local):
    """The contexts of hooks on saved tensors that this thread entered during a pass, the innermost last."""

    def __init__(self) -> None:
        self.contexts: list[saved_tensors_hooks] = []


_entered = _Entered()


def _entering(enter: Callable[[saved_tensors_hooks], None]) -> Callable[[saved_tensors_hooks], None]:
    def entering(context: saved_tensors_hooks) -> None:
        enter(context)
        _entered.contexts.append(context)

    return entering


def _leaving(leave: Callable[..., None]) -> Callable[..., None]:
    def leaving(context: saved_tensors_hooks, *error: object) -> None:
        leave(context, *error)
        if _entered.contexts and _entered.contexts[-1] is context:  # Another thread may have entered before the pass.
            _entered.contexts.pop()

    return leaving


def _noted_hooks() -> Patch:
    """Note each context of hooks on saved tensors, for versions of torch that do not tell the innermost one."""
    return Patch((saved_tensors_hooks, "__enter__", _entering), (saved_tensors_hooks, "__exit__", _leaving))


_run_eagerly, _run_openly = SharedSetting(_uncompiled), SharedSetting(_patched_functions)
_note_hooks = SharedSetting(_noted_hooks if _innermost_hooks is None else nullcontext)


@contextmanager
def patched_torch(apply: Apply, at_rest: Callable[[], bool]) -> Iterator[None]:
    """Run compiled code uncompiled, in all threads, and apply custom autograd functions by ``apply``, in this thread.

    Args:
        apply: takes a custom autograd function, its arguments and its keyword arguments.
        at_rest: returns True while torch shall apply custom autograd functions as usual.
    """
    with _run_eagerly(), _run_openly(), _note_hooks():
        before = _following.apply, _following.at_rest
        try:
            _following.apply, _following.at_rest = apply, at_rest
            yield
        finally:
            _following.apply, _following.at_rest = before


def run_as_written(
    function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, set[int]]:
    """Run the forward pass of a custom autograd function like plain code. Its backward pass is not used.

    Returns:
        The output of the forward pass, and the identities of the tensors that it marked as not differentiable.
    """
    with torch.enable_grad():
        if function.setup_context is not torch.autograd.Function.setup_context:
            return function.forward(*args, **kwargs), set()
        context = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in args)  # type: ignore[attr-defined]
        output = function.forward(context, *args, **kwargs)
        return output, set(map(id, getattr(context, "non_differentiable", ())))


def apply_as_torch_does(function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a custom autograd function as torch does, although they are followed now."""
    before, _following.apply = _following.apply, None
    try:
        return function.apply(*args, **kwargs)
    finally:
        _following.apply = before


# Functions ----------------------------------------------------------------------------------------------------------


def overload_name(function: Overload) -> tuple[str, str]:
    """Module and plain name of an operation of ``torch.ops``, such as ``("torch._ops.aten", "add")``."""
    return f"torch._ops.{function.namespace}", function._opname


def innermost_called() -> torch.nn.Module | None:
    """The innermost module that this thread calls now, read off the stack. None outside of modules."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not torch.nn.Module._call_impl.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def active_transform() -> str | None:
    """The innermost transform of torch that this code runs in, such as ``"torch.func.vmap"``. None outside of all."""
    interpreter: Any = torch._C._functorch.peek_interpreter_stack()
    if interpreter is not None:
        name = interpreter.key().name.lower()
        return {"grad": "torch.func.grad, vjp or jacrev", "jvp": "torch.func.jvp or jacfwd"}.get(
            name, f"torch.func.{name}"
        )
    return "torch.autograd.forward_ad.dual_level" if forward_ad._current_level >= 0 else None


def is_called_by(modules: tuple[str, ...], depth: int) -> bool:
    """Whether a caller belongs to certain Python modules or to their submodules.

    Args:
        modules: names of the Python modules.
        depth: which caller: 1 for the function that calls this one, 2 for its caller, and so on.
    """
    name: str = sys._getframe(depth).f_globals.get("__name__", "")
    return name.startswith(modules)


# Modules ------------------------------------------------------------------------------------------------------------


def modules_of(root: Callable[..., Any]) -> Collection[torch.nn.Module]:
    """All modules of a model. Each comes once, and before its children. A function has none that are known.

    ``torch.nn.Module.modules`` would also build qualified names, which takes long compared with a small network's run.
    """
    modules: dict[torch.nn.Module, None] = {}
    waiting: list[torch.nn.Module | None] = [root] if isinstance(root, torch.nn.Module) else []
    while waiting:
        module = waiting.pop()
        if module is not None and module not in modules:
            modules[module] = None
            waiting += reversed(module._modules.values())
    return modules.keys()


def may_note(module: torch.nn.Module) -> bool:
    """Whether a module may note tensors when it runs in evaluation mode: not torch's own, but hooks on these may."""
    return not _is_torchs(type(module)) or bool(module._forward_hooks or module._forward_pre_hooks)  # type: ignore[arg-type]


def noting_places(modules: Iterable[torch.nn.Module]) -> Iterator[dict[str, Any]]:
    """The dictionaries in which modules note tensors that are no parameters: attributes and buffers."""
    for module in modules:
        if torch.Tensor in map(type, module.__dict__.values()):
            yield module.__dict__
        if module._buffers:
            yield module._buffers


@functools.cache
def _is_torchs(kind: Any) -> bool:
    return str(kind.__module__).startswith("torch.nn.modules.")


def own_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The names and parameters of a module, without the parameters of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter


def acts_as_in_training(module: torch.nn.Module) -> bool:
    """Whether a module acts at random or changes its own statistics when it runs."""
    return module.training and _differs_in_training(module)


def has_old_backward_hook(module: torch.nn.Module) -> bool:
    """Whether a module has a hook of ``register_backward_hook``, which gets gradients of operations inside."""
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
    """Whether a module updates its estimate of the largest singular value in training. Torch has two kinds."""
    if type(module).__name__ == "_SpectralNorm":
        return type(module).__module__ == "torch.nn.utils.parametrizations"
    return any(type(hook).__module__ == "torch.nn.utils.spectral_norm" for hook in module._forward_pre_hooks.values())


# Tensors ------------------------------------------------------------------------------------------------------------


def same_layer_versions(state: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the versions of its layers. Torch keeps them beside the tensors.

    Without the versions, some models of torchvision refuse a state dict, or take it for an old one.

    Args:
        state: tensors by name.
        like: the state dict of the model. Its versions are taken if ``state`` has none.
    """
    if hasattr(state, "_metadata"):
        return state
    copy = OrderedDict(state)
    copy._metadata = like._metadata  # type: ignore[attr-defined]
    return copy


def age_of(tensor: torch.Tensor) -> int:
    """When autograd recorded the operation that made a tensor. In one thread, later operations have larger numbers."""
    assert tensor.grad_fn is not None
    number: int = tensor.grad_fn._sequence_nr()
    return number


def now() -> int:
    """The age of an operation that autograd would record now."""
    with torch.enable_grad():
        return age_of(torch.zeros((), device="cpu", requires_grad=True) + 0)


def base_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The base of a view. None for a tensor that is no view."""
    return tensor._base


def version_of(tensor: torch.Tensor) -> int:
    """How often anything was written into a tensor or its views. 0 for inference tensors, which do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def hooks_on_saved_tensors() -> Any:
    """The innermost hooks on tensors that autograd saves for the backward pass, or None.

    Before torch 2.8, only hooks that the model entered count. Nothing tells the hooks of the caller.
    """
    if _innermost_hooks is not None:
        return _innermost_hooks(True)
    return _entered.contexts[-1] if _entered.contexts else None


def save_as_they_are(since: Any) -> AbstractContextManager[Any]:
    """A context in which autograd saves tensors unchanged, also inside an activation checkpoint of the model.

    An activation checkpoint drops the tensors that an operation saves, and runs the operation again in the backward
    pass. There no propagation is active.

    Args:
        since: :func:`hooks_on_saved_tensors` before the model ran. These hooks of the caller stay active.
    """
    innermost = hooks_on_saved_tensors()
    if innermost is None or innermost == since:
        return _NOTHING_TO_DO
    return saved_tensors_hooks(_unchanged, _unchanged)


_NOTHING_TO_DO = nullcontext()


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
