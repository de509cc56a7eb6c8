"""A page that explains pictures in any browser: one HTML file, to be opened, sent or kept as it is.

``captum-cav report IMAGE ... --output page.html`` writes it. Maps are embedded at the resolution of their layers, in
whole numbers of 16 bits times a scale, and the page (``data/report.html``) interpolates and colours them.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import inspect
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap
from PIL import Image

from captum_cav import one_picture, zoo
from captum_cav import presets as rule_presets
from captum_cav.ablation import ablate, positive_spots
from captum_cav.attribution import LayerCAV
from captum_cav.errors import InputError
from captum_cav.visualization.colours import DIMMED, HEAT, SIGNED

__all__ = ["write_page"]

_BEST = 5
# The depth that the page shows first: behind the last activation an absent feature is 0 and cannot speak against.
_FIRST_DEPTH = 1
# What is disabled: the strongest places that together hold this share of what raised, or of what lowered, the score.
_HIDDEN = 0.8
# Of the colour maps; the page interpolates.
_STEPS = 33
_NOTES = {
    "paper": "The paper's rules: each share is exact. Near the input much of it raises and lowers and nearly cancels.",
    "pinpoint": (
        "Sharp at every depth, but it tells where rather than how much: the constants of batch norms, where there are "
        "any, take most of the score. The map of a class that is not there resembles, but for its signs, that of one "
        "that is; so look at the paper's rules too."
    ),
}


def write_page(
    path: str | os.PathLike[str],
    network: zoo.Network,
    pictures: Sequence[tuple[str, Image.Image]],
    targets: Sequence[str | int] | None = None,
    layers: Sequence[str] | None = None,
    *,
    presets: Sequence[str] = ("pinpoint", "paper"),
) -> None:
    """Write a page that shows what spoke for and against classes in pictures, at every depth.

    It holds, for each picture, class and layer, the contribution map under each preset, Grad-CAM, and what raised and
    lowered the score, constants gave and stayed unexplained; for each class and preset what the scores become without
    the places that raised, or lowered, its score the most (the paper's figure 8). It needs nothing but a browser and
    fetches nothing.

    Args:
        path: the HTML file to write.
        network: the network, on whatever device.
        pictures: name and RGB picture of each.
        targets: classes of every picture, by name or index; the five best of each picture if None.
        layers: qualified names of layers whose output has places, from the last toward the input; the network's own
            five depths, or those that :func:`captum_cav.zoo.find_depths` finds, if None.
        presets: names of presets of rules; the page shows the first one first.

    Raises:
        InputError: for pictures, classes or layers that cannot be shown.
        OptionError: for an unknown preset.
        OSError: if the file cannot be written.

    Example::

        >>> import tempfile
        >>> network = zoo.load("squeezenet1_1")
        >>> path = Path(tempfile.mkdtemp()) / "page.html"
        >>> write_page(path, network, [("dog above cat", zoo.demo_picture())], ["tabby"], ["features.12"])
        >>> path.stat().st_size < 100_000
        True
    """
    if not pictures or not presets:
        raise InputError(
            f"there are {len(pictures)} pictures and {len(presets)} presets; expected at least one of each."
        )
    for preset in presets:
        rule_presets.find(preset)
    template = (importlib.resources.files("captum_cav") / "data" / "report.html").read_text(encoding="utf-8")
    layers = list(layers or network.depths or zoo.find_depths(network.model, _inputs(network, pictures[0][1]), 5))
    depth = min(_FIRST_DEPTH, len(layers) - 1)
    data = {
        "network": network.name,
        "layers": layers,
        "firstDepth": depth,
        "hidden": _HIDDEN,
        "rules": [{"name": name, "note": _note(name)} for name in presets],
        "pictures": [
            {"name": name, **_explained(network, picture, targets, layers, depth, presets)}
            for name, picture in pictures
        ],
    }
    filled = {
        "title": html.escape(f"What spoke for and against? {network.name}"),
        "dimmed": str(DIMMED),
        "colours": json.dumps({"heat": _ramp(HEAT), "signed": _ramp(SIGNED)}),
        # Inside a script only "<" could end it.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template)
    Path(path).write_text(page, encoding="utf-8")


def _inputs(network: zoo.Network, picture: Image.Image) -> torch.Tensor:
    parameter = next(network.model.parameters(), None)
    return network.preprocess(picture)[None].to("cpu" if parameter is None else parameter.device)


def _explained(
    network: zoo.Network,
    picture: Image.Image,
    targets: Sequence[str | int] | None,
    layers: list[str],
    depth: int,
    presets: Sequence[str],
) -> dict[str, Any]:
    """What the page shows of one picture; features are disabled at one depth."""
    model = network.model
    inputs = _inputs(network, picture)
    scores = one_picture.scores_of(model, inputs)
    best = scores.topk(min(_BEST, len(scores))).indices.tolist()
    classes = list(dict.fromkeys(network.class_index(target) for target in targets or best))
    # "abs": positive raised the score also where the score is negative.
    cavs = [LayerCAV(model, layers, rules=preset, normalize="abs") for preset in presets]
    entries: list[dict[str, Any]] = [
        _standing(network, scores, index) | {"rules": [], "hidden": []} for index in classes
    ]
    for cav in cavs:
        explained = cav.attribute_targets(inputs, classes, return_convergence_delta=True)
        maps = one_picture.maps_of((attributions for attributions, _ in explained), inputs)
        for entry, index, of_layers, (_, deltas) in zip(entries, classes, maps, explained, strict=True):
            entry["rules"].append(
                [_shares(scores[index], ratios, delta) for ratios, delta in zip(of_layers, deltas, strict=True)]
            )
            raised = of_layers[depth]
            entry["hidden"].append(
                {
                    "raised": _hidden(network, inputs, layers[depth], raised, index),
                    "lowered": _hidden(network, inputs, layers[depth], -raised, index),
                }
            )
    for entry, index in zip(entries, classes, strict=True):
        cams = [
            one_picture.grad_cam(model, layer, inputs, index, ratios.shape)
            for layer, ratios in zip(layers, maps[0], strict=True)
        ]
        entry["gradCam"] = [None if cam is None else _encoded(cam) for cam in cams]
    return {
        **_encoded_picture(network.display(picture)),
        "count": len(scores),
        "best": _best(network, scores),
        "classes": entries,
    }


def _standing(network: zoo.Network, scores: torch.Tensor, index: int) -> dict[str, Any]:
    score = scores[index]
    return {"name": network.class_name(index), "score": float(score), "rank": 1 + int((scores > score).sum())}


def _best(network: zoo.Network, scores: torch.Tensor) -> list[dict[str, Any]]:
    return [_standing(network, scores, index) for index in scores.topk(min(_BEST, len(scores))).indices.tolist()]


def _shares(score: torch.Tensor, ratios: torch.Tensor, delta: torch.Tensor) -> dict[str, Any]:
    """The map of one layer, and what its places gave and took, constants gave and stays unexplained."""
    raised, lowered, unexplained = float(ratios.clamp(min=0).sum()), float(ratios.clamp(max=0).sum()), float(delta)
    return {
        "map": _encoded(ratios),
        "raised": raised,
        "lowered": lowered,
        "constants": float(score.sign()) - raised - lowered - unexplained,
        "unexplained": unexplained,
    }


def _hidden(
    network: zoo.Network, inputs: torch.Tensor, layer: str, contributions: torch.Tensor, index: int
) -> dict[str, Any] | None:
    """How a class stands with the strongest places of a map disabled; None where nothing in it is positive."""
    mask = positive_spots(contributions, _HIDDEN)
    if not mask.any():
        return None
    after = ablate(network.model, inputs, layer, mask).after[0].cpu()
    places = mask.flatten().nonzero().flatten().tolist()
    return {"places": places, "best": _best(network, after), **_standing(network, after, index)}


def _encoded(ratios: torch.Tensor) -> dict[str, Any]:
    """A map in whole numbers of 16 bits, low byte first, as base64, and what one of them is worth."""
    if not bool(torch.isfinite(ratios).all()):
        raise InputError("a contribution is not finite, as where a score is 0; choose another class.")
    values = ratios.double().numpy()
    scale = float(np.abs(values).max()) / 32767 or 1.0
    whole = np.round(values / scale).astype("<i2")
    return {
        "rows": values.shape[0],
        "columns": values.shape[1],
        "scale": scale,
        "values": base64.b64encode(whole.tobytes()).decode("ascii"),
    }


def _encoded_picture(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return {"width": picture.width, "height": picture.height, "source": f"data:image/jpeg;base64,{encoded}"}


def _note(preset: str) -> str:
    return _NOTES.get(preset) or (inspect.getdoc(rule_presets.PRESETS[preset]) or "").split("\n")[0]


def _ramp(colours: Colormap) -> list[list[float]]:
    """Red, green, blue and opacity, each from 0 to 1, at equal steps."""
    return np.round(colours(np.linspace(0, 1, _STEPS)), 3).tolist()  # type: ignore[no-any-return]
