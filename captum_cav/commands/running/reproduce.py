"""What ``captum-cav reproduce`` does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from captum_cav import reproduction, single_image, zoo
from captum_cav.ablation import box_mask
from captum_cav.attribution import LayerCAV
from captum_cav.commands.names import REPRODUCED_FIGURES, REPRODUCED_TABLE
from captum_cav.commands.outputs import Outputs
from captum_cav.commands.running import common
from captum_cav.errors import InputError
from captum_cav.maps import picture_size_of
from captum_cav.visualization import Panel, show_rows


def run(
    options: argparse.Namespace, files: list[Path], names: list[str], box: tuple[float, ...], outputs: Outputs
) -> None:
    """Run ``reproduce``: print the claims, and write the figures and the table.

    Args:
        options: the options.
        files: the picture; empty for the embedded picture.
        names: the class to explain, and the class of the other object.
        box: the box of the other object, as for :func:`captum_cav.ablation.box_mask`.
        outputs: where the figures and the table go.
    """
    device = common.choose_device(options.device)
    picture = zoo.open_picture(files[0]) if files else zoo.demo_picture()
    with common.steps("loading the network", "contributions", "ablations", "drawing") as step:
        network = common.load_network(options, device)
        options.rules = common.choose_rules(options, network)
        inputs = single_image.batch_of(network, picture)
        network = single_image.with_logits(single_image.ready(network, inputs), inputs)
        model = network.model
        pixels = box_mask(box, picture_size_of(inputs))
        scores = single_image.class_scores(model, inputs)
        classes = [network.class_index(name) for name in names]
        names = [network.class_name(index) for index in classes]
        if classes[0] == classes[1]:
            raise InputError(f"--classes names {names[0]!r} twice; expected two classes")
        layers = common.choose_layers(options, network, inputs)
        step()
        # With "abs" a positive contribution raised the score, also if the score is negative.
        cav = LayerCAV(model, layers, rules=options.rules, normalize="abs")
        maps = single_image.contribution_maps(cav.attribute_targets(inputs, classes), inputs)
        cams = [single_image.grad_cam_map(model, layers[0], inputs, index, maps[0][0].shape) for index in classes]
        step()
        best = scores.topk(min(5, len(scores))).indices.tolist()
        followed = list(dict.fromkeys([*classes, *best]))
        class_names = [network.class_name(index) for index in range(len(scores))]
        trials = [
            reproduction.disable_region(
                model, inputs, layer, ratios * scores[classes[0]].abs(), pixels, followed, class_names
            )
            for layer, ratios in zip(layers, maps[0], strict=True)
        ]
        step()
        shown = network.display(picture)
        labels = [f"{class_names[index]}\nscore {scores[index]:.2f}" for index in classes]
        title = f"Contributions in {network.name}, from the last feature layer toward the input; rules: {options.rules}"
        of_region = f"with parts of the region of {names[1]} disabled (white)"
        figures = [
            reproduction.draw_best(
                shown, [class_names[index] for index in best], scores[best].tolist(), f"What {network.name} sees"
            ),
            _draw_maps(shown, labels, layers, maps, [common.grad_cam_panel(cam) for cam in cams], title),
            _draw_maps(shown, labels, layers, maps, [Panel("picture", None)] * 2, title, signed=True),
            reproduction.draw_trials(shown, trials, f"{network.name}: score and rank of {names[0]} {of_region}"),
        ]
        for name, figure in zip(REPRODUCED_FIGURES, figures, strict=True):
            with outputs.writing(name) as path:
                figure.savefig(path, dpi=110)
        outputs.write_text(REPRODUCED_TABLE, _table(network, names, box, options.rules, trials))
    print(single_image.ranking_table(network, single_image.ranking(network, inputs)[: single_image.BEST]))
    print(
        f"\nthe paper's claims on {network.name}: {names[0]}, with {names[1]} in the box {box}; rules: {options.rules}"
    )
    for claim in reproduction.judge(names, maps, cams, trials):
        print(f"  {claim}")
    print(f"in {outputs.folder}: {', '.join((*REPRODUCED_FIGURES, REPRODUCED_TABLE))}")


def _draw_maps(
    picture: Image.Image,
    labels: Sequence[str],
    layers: Sequence[str],
    maps: Sequence[Sequence[torch.Tensor]],
    first: Sequence[Panel],
    title: str,
    *,
    signed: bool = False,
) -> Figure:
    """Figures 6 and 7: one row for each class, with a first panel and the maps at all depths."""
    rows = [
        (label, [panel, *common.layer_panels(layers, of_class, signed=signed)])
        for label, panel, of_class in zip(labels, first, maps, strict=True)
    ]
    return show_rows(picture, rows, title)[0]


def _table(
    network: zoo.Network, names: list[str], box: tuple[float, ...], rules: str, trials: list[reproduction.Trial]
) -> str:
    return (
        f"# Table 1 on {network.name}\n\n"
        f"Scores before softmax with features disabled in the region of {names[1]}, the box {box}: the activations of "
        f"the layer are set to zero there. Positive spots are the places of the region that raised the score of "
        f"{names[0]} (rules: {rules}). The paper does not say at which layer it disabled features, so there are two "
        f"tables for each depth.\n\n{reproduction.tables(trials)}"
    )
