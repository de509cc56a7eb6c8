"""The private names of torch that recordings of a computation need: graphs of aten operations, and their kernels.

:mod:`captum_cav.torch_internals` has all other private names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_cav.torch_internals import Overload

__all__ = [
    "DispatchMode",
    "aliased_arguments",
    "below_autograd",
    "direct_function",
    "fused",
    "hook_registries",
    "in_place_batch_norm",
    "is_random",
    "places_of_tensors",
    "plain_name",
    "recorded_graph",
    "storage_key",
    "submodules",
    "tree_flatten",
    "tree_unflatten",
    "unrecorded",
    "variant_with_out",
]

#: The base class of modes that see each aten operation.
DispatchMode = TorchDispatchMode


def recorded_graph(function: Callable[..., Any], args: Sequence[torch.Tensor]) -> GraphModule:
    """The aten operations that a function calls, as a graph whose inputs are ``args``.

    Other tensors that the function uses are attributes of the graph, without a copy.

    Args:
        function: takes tensors, and returns a list of tensors. The backward passes that it runs are recorded, too.
        args: the tensors.
    """
    # The backward pass of another device runs in another thread, which does not record.
    with torch.autograd.set_multithreading_enabled(False):
        graph: GraphModule = make_fx(function)(*args)
    return graph


#: A context whose operations are not recorded.
unrecorded = disable_proxy_modes_tracing


@contextmanager
def below_autograd() -> Iterator[None]:
    """A context in which operations run without the part of torch that records graphs for gradients."""
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


def fused(
    module: GraphModule, args: Sequence[torch.Tensor], *, freezing: bool = False
) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """A graph as kernels that torch's compiler makes.

    Args:
        module: the graph. Its inputs are tensors, and it returns a list of tensors.
        args: tensors of the kinds that the graph will get.
        freezing: whether the buffers of the module keep their numbers, so that kernels may be made for them. Without,
            convolutions and products keep the kernels and the memory layout that they have in the graph, and only what
            lies between them is fused.
    """
    with torch.no_grad():
        # In another layout, a convolution adds up its summands in another order.
        options = {"freezing": freezing, **({} if freezing else {"layout_optimization": False})}
        compiled: Callable[..., list[torch.Tensor]] = torch._inductor.compile(module, list(args), options)
    return lambda tensors: compiled(*tensors)


# Operations -----------------------------------------------------------------------------------------------------------


def aliased_arguments(operation: Overload, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The arguments of an operation in whose memory its result lies, and those into which the operation writes.

    Args:
        operation: the aten operation.
        args, kwargs: its arguments: tensors, or nodes of a graph that stand for tensors.
    """
    shared: list[Any] = []
    written: list[Any] = []
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            values = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if one is not None]
            shared += values
            written += values if argument.alias_info.is_write else []
    return shared, written


@functools.cache
def variant_with_out(operation: Overload) -> tuple[Overload, str] | None:
    """The same operation that writes its result into a tensor of the caller, and the name of that argument."""
    arguments = [(argument.name, argument.type) for argument in operation._schema.arguments]
    packet = operation.overloadpacket
    for name in packet.overloads():
        variant: Overload = getattr(packet, name)
        others = variant._schema.arguments
        if [(argument.name, argument.type) for argument in others[:-1]] == arguments and others[-1].is_out:
            return variant, others[-1].name
    return None


def in_place_batch_norm(operation: Overload, args: Sequence[Any]) -> Callable[..., tuple[Any, ...]] | None:
    """A function for a batch norm with fixed statistics on a CPU, which may write its result into its input.

    Such a norm has a factor and a constant for each channel.

    Args:
        operation: the aten operation.
        args: its arguments.

    Returns:
        Takes the arguments of the operation and a tensor ``out`` for its result. None for other operations.
    """
    if operation is torch.ops.aten.native_batch_norm.default and not args[5] and args[0].device.type == "cpu":
        return _batch_norm_into
    # Older versions of torch record this operation, among them 2.9.
    if operation is torch.ops.aten._native_batch_norm_legit_no_training.default and args[0].device.type == "cpu":
        return _fixed_batch_norm_into
    return None


def _batch_norm_into(
    x: torch.Tensor, weight: Any, bias: Any, mean: torch.Tensor, *args: Any, out: torch.Tensor
) -> tuple[Any, ...]:
    unsaved = _empty(mean.dtype)  # Under autocast, statistics have another type than the input.
    torch.ops.aten.native_batch_norm.out(x, weight, bias, mean, *args, out=out, save_mean=unsaved, save_invstd=unsaved)
    return out, None, None


def _fixed_batch_norm_into(
    x: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any, out: torch.Tensor
) -> tuple[Any, ...]:
    return _batch_norm_into(x, weight, bias, mean, variance, False, *args, out=out)


@functools.cache
def _empty(dtype: torch.dtype) -> torch.Tensor:
    """A tensor without numbers, for statistics that nothing saves."""
    return torch.empty(0, dtype=dtype, device="cpu")


def is_random(operation: Overload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation takes random numbers. Attention can, but does not without a dropout."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    for position, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(given)
    return True


def plain_name(operation: Overload) -> str:
    """The plain name of an aten operation, such as ``"add"``."""
    name: str = operation._opname
    return name


class _Seen(Exception):  # noqa: N818 - ends a call before it computes anything
    """The first aten operation of a call."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call


class _Looking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _Seen((func, args, kwargs or {}))


def _first_operation(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    try:
        with below_autograd(), _Looking():  # type: ignore[no-untyped-call]
            function(*args, **kwargs)
    except _Seen as seen:
        return seen.call
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        pass  # This function takes other arguments.
    return None


@functools.cache
def _functions_named(name: str) -> list[Callable[..., Any]]:
    owners = (torch._C._VariableFunctions, torch._C._nn, torch.Tensor)
    found = [getattr(owner, name, None) for owner in owners]
    kinds = (type(torch._C._VariableFunctions.add), type(torch.Tensor.add))
    return [function for function in found if isinstance(function, kinds)]


def direct_function(operation: Overload, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The fastest function of torch that calls an aten operation with arguments of these kinds.

    A function of torch chooses an overload by the kinds of its arguments. Nothing is computed to see which.

    Args:
        operation: the aten operation.
        args, kwargs: arguments as the operation will get them.
    """
    expected = _first_operation(operation, args, kwargs)
    if expected is not None:
        for function in _functions_named(operation._opname):
            found = _first_operation(function, args, kwargs)
            if found is not None and _is_same_call(expected, found):
                return function
    plain: Callable[..., Any] = operation._op
    return plain


def _is_same_call(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one is other
    if isinstance(one, (tuple, list)):
        is_sequence = isinstance(other, (tuple, list)) and len(one) == len(other)
        return is_sequence and all(map(_is_same_call, one, other))
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(_is_same_call(one[k], other[k]) for k in one)
        )
    return type(one) is type(other) and bool(one == other)


def storage_key(tensor: torch.Tensor) -> int:
    """A number for the memory of a tensor, which its views share."""
    return int(tensor.untyped_storage()._cdata)


# Modules --------------------------------------------------------------------------------------------------------------

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def submodules(module: torch.nn.Module) -> dict[str, Any]:
    """The children of a module by name."""
    return module._modules


def places_of_tensors(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    """The dictionaries in which a module has its tensors: parameters, buffers and attributes."""
    return module._parameters, module._buffers, vars(module)


def hook_registries(modules: Iterable[torch.nn.Module]) -> list[tuple[torch.nn.Module | None, Any]]:
    """The dictionaries of hooks that run with the forward pass: of modules, and of all modules (None)."""
    everywhere = torch.nn.modules.module
    found: list[tuple[torch.nn.Module | None, Any]] = [
        (None, everywhere._global_forward_hooks),
        (None, everywhere._global_forward_pre_hooks),
    ]
    return found + [(module, getattr(module, name)) for module in modules for name in _HOOKS]
