"""The private parts of Captum that this package uses, in one place.

An import fails in a version of Captum without them. ``pyproject.toml`` names the versions that have them.
"""

from __future__ import annotations

from typing import Any

import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules as lrp_rules


def select_scores(output: torch.Tensor, target: Any) -> torch.Tensor:
    """The score of each sample, as the ``target`` of Captum selects it.

    Args:
        output: shape (N, ...), the output of the model.
        target: a tuple of indices, a list with one tuple for each sample, or None if ``output`` is one score for each
            sample.

    Returns:
        Shape (N,).
    """
    scores: torch.Tensor = _select_targets(output, target)
    return scores.reshape(output.shape[0])


def select_neuron(outputs: tuple[torch.Tensor, ...], selector: Any) -> torch.Tensor:
    """The value of one neuron of a layer, as the ``neuron_selector`` of Captum selects it.

    Args:
        outputs: the tensors of the layer, each of shape (N, ...).
        selector: an index, a tuple of indices or slices, or a function of the output of the layer.

    Returns:
        Shape (N,).
    """
    selected: torch.Tensor = _verify_select_neuron(outputs, selector)
    return selected.reshape(selected.shape[0], -1).sum(1)
