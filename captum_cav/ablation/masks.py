"""Masks of places: boxes, places with large contributions, and masks at another resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from captum_cav.errors import InputError, OptionError


def box_mask(box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """The pixels of a box.

    Args:
        box: (left, top, right, bottom), right and bottom excluded: integers are pixels; where one of the four is a
            float, all are fractions of the picture's width and height.
        size: (height, width) of the picture.

    Returns:
        Booleans of shape (height, width), True in the box.

    Raises:
        InputError: for a box that holds no pixel or reaches beyond the picture.

    Example::

        >>> box_mask((0.5, 0.0, 1.0, 0.5), (2, 4)).long()
        tensor([[0, 0, 1, 1],
                [0, 0, 0, 0]])
        >>> bool((box_mask((2, 0, 4, 1), (2, 4)) == box_mask((0.5, 0.0, 1.0, 0.5), (2, 4))).all())
        True
    """
    if len(box) != 4:
        raise InputError(f"the box has {len(box)} numbers; expected left, top, right, bottom.")
    height, width = size
    edges = [float(edge) for edge in box]
    if any(isinstance(edge, float) for edge in box):
        edges = [edge * length for edge, length in zip(edges, (width, height) * 2, strict=True)]
    left, top, right, bottom = (round(edge) for edge in edges)
    inside = min(edges) >= 0 and edges[2] <= width and edges[3] <= height
    if not (inside and left < right and top < bottom):
        raise InputError(
            f"the box {tuple(box)} holds no pixels of a picture of width {width} and height {height}, or reaches "
            "beyond it; expected left < right and top < bottom, as integers (pixels) or with a float among them "
            "(fractions)."
        )
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def positive_spots(contributions: torch.Tensor, share: float | None = None, *, above: float = 0.0) -> torch.Tensor:
    """The places that raised the score most.

    Args:
        contributions: shape (h, w) or (N, h, w), a map whose positive places raised the score, as from
            ``LayerCAV(..., normalize="abs")`` and :func:`captum_cav.visualization.spatial_map`.
        share: which share of a map's positive part the places are to carry, above 0 and at most 1; they are the fewest
            that carry it. None for all places above a threshold.
        above: the threshold, where no share is given: places with a larger contribution are taken.

    Returns:
        Booleans of the same shape. Where nothing is positive, all are False.

    Raises:
        OptionError: for a share that is none.

    Example::

        >>> contributions = torch.tensor([[0.5, -0.2], [0.3, 0.1]])
        >>> positive_spots(contributions, 0.8).long()             # 0.5 and 0.3 of 0.9
        tensor([[1, 0],
                [1, 0]])
        >>> positive_spots(contributions).long()
        tensor([[1, 0],
                [1, 1]])
    """
    if share is None:
        return contributions > above
    if not 0 < share <= 1:
        raise OptionError(f"share is {share!r}; expected a number above 0 and at most 1.")
    positive = contributions.detach().double().clamp(min=0).flatten(-2)
    ordered, order = positive.sort(dim=-1, descending=True, stable=True)
    missing_before = ordered.sum(-1, keepdim=True) * share - (ordered.cumsum(-1) - ordered)
    # A sum's last digits are no reason to take one place more.
    taken = missing_before > 1e-9 * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(taken).scatter(-1, order, taken).reshape(contributions.shape)


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask at another resolution, by area: a place is in it if more than half of what it covers is.

    A place covers the pixels from ``floor(i * H / h)`` to ``ceil((i + 1) * H / h)``, as in adaptive average pooling.
    One that is half in, as the middle row of an odd grid under half a picture, is out.

    Args:
        mask: booleans of shape (H, W) or (N, H, W).
        size: (h, w).

    Returns:
        Booleans of shape (h, w) or (N, h, w).

    Example::

        >>> resize_mask(box_mask((0, 0, 4, 3), (4, 4)), (2, 2)).long()  # of the lower places just half are in
        tensor([[1, 1],
                [0, 0]])
    """
    covered = F.adaptive_avg_pool2d(mask.double().reshape(-1, 1, *mask.shape[-2:]), size)
    return (covered > 0.5).reshape(*mask.shape[:-2], *size)
