"""Where a tensor of the forward pass comes from: which tapped layers, what is known of its values.

Each tensor that depends on the inputs bears a :class:`Mark` of the running propagation as an attribute. The mark
tells three things apart that autograd cannot: a tensor that *carries* contributions of a tapped layer, one that
depends on the inputs but carries none (it bypasses the layer), and a *constant* (no mark), whose share the account
measures. A tensor that requires grad and bears no mark was made by an operation that the propagation never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_ATTRIBUTE = "_captum_cav_mark"

#: Traits of a tensor, as a bit set. WEIGHT: sigmoid- or softmax-like, so that it weighs whatever it is multiplied with.
WEIGHT = 1
#: No value is below 0, so that its summands with positive weights are the positive ones.
NONNEGATIVE = 2
#: No layer with weights lies between it and the inputs.
RAW = 4
#: No value is beyond 1 or below -1: made by tanh or erf, it is a weight once 1 is added.
BOUNDED = 8
#: A positive number was just added: where it is then clipped between 0 and another number, it is a hard sigmoid.
RAISED = 16


class Origin:
    """What the rule of an operation leaves for the rules of those that take its output.

    Attributes:
        takers: how many operations took the output.
        rectifiers: how many of them let nothing through where it is below 0.
    """

    takers = 0
    rectifiers = 0

    @property
    def is_rectified(self) -> bool:
        """Whether what is below 0 has no contribution, since only rectifiers took the output."""
        return 0 < self.takers == self.rectifiers


class Mark(NamedTuple):
    """The origin of a tensor.

    Attributes:
        run: identity of the propagation that made it; marks of other runs do not count.
        taps: bit set of the tapped layers whose contributions it carries; 0 if it only depends on the inputs.
        traits: bit set of :data:`WEIGHT`, :data:`NONNEGATIVE`, :data:`RAW`, :data:`BOUNDED` and :data:`RAISED`.
        origin: what the rule of the operation that made it left for the rule of the next one, or None.
    """

    run: object
    taps: int
    traits: int
    origin: Origin | None = None


def get_mark(tensor: torch.Tensor, run: object) -> Mark | None:
    """The tensor's mark if it was set by ``run``."""
    mark: Mark | None = getattr(tensor, _ATTRIBUTE, None)
    return mark if mark is not None and mark.run is run else None


def set_mark(tensor: torch.Tensor, mark: Mark, *, written: bool = False) -> None:
    """Mark a tensor, and if it was written into the tensor it is a view of, which was written into as well."""
    setattr(tensor, _ATTRIBUTE, mark)
    base = tensor._base if written else None
    if base is not None and base.requires_grad:
        held = get_mark(base, mark.run)
        if held is None:  # whatever the constant around the view holds
            merged = mark._replace(traits=mark.traits & ~NONNEGATIVE, origin=None)
        else:
            merged = Mark(mark.run, mark.taps | held.taps, mark.traits & held.traits)
        setattr(base, _ATTRIBUTE, merged)


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that may carry; integers are indices, which say where."""
    return tensor.is_floating_point() or tensor.is_complex()


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A (nested) argument of an operation with each of its tensors changed; other structures are taken as they are."""
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
