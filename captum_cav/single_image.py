"""What the page and the commands ask about one picture: scores, contribution maps, shares of the score, Grad-CAM."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from captum.attr import LayerGradCam
from PIL import Image

from captum_cav.attribution.logits import logit_model, squashed_by
from captum_cav.errors import InputError
from captum_cav.maps import picture_size_of, spatial_map
from captum_cav.zoo.networks import Network


def batch_of(network: Network, picture: Image.Image) -> torch.Tensor:
    """Preprocess a picture for a network.

    Args:
        network: the network.
        picture: an RGB picture.

    Returns:
        The picture as a batch of shape (1, 3, H, W), on the device of the model.
    """
    tensors = itertools.chain(network.model.parameters(), network.model.buffers())
    return network.preprocess(picture)[None].to(next(tensors, torch.empty(0)).device)


def with_logits(network: Network, inputs: torch.Tensor) -> Network:
    """A network whose model gives scores before softmax.

    Args:
        network: the network, whose model may end in a softmax, a sigmoid or another squashing function.
        inputs: shape (1, 3, H, W), an example.

    Returns:
        The network with the model that :func:`captum_cav.attribution.logits.logit_model` returns.

    Raises:
        ModelError: if the numbers before the squashing function cannot be found.
    """
    return dataclasses.replace(network, model=logit_model(network.model, inputs))


def about_scores(network: Network) -> str:
    """One line that says what the scores of a network are, if :func:`with_logits` changed them. Otherwise empty."""
    name = squashed_by(network.model)
    return "" if name is None else f"{network.name} ends in {name}: all scores are the numbers before it."


def class_scores(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The scores of one picture before softmax.

    Args:
        model: the model. It gives logits, as that of :func:`with_logits`.
        inputs: shape (1, 3, H, W).

    Returns:
        Shape (classes,), on the CPU.

    Raises:
        InputError: if the model does not return one row of scores.
    """
    with torch.no_grad():
        output: Any = model(inputs)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise InputError(f"the model returned {what}; expected scores of shape (1, classes)")
    return output[0].cpu()


def contribution_maps(attributions: Iterable[Sequence[torch.Tensor]], inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """The contribution maps of one picture.

    Args:
        attributions: for each target the contributions of each layer, as ``LayerCAV.attribute_targets`` returns them.
        inputs: shape (1, 3, H, W).

    Returns:
        For each target and layer a map of shape (h, w), on the CPU.
    """
    size = picture_size_of(inputs)
    return [[spatial_map(ratios, size)[0].cpu() for ratios in of_target] for of_target in attributions]


class ScoreShares(NamedTuple):
    """Where a score came from, seen at one layer. The four shares add up to 1, or to -1 for a negative score.

    Attributes:
        raised: the sum of all positive contributions.
        lowered: the sum of all negative contributions.
        constants: what the constants behind the layer (as biases) contributed.
        unexplained: the convergence delta.
    """

    raised: float
    lowered: float
    constants: float
    unexplained: float


def score_shares(score: torch.Tensor, ratios: torch.Tensor, delta: torch.Tensor) -> ScoreShares:
    """Divide a score among the places of a layer and the constants behind the layer.

    Args:
        score: the score, a single number.
        ratios: shape (h, w), the map of the layer with ``normalize="abs"``.
        delta: the convergence delta of the layer, a single number.

    Returns:
        The shares of the size of the score.

    Example::

        >>> score_shares(torch.tensor(4.0), torch.tensor([[1.0, -0.25]]), torch.tensor(0.0))
        ScoreShares(raised=1.0, lowered=-0.25, constants=0.25, unexplained=0.0)
    """
    raised, lowered, unexplained = float(ratios.clamp(min=0).sum()), float(ratios.clamp(max=0).sum()), float(delta)
    return ScoreShares(raised, lowered, float(score.sign()) - raised - lowered - unexplained, unexplained)


def grad_cam_map(
    model: torch.nn.Module, layer: str, inputs: torch.Tensor, target: int, grid: torch.Size
) -> torch.Tensor | None:
    """The map of Captum's Grad-CAM at a layer.

    Args:
        model: the model.
        layer: the qualified name of the layer.
        inputs: shape (1, 3, H, W).
        target: the class.
        grid: (h, w), the grid of the contribution map at the layer.

    Returns:
        Shape (h, w), on the CPU; None if dimension 1 of the layer is not the channels, which Grad-CAM weighs.
    """
    cam = LayerGradCam(model, model.get_submodule(layer)).attribute(inputs, target, relu_attributions=True)
    return cam[0, 0].detach().cpu() if cam.dim() == 4 and cam.shape[2:] == grid else None
