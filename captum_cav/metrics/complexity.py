"""How concentrated a map is, and which share of the score a map has. These measures need no model."""

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
    """The Gini index of the absolute values of a map: high if a few places have most of the map; higher is sparser.

    The index is ``1 - 2 sum_k a_k / sum(a) * (n - k + 1/2) / n``, with the ``n`` absolute values in ascending order. It
    is 0 if all values are equal (also for a map of zeros), and ``1 - 1/n`` if all values but one are 0.

    Args:
        maps: shape (N, t) for sequences and signals, (N, h, w) or (N, d, h, w).

    Returns:
        Shape (N,), from 0 to 1. The index does not depend on the scale and the sign of a map. The index also stays the
        same if each cell is divided into several cells with equal parts.

    Raises:
        InputError: if maps have another shape, or are not finite.

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
    # Rounding may make the index of a uniform map negative.
    return torch.where(total > 0, (1 - 2 * (sizes @ weights) / total).clamp(min=0), 0)


@measure(0.0, 1.0, "lower")
def entropy(maps: torch.Tensor) -> torch.Tensor:
    """The entropy of the absolute values of a map, as a share of the largest possible entropy; lower is simpler.

    The value is ``-sum_i q_i log(q_i) / log(n)`` with ``q = |a| / sum(|a|)`` for ``n`` places. It is 1 if all values
    are equal (also for a map of zeros), and 0 if all values but one are 0, or if there is only one place. Multiplied by
    ``log(n)`` it is the entropy in nats.

    Args:
        maps: shape (N, t) for sequences and signals, (N, h, w) or (N, d, h, w).

    Returns:
        Shape (N,), from 0 to 1. The value does not depend on the scale and the sign of a map.

    Raises:
        InputError: if maps have another shape, or are not finite.

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
    """The share of the score that the map does not have, for example because biases have it. 0 means a complete map.

    The share is ``1 - sum_i a_i / p`` for the score ``p``. It is negative if the sum of the map is larger than the
    score, and infinite or NaN if the score is 0.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w), in score units (``LayerCAV(..., normalize=None)``, integrated
            gradients, LRP).
        scores: shape (N,), the score of each example, minus the score of the baseline if the method has a baseline.

    Returns:
        Shape (N,), any numbers; neither direction is better.

    Raises:
        CAVTypeError, InputError: if maps or scores have another shape, or are not finite.

    Source: Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017 (the axiom). For the contribution
    ratios of Kakishita and Hattori the value is the share of the constants.

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
    return 1 - maps.flatten(1).sum(1) / scores.detach().to(maps)
