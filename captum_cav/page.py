"""A page that explains pictures in any browser: one HTML file, to open, to send or to keep.

``captum-cav report IMAGE ... --output page.html`` writes the page. The file contains each map at the resolution of its
layer, as whole numbers of 16 bits and a scale. The script in the page (``data/page.html``) interpolates and colours the
maps.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap
from PIL import Image
from tqdm import tqdm

from captum_cav import presets as rule_presets
from captum_cav import single_image, zoo
from captum_cav.attribution import LayerCAV
from captum_cav.depths import layers as find_layers
from captum_cav.errors import InputError
from captum_cav.visualization.colours import DIMMED, HEAT, SIGNED

__all__ = ["write_page"]

# How many of the best classes the page shows.
_BEST = 5
# How many steps of each colour map the page gets. The script interpolates between them.
_STEPS = 33


def write_page(
    path: str | os.PathLike[str],
    network: zoo.Network,
    pictures: Sequence[tuple[str, Image.Image]],
    targets: Sequence[str | int] | None = None,
    layers: Sequence[str] | None = None,
    *,
    presets: Sequence[str] = ("pinpoint", "paper"),
    progress: bool = True,
) -> None:
    """Write a page that shows, at every depth, what raised and what lowered the scores of classes in pictures.

    For each picture, class and layer the page has the contribution map with each preset, the map of Grad-CAM, and the
    shares of the score: raised, lowered, from constants, unexplained. For each class and preset the page has the scores
    without the places that raised, or lowered, the score most (figure 8 of the paper). The page needs only a browser
    and loads nothing from elsewhere.

    Args:
        path: the HTML file to write.
        network: the network, on any device.
        pictures: a name and an RGB picture for each picture.
        targets: the classes to explain in every picture, by name or index; if None, the five best of each picture.
        layers: qualified names of layers whose output is a grid over the picture, from the last layer toward the input;
            if None, the ``depths`` of the network, or those that :func:`captum_cav.layers` chooses.
        presets: names of presets of rules, also ``"auto"``. The page shows the first preset at the start.
        progress: whether to show a progress bar over the pictures.

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
    presets = list(dict.fromkeys(rule_presets.name_for(preset, network.model) for preset in presets))
    network = single_image.with_logits(network, single_image.batch_of(network, pictures[0][1]))
    layers = list(layers or network.depths or _find_layers(network, pictures[0][1]))
    depth = min(single_image.FIRST_DEPTH, len(layers) - 1)
    entries = []
    with tqdm(pictures, disable=not progress, delay=1, leave=False) as bar:
        for name, picture in bar:
            bar.set_description(name, refresh=False)
            entries.append({"name": name, **_picture_entry(network, picture, targets, layers, depth, presets)})
    data = {
        "network": network.name,
        "aboutScores": single_image.about_scores(network),
        "layers": layers,
        "firstDepth": depth,
        "hidden": single_image.HIDDEN_SHARE,
        "whichToBelieve": single_image.WHICH_TO_BELIEVE if len(presets) > 1 else "",
        "rules": [
            {"name": name, "note": single_image.preset_note(name), "hasAmounts": single_image.has_amounts(name)}
            for name in presets
        ],
        "pictures": entries,
    }
    page = fill_page("page.html", f"What spoke for and against? {network.name}", data)
    Path(path).write_text(page, encoding="utf-8")


def fill_page(template: str, title: str, data: Mapping[str, Any]) -> str:
    """A page: a template with its data, and with the style and the script that all pages share.

    Args:
        template: the name of a file in ``data``.
        title: plain text.
        data: values for JSON.
    """
    folder = importlib.resources.files("captum_cav") / "data"
    filled = {
        "shared_style": (folder / "shared.css").read_text(encoding="utf-8"),
        "shared_script": (folder / "shared.js").read_text(encoding="utf-8").replace("{{colours}}", _colours()),
        "title": html.escape(title),
        "dimmed": str(DIMMED),
        # Inside a script only "<" could end the script.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], (folder / template).read_text(encoding="utf-8"))


def _find_layers(network: zoo.Network, picture: Image.Image) -> list[str]:
    return find_layers(network.model, single_image.batch_of(network, picture))


def _picture_entry(
    network: zoo.Network,
    picture: Image.Image,
    targets: Sequence[str | int] | None,
    layers: list[str],
    depth: int,
    presets: Sequence[str],
) -> dict[str, Any]:
    """What the page shows of one picture. Features are disabled only at the layer with the number ``depth``."""
    model = network.model
    inputs = single_image.batch_of(network, picture)
    scores = single_image.class_scores(model, inputs)
    best = scores.topk(min(_BEST, len(scores))).indices.tolist()
    classes = list(dict.fromkeys(network.class_index(target) for target in targets or best))
    # With "abs" a positive contribution raised the score, also if the score is negative.
    cavs = [LayerCAV(model, layers, rules=preset, normalize="abs") for preset in presets]
    entries: list[dict[str, Any]] = [
        _class_entry(network, scores, index) | {"rules": [], "hidden": []} for index in classes
    ]
    for cav in cavs:
        explained = cav.attribute_targets(inputs, classes, return_convergence_delta=True)
        maps = single_image.contribution_maps((attributions for attributions, _ in explained), inputs)
        for entry, index, of_layers, (_, deltas) in zip(entries, classes, maps, explained, strict=True):
            entry["rules"].append(
                [_layer_entry(scores[index], ratios, delta) for ratios, delta in zip(of_layers, deltas, strict=True)]
            )
            contributions = of_layers[depth]
            entry["hidden"].append(
                {
                    "raised": _ablation_entry(network, inputs, layers[depth], contributions, index),
                    "lowered": _ablation_entry(network, inputs, layers[depth], -contributions, index),
                }
            )
    for entry, index in zip(entries, classes, strict=True):
        cams = [
            single_image.grad_cam_map(model, layer, inputs, index, ratios.shape)
            for layer, ratios in zip(layers, maps[0], strict=True)
        ]
        entry["gradCam"] = [None if cam is None else encode_map(cam) for cam in cams]
    return {
        **_encode_picture(network.display(picture)),
        "count": len(scores),
        "best": _best_entries(network, scores),
        "classes": entries,
    }


def _class_entry(network: zoo.Network, scores: torch.Tensor, index: int) -> dict[str, Any]:
    score = scores[index]
    return {"name": network.class_name(index), "score": float(score), "rank": 1 + int((scores > score).sum())}


def _best_entries(network: zoo.Network, scores: torch.Tensor) -> list[dict[str, Any]]:
    return [_class_entry(network, scores, index) for index in scores.topk(min(_BEST, len(scores))).indices.tolist()]


def _layer_entry(score: torch.Tensor, ratios: torch.Tensor, delta: torch.Tensor) -> dict[str, Any]:
    """The map of one layer and the shares of the score."""
    return {"map": encode_map(ratios), **single_image.score_shares(score, ratios, delta)._asdict()}


def _ablation_entry(
    network: zoo.Network, inputs: torch.Tensor, layer: str, contributions: torch.Tensor, index: int
) -> dict[str, Any] | None:
    """The scores with the strongest places of a map disabled; None if no place of the map is positive."""
    hidden = single_image.hide_strongest(network.model, inputs, layer, contributions)
    if hidden is None:
        return None
    return {
        "places": hidden.places,
        "best": _best_entries(network, hidden.scores),
        **_class_entry(network, hidden.scores, index),
    }


def encode_map(ratios: torch.Tensor) -> dict[str, Any]:
    """A map as whole numbers of 16 bits, low byte first, in base64; ``scale`` is the value of the number 1."""
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


def _encode_picture(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return {"width": picture.width, "height": picture.height, "source": f"data:image/jpeg;base64,{encoded}"}


def _colours() -> str:
    return json.dumps({"heat": _ramp(HEAT), "signed": _ramp(SIGNED)})


def _ramp(colours: Colormap) -> list[list[float]]:
    """The colours at equal steps: red, green, blue and opacity of each, from 0 to 1."""
    return np.round(colours(np.linspace(0, 1, _STEPS)), 3).tolist()  # type: ignore[no-any-return]
