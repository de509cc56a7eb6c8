"""One picture explained in one call: scores, maps at several layers, shares, figures and a table.

:func:`explain` is what ``captum-cav explain`` does for each picture.
"""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from captum_cav import checks, presets, single_image, zoo
from captum_cav.attribution import LayerCAV
from captum_cav.attribution.scores import SCORES, ScoreName, select_target
from captum_cav.compilation.repeated import kept
from captum_cav.depths import layers as find_layers
from captum_cav.errors import CAVTypeError, InputError, ModelError
from captum_cav.maps import resize_map
from captum_cav.scores import ScoreFunction, with_score
from captum_cav.single_image import ClassScore, Hidden, ScoreShares
from captum_cav.suggestions import did_you_mean
from captum_cav.tables import decimals
from captum_cav.visualization import Panel, show_rows
from captum_cav.visualization.colours import HEAT, SHARE, SIGNED, full_colour, in_full_colours, strength
from captum_cav.visualization.notebooks import html_image

__all__ = ["ClassExplanation", "Explanation", "explain", "show_beside"]

# The full colour is exceeded by one per cent of a map, as in all figures.
_OUTLIERS = 99.0

#: What contributions are divided by; see :class:`captum_cav.LayerCAV`.
Normalize = Literal["abs", "score"] | None


@dataclass(frozen=True, eq=False)
class ClassExplanation(ClassScore):
    """What raised and what lowered the score of one class.

    Attributes:
        maps: by the name of the layer, a map of shape (h, w), on the CPU.
        shares: by the name of the layer, where the score came from, in shares of its size.
        grad_cam: the map of Grad-CAM at the first layer, shape (h, w); None where Grad-CAM is not defined.
        hidden: what happens to the score if the places that raised it most are hidden, and if those that lowered it
            most are: pairs of the number of places and the new score. None where no place did.
    """

    maps: Mapping[str, torch.Tensor] = field(repr=False)
    shares: Mapping[str, ScoreShares] = field(repr=False)
    grad_cam: torch.Tensor | None = field(repr=False)
    hidden: Mapping[str, tuple[int, float] | None]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What :func:`explain` returns.

    In a notebook it shows the figure and the table.

    Attributes:
        network: the name of the network.
        picture: the picture as the network sees it.
        original: the picture as it was given.
        part: (left, top, right, bottom), the part of the original that the network sees, in pixels.
        layers: the names of the layers, from the last one toward the input.
        classes: the explained classes.
        best: the best classes, the best one first; empty if the scores are not those of classes.
        hidden_layer: the layer where places are hidden.
        rules: the name of the preset, or what else was given as ``rules``.
        normalize: what the maps are divided by.
        best_classes: ``best`` as a printable table with probabilities; empty without classes.
    """

    network: str
    picture: Image.Image = field(repr=False)
    original: Image.Image = field(repr=False)
    part: tuple[int, int, int, int]
    layers: tuple[str, ...]
    classes: tuple[ClassExplanation, ...]
    best: tuple[ClassScore, ...] = field(repr=False)
    hidden_layer: str
    rules: str
    normalize: Normalize
    best_classes: str = field(repr=False)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        scores = ", ".join(f"{one.name}: {one.score:.2f}" for one in self.classes)
        return f"Explanation(network={self.network!r}, rules={self.rules!r}, scores={{{scores}}}, layers={self.layers})"

    def _repr_html_(self) -> str:
        return f"{html_image(self.figure(), repr(self))}<pre>{html.escape(self.table())}</pre>"

    def figure(self) -> Figure:
        """Two rows for each class: what raised its score as heat, and red and blue together.

        Returns:
            The figure. No window is opened.
        """
        rows = []
        for one in self.classes:
            cam = Panel("Grad-CAM", one.grad_cam, unit="")
            first = cam if one.grad_cam is not None else Panel("Grad-CAM not defined here", None)
            rows.append((_label(one), [first, *self._panels(one, signed=False)]))
            rows.append((_label(one), [Panel("picture", None), *self._panels(one, signed=True)]))
        title = f"Where {self.network} found its scores: (1) is the last feature layer, then toward the input"
        return show_rows(self.picture, rows, title)[0]

    def _panels(self, one: ClassExplanation, *, signed: bool) -> list[Panel]:
        unit = SHARE if self.normalize is not None and single_image.has_amounts(self.rules) else ""
        return [
            Panel(f"({number}) {layer}", one.maps[layer], signed, unit) for number, layer in enumerate(self.layers, 1)
        ]

    def overlay(self, layer: str | None = None, target: int | str | None = None, *, signed: bool = True) -> Image.Image:
        """A map over the original picture, at the resolution of that picture.

        Args:
            layer: one of ``layers``; None for the second one.
            target: the index or the name of an explained class; None for the first one.
            signed: whether to show red and blue over the grey picture; otherwise what raised the score, as heat.

        Returns:
            An RGB picture of the size of ``original``. The part that the network did not see stays as it was.

        Raises:
            InputError: for a layer or a class that was not explained.
        """
        layer = self.layers[min(single_image.FIRST_DEPTH, len(self.layers) - 1)] if layer is None else layer
        if layer not in self.layers:
            near = did_you_mean(layer, self.layers)
            raise InputError(f"layer {layer!r} was not explained{near}; expected one of {', '.join(self.layers)}.")
        one = self._find(target)
        left, top, right, bottom = self.part
        density = resize_map(one.maps[layer], (bottom - top, right - left))
        # A positive map raised the score, also if the score is negative and the map is divided by it.
        density = density * (-1 if self.normalize == "score" and one.score < 0 else 1)
        levels = in_full_colours(density, full_colour(strength(density, signed), _OUTLIERS)).numpy()
        colours = SIGNED((levels + 1) / 2) if signed else HEAT(levels.clip(min=0))
        pixels = np.array(self.original.convert("RGB"))
        seen = pixels[top:bottom, left:right].mean(2, keepdims=True) * (1 if signed else 0.55)
        opacity = colours[..., 3:]
        pixels[top:bottom, left:right] = np.round(seen * (1 - opacity) + 255 * colours[..., :3] * opacity)
        return Image.fromarray(pixels)

    def _find(self, target: int | str | None) -> ClassExplanation:
        for one in self.classes:
            if target is None or target in (one.index, one.name):
                return one
        known = ", ".join(f"{one.name} ({one.index})" for one in self.classes)
        raise InputError(f"class {target!r} was not explained; expected one of {known}.")

    def table(self) -> str:
        """For each class what hiding places does to its score, and where the score came from at each layer.

        Under rules whose shares are no amounts, such as those of the preset ``pinpoint``, the second part is left out.

        Returns:
            The text.
        """
        parts = []
        for one in self.classes:
            parts.append(self.hiding(one))
            if single_image.has_amounts(self.rules):
                parts.append(self._account(one))
        return "\n\n".join(parts)

    def hiding(self, one: ClassExplanation) -> str:
        """What the score of a class becomes without the places that raised, or lowered, the score most.

        Args:
            one: one of ``classes``.

        Returns:
            The text.
        """
        lines = [
            f"the score {one.score:.2f} of {one.name!r} if the network does not see some places of {self.hidden_layer}"
        ]
        for what, found in one.hidden.items():
            if found is None:
                lines.append(f"  no place {what} it")
                continue
            places, after = found
            shown = "no score" if math.isnan(after) else decimals(after, 2)
            lines.append(f"  {shown:>8}  without the {places} places that {what} it most")
        return "\n".join(lines)

    def _account(self, one: ClassExplanation) -> str:
        width = max(5, *map(len, self.layers))
        lines = [
            f"where the score {one.score:.2f} of {one.name!r} came from, in per cent of it",
            f"  {'layer':{width}}  {'places':>9}  {'raised':>9}  {'lowered':>9}  {'constants':>9}  {'unexplained':>11}",
        ]
        for layer in self.layers:
            shares = one.shares[layer]
            places = " x ".join(map(str, one.maps[layer].shape))
            numbers = "  ".join(f"{decimals(100 * share, 1):>9}" for share in shares[:3])
            lines.append(f"  {layer:{width}}  {places:>9}  {numbers}  {decimals(100 * shares.unexplained, 4):>11}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and maps, as values for JSON."""
        return {
            "network": self.network,
            "rules": self.rules,
            "normalize": self.normalize,
            "seen": list(self.part),
            "best": [dataclasses.asdict(one) for one in self.best],
            "classes": [
                {
                    "index": one.index,
                    "name": one.name,
                    "score": one.score,
                    "probability": one.probability,
                    "hidden": {
                        what: None
                        if found is None
                        else {"layer": self.hidden_layer, "places": found[0], "score": found[1]}
                        for what, found in one.hidden.items()
                    },
                    "layers": [
                        {
                            "name": layer,
                            "grid": list(one.maps[layer].shape),
                            **(one.shares[layer]._asdict() if single_image.has_amounts(self.rules) else {}),
                        }
                        for layer in self.layers
                    ],
                }
                for one in self.classes
            ],
        }

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All maps, by the index of the class and the name of the layer, as "281/blocks.10"."""
        return {f"{one.index}/{layer}": found.numpy() for one in self.classes for layer, found in one.maps.items()}


def explain(
    model: nn.Module | zoo.Network,
    picture: Image.Image | torch.Tensor | str | os.PathLike[str],
    target: int | str | Sequence[int | str] | None = None,
    layers: Sequence[str] | Literal["auto"] = "auto",
    *,
    rules: Any = "paper",
    score: ScoreName | ScoreFunction = "logit",
    normalize: Normalize = "abs",
    classes: Sequence[str] = (),
) -> Explanation:
    """Explain what a network saw in a picture, in one call.

    Args:
        model: a network of :mod:`captum_cav.zoo`, which brings its preprocessing and the names of its classes; or any
            module in evaluation mode that maps pictures of shape (N, C, H, W) to scores. A module gets the usual
            preprocessing of ImageNet, see :func:`captum_cav.zoo.network_of`.
        picture: a picture, or a file of one; or the input of the model, as a tensor of shape (C, H, W) or (1, C, H, W),
            which is not preprocessed again.
        target: a class or several, by index or name; None for the class with the highest score.
        layers: qualified names of layers whose output is a grid over the picture, from the last one toward the input;
            ``"auto"`` for five that :func:`captum_cav.layers` chooses.
        rules: as for :class:`captum_cav.LayerCAV`: the name of a preset, ``"auto"``, or a mapping of rules.
        score: what is explained, as for :class:`captum_cav.LayerCAV`. Of a function in :mod:`captum_cav.scores` the
            model has one score, so no target is given.
        normalize: what the maps are divided by, as for :class:`captum_cav.LayerCAV`.
        classes: the names of the classes in the order of the scores, for a module.

    Returns:
        An :class:`Explanation`, with a figure, a table, maps, and overlays at the resolution of the picture.

    Raises:
        InputError: for a picture, a class or a layer that cannot be explained.
        ModelError: if the model fails on the picture.
        CAVError: as for :class:`captum_cav.LayerCAV`.

    Example::

        >>> import captum_cav
        >>> from captum_cav import zoo
        >>> explained = captum_cav.explain(zoo.load("squeezenet1_1"), zoo.demo_picture(), "tabby", ["features.12"])
        >>> explained.classes[0].maps["features.12"].shape, explained.overlay().size
        (torch.Size([14, 14]), (448, 448))
        >>> print(explained.table().splitlines()[0])
        the score 33.02 of 'tabby' if the network does not see some places of features.12
    """
    network = _as_network(model, classes)
    opened: Any = zoo.open_picture(picture) if isinstance(picture, (str, os.PathLike)) else picture
    if isinstance(opened, torch.Tensor):
        network, opened = _with_input(network, opened)
    if not isinstance(opened, Image.Image):
        raise CAVTypeError(f"picture is a {type(opened).__name__}; expected a picture of PIL, a file or a tensor.")
    opened = opened.convert("RGB")
    inputs = single_image.batch_of(network, opened)
    network = single_image.ready(network, inputs)
    network, kind = _with_score(network, inputs, score)
    outputs = single_image.class_scores(network.model, inputs)
    targets = _targets(network, outputs, target)
    names = list(layers) if layers != "auto" else list(network.depths or find_layers(network.model, inputs))
    if isinstance(rules, str):
        rules = presets.name_for(rules, network.model)
    maps, deltas = _maps(network, inputs, targets, names, rules, kind)
    hidden_layer = names[min(single_image.FIRST_DEPTH, len(names) - 1)]
    table, ranked = ("", []) if callable(score) or len(outputs) < 2 else _ranked(network, inputs)
    probability_of = {one.index: one.probability for one in ranked}

    explained = []
    for index, of_layers, deltas_of_layers in zip(targets, maps, deltas, strict=True):
        value = select_target(outputs[None], index, kind).values[0]
        by_layer = dict(zip(names, of_layers, strict=True))

        def after(found: Hidden | None, index: int = index) -> tuple[int, float] | None:
            if found is None:
                return None
            return len(found.places), float(select_target(found.scores[None], index, kind).values[0])

        hidden = {
            what: after(single_image.hide_strongest(network.model, inputs, hidden_layer, sign * by_layer[hidden_layer]))
            for what, sign in (("raised", 1), ("lowered", -1))
        }
        explained.append(
            ClassExplanation(
                index,
                network.class_name(index),
                float(value),
                probability_of.get(index),
                maps={name: _normalized(ratios, value, normalize) for name, ratios in by_layer.items()},
                shares={
                    name: single_image.score_shares(value, ratios, delta)
                    for (name, ratios), delta in zip(by_layer.items(), deltas_of_layers, strict=True)
                },
                grad_cam=single_image.grad_cam_map(network.model, names[0], inputs, index, of_layers[0].shape),
                hidden=hidden,
            )
        )
    return Explanation(
        network=network.name,
        picture=network.display(opened),
        original=opened,
        part=single_image.seen_part(network, opened),
        layers=tuple(names),
        classes=tuple(explained),
        best=tuple(ranked[: single_image.BEST]),
        hidden_layer=hidden_layer,
        rules=rules if isinstance(rules, str) else getattr(rules, "name", "of yours"),
        normalize=normalize,
        best_classes=table,
    )


def show_beside(explanations: Sequence[Explanation]) -> Figure:
    """The signed maps of the same picture under different rules, below each other.

    Args:
        explanations: of the same network, picture, classes and layers.

    Returns:
        The figure, with a row for each class and explanation. No window is opened.
    """
    first = explanations[0]
    rows = []
    for number, one in enumerate(first.classes):
        for explanation in explanations:
            name = "the paper's rules" if explanation.rules == "paper" else f"preset {explanation.rules!r}"
            panels = [Panel("picture", None), *explanation._panels(explanation.classes[number], signed=True)]
            rows.append((f"{one.name}\n{name}", panels))
    title = f"What other rules change: {first.network}. {single_image.WHICH_TO_BELIEVE}"
    return show_rows(first.picture, rows, title)[0]


def _label(one: ClassScore) -> str:
    return f"{one.name}\nscore {one.score:.2f}"


def _as_network(model: Any, classes: Sequence[str]) -> zoo.Network:
    if isinstance(model, zoo.Network):
        return dataclasses.replace(model, classes=tuple(classes)) if classes else model
    model = checks.check_module(model)
    return zoo.network_of(model, type(model).__name__, classes)


def _with_input(network: zoo.Network, inputs: torch.Tensor) -> tuple[zoo.Network, Image.Image]:
    """A network that takes a tensor as it is, and a picture of that tensor."""
    inputs = inputs[None] if inputs.dim() == 3 else inputs
    if inputs.dim() != 4 or len(inputs) != 1 or inputs.shape[1] not in (1, 3):
        raise InputError(
            f"the picture is a tensor of shape {tuple(inputs.shape)}; expected (C, H, W) or (1, C, H, W) with 1 or 3 "
            "channels."
        )
    low, high = inputs.amin(), inputs.amax()
    shown = ((inputs - low) / (high - low).clamp(min=1e-12))[0].expand(3, -1, -1)
    pixels = (255 * shown.detach().float()).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    given = inputs[0].detach()
    network = dataclasses.replace(network, preprocess=lambda _: given, display=lambda picture: picture)
    return network, Image.fromarray(pixels)


def _with_score(
    network: zoo.Network, inputs: torch.Tensor, score: ScoreName | ScoreFunction
) -> tuple[zoo.Network, ScoreName]:
    """A network whose output is explained, and the name of what is explained of that output."""
    if callable(score):
        model = with_score(network.model, lambda output: score(output)[:, None])
        return dataclasses.replace(network, model=model, classes=(repr(score),)), "output"
    checks.check_option("score", score, SCORES)
    if score == "output":
        return network, score
    return single_image.with_logits(network, inputs), "log_odds" if score == "log_odds" else "output"


def _targets(network: zoo.Network, outputs: torch.Tensor, target: Any) -> list[int]:
    """The classes to explain, each once."""
    if target is None:
        return [int(outputs.argmax())]
    given = [target] if isinstance(target, (str, int)) else list(target)
    found = list(dict.fromkeys(network.class_index(one) for one in given))
    for index in found:
        if index >= len(outputs):
            raise InputError(f"{network.name} has no class {index}: give an index from 0 to {len(outputs) - 1}")
    return found


def _ranked(network: zoo.Network, inputs: torch.Tensor) -> tuple[str, list[ClassScore]]:
    """All classes in their order, and their best ones as a table; nothing if their logits cannot be found."""
    try:
        network = single_image.with_logits(network, inputs)
    except ModelError:
        return "", []
    ranked = single_image.ranking(network, inputs)
    return single_image.ranking_table(network, ranked[: single_image.BEST]), ranked


def _maps(
    network: zoo.Network, inputs: torch.Tensor, targets: list[int], names: list[str], rules: Any, kind: ScoreName
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """For each class and layer the map in shares of the size of the score, and the delta."""
    model = network.model

    def make() -> LayerCAV:
        # With "abs" a positive contribution raised the score, also if the score is negative.
        return LayerCAV(model, names, rules=rules, normalize="abs", score=kind)

    # Rules that are no preset may be changed between two pictures.
    cav = kept((model, *names, rules, kind), make) if isinstance(rules, str) else make()
    explained = cav.attribute_targets(inputs, targets, return_convergence_delta=True)
    maps = single_image.contribution_maps((attributions for attributions, _ in explained), inputs)
    return maps, [deltas for _, deltas in explained]


def _normalized(ratios: torch.Tensor, score: torch.Tensor, normalize: Normalize) -> torch.Tensor:
    if normalize == "abs":
        return ratios
    return ratios * (score.sign() if normalize == "score" else score.abs()).to(ratios)
