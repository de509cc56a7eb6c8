"""How similar two maps are."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from captum_cav.checks import check_maps, check_option, check_same_length
from captum_cav.metrics.measure import measure
from captum_cav.metrics.resolution import at_size, precise

Similarity: TypeAlias = Literal["spearman", "cosine"]


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of two batches, row by row. Equal values get their mean rank.

    Args:
        first: shape (N, ...).
        second: the same shape.

    Returns:
        Shape (N,); NaN if a row of one batch is constant or not finite.

    Example::

        >>> spearman(torch.tensor([[1., 2., 9.], [5., 5., 5.]]), torch.tensor([[3., 4., 5.], [1., 2., 3.]]))
        tensor([1., nan], dtype=torch.float64)
    """
    one, other = _centred_ranks(first.flatten(1)), _centred_ranks(second.flatten(1))
    return _cosine(one, other)


def _centred_ranks(values: torch.Tensor) -> torch.Tensor:
    values = values.contiguous()  # torch warns otherwise
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    # Equal values share the mean of the ranks from below + 1 to up_to; the mean of all ranks is (n + 1) / 2.
    ranks = precise(below + up_to) / 2 - values.shape[1] / 2
    return torch.where(values.isfinite().all(1, keepdim=True), ranks, torch.nan)


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    # Scaling keeps the squares from being too small or too large. With a single root, equal rows give exactly 1.
    one, other = (row / row.abs().amax(1, keepdim=True) for row in (one, other))
    lengths = ((one * one).sum(1) * (other * other).sum(1)).sqrt()
    cosine: torch.Tensor = (one * other).sum(1) / lengths
    return cosine.clamp(-1, 1)


@measure(-1.0, 1.0, None)
def agreement(maps: torch.Tensor, others: torch.Tensor, *, similarity: Similarity = "spearman") -> torch.Tensor:
    """How similar the maps of two methods are: 1 for the same map, -1 for the opposite map.

    Maps of different resolution are compared on the finer grid. Linear interpolation in each dimension brings the
    coarser map there.

    Args:
        maps: the maps of one method, of shape (N, t) for sequences and signals, (N, h, w), or (N, d, h, w).
        others: the maps of another method for the same examples. They have as many dimensions.
        similarity: ``"spearman"`` for the rank correlation, which compares only the order of the places; ``"cosine"``
            for ``a . b / (|a| |b|)``, in which large values count more and the zero of the maps matters.

    Returns:
        Shape (N,), from -1 to 1; neither direction is better. NaN if a map is constant (with ``"cosine"``, zero).

    Raises:
        InputError: if maps have another shape, or are not finite.
        OptionError: for an unknown similarity.

    Source: Spearman, The Proof and Measurement of Association between Two Things, 1904. Between explanations:
    Neely, Schouten, Bleeker and Lucic, Order in the Court: Explainable AI Methods Prone to Disagreement, 2021.

    Example::

        >>> fine = torch.tensor([[[1., 2.], [3., 4.]]])
        >>> agreement(fine, fine ** 3), agreement(fine, -fine, similarity="cosine")
        (tensor([1.], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
    """
    check_option("similarity", similarity, ("spearman", "cosine"))
    maps = precise(check_maps(maps))
    others = precise(check_maps(others, "others", maps.dim() - 1)).to(maps.device)
    check_same_length(maps, "maps", others, "others")
    size = tuple(map(max, maps.shape[1:], others.shape[1:]))
    maps, others = at_size(maps, size), at_size(others, size)
    return (spearman if similarity == "spearman" else _cosine)(maps.flatten(1), others.flatten(1))
