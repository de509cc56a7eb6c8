"""The private parts of Captum that this package uses, in one place.

An import fails in a version of Captum without them. ``pyproject.toml`` names the versions that have them.
"""

from __future__ import annotations

from typing import Any

import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules as lrp_rules

from captum_cav.errors import CAVTypeError, TargetError


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
        Shape (N,), or () if a function gives one number for all samples.

    Raises:
        CAVTypeError, TargetError: if a function gives no tensor of numbers.
    """
    selected = _verify_select_neuron(outputs, selector)
    if not (isinstance(selected, torch.Tensor) and selected.is_floating_point()):
        what = f"tensor of {selected.dtype}" if isinstance(selected, torch.Tensor) else type(selected).__name__
        raise CAVTypeError(
            f"neuron_selector returned a {what}; expected a tensor with one number for each sample, "
            "as lambda output: output[:, 0]."
        )
    if not selected.numel():
        raise TargetError(
            f"neuron_selector selects nothing: its tensor has shape {tuple(selected.shape)}; expected one number for "
            "each sample."
        )
    return selected.reshape(selected.shape[0], -1).sum(1) if selected.dim() else selected
