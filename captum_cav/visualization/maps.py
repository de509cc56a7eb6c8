"""From the contributions of a layer to one number a place, on whatever grid it is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from captum_cav.errors import InputError


def spatial_map(attributions: torch.Tensor, picture_size: tuple[int, int]) -> torch.Tensor:
    """Contributions summed over channels: one number for each place of the layer (the paper's section 3.3).

    Args:
        attributions: shape (N, C, h, w), (N, h, w, C) or (N, tokens, C), the tokens a grid with any few class tokens
            before it.
        picture_size: (height, width) of the picture; the grid that has its proportions is taken.

    Returns:
        Shape (N, h, w).

    Raises:
        InputError: if the layer has no such grid.

    Example::

        >>> spatial_map(torch.ones(1, 3, 2, 2), (224, 224))
        tensor([[[3., 3.],
                 [3., 3.]]])
        >>> spatial_map(torch.ones(2, 1 + 14 * 14, 8), (224, 224)).shape   # a vision transformer's tokens
        torch.Size([2, 14, 14])
    """
    shape = tuple(attributions.shape)
    if attributions.dim() == 4:
        layouts = {1: shape[2:], 3: shape[1:3]}
        channels = min(layouts, key=lambda dim: distortion(layouts[dim], picture_size))
        if distortion(layouts[channels], picture_size) < MOST_DISTORTION:
            return attributions.sum(channels)
    if attributions.dim() == 3:
        for extra in range(min(_MOST_EXTRA_TOKENS, shape[1] - 1)):
            height = round(math.sqrt((shape[1] - extra) * picture_size[0] / picture_size[1]))
            grid = (height, (shape[1] - extra) // max(height, 1))
            if grid[0] * grid[1] == shape[1] - extra and distortion(grid, picture_size) < MOST_DISTORTION:
                return attributions[:, extra:].sum(2).reshape(shape[0], *grid)
    raise InputError(
        f"contributions of shape {shape} have no places to lay over a picture of {picture_size[0]} x {picture_size[1]} "
        "pixels; expected (N, C, h, w), (N, h, w, C) or (N, tokens, C) with a grid of tokens."
    )


# How far a grid's proportions may be from the picture's: unpadded convolutions take as much from the shorter side.
MOST_DISTORTION = math.log(1.25)
_MOST_EXTRA_TOKENS = 6


def distortion(grid: Sequence[int], picture_size: tuple[int, int]) -> float:
    """How far a grid's proportions are from the picture's, as the logarithm of their ratio."""
    if min(grid) == 0:
        return math.inf
    return abs(math.log(grid[0] * picture_size[1] / (grid[1] * picture_size[0])))


def resize_map(ratios: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map on another grid, with the same sum: contributions are shares, and laying them out anew makes none.

    Each cell's share is spread over the new cells with the weights of bilinear interpolation (``align_corners=False``,
    with antialiasing), made to add up to 1 cell by cell. So it is linear, no sign changes, and a sum of nearly 0 is
    kept as exactly as any other. On a multiple of the old grid this is bilinear interpolation times the old number of
    cells over the new one. On others an even map comes out a little uneven: by less than 0.5 % on a grid ten times as
    fine, as that of a picture, and by up to a fifth between two grids that are nearly as fine.

    Args:
        ratios: shape (..., h, w).
        size: (height, width) of the new grid.

    Returns:
        Shape (..., height, width), in single precision at least.

    Raises:
        InputError: if the map or the new grid has no cells.

    Example::

        >>> resize_map(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.1250, 0.3750, 0.5000]])
        >>> resize_map(torch.tensor([[0.3, -0.1], [0.2, 0.6]]), (1, 1))
        tensor([[1.]])
    """
    if ratios.dim() < 2 or 0 in ratios.shape[-2:] or min(size) < 1:
        raise InputError(
            f"a map of shape {tuple(ratios.shape)} cannot be brought to {size[0]} x {size[1]} cells; expected "
            "(..., h, w) with at least one cell on either side."
        )
    ratios = ratios.to(torch.promote_types(ratios.dtype, torch.float32))
    rows, columns = (_spread(cells, new).to(ratios) for cells, new in zip(ratios.shape[-2:], size, strict=True))
    return rows.T @ ratios @ columns


def _spread(cells: int, new: int) -> torch.Tensor:
    """Shape (cells, new): how each cell's share is divided among the new ones; rows add up to 1."""
    each = torch.eye(cells, dtype=torch.float64)[:, None, None]
    weights = F.interpolate(each, (1, new), mode="bilinear", align_corners=False, antialias=True)[:, 0, 0]
    return weights / weights.sum(1, keepdim=True)


def checked(ratios: torch.Tensor, name: str, dimensions: int = 2) -> torch.Tensor:
    """A map as it is drawn: finite, on the CPU, without a graph.

    Args:
        ratios: shape (h, w), or (n,) where ``dimensions`` is 1.
        name: what the map is called, for messages.
        dimensions: how many it must have.
    """
    ratios = torch.as_tensor(ratios).detach().cpu()
    expected = "(h, w)" if dimensions == 2 else "(n,)"
    if ratios.dim() != dimensions or not ratios.numel():
        raise InputError(
            f"the map {name!r} has shape {tuple(ratios.shape)}; expected {expected}, one number a place: the "
            "contributions of one sample, summed over channels."
        )
    ratios = ratios.to(torch.promote_types(ratios.dtype, torch.float32))
    wrong = ratios.numel() - int(torch.isfinite(ratios).sum())
    if wrong:
        raise InputError(
            f"the map {name!r} holds NaN or infinity in {wrong} of {ratios.numel()} places; expected finite numbers."
        )
    return ratios
