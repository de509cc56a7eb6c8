"""Maps, the pictures that they explain, and masks of the objects in the samples."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.checks.inputs import check_tensor, is_floating
from captum_cav.checks.layouts import SIDES
from captum_cav.checks.numbers import sample_names
from captum_cav.errors import CAVTypeError, InputError


def check_maps(maps: Any, name: str = "maps", sides: int | None = None) -> torch.Tensor:
    """Maps as metrics take them.

    Args:
        maps: finite numbers of shape (N, t) for signals and sequences, (N, h, w) for pictures, or (N, d, h, w) for
            volumes and videos.
        name: of the argument, for messages.
        sides: how many sides the maps have; None for any of these three.

    Returns:
        The maps without a graph, in single precision at least.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    found = _as_tensor(maps, name)
    if found.dim() - 1 not in ((sides,) if sides else SIDES):
        expected = f"(N, {SIDES[sides]})" if sides else "(N, t), (N, h, w) or (N, d, h, w)"
        raise InputError(
            f"{name} has shape {tuple(found.shape)}; expected {expected}, one number for each place. Sum "
            "attributions over their channels, as captum_cav.visualization.spatial_map does."
        )
    check_tensor(found, name)
    return found.detach().to(torch.promote_types(found.dtype, torch.float32))


def check_pictures(inputs: Any) -> torch.Tensor:
    """Pictures as metrics take them.

    Args:
        inputs: shape (N, C, H, W), finite floating-point numbers.

    Returns:
        The pictures without a graph.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    found = _as_tensor(inputs, "inputs")
    if not is_floating(found) or found.dim() != 4:
        raise InputError(
            f"inputs is a {found.dtype} tensor of shape {tuple(found.shape)}; expected floating-point pictures of "
            "shape (N, C, H, W)."
        )
    check_tensor(found, "inputs")
    return found.detach()


def check_masks(masks: Any, maps: torch.Tensor) -> torch.Tensor:
    """Masks of the objects, as metrics take them.

    Args:
        masks: booleans of shape (N, T), (N, H, W) or (N, D, H, W), True where the object is; no mask is empty.
        maps: shape (N, t), (N, h, w) or (N, d, h, w), the maps of the same examples.

    Returns:
        The masks on the device of the maps.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    found = _as_tensor(masks, "masks")
    if found.dim() != maps.dim() or found.dtype != torch.bool:
        raise InputError(
            f"masks is a tensor of {found.dtype} and shape {tuple(found.shape)}; expected booleans of shape "
            f"(N, {SIDES[maps.dim() - 1].upper()}), True where the object is."
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
