"""What the page and the commands ask about one picture: scores, contribution maps, shares of the score, Grad-CAM."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import LayerGradCam
from PIL import Image

from captum_cav import checks
from captum_cav import presets as rule_presets
from captum_cav.ablation import ablate, positive_spots
from captum_cav.attribution.logits import logit_model, probabilities, squashed_by
from captum_cav.errors import CAVError, InputError, ModelError, TargetError
from captum_cav.maps import picture_size_of, spatial_map
from captum_cav.zoo.networks import Network

#: The position of the depth where places are hidden, and that is shown first. Behind the last activation an absent
#: feature is 0, so it cannot lower a score; so this is not the last layer.
FIRST_DEPTH = 1
#: The strongest places are hidden: the fewest that together have this share of all that raised, or of all that lowered,
#: the score.
HIDDEN_SHARE = 0.8
#: How many of the best classes the commands list.
BEST = 10
#: What to do if two maps disagree.
WHICH_TO_BELIEVE = (
    "Where two maps disagree about a place, hide the place: the score falls if it spoke for the class, and rises if it "
    "spoke against."
)
_NOTES = {
    "paper": (
        "The paper's rules: each share is exact. Near the input, large raising shares and large lowering shares nearly "
        "cancel."
    ),
    "absolute_epsilon_flat": (
        "Agrees with what the places of photographs measurably do to the scores. Most of the score ends in the "
        "layers, so the map tells where, but not how much. Look at the paper's rules too."
    ),
    "pinpoint": (
        "Sharp at every depth. The map tells where, but not how much, so there is no account of the score. The map of "
        "a class that is not in the picture looks like the map of a class that is, with the opposite signs. So look "
        "at the paper's rules too."
    ),
}
# The constants of batch norms take most of the score under these rules. So the shares of the places say where the
# class is, and are no account of the score.
_WITHOUT_AMOUNTS = frozenset({"pinpoint", "absolute_epsilon_flat"})


def preset_note(preset: str) -> str:
    """One or two sentences about what the maps of a preset are good for.

    Args:
        preset: the name of a preset.

    Raises:
        OptionError: for an unknown preset.
    """
    known = rule_presets.by_name(preset)
    return _NOTES.get(preset) or (inspect.getdoc(known) or "").split("\n")[0]


def has_amounts(preset: str) -> bool:
    """Whether the shares of a preset tell how much of the score came from each place."""
    return preset not in _WITHOUT_AMOUNTS


def batch_of(network: Network, picture: Image.Image) -> torch.Tensor:
    """Preprocess a picture for a network.

    Args:
        network: the network.
        picture: an RGB picture.

    Returns:
        The picture as a batch of shape (1, 3, H, W), on the device of the model and in its precision.
    """
    tensors = itertools.chain(network.model.parameters(), network.model.buffers())
    # A quantized model has whole numbers as parameters and takes ordinary ones.
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, device="cpu"))
    return network.preprocess(picture)[None].to(like.device, like.dtype)


def ready(network: Network, inputs: torch.Tensor) -> Network:
    """Try a network on a picture, before anything else is asked of it.

    Args:
        network: the network. A compiled model is replaced by the module inside.
        inputs: shape (1, 3, H, W), the picture.

    Returns:
        The network with a model that can be explained.

    Raises:
        ModelError: if the model fails, or its operations cannot be seen; the message has the cause.
        InputError: if there are not as many names of classes as scores.
    """
    model = checks.check_module(network.model)
    try:
        with torch.no_grad():
            output = model(inputs.clone())
    except CAVError:
        raise
    except Exception as error:  # a model may raise anything
        cause = " ".join(str(error).split())
        raise ModelError(
            f"{network.name} raised {type(error).__name__} for a picture of shape {tuple(inputs.shape)}: {cause}. If "
            "it takes pictures of another shape, let the factory return captum_cav.zoo.Network(..., preprocess=...)"
        ) from error
    if network.classes and isinstance(output, torch.Tensor) and output.dim() == 2:
        scores = output.shape[1]
        if scores != len(network.classes):
            raise InputError(
                f"there are {len(network.classes)} names of classes, and {network.name} returned {scores} scores; "
                "expected one name for each"
            )
    return dataclasses.replace(network, model=model)


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


@dataclass(frozen=True)
class ClassScore:
    """The score of one class.

    Attributes:
        index: the index of the class among the scores.
        name: its name, as "class 17" if the names are not known.
        score: the score before softmax, or what else is explained.
        probability: the probability; None if the scores are not those of classes.
    """

    index: int
    name: str
    score: float
    probability: float | None


def ranking(network: Network, inputs: torch.Tensor) -> list[ClassScore]:
    """All classes with their scores and probabilities, the best class first.

    Args:
        network: the network; its model gives logits, as that of :func:`with_logits`.
        inputs: shape (1, 3, H, W), the picture.
    """
    scores = class_scores(network.model, inputs)
    with torch.no_grad():
        shares = probabilities(network.model, inputs)[0].cpu()
    return [
        ClassScore(index, network.class_name(index), float(scores[index]), float(shares[index]))
        for index in scores.sort(descending=True, stable=True).indices.tolist()
    ]


def ranking_table(network: Network, ranked: Sequence[ClassScore]) -> str:
    """Classes with scores and probabilities as a printable table.

    Args:
        network: the network.
        ranked: the classes, as :func:`ranking` returns them.
    """
    lines = [line] if (line := about_scores(network)) else []
    lines.append(f"best classes of {network.name} (scores before softmax, probabilities)")
    for rank, one in enumerate(ranked, 1):
        lines.append(f"  {rank:2d}  {one.score:8.2f}  {one.probability:6.1%}  {one.name} ({one.index})")
    return "\n".join(lines)


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


class Hidden(NamedTuple):
    """The scores of a picture of which the network does not see some places.

    Attributes:
        places: the places that were set to zero, numbered row by row.
        scores: shape (classes,), all scores of the picture without them, on the CPU; NaN if there are none.
    """

    places: list[int]
    scores: torch.Tensor


def hide_strongest(model: torch.nn.Module, inputs: torch.Tensor, layer: str, ratios: torch.Tensor) -> Hidden | None:
    """Hide the places with the largest positive numbers in a map: their features are set to zero.

    Args:
        model: the model.
        inputs: shape (1, 3, H, W).
        layer: the qualified name of the layer of the map.
        ratios: shape (h, w). The fewest places are hidden that together have ``HIDDEN_SHARE`` of what is positive.

    Returns:
        The places and the scores; None if no place is positive.
    """
    mask = positive_spots(ratios, HIDDEN_SHARE)
    if not mask.any():
        return None
    places = mask.flatten().nonzero().flatten().tolist()
    try:
        return Hidden(places, ablate(model, inputs, layer, mask).after[0].cpu())
    except TargetError:
        # The score is that of a region or a box, which is gone.
        return Hidden(places, torch.full_like(class_scores(model, inputs), math.nan))


def seen_part(network: Network, picture: Image.Image) -> tuple[int, int, int, int]:
    """The part of a picture that a network sees.

    Args:
        network: the network. Its ``display`` cuts and resizes, but neither turns nor mirrors.
        picture: an RGB picture.

    Returns:
        (left, top, right, bottom) in pixels of the picture.

    Raises:
        InputError: if ``display`` does something else.
    """
    # The colours of this picture tell the place: red grows to the right, green grows downward.
    across = np.linspace(0, 255, picture.width).round().astype(np.uint8)
    down = np.linspace(0, 255, picture.height).round().astype(np.uint8)
    places = np.zeros((picture.height, picture.width, 3), np.uint8)
    places[..., 0], places[..., 1] = across, down[:, None]
    seen = np.asarray(network.display(Image.fromarray(places))).astype(np.float64)
    edges: list[int] = []
    for colours, length in ((seen[..., 0].mean(0), picture.width), (seen[..., 1].mean(1), picture.height)):
        if length == 1 or len(colours) == 1:
            edges += [0, length]
            continue
        # The middle of each pixel that is seen, in pixels of the picture.
        middles = colours * (length - 1) / 255 + 0.5
        step, first = np.polyfit(np.arange(len(middles)), middles, 1)
        if step <= 0:
            raise InputError(f"{network.name} turns or mirrors its pictures, so a map cannot be laid over the original")
        low = max(round(first - step / 2), 0)
        edges += [low, max(min(round(first + step * (len(middles) - 0.5)), length), low + 1)]
    return edges[0], edges[2], edges[1], edges[3]
