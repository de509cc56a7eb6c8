"""Helpers for tensors and their functions: nested arguments, shared memory, places in the graph."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, which may carry contributions. Integers are indices."""
    return tensor.is_floating_point() or tensor.is_complex()


def as_tensor(numbers: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor as it is, and other numbers as a tensor on the CPU, whatever the default device of torch is.

    Args:
        numbers: a tensor, an array, a number or a (nested) list of numbers.
        dtype: the type of the numbers. None for the type that they have.
    """
    if isinstance(numbers, torch.Tensor):
        return numbers if dtype is None else numbers.to(dtype)
    return torch.as_tensor(numbers, dtype=dtype, device="cpu")


def size_of_infinity(dtype: torch.dtype) -> float:
    """From which size on numbers of a type stand for infinity, as in masks: a thousandth of the largest number.

    Models mask with the smallest number of the type, and may divide it. The range of float16 is too small for that:
    there only the largest number itself counts.
    """
    return torch.finfo(dtype).max * (1.0 if dtype == torch.float16 else 1e-3)


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on for a type of device, such as "cpu". torch knows no autocast for some types, as "meta"."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A (nested) argument in which ``change`` replaces each tensor.

    Args:
        change: takes a tensor and returns its replacement.
        value: a tensor, or a (nested) tuple or list. Any other value is returned unchanged.

    Returns:
        The same structure with the replacements inside.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([map_tensors(change, item) for item in value]) if type(value) in (tuple, list) else value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in a (nested) tuple, list or dict, in order. Other values hold none."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    tensors: list[torch.Tensor] = []
    for item in value:
        tensors += [item] if isinstance(item, torch.Tensor) else tensors_in(item)
    return tensors


def as_plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the same memory whose class is :class:`torch.Tensor`, if the class adds only Python code to it.

    Tensors that keep their numbers in another way, such as quantized weights, are returned as they are.
    """
    if type(tensor) in _PLAIN or keeps_numbers_elsewhere(tensor):
        return tensor
    return tensor.as_subclass(torch.Tensor)


def keeps_numbers_elsewhere(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that keeps its numbers in another way than a plain tensor."""
    kind = type(tensor)
    return kind not in _PLAIN and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def is_quantized_weight(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that keeps quantized numbers and can give them as floating-point numbers."""
    kind = type(tensor)
    return kind.dequantize is not torch.Tensor.dequantize and keeps_numbers_elsewhere(tensor)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def separate_node(tensor: torch.Tensor) -> Any:
    """A node of autograd for those who look at the node of a tensor: a node in a graph of its own.

    A hook that is registered at this node never runs.
    """
    with torch.enable_grad():
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device, requires_grad=True).expand(1).grad_fn


def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same memory, shape, strides and type of numbers.

    Autograd passes a gradient on without a copy where nothing is added to the gradient. It never writes into a gradient
    that other code may still read. So two gradients in the same memory are the same gradient.
    """
    return (
        one.data_ptr() == other.data_ptr()
        # All empty tensors, and all tensors of the meta device, have the address 0.
        and one.untyped_storage() is other.untyped_storage()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def share_elements(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that lie in the same memory have an element of it in common."""
    # The whole memory, a truth value for each element, on the host: such tensors are rare.
    used = torch.zeros(one.untyped_storage().nbytes() // one.itemsize, dtype=torch.bool, device="cpu")
    used.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(used.as_strided(other.shape, other.stride(), other.storage_offset()).any())


class _OwningEdge(GradientEdge):
    """A gradient edge that keeps its node alive."""

    ownership_token: Any


def edge_of(tensor: torch.Tensor) -> GradientEdge:
    """The place of a tensor in the graph of autograd.

    The Python object of a custom function's node does not keep the node alive. If the score does not reach the tensor,
    the tensor and its node may be gone when autograd is asked for the gradient, and the process ends. From version 2.9
    on, torch keeps the node alive by another node that leads to it. This function does so in older versions.
    """
    edge = get_gradient_edge(tensor)
    if hasattr(edge, "ownership_token"):
        return edge
    owning = _OwningEdge(*edge)
    with torch.enable_grad():
        owning.ownership_token = tensor.view_as(tensor).grad_fn
    return owning


def _no_override(*_: object) -> bool:
    return False


def body_of(function: types.FunctionType) -> Callable[..., Any]:
    """A copy of a Python function of torch that does not check for overrides.

    With the check, a mode would see only the function itself. Without the check, the mode sees the operations inside.
    """
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
