"""Snapshots of carriers. With them an audit notices writes that autograd does not record.

Autograd records a write into a carrier. Autograd does not record a write through ``h.detach()``, ``h.data`` or NumPy.
These share the memory of the carrier, but are no part of the graph. After such a write the graph still stands for the
old values, so the contributions are wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from captum_cav.torch_internals import base_of

_ATTRIBUTE = "_captum_cav_snapshot"


class _Snapshot(NamedTuple):
    """A copy of the memory of a carrier, with the identity of the pass that made the copy."""

    run: object
    memory: torch.Tensor


class Snapshots:
    """The values that the carriers of one pass have by the operations that autograd recorded.

    Views of one tensor share a snapshot. A tensor that shares memory with a carrier, but is no view for autograd, does
    not. So a write through such a tensor leaves the carrier's snapshot as it was.

    Args:
        run: the identity of the pass.
    """

    def __init__(self, run: object) -> None:
        self._run = run

    def take(self, tensor: torch.Tensor) -> None:
        """Note the values of a new carrier."""
        if tensor.layout == torch.strided:
            owner = _owner_of(tensor)
            memory = torch.empty(0, dtype=owner.dtype, device=owner.device).set_(owner.untyped_storage())
            setattr(owner, _ATTRIBUTE, _Snapshot(self._run, memory.clone()))

    def update(self, written: torch.Tensor) -> None:
        """Note the values of a carrier into which the model wrote, while autograd recorded that."""
        if self.values_of(written) is None or written.is_conj() or written.is_neg():
            self.take(written)
            return
        owner = _owner_of(written)
        snapshot: _Snapshot = getattr(owner, _ATTRIBUTE)
        # A copy, because audited operations hold views of the old snapshot. Of a view, only its own elements change:
        # autograd did not record what else was written into its base.
        memory = snapshot.memory.clone()
        setattr(owner, _ATTRIBUTE, snapshot._replace(memory=memory))
        _elements(memory, written).copy_(written.detach())

    def share(self, tensor: torch.Tensor, alias: torch.Tensor) -> None:
        """Note that an alias in the memory of a carrier has the values of the carrier."""
        setattr(_owner_of(alias), _ATTRIBUTE, getattr(_owner_of(tensor), _ATTRIBUTE, None))

    def values_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The noted values of a carrier, in its shape. None if there are none."""
        snapshot: _Snapshot | None = getattr(_owner_of(tensor), _ATTRIBUTE, None)
        if snapshot is None or snapshot.run is not self._run or tensor.layout != torch.strided:
            return None
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((size - 1) * step for size, step in steps)
        if (last + 1) * tensor.element_size() > snapshot.memory.nbytes:  # The model gave the tensor other memory.
            return None
        elements = _elements(snapshot.memory, tensor)
        elements = elements.conj() if tensor.is_conj() else elements
        return -elements if tensor.is_neg() else elements


def _owner_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which a tensor is a view, or the tensor itself."""
    base = base_of(tensor)
    return tensor if base is None else base


def _elements(memory: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a copy of a tensor's memory that belong to the tensor, in its shape."""
    return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
