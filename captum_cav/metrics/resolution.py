"""Maps in double precision, and on another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def precise(maps: torch.Tensor) -> torch.Tensor:
    """Maps in double precision, if their device has it."""
    return maps if maps.device.type == "mps" else maps.double()


def at_size(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Maps on another grid, for metrics that rank places: a map with equal values keeps equal values.

    A change of the grid that kept the sum of each map, as for contributions, could not promise that. Interpolation is
    linear in each dimension, with antialiasing if a side becomes smaller.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w).
        size: (length,), (height, width) or (depth, height, width) of the new grid.

    Returns:
        N maps on a grid of this size.
    """
    if maps.shape[1:] == size:
        return maps
    if len(size) == 1:
        found = _interpolated(maps[:, None], (1, *size))[:, 0]
    elif len(size) == 3:
        # Torch has no antialiasing for volumes: first each slice, then the depth of each place of the slices.
        slices = _interpolated(maps.flatten(0, 1), size[1:]).reshape(*maps.shape[:2], -1)
        found = _interpolated(slices, (size[0], slices.shape[2])).reshape(-1, *size)
    else:
        found = _interpolated(maps, size)
    # The weights add up to 1 only up to rounding, which would rank the places of a map with equal values.
    first = maps.flatten(1)[:, :1]
    uniform = (maps.flatten(1) == first).all(1, keepdim=True)
    return torch.where(uniform, first, found.flatten(1)).reshape(found.shape)


def _interpolated(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Maps of shape (N, h, w) on another grid of two sides."""
    smaller = maps.shape[1] > size[0] or maps.shape[2] > size[1]
    return F.interpolate(maps[:, None], size, mode="bilinear", antialias=smaller)[:, 0]
