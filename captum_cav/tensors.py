"""Tensors in nested arguments, and whether two tensors are one in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that may carry contributions. Integers are indices: they say where."""
    return tensor.is_floating_point() or tensor.is_complex()


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A (nested) argument with each of its tensors changed. Other structures than tuples and lists stay as they are."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([map_tensors(change, item) for item in value]) if type(value) in (tuple, list) else value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in a (nested) tuple, list or dict, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    found: list[torch.Tensor] = []
    for item in value:
        found += [item] if isinstance(item, torch.Tensor) else tensors_in(item)
    return found


def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors look at the same memory in the same way.

    Autograd passes a gradient on as it is where nothing is added to the gradient, and never writes into a gradient
    that somebody else holds. So the same memory means the same gradient.
    """
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )
