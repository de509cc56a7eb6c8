"""Maps, the pictures that they explain, and masks of the objects in the pictures."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.checks.inputs import check_tensor, is_floating
from captum_cav.checks.numbers import sample_names
from captum_cav.errors import CAVTypeError, InputError

#: The sides of a picture and of a volume, as messages name them.
_SIDES = {2: "h, w", 3: "d, h, w"}


def sides_of(inputs: Any) -> int:
    """How many sides the samples have: 3 for volumes and videos, (N, C, D, H, W); 2 for anything else."""
    return 3 if isinstance(inputs, torch.Tensor) and inputs.dim() == 5 else 2


def check_maps(maps: Any, name: str = "maps", sides: int = 2) -> torch.Tensor:
    """Maps as metrics take them.

    Args:
        maps: shape (N, h, w), finite numbers; (N, d, h, w) if they have three sides.
        name: of the argument, for messages.
        sides: how many sides the maps have: 2, or 3 for maps of volumes and videos.

    Returns:
        The maps without a graph, in single precision at least.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    found = _as_tensor(maps, name)
    if found.dim() != sides + 1:
        raise InputError(
            f"{name} has shape {tuple(found.shape)}; expected (N, {_SIDES[sides]}), one number for each place. Sum "
            "attributions over their channels, as captum_cav.visualization.spatial_map does."
        )
    check_tensor(found, name)
    return found.detach().to(torch.promote_types(found.dtype, torch.float32))


def check_pictures(inputs: Any, maps: torch.Tensor | None = None, sides: int = 2) -> torch.Tensor:
    """Pictures as metrics take them.

    Args:
        inputs: shape (N, C, H, W), finite floating-point numbers; (N, C, D, H, W) if they have three sides.
        maps: shape (N, h, w) or (N, d, h, w), the maps of the pictures, or None.
        sides: how many sides the pictures have: 2, or 3 for volumes and videos.

    Returns:
        The pictures without a graph.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor, and for another number of pictures than maps.
    """
    found = _as_tensor(inputs, "inputs")
    picture_size(found, sides)
    check_tensor(found, "inputs")
    if maps is not None:
        check_same_length(maps, "maps", found, "inputs")
    return found.detach()


def picture_size(inputs: Any, sides: int = 2) -> tuple[int, ...]:
    """The size of pictures, (height, width), or of volumes, (depth, height, width).

    Args:
        inputs: floating-point numbers of shape (N, C, H, W), or (N, C, D, H, W) if they have three sides.
        sides: how many sides the pictures have: 2, or 3 for volumes and videos.

    Raises:
        InputError: for what is not such a tensor.
    """
    if not is_floating(inputs) or inputs.dim() != sides + 2:
        is_tensor = isinstance(inputs, torch.Tensor)
        what = f"{inputs.dtype} tensor of shape {tuple(inputs.shape)}" if is_tensor else type(inputs).__name__
        kind = "pictures" if sides == 2 else "volumes"
        expected = f"(N, C, {_SIDES[sides].upper()})"
        raise InputError(f"inputs is a {what}; expected floating-point {kind} of shape {expected}.")
    return tuple(inputs.shape[2:])


def check_masks(masks: Any, maps: torch.Tensor) -> torch.Tensor:
    """Masks of the objects, as metrics take them.

    Args:
        masks: booleans of shape (N, H, W) or (N, D, H, W), True where the object is; no mask is empty.
        maps: shape (N, h, w) or (N, d, h, w), the maps of the same examples.

    Returns:
        The masks on the device of the maps.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    found = _as_tensor(masks, "masks")
    if found.dim() != maps.dim() or found.dtype != torch.bool:
        raise InputError(
            f"masks is a tensor of {found.dtype} and shape {tuple(found.shape)}; expected booleans of shape "
            f"(N, {_SIDES[maps.dim() - 1].upper()}), True where the object is."
        )
    check_same_length(maps, "maps", found, "masks")
    empty = ~found.flatten(1).any(1)
    if bool(empty.any()):
        raise InputError(f"masks selects nothing in {sample_names(empty)}; leave out the samples that show no object.")
    return found.to(maps.device)


def check_same_length(first: torch.Tensor, first_name: str, other: torch.Tensor, other_name: str) -> None:
    """Refuse two batches of different numbers of examples."""
    if len(first) != len(other):
        raise InputError(
            f"{first_name} holds {len(first)} examples and {other_name} {len(other)}; expected the same number."
        )


def _as_tensor(value: Any, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise CAVTypeError(f"{name} is a {type(value).__name__}; expected a tensor.")
    return value
