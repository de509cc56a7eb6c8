"""Masks of places: boxes, places with large contributions, and masks at another resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from captum_cav.errors import InputError, OptionError


def box_mask(box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """The pixels of a box.

    Args:
        box: (left, top, right, bottom), right and bottom excluded. Four integers are pixels. If one of the four is a
            float, all are fractions of the width and height of the picture.
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
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[top:bottom, left:right] = True
    return mask


def positive_spots(
    contributions: torch.Tensor, share: float | None = None, *, above: float = 0.0, sides: int = 2
) -> torch.Tensor:
    """The places that raised the score most.

    Args:
        contributions: shape (h, w) or (N, h, w), maps whose positive places raised the score. Such maps come from
            ``LayerCAV(..., normalize="abs")`` and :func:`captum_cav.visualization.spatial_map`. Shape (t,) or (N, t)
            with ``sides=1``, and (d, h, w) or (N, d, h, w) with ``sides=3``.
        share: a share of the sum of the positive contributions, above 0 and at most 1. The fewest places that carry
            this share are taken. None to use the threshold instead.
        above: the threshold: places with a larger contribution are taken.
        sides: how many sides a map has: 1 for sequences and signals, 2 for pictures, 3 for volumes.

    Returns:
        Booleans of the same shape; all False for a map without positive contributions, if ``share`` is given.

    Raises:
        InputError: for contributions of other dimensions.
        OptionError: for a share that is not above 0 and at most 1.

    Example::

        >>> contributions = torch.tensor([[0.5, -0.2], [0.3, 0.1]])
        >>> positive_spots(contributions, 0.8).long()             # 0.5 and 0.3 of 0.9
        tensor([[1, 0],
                [1, 0]])
        >>> positive_spots(contributions).long()
        tensor([[1, 0],
                [1, 1]])
        >>> positive_spots(torch.tensor([[0.5, -0.2, 0.3, 0.1]]), 0.8, sides=1).long()     # the tokens of one text
        tensor([[1, 0, 1, 0]])
    """
    if contributions.dim() not in (sides, sides + 1):
        raise InputError(
            f"contributions have shape {tuple(contributions.shape)}; expected maps of {sides} sides, one or a batch. "
            "sides= tells how many sides a map has."
        )
    if share is None:
        return contributions > above
    if not 0 < share <= 1:
        raise OptionError(f"share is {share!r}; expected a number above 0 and at most 1.")
    positive = contributions.detach().double().clamp(min=0).flatten(-sides)
    ordered, order = positive.sort(dim=-1, descending=True, stable=True)
    missing_before = ordered.sum(-1, keepdim=True) * share - (ordered.cumsum(-1) - ordered)
    # A difference in the last digits of the sum must not add one more place.
    taken = missing_before > 1e-9 * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(taken).scatter(-1, order, taken).reshape(contributions.shape)


def resize_mask(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A mask at another resolution: a place is selected if the mask covers more than half of the pixels of the place.

    Place ``i`` has the pixels from ``floor(i * H / h)`` to ``ceil((i + 1) * H / h)``, as in adaptive average pooling. A
    place that is exactly half covered is not selected, such as the middle row of an odd grid if the mask is half of the
    picture.

    Args:
        mask: booleans of shape (H, W) or (N, H, W); for a volume (D, H, W) or (N, D, H, W); for a sequence or a
            signal (T,) or (N, T).
        size: (h, w), (d, h, w) or (t,), the new resolution.

    Returns:
        Booleans of shape ``size``, behind N if the mask has it.

    Example::

        >>> resize_mask(box_mask((0, 0, 4, 3), (4, 4)), (2, 2)).long()  # the lower places are half covered
        tensor([[1, 1],
                [0, 0]])
    """
    sides = len(size)
    whole = mask.double().reshape(-1, 1, *mask.shape[-sides:])
    if sides == 1:
        covered = F.adaptive_avg_pool1d(whole, size[0])
    elif sides == 3:
        covered = F.adaptive_avg_pool3d(whole, (size[0], size[1], size[2]))
    else:
        covered = F.adaptive_avg_pool2d(whole, (size[0], size[1]))
    return (covered > 0.5).reshape(*mask.shape[:-sides], *size)
