"""Where a tensor of the forward pass comes from: which tapped layers, and whether it is a weight.

Each tensor that depends on the inputs bears a :class:`Mark` of the running propagation as an attribute. The mark
tells three things apart that autograd cannot: a tensor that *carries* contributions of a tapped layer, one that
depends on the inputs but carries none (it bypasses the layer), and a *constant* (no mark), whose share the account
measures. A tensor that requires grad and bears no mark was made by an operation that the propagation never saw.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_ATTRIBUTE = "_captum_cav_mark"


class Mark(NamedTuple):
    """The origin of a tensor.

    Attributes:
        run: identity of the propagation that made it; marks of other runs do not count.
        taps: bit set of the tapped layers whose contributions it carries; 0 if it only depends on the inputs.
        weight: whether it is sigmoid- or softmax-like, so that it weighs whatever it is multiplied with.
    """

    run: object
    taps: int
    weight: bool


def get_mark(tensor: torch.Tensor, run: object) -> Mark | None:
    """The tensor's mark if it was set by ``run``."""
    mark: Mark | None = getattr(tensor, _ATTRIBUTE, None)
    return mark if mark is not None and mark.run is run else None


def set_mark(tensor: torch.Tensor, mark: Mark) -> None:
    """Mark a tensor, and the tensor it is a view of: writing into a view writes into its base."""
    setattr(tensor, _ATTRIBUTE, mark)
    base = tensor._base
    if base is not None and base.requires_grad:
        held = get_mark(base, mark.run)
        merged = mark if held is None else mark._replace(taps=mark.taps | held.taps, weight=held.weight)
        setattr(base, _ATTRIBUTE, merged)


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
