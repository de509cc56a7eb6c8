"""Saved values: values of the forward pass for the backward pass, even if the model overwrites them later."""

from __future__ import annotations

import torch


class SavedValue:
    """A tensor's value at the time when the value was saved.

    Attributes:
        value: the value, without a graph.
    """

    __slots__ = ("value",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.value = tensor.detach()


class SavedValues:
    """Saves values without a copy. A value is copied only if the model is about to write into its memory."""

    def __init__(self) -> None:
        self._by_memory: dict[int, list[SavedValue]] = {}

    def save(self, tensor: torch.Tensor) -> SavedValue:
        """Save a tensor's value."""
        saved = SavedValue(tensor)
        self._by_memory.setdefault(_start_of_memory(tensor), []).append(saved)
        return saved

    def release(self, saved: SavedValue) -> None:
        """Forget a value that nobody needs any more."""
        known = self._by_memory.get(_start_of_memory(saved.value), [])
        if saved in known:
            known.remove(saved)

    def before_writing(self, tensor: torch.Tensor) -> None:
        """Copy the values that lie in the memory of a tensor into which something is about to be written."""
        for saved in self._by_memory.pop(_start_of_memory(tensor), ()):
            saved.value = saved.value.clone()


def _start_of_memory(tensor: torch.Tensor) -> int:
    """The address of the memory in which a tensor lies. A view starts in the middle of that memory."""
    # The address of the storage would be the same, but torch would have to make a storage object for each call.
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()
