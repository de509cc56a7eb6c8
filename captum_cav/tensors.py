"""Helpers for tensors: nested arguments, and memory that two tensors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, which may carry contributions. Integers are indices."""
    return tensor.is_floating_point() or tensor.is_complex()


def size_of_infinity(dtype: torch.dtype) -> float:
    """From which size on numbers of a type stand for infinity, as in masks: a thousandth of the largest number.

    Models mask with the smallest number of the type, and may divide it. The range of float16 is too small for that:
    there only the largest number itself counts.
    """
    return torch.finfo(dtype).max * (1.0 if dtype == torch.float16 else 1e-3)


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
