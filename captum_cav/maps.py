"""From the attributions of a layer to a map: one number for each place, on any grid.

Nothing here draws, and nothing here runs a model. :mod:`captum_cav.visualization` exports :func:`spatial_map` and
:func:`resize_map`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from captum_cav.errors import InputError
from captum_cav.tensors import as_tensor

__all__ = [
    "MOST_DISTORTION",
    "check_map",
    "distortion",
    "on_host",
    "picture_size_of",
    "resize_map",
    "sequence_channels",
    "spatial_map",
]

#: The largest :func:`distortion` at which a grid still fits a picture. A convolution without padding removes as many
#: rows as columns, so the grid of a long picture gets longer still.
MOST_DISTORTION = math.log(1.25)
# A transformer puts fewer than this many tokens without a place (class tokens, register tokens) before the grid.
_MOST_EXTRA_TOKENS = 6
# The dimensions of maps, as messages name them.
_GRIDS = {1: "n,", 2: "h, w", 3: "d, h, w"}


def picture_size_of(inputs: torch.Tensor) -> tuple[int, int]:
    """The (height, width) of pictures.

    Args:
        inputs: shape (..., height, width).

    Returns:
        Height and width, in pixels.

    Example::

        >>> picture_size_of(torch.zeros(1, 3, 224, 320))
        (224, 320)
    """
    return inputs.shape[-2], inputs.shape[-1]


def distortion(grid: Sequence[int], size: tuple[int, int]) -> float:
    """How much the proportions of a grid differ from those of a picture.

    Args:
        grid: (height, width) of the grid, in cells.
        size: (height, width) of the picture, in pixels.

    Returns:
        The size of the logarithm of the quotient of both proportions, so 0 if they are equal. Infinite if the grid has
        no cells.

    Example::

        >>> distortion((7, 7), (224, 224)), round(distortion((7, 14), (224, 224)), 3)
        (0.0, 0.693)
    """
    if min(grid) == 0:
        return math.inf
    return abs(math.log(grid[0] * size[1] / (grid[1] * size[0])))


def spatial_map(attributions: torch.Tensor, picture_size: tuple[int, ...], channels: int | None = None) -> torch.Tensor:
    """Sum the attributions of a layer over its channels: one number for each place of the layer.

    Args:
        attributions: shape (N, C, h, w), (N, h, w, C) or (N, tokens, C). The tokens are a grid. Up to five tokens
            without a place, as class tokens, may stand before the grid. Of several possible grids, the one whose
            proportions are nearest to those of the picture counts. For a volume or a video, shape (N, C, d, h, w) or
            (N, d, h, w, C). For a sequence or a signal, shape (N, C, t), (N, t, C) or (N, t).
        picture_size: (height, width) of the picture, in pixels. It decides which dimensions are the grid: those with
            the proportions of the picture. For a volume (depth, height, width), of which height and width decide. For a
            sequence or a signal (length,).
        channels: the dimension of the channels of a sequence or a signal, 1 or -1. None decides by the length, which
            only one dimension may have.

    Returns:
        Shape (N, h, w), (N, d, h, w) for a volume, or (N, t) for a sequence or a signal; in the unit of the
        attributions.

    Raises:
        InputError: if no dimensions have the proportions of the picture, or if the dimension of the channels of a
            sequence is not clear.

    Source: Kakishita and Hattori, section 3.3.

    Example::

        >>> spatial_map(torch.ones(1, 3, 2, 2), (224, 224))
        tensor([[[3., 3.],
                 [3., 3.]]])
        >>> spatial_map(torch.ones(2, 1 + 14 * 14, 8), (224, 224)).shape   # the tokens of a vision transformer
        torch.Size([2, 14, 14])
        >>> spatial_map(torch.ones(2, 5, 8), (5,)).shape      # the tokens of a text
        torch.Size([2, 5])
    """
    attributions = as_tensor(attributions)
    shape = tuple(attributions.shape)
    sides = len(picture_size)
    if sides == 1:
        dimension = sequence_channels(shape, picture_size[0], channels)
        return attributions if dimension is None else attributions.sum(dimension)
    if attributions.dim() == sides + 2:
        # Steps in time or depth often differ from those in the plane, so the depth says nothing about the layout.
        in_plane = (picture_size[-2], picture_size[-1])
        layouts = {1: shape[-2:], sides + 1: shape[-3:-1]}
        channels = min(layouts, key=lambda dim: distortion(layouts[dim], in_plane))
        if distortion(layouts[channels], in_plane) < MOST_DISTORTION:
            return attributions.sum(channels)
    if sides == 3:
        raise InputError(
            f"contributions of shape {shape} have no places to lay over a volume of "
            f"{' x '.join(map(str, picture_size))} voxels; expected (N, C, d, h, w) or (N, d, h, w, C)."
        )
    if attributions.dim() == 3:
        grids = _grids(shape[1], (picture_size[0], picture_size[1]))
        if grids:
            # Register tokens may make another grid possible: 5 tokens and 5 x 5 places are 5 x 6, too.
            grid = min(grids, key=lambda grid: distortion(grid, (picture_size[0], picture_size[1])))
            return attributions[:, shape[1] - grid[0] * grid[1] :].sum(2).reshape(shape[0], *grid)
    raise InputError(
        f"contributions of shape {shape} have no places to lay over a picture of {picture_size[0]} x {picture_size[1]} "
        "pixels; expected (N, C, h, w), (N, h, w, C) or (N, tokens, C) with a grid of tokens."
    )


def sequence_channels(shape: Sequence[int], length: int, channels: int | None = None) -> int | None:
    """The dimension of the channels of a sequence or a signal.

    Args:
        shape: of the values of a layer: (N, C, t), (N, t, C) or (N, t).
        length: the number of places of the inputs.
        channels: the dimension, 1 or -1, if somebody knows it.

    Returns:
        1, -1, or None if there are no channels.

    Raises:
        InputError: if nothing tells the dimension.

    Example::

        >>> sequence_channels((2, 5, 8), 5), sequence_channels((2, 8, 5), 5), sequence_channels((2, 5), 5)
        (-1, 1, None)
    """
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        fits = [dim for dim, places in ((1, shape[2]), (-1, shape[1])) if places == length]
        if channels is not None or len(fits) == 1:
            return channels or fits[0]
    why = "which dimension has the places is not clear" if len(shape) == 3 else "there are no places"
    raise InputError(
        f"values of shape {tuple(shape)} belong to {length} places, and {why}; expected (N, t), (N, C, t) with "
        "channels=1, or (N, t, C) with channels=-1."
    )


def _grids(tokens: int, picture_size: tuple[int, int]) -> list[tuple[int, int]]:
    """The grids that so many tokens may be, with roughly the proportions of the picture. The largest grid first."""
    grids = []
    for places in range(tokens, max(tokens - _MOST_EXTRA_TOKENS, 1), -1):
        height = max(round(math.sqrt(places * picture_size[0] / picture_size[1])), 1)
        grid = (height, places // height)
        if grid[0] * grid[1] == places and distortion(grid, picture_size) < MOST_DISTORTION:
            grids.append(grid)
    return grids


def resize_map(ratios: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a map to another grid. The sum of the map stays the same, because contributions are shares.

    Each old cell divides its share among the new cells. The weights are those of linear interpolation in each dimension
    (``align_corners=False``, with antialiasing), scaled so that the weights of each old cell add up to 1. So the
    resizing is linear, it changes no sign, and it keeps every sum, also a sum near 0.

    If each side of the new grid is a multiple of the old side, the result is that interpolation times the
    number of old cells over the number of new cells. On other grids a uniform map becomes slightly uneven: by less than
    0.5 % on a grid that is ten times as fine, and by up to 20 % between two grids of nearly the same size.

    Args:
        ratios: shape (..., h, w), (..., d, h, w) for a volume, or (..., t) for a sequence or a signal.
        size: (height, width), (depth, height, width) or (length,) of the new grid, in cells.

    Returns:
        The map on a grid of this size, in single precision at least.

    Raises:
        InputError: if the map or the new grid has no cells.

    Example::

        >>> resize_map(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.1250, 0.3750, 0.5000]])
        >>> resize_map(torch.tensor([[0.3, -0.1], [0.2, 0.6]]), (1, 1))
        tensor([[1.]])
        >>> resize_map(torch.ones(1, 1, 2), (1, 2, 4)).shape       # a volume
        torch.Size([1, 2, 4])
    """
    ratios = as_tensor(ratios)
    if ratios.dim() < len(size) or 0 in ratios.shape[-len(size) :] or min(size) < 1:
        raise InputError(
            f"a map of shape {tuple(ratios.shape)} cannot be brought to {' x '.join(map(str, size))} cells; expected "
            f"(..., {_GRIDS[len(size)]}) with at least one cell on {'either' if len(size) == 2 else 'each'} side."
        )
    ratios = ratios.to(torch.promote_types(ratios.dtype, torch.float32))
    for dim, new in enumerate(size, -len(size)):
        along_last = ratios.transpose(dim, -1) @ _weights(ratios.shape[dim], new).to(ratios)
        ratios = along_last.transpose(dim, -1)
    return ratios


def _weights(cells: int, new: int) -> torch.Tensor:
    """How each old cell divides its share among the new cells: shape (cells, new), each row adds up to 1."""
    each = torch.eye(cells, dtype=torch.float64, device="cpu")[:, None, None]
    weights = F.interpolate(each, (1, new), mode="bilinear", align_corners=False, antialias=True)[:, 0, 0]
    return weights / weights.sum(1, keepdim=True)


def on_host(values: torch.Tensor, name: str) -> torch.Tensor:
    """A tensor on the CPU and without a graph, whose numbers can be drawn.

    Args:
        values: any shape.
        name: what messages call the tensor.

    Returns:
        The tensor, of the same type of numbers.

    Raises:
        InputError: for sparse, quantized and complex tensors, and for tensors that hold no numbers.

    Example::

        >>> on_host(torch.ones(2, requires_grad=True), "the map")
        tensor([1., 1.])
    """
    if (
        values.is_nested
        or values.layout != torch.strided
        or values.is_quantized
        or values.is_complex()
        or values.is_meta
    ):
        raise InputError(
            f"{name} is a tensor of {values.layout} and {values.dtype} on {values.device}; expected a dense tensor of "
            "real numbers."
        )
    return values.detach().cpu()


def check_map(ratios: torch.Tensor, name: str, dimensions: int = 2) -> torch.Tensor:
    """Check that a map can be drawn, and return it on the CPU and without a graph.

    Args:
        ratios: shape (h, w), (n,) if ``dimensions`` is 1, or (d, h, w) if ``dimensions`` is 3; what
            :func:`torch.as_tensor` takes.
        name: what messages call the map.
        dimensions: how many dimensions the map must have.

    Returns:
        The map, in single precision at least.

    Raises:
        InputError: if the map has another shape, or holds NaN or infinity.

    Example::

        >>> check_map(torch.ones(2, requires_grad=True), "words", 1)
        tensor([1., 1.])
    """
    ratios = on_host(as_tensor(ratios), f"the map {name!r}")
    if ratios.dim() != dimensions or not ratios.numel():
        raise InputError(
            f"the map {name!r} has shape {tuple(ratios.shape)}; expected ({_GRIDS[dimensions]}), one number a place: "
            "the contributions of one sample, summed over channels."
        )
    ratios = ratios if ratios.dtype == torch.float64 else ratios.float()
    wrong = ratios.numel() - int(torch.isfinite(ratios).sum())
    if wrong:
        raise InputError(
            f"the map {name!r} holds NaN or infinity in {wrong} of {ratios.numel()} places; expected finite numbers."
        )
    return ratios
