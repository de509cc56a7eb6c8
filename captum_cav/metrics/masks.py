"""Whether a map points at the object. Masks tell where the object is."""

from __future__ import annotations

import torch

from captum_cav.checks import check_maps, check_masks
from captum_cav.maps import resize_map
from captum_cav.metrics.measure import measure
from captum_cav.metrics.resolution import at_size, precise


@measure(0.0, 1.0, "higher")
def mass_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of the positive part of a map that lies inside the mask; higher is better.

    The share is ``sum_{i in mask} max(a_i, 0) / sum_i max(a_i, 0)``. The positive part is taken first and then brought
    to the grid of the mask with its sum kept. In the opposite order positive and negative cells would cancel. A map
    that does not depend on the object scores the area of the mask.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w), positive if the place raised the score.
        masks: shape (N, T), (N, H, W) or (N, D, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1; 0 if nothing is positive.

    Raises:
        InputError: for other shapes, for maps that are not finite, and for a mask that selects nothing.

    Source: Arras, Osman and Samek, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, 2022 (relevance mass accuracy), with the positive part.

    Example::

        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> mass_accuracy(torch.tensor([[[3., 1.], [-8., 0.]]]), mask)
        tensor([0.7500], dtype=torch.float64)
    """
    maps = precise(check_maps(maps, sides=_sides(masks)))
    masks = check_masks(masks, maps)
    positive = resize_map(maps.clamp(min=0), tuple(masks.shape[1:]))
    total = positive.flatten(1).sum(1)
    # Rounding may make the share slightly larger than 1.
    return torch.where(total > 0, ((positive * masks).flatten(1).sum(1) / total).clamp(max=1), 0)


@measure(0.0, 1.0, "higher")
def rank_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of the highest pixels of a map that lie inside the mask; higher is better.

    The share is ``|top_K and mask| / K``, where ``K`` is the number of pixels of the mask. Bilinear interpolation
    brings maps to the grid of the mask. If several pixels are equal to the last of the highest pixels, the value is the
    expected value over all orders of these pixels. A map that does not depend on the object scores the area of the
    mask.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w), positive if the place raised the score.
        masks: shape (N, T), (N, H, W) or (N, D, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1. For a map on the grid of the mask, only the order of the places matters.

    Raises:
        InputError: for other shapes, for maps that are not finite, and for a mask that selects nothing.

    Source: Arras, Osman and Samek, 2022, as for :func:`mass_accuracy` (relevance rank accuracy).

    Example::

        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> rank_accuracy(torch.tensor([[[9., -7.], [4., -8.]]]), mask)      # of the two highest, one is inside
        tensor([0.5000], dtype=torch.float64)
    """
    maps = check_maps(maps, sides=_sides(masks))
    masks = check_masks(masks, maps)
    values = at_size(maps, tuple(masks.shape[1:])).flatten(1)
    inside = masks.flatten(1)
    count = inside.sum(1, keepdim=True)
    last = values.sort(descending=True).values.gather(1, count - 1)
    above, level = values > last, values == last
    # The part of each of the equal pixels that belongs to the highest pixels.
    taken = precise(count - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
    return (taken * (level & inside) + (above & inside)).sum(1) / count[:, 0]


@measure(0.0, 1.0, "higher")
def pointing_hit(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether the maximum of a map lies inside the mask: 1 for a hit, 0 for a miss.

    Bilinear interpolation brings maps to the grid of the mask. There is no margin around the mask. If a map has several
    equal maxima, the value is the share of the maxima inside the mask.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w), positive if the place raised the score.
        masks: shape (N, T), (N, H, W) or (N, D, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1. For a map on the grid of the mask, only the order of the places matters.

    Raises:
        InputError: for other shapes, for maps that are not finite, and for a mask that selects nothing.

    Source: Zhang, Bargal, Lin, Brandt, Shen and Sclaroff, Top-down Neural Attention by Excitation Backprop, 2018.

    Example::

        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> pointing_hit(torch.tensor([[[5., 2.], [1., 0.]]]), mask)
        tensor([1.], dtype=torch.float64)
    """
    maps = check_maps(maps, sides=_sides(masks))
    masks = check_masks(masks, maps)
    values = at_size(maps, tuple(masks.shape[1:])).flatten(1)
    highest = values == values.amax(1, keepdim=True)
    return precise((highest & masks.flatten(1)).sum(1)) / highest.sum(1)


def _sides(masks: object) -> int | None:
    """How many sides maps must have that are compared with masks, if the masks tell."""
    return masks.dim() - 1 if isinstance(masks, torch.Tensor) and masks.dim() in (3, 4) else None
