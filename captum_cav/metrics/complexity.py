"""How concentrated a map is, and how much of the score it holds: measures of maps alone."""

from __future__ import annotations

import math
from typing import Any

import torch

from captum_cav.checks import check_maps, check_same_length
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.metrics.measure import measure
from captum_cav.metrics.resolution import precise


@measure(0.0, 1.0, "higher")
def sparseness(maps: torch.Tensor) -> torch.Tensor:
    """The Gini index of a map's absolute values: how few places hold all of it; higher is sparser.

    With the ``n`` absolute values in ascending order, ``1 - 2 sum_k a_k / sum(a) * (n - k + 1/2) / n``: 0 where all
    are equal (and for a map of zeros), ``1 - 1/n`` where all but one are 0.

    Args:
        maps: shape (N, h, w).

    Returns:
        Shape (N,), from 0 to 1. It does not change with the maps' scale or sign, nor if each cell is divided into
        several that hold equal parts of it.

    Raises:
        InputError: for maps of another shape, or not finite.

    Source: Hurley and Rickard, Comparing Measures of Sparsity, 2009; of maps: Chalasani, Chen, Chowdhury, Jha and Wu,
    Concise Explanations of Neural Networks using Adversarial Training, 2020.

    Example::

        >>> sparseness(torch.tensor([[[0., 0.], [0., -4.]], [[1., 1.], [-1., 1.]]]))
        tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    sizes = precise(check_maps(maps)).flatten(1).abs().sort().values
    count = sizes.shape[1]
    weights = (count - torch.arange(count, device=sizes.device, dtype=sizes.dtype) - 0.5) / count
    total = sizes.sum(1)
    # An even map may come out below 0 by rounding.
    return torch.where(total > 0, (1 - 2 * (sizes @ weights) / total).clamp(min=0), 0)


@measure(0.0, 1.0, "lower")
def entropy(maps: torch.Tensor) -> torch.Tensor:
    """The entropy of a map's absolute values, as a share of the greatest that there can be; lower is simpler.

    ``-sum_i q_i log(q_i) / log(n)`` with ``q = |a| / sum(|a|)`` and ``n = h w``, which is the entropy with logarithms
    to base ``n``: 1 where all are equal (and for a map of zeros), 0 where all but one are 0, or where there is just
    one place. Multiply by ``log(n)`` to get the entropy in nats.

    Args:
        maps: shape (N, h, w).

    Returns:
        Shape (N,), from 0 to 1. It does not change with the maps' scale or sign.

    Raises:
        InputError: for maps of another shape, or not finite.

    Source: Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, 2020 (complexity),
    there in nats.

    Example::

        >>> entropy(torch.tensor([[[0., 2.], [0., -2.]], [[1., 1.], [-1., 1.]], [[0., 0.], [3., 0.]]]))
        tensor([0.5000, 1.0000, 0.0000], dtype=torch.float64)
    """
    sizes = precise(check_maps(maps)).flatten(1).abs()
    count = sizes.shape[1]
    if count == 1:
        return torch.zeros_like(sizes[:, 0])
    total = sizes.sum(1)
    shares = sizes / total[:, None]
    return torch.where(total > 0, torch.special.entr(shares).sum(1) / math.log(count), 1).clamp(0, 1)


@measure(-math.inf, math.inf, None)
def completeness(maps: torch.Tensor, scores: Any) -> torch.Tensor:
    """The share of the score that is in no place of the map, kept by constants as biases: 0 where the map is complete.

    ``1 - sum_i a_i / p``. It is negative where the map holds more than the score, and infinite or NaN where the score
    is 0.

    Args:
        maps: shape (N, h, w), in units of the score (``LayerCAV(..., normalize=None)``, integrated gradients, LRP).
        scores: shape (N,): the score of each example, less that of the baseline where the method has one.

    Returns:
        Shape (N,), of any value; neither direction is better.

    Raises:
        CAVTypeError, InputError: for maps or scores of another shape, or not finite.

    Source: Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017 (the axiom); as a share of the
    score it is what constants keep of Kakishita and Hattori's ratios.

    Example::

        >>> completeness(torch.tensor([[[3., -1.], [0., 2.]]]), torch.tensor([5.]))
        tensor([0.2000], dtype=torch.float64)
    """
    maps = precise(check_maps(maps))
    if not isinstance(scores, torch.Tensor):
        raise CAVTypeError(f"scores is a {type(scores).__name__}; expected a tensor.")
    if scores.dim() != 1 or not bool(scores.isfinite().all()):
        raise InputError(
            f"scores has shape {tuple(scores.shape)}; expected (N,), a finite number for each of {len(maps)} examples."
        )
    check_same_length(maps, "maps", scores, "scores")
    return 1 - maps.sum((1, 2)) / scores.detach().to(maps)
