"""Maps in double precision, and on another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def precise(maps: torch.Tensor) -> torch.Tensor:
    """Maps in double precision, if their device has it."""
    return maps if maps.device.type == "mps" else maps.double()


def at_size(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps on another grid, for metrics that rank places: a map with equal values keeps equal values.

    A change of the grid that kept the sum of each map, as for contributions, could not promise that. Interpolation is
    bilinear, with antialiasing if a side becomes smaller.

    Args:
        maps: shape (N, h, w).
        size: (height, width) of the new grid.

    Returns:
        Shape (N, height, width).
    """
    if maps.shape[1:] == size:
        return maps
    smaller = maps.shape[1] > size[0] or maps.shape[2] > size[1]
    found = F.interpolate(maps[:, None], size, mode="bilinear", antialias=smaller)[:, 0]
    # The weights add up to 1 only up to rounding, which would rank the places of a map with equal values.
    first = maps[:, :1, :1]
    return torch.where((maps == first).all(2).all(1)[:, None, None], first, found)
