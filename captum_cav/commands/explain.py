"""``captum-cav demo`` explains the picture that comes with the package, ``captum-cav explain IMAGE`` any other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from captum_cav import one_picture, zoo
from captum_cav.attribution import LayerCAV
from captum_cav.commands import common
from captum_cav.visualization import Panel, show_rows

_PICTURE_FILE = "contributions.png"
_RULES_FILE = "rules.png"
# The preset that the second page shows beside the paper's rules.
_BESIDE = "pinpoint"


def add_parser(commands: Any) -> None:
    """Add ``demo`` and ``explain``."""
    demo = commands.add_parser("demo", help="explain the embedded picture: a dog above a cat")
    explain = commands.add_parser("explain", help="explain a picture of yours")
    explain.add_argument("image", metavar="IMAGE", help="a picture file")
    for command, targets in ((demo, ["German shepherd", "tabby"]), (explain, None)):
        common.add_network(command)
        common.add_targets(command, targets)
        common.add_depths(command)
        common.add_output(command)
        command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    output = common.writable(options.output)
    device = common.choose_device(options.device)
    picture = zoo.demo_picture() if options.command == "demo" else zoo.open_picture(options.image)
    with common.steps("loading the network", "scores", "contributions", "drawing") as step:
        network = common.load_network(options.model, options.weights)
        model = network.model.to(device)
        inputs = network.preprocess(picture)[None].to(device)
        step()
        scores = one_picture.scores_of(model, inputs)
        targets = common.choose_targets(options, network, scores)
        layers = common.choose_layers(options, network, inputs)
        step()
        # "abs": red raised the score also where the score is negative.
        explained = LayerCAV(model, layers, normalize="abs").attribute_targets(
            inputs, targets, return_convergence_delta=True
        )
        beside = LayerCAV(model, layers, rules=_BESIDE, normalize="abs").attribute_targets(inputs, targets)
        maps = one_picture.maps_of((attributions for attributions, _ in explained), inputs)
        cams = [one_picture.grad_cam(model, layers[0], inputs, target, maps[0][0].shape) for target in targets]
        step()
        rows = []
        for target, of_layers, cam in zip(targets, maps, cams, strict=True):
            label = f"{network.class_name(target)}\nscore {scores[target]:.2f}"
            numbered = list(zip(common.numbered(layers), of_layers, strict=True))
            first = Panel("Grad-CAM not defined here", None) if cam is None else Panel("Grad-CAM", cam, unit="")
            rows.append((label, [first, *(Panel(title, ratios) for title, ratios in numbered)]))
            rows.append((label, [Panel("picture", None), *(Panel(title, ratios, True) for title, ratios in numbered)]))
        title = f"Where {network.name} found its scores: (1) is the last feature layer, then toward the input"
        figure, _ = show_rows(network.display(picture), rows, title)
        figure.savefig(output / _PICTURE_FILE, dpi=110)
        rows = []
        for target, *both in zip(targets, maps, one_picture.maps_of(beside, inputs), strict=True):
            for rules, of_layers in zip(("the paper's rules", f"preset {_BESIDE!r}"), both, strict=True):
                numbered = list(zip(common.numbered(layers), of_layers, strict=True))
                panels = [Panel("picture", None), *(Panel(title, ratios, True) for title, ratios in numbered)]
                rows.append((f"{network.class_name(target)}\n{rules}", panels))
        figure, _ = show_rows(network.display(picture), rows, f"What other rules change: {network.name}")
        figure.savefig(output / _RULES_FILE, dpi=110)
    print(common.best_classes(network, scores))
    for target, (_, deltas), of_layers in zip(targets, explained, maps, strict=True):
        print(_share_table(network.class_name(target), scores[target], layers, of_layers, deltas))
    print(f"pictures: {output / _PICTURE_FILE}, {output / _RULES_FILE}")


def _share_table(
    name: str, score: torch.Tensor, layers: Sequence[str], maps: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]
) -> str:
    """For each layer: what its places gave and took, and what the constants behind it gave."""
    width = max(map(len, layers))
    lines = [
        f"\nwhere the score {float(score):.2f} of {name!r} came from, in per cent of it",
        f"  {'layer':{width}}  {'places':>9}  {'raised':>9}  {'lowered':>9}  {'constants':>9}  {'unexplained':>11}",
    ]
    for layer, ratios, delta in zip(layers, maps, deltas, strict=True):
        raised, lowered = float(ratios.clamp(min=0).sum()), float(ratios.clamp(max=0).sum())
        unexplained = float(delta)
        constants = float(score.sign()) - raised - lowered - unexplained
        places = f"{ratios.shape[0]} x {ratios.shape[1]}"
        lines.append(
            f"  {layer:{width}}  {places:>9}  {100 * raised:9.1f}  {100 * lowered:9.1f}  {100 * constants:9.1f}"
            f"  {100 * unexplained:11.4f}"
        )
    return "\n".join(lines)
