"""Integer inputs, such as the indices of words: they carry contributions where an embedding layer takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from captum_cav.tensors import tensors_in


class Embedded(NamedTuple):
    """A call of an embedding layer that takes an integer input.

    Attributes:
        input: the number of the input among the tensors of all inputs.
        tap: the number of the tap of the layer's output.
        places: for each index that the layer takes, its place in the flattened input.
    """

    input: int
    tap: int
    places: torch.Tensor

    def of_input(self, contributions: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        """The contributions of the layer's output, summed up for each element of the input.

        Args:
            contributions: shape (K, ...), the contributions of K scores, each in the shape of the layer's output.
            size: the number of elements of the input.
            dtype: the type of numbers of the sums.

        Returns:
            Shape (K, size).
        """
        count = len(contributions)
        of_index = contributions.reshape(count, self.places.numel(), -1).sum(2, dtype=dtype)
        return of_index.new_zeros(count, size).index_add(1, self.places.flatten(), of_index)


class Embeddings:
    """Finds the calls of embedding layers that take integer inputs, in one forward pass.

    Args:
        inputs: copies of the model's inputs, as the model gets them.
        is_embedding: whether a module is an embedding layer.
        taps: how many taps there are so far.
    """

    def __init__(self, inputs: Any, is_embedding: Callable[[torch.nn.Module], bool], taps: Callable[[], int]) -> None:
        self._inputs = tensors_in(list(inputs))
        self._is_embedding = is_embedding
        self._taps = taps
        self.found: list[Embedded] = []

    def note(self, module: torch.nn.Module, args: Sequence[Any], output: Any) -> bool:
        """Note a call of a module if the module is an embedding layer that takes an integer input.

        The input may have been viewed, transposed or cut before, but not computed with.
        """
        if not (args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor)):
            return False
        index = args[0]
        if index.is_floating_point() or output.shape[: index.dim()] != index.shape or not self._is_embedding(module):
            return False
        for number, given in enumerate(self._inputs):
            if given.untyped_storage() is index.untyped_storage() or _is_same_storage(given, index):
                self.found.append(Embedded(number, self._taps(), _places(given, index)))
                return True
        return False


def _is_same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _places(given: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """For each element of a view, its place in the flattened tensor that owns the memory."""
    size = given.untyped_storage().nbytes() // given.itemsize
    places = torch.zeros(size, dtype=torch.long, device=given.device)
    numbers = torch.arange(given.numel(), device=given.device).reshape(given.shape)
    places.as_strided(given.shape, given.stride(), given.storage_offset()).copy_(numbers)
    return places.as_strided(view.shape, view.stride(), view.storage_offset()).clone()
