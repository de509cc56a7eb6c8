"""Whether a map points at the object, where masks say where the object is."""

from __future__ import annotations

import torch

from captum_cav.maps import resize_map
from captum_cav.metrics.arguments import at_size, check_maps, check_masks, precise
from captum_cav.metrics.measure import measure


@measure(0.0, 1.0, "higher")
def mass_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's positive part that lies inside the mask; higher is better.

    ``sum_{i in mask} max(a_i, 0) / sum_i max(a_i, 0)``. The positive part is brought to the mask's grid so that its sum
    is kept; the other way round positive and negative would cancel between cells. By chance, the mask's area.

    Args:
        maps: shape (N, h, w), positive where the score was raised.
        masks: shape (N, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1; 0 where nothing is positive.

    Raises:
        InputError: for other shapes, maps that are not finite, or a mask that selects nothing.

    Source: Arras, Osman and Samek, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, 2022 (relevance mass accuracy), with the positive part.

    Example::

        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> mass_accuracy(torch.tensor([[[3., 1.], [-8., 0.]]]), mask)
        tensor([0.7500], dtype=torch.float64)
    """
    maps = precise(check_maps(maps))
    masks = check_masks(masks, maps)
    positive = resize_map(maps.clamp(min=0), (masks.shape[1], masks.shape[2]))
    total = positive.sum((1, 2))
    # Two sums of the same numbers may differ in their last digit.
    return torch.where(total > 0, ((positive * masks).sum((1, 2)) / total).clamp(max=1), 0)


@measure(0.0, 1.0, "higher")
def rank_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's highest pixels that lie inside the mask, as many as the mask has; higher is better.

    ``|top_K and mask| / K`` with ``K = |mask|``, on the mask's grid, to which maps are brought by bilinear
    interpolation. Where several pixels equal the last of the highest, each counts by the part of them that is still to
    be taken, which is the expected value of a random order. By chance, the mask's area.

    Args:
        maps: shape (N, h, w), positive where the score was raised.
        masks: shape (N, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1. On the mask's own grid it does not change under increasing functions of the map.

    Raises:
        InputError: for other shapes, maps that are not finite, or a mask that selects nothing.

    Source: Arras, Osman and Samek, 2022, as for :func:`mass_accuracy` (relevance rank accuracy).

    Example::

        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> rank_accuracy(torch.tensor([[[9., -7.], [4., -8.]]]), mask)      # of the two highest, one is inside
        tensor([0.5000], dtype=torch.float64)
    """
    maps = check_maps(maps)
    masks = check_masks(masks, maps)
    values = at_size(maps, (masks.shape[1], masks.shape[2])).flatten(1)
    inside = masks.flatten(1)
    count = inside.sum(1, keepdim=True)
    last = values.sort(descending=True).values.gather(1, count - 1)
    above, level = values > last, values == last
    # How much of each of the equal ones is taken.
    taken = precise(count - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
    return (taken * (level & inside) + (above & inside)).sum(1) / count[:, 0]


@measure(0.0, 1.0, "higher")
def pointing_hit(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether a map's maximum lies inside the mask: 1 for a hit, 0 for a miss.

    On the mask's grid, to which maps are brought by bilinear interpolation, without a margin around the mask. Of
    several equal maxima, the share of them that is inside.

    Args:
        maps: shape (N, h, w), positive where the score was raised.
        masks: shape (N, H, W), booleans, True where the object is.

    Returns:
        Shape (N,), from 0 to 1. On the mask's own grid it does not change under increasing functions of the map.

    Raises:
        InputError: for other shapes, maps that are not finite, or a mask that selects nothing.

    Source: Zhang, Bargal, Lin, Brandt, Shen and Sclaroff, Top-down Neural Attention by Excitation Backprop, 2018.

    Example::

        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> pointing_hit(torch.tensor([[[5., 2.], [1., 0.]]]), mask)
        tensor([1.], dtype=torch.float64)
    """
    maps = check_maps(maps)
    masks = check_masks(masks, maps)
    values = at_size(maps, (masks.shape[1], masks.shape[2])).flatten(1)
    highest = values == values.amax(1, keepdim=True)
    return precise((highest & masks.flatten(1)).sum(1)) / highest.sum(1)
