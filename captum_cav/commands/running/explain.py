"""What ``captum-cav demo`` and ``captum-cav explain`` do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image

from captum_cav import single_image, zoo
from captum_cav.attribution import LayerCAV
from captum_cav.attribution.scores import select_target
from captum_cav.commands.running import common
from captum_cav.visualization import Panel, show_rows

_CONTRIBUTIONS_FILE = "contributions.png"
_RULES_FILE = "rules.png"
# The second figure shows the maps of this preset below the maps of the paper's rules.
_OTHER_PRESET = "pinpoint"


def run(options: argparse.Namespace) -> None:
    """Run ``demo`` or ``explain``: print the shares of the score, and write two figures."""
    output = options.output
    device = common.choose_device(options.device)
    picture = zoo.demo_picture() if options.command == "demo" else zoo.open_picture(options.image)
    with common.steps("loading the network", "scores", "contributions", "drawing") as step:
        network = common.load_network(options, device)
        inputs = single_image.batch_of(network, picture)
        network, score = common.choose_score(options, network, inputs)
        model = network.model
        step()
        outputs = single_image.class_scores(model, inputs)
        targets = common.choose_targets(options, network, outputs)
        scores = [select_target(outputs[None], target, score).values[0] for target in targets]
        layers = common.choose_layers(options, network, inputs)
        step()
        # With "abs" red raised the score, also if the score is negative.
        explained = LayerCAV(model, layers, normalize="abs", score=score).attribute_targets(
            inputs, targets, return_convergence_delta=True
        )
        others = LayerCAV(model, layers, rules=_OTHER_PRESET, normalize="abs", score=score)
        maps = single_image.contribution_maps((attributions for attributions, _ in explained), inputs)
        other_maps = single_image.contribution_maps(others.attribute_targets(inputs, targets), inputs)
        cams = [single_image.grad_cam_map(model, layers[0], inputs, one, maps[0][0].shape) for one in targets]
        step()
        names = [network.class_name(target) for target in targets]
        labels = [f"{name}\nscore {float(value):.2f}" for name, value in zip(names, scores, strict=True)]
        shown = network.display(picture)
        _draw_contributions(shown, network.name, labels, layers, maps, cams).savefig(
            output / _CONTRIBUTIONS_FILE, dpi=110
        )
        _draw_rules(shown, network.name, names, layers, maps, other_maps).savefig(output / _RULES_FILE, dpi=110)
    if ":" not in options.score:
        logits = single_image.with_logits(network, inputs)
        print(common.best_classes(logits, single_image.class_scores(logits.model, inputs), inputs))
    for name, value, (_, deltas), of_layers in zip(names, scores, explained, maps, strict=True):
        print(_share_table(name, value, layers, of_layers, deltas))
    print(f"pictures: {output / _CONTRIBUTIONS_FILE}, {output / _RULES_FILE}")


def _draw_contributions(
    picture: Image.Image,
    network: str,
    labels: Sequence[str],
    layers: Sequence[str],
    maps: Sequence[Sequence[torch.Tensor]],
    cams: Sequence[torch.Tensor | None],
) -> Figure:
    """Two rows for each class: Grad-CAM and heat maps, then the picture and signed maps."""
    rows = []
    for label, of_layers, cam in zip(labels, maps, cams, strict=True):
        rows.append((label, [common.grad_cam_panel(cam), *common.layer_panels(layers, of_layers, signed=False)]))
        rows.append((label, [Panel("picture", None), *common.layer_panels(layers, of_layers, signed=True)]))
    title = f"Where {network} found its scores: (1) is the last feature layer, then toward the input"
    return show_rows(picture, rows, title)[0]


def _draw_rules(
    picture: Image.Image,
    network: str,
    names: Sequence[str],
    layers: Sequence[str],
    maps: Sequence[Sequence[torch.Tensor]],
    other_maps: Sequence[Sequence[torch.Tensor]],
) -> Figure:
    """Two rows for each class: signed maps with the paper's rules, then signed maps with the other preset."""
    rows = []
    for name, *both in zip(names, maps, other_maps, strict=True):
        for rules, of_layers in zip(("the paper's rules", f"preset {_OTHER_PRESET!r}"), both, strict=True):
            panels = [Panel("picture", None), *common.layer_panels(layers, of_layers, signed=True)]
            rows.append((f"{name}\n{rules}", panels))
    return show_rows(picture, rows, f"What other rules change: {network}")[0]


def _share_table(
    name: str, score: torch.Tensor, layers: Sequence[str], maps: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]
) -> str:
    """One line for each layer: the shares of the score, in per cent."""
    width = max(map(len, layers))
    lines = [
        f"\nwhere the score {float(score):.2f} of {name!r} came from, in per cent of it",
        f"  {'layer':{width}}  {'places':>9}  {'raised':>9}  {'lowered':>9}  {'constants':>9}  {'unexplained':>11}",
    ]
    for layer, ratios, delta in zip(layers, maps, deltas, strict=True):
        shares = single_image.score_shares(score, ratios, delta)
        places = f"{ratios.shape[0]} x {ratios.shape[1]}"
        lines.append(
            f"  {layer:{width}}  {places:>9}  {100 * shares.raised:9.1f}  {100 * shares.lowered:9.1f}"
            f"  {100 * shares.constants:9.1f}  {100 * shares.unexplained:11.4f}"
        )
    return "\n".join(lines)
