"""Values of the forward pass that are read in the backward pass, whatever the model writes over them."""

from __future__ import annotations

import torch


class Kept:
    """A value as it was when it was kept.

    Attributes:
        value: the value; it carries nothing.
    """

    __slots__ = ("value",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.value = tensor.detach()


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one in memory, and look at it in the same way.

    Autograd hands on what it got where nothing is added to it, and writes into nothing that others hold.
    """
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


class Keeper:
    """Keeps values without copying them, unless something is about to write into their memory."""

    def __init__(self) -> None:
        self._by_memory: dict[int, list[Kept]] = {}

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Keep a tensor's value."""
        kept = Kept(tensor)
        self._by_memory.setdefault(_memory_of(tensor), []).append(kept)
        return kept

    def before_writing(self, tensor: torch.Tensor) -> None:
        """Copy what was kept in the memory of a tensor that is about to be written into."""
        for kept in self._by_memory.pop(_memory_of(tensor), ()):
            kept.value = kept.value.clone()


def _memory_of(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor begins, whatever part of it the tensor is; its storage would have to be made."""
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()
