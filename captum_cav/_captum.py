"""The few private parts of Captum that have no public form, in one place."""

from __future__ import annotations

from typing import Any

import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron


def select_scores(output: torch.Tensor, target: Any) -> torch.Tensor:
    """The score of each sample as Captum's ``target`` selects it.

    Args:
        output: shape (N, ...), the model's output.
        target: a tuple of indices, a list of one per sample, or None if ``output`` is one score a sample.

    Returns:
        Shape (N,).
    """
    scores: torch.Tensor = _select_targets(output, target)
    return scores.reshape(output.shape[0])


def select_neuron(outputs: tuple[torch.Tensor, ...], selector: Any) -> torch.Tensor:
    """The value of one neuron of a layer, as Captum's ``neuron_selector`` selects it.

    Args:
        outputs: the layer's tensors, each of shape (N, ...).
        selector: an index, a tuple of indices or slices, or a function of the layer's output.

    Returns:
        Shape (N,).
    """
    selected: torch.Tensor = _verify_select_neuron(outputs, selector)
    return selected.reshape(selected.shape[0], -1).sum(1)
