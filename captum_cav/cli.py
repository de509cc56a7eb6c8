"""The command line: why did a network give a picture its class?

``captum-cav demo`` explains the picture that comes with the package, ``captum-cav explain IMAGE`` any other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from captum.attr import LayerGradCam
from tqdm import tqdm

from captum_cav import zoo
from captum_cav.attribution import LayerCAV
from captum_cav.errors import CAVError, InputError
from captum_cav.visualization import Panel, show_rows, spatial_map

_PICTURE_FILE = "contributions.png"
_RULES_FILE = "rules.png"
# The preset that the second page shows beside the paper's rules.
_BESIDE = "pinpoint"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit status: 0, or 2 for anything that the user can mend, after one line that says what.
    """
    options = _parser().parse_args(arguments)
    try:
        _explain(options)
    except CAVError as error:
        print(f"captum-cav: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="captum-cav",
        description="Contribution Analysis Visualization: which parts of a picture gave a network its score?",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="explain the embedded picture: a dog above a cat")
    explain = commands.add_parser("explain", help="explain a picture of yours")
    explain.add_argument("image", metavar="IMAGE", help="a picture file")
    for command, targets in ((demo, ["German shepherd", "tabby"]), (explain, None)):
        command.add_argument(
            "--model",
            default="efficientnet_lite0",
            metavar="NAME",
            help="efficientnet_lite0 (default), squeezenet1_1, any torchvision classifier, or pkg.module:factory",
        )
        command.add_argument("--weights", metavar="FILE", help="a state dict for the model instead of its own weights")
        command.add_argument(
            "--target",
            nargs="+",
            default=targets,
            metavar="NAME_OR_INDEX",
            help=f"classes to explain (default: {' and '.join(targets) if targets else 'the best'})",
        )
        depths = command.add_mutually_exclusive_group()
        depths.add_argument("--layers", metavar="A,B,C", help="qualified names of the layers to look at")
        depths.add_argument("--depths", type=int, default=5, metavar="N", help="how many layers to choose (default 5)")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--output", type=Path, default=Path("captum_cav_output"), metavar="DIR")
    return parser


def _explain(options: argparse.Namespace) -> None:
    output = _writable(options.output)
    device = _device(options.device)
    picture = zoo.demo_picture() if options.command == "demo" else zoo.open_picture(options.image)
    with tqdm(total=4, delay=1, leave=False) as progress:

        def step(description: str) -> None:
            progress.set_description(description, refresh=False)
            progress.update()

        progress.set_description("loading the network", refresh=False)
        network = _network(options.model, options.weights)
        model = network.model.to(device)
        inputs = network.preprocess(picture)[None].to(device)
        step("scores")
        with torch.no_grad():
            scores = _scores(model(inputs))
        targets = [network.class_index(target) for target in options.target or [int(scores.argmax())]]
        layers = _layers(options, network, inputs)
        step("contributions")
        # "abs": red raised the score also where the score is negative.
        explained = LayerCAV(model, layers, normalize="abs").attribute_targets(
            inputs, targets, return_convergence_delta=True
        )
        beside = LayerCAV(model, layers, rules=_BESIDE, normalize="abs").attribute_targets(inputs, targets)
        maps = _maps((attributions for attributions, _ in explained), inputs)
        cams = [_grad_cam(model, layers[0], inputs, target, maps[0][0].shape) for target in targets]
        step("drawing")
        rows = []
        for target, of_layers, cam in zip(targets, maps, cams, strict=True):
            label = f"{network.class_name(target)}\nscore {scores[target]:.2f}"
            numbered = list(zip(_numbered(layers), of_layers, strict=True))
            first = Panel("Grad-CAM not defined here", None) if cam is None else Panel("Grad-CAM", cam, unit="")
            rows.append((label, [first, *(Panel(title, ratios) for title, ratios in numbered)]))
            rows.append((label, [Panel("picture", None), *(Panel(title, ratios, True) for title, ratios in numbered)]))
        title = f"Where {network.name} found its scores: (1) is the last feature layer, then toward the input"
        figure, _ = show_rows(network.display(picture), rows, title)
        figure.savefig(output / _PICTURE_FILE, dpi=110)
        rows = []
        for target, *both in zip(targets, maps, _maps(beside, inputs), strict=True):
            for rules, of_layers in zip(("the paper's rules", f"preset {_BESIDE!r}"), both, strict=True):
                numbered = list(zip(_numbered(layers), of_layers, strict=True))
                panels = [Panel("picture", None), *(Panel(title, ratios, True) for title, ratios in numbered)]
                rows.append((f"{network.class_name(target)}\n{rules}", panels))
        figure, _ = show_rows(network.display(picture), rows, f"What other rules change: {network.name}")
        figure.savefig(output / _RULES_FILE, dpi=110)
        progress.update()
    print(_best_classes(network, scores))
    for target, (_, deltas), of_layers in zip(targets, explained, maps, strict=True):
        print(_share_table(network.class_name(target), scores[target], layers, of_layers, deltas))
    print(f"pictures: {output / _PICTURE_FILE}, {output / _RULES_FILE}")


def _maps(explained: Iterable[Sequence[torch.Tensor]], inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """For each target and layer, the map of its ratios."""
    size = (inputs.shape[-2], inputs.shape[-1])
    return [[spatial_map(ratios, size)[0].cpu() for ratios in attributions] for attributions in explained]


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another with --output DIR"
        ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device(name)


def _network(name: str, weights: str | None) -> zoo.Network:
    if ":" not in name:
        return zoo.load(name, weights)
    # As for "python -m", a module in the current folder is found; an installed command would not look there.
    sys.path.insert(0, str(Path.cwd()))
    try:
        return zoo.load_factory(name, weights)
    finally:
        sys.path.pop(0)


def _scores(output: Any) -> torch.Tensor:
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise InputError(f"the model returned {what}; expected scores of shape (1, classes)")
    return output[0].cpu()


def _layers(options: argparse.Namespace, network: zoo.Network, inputs: torch.Tensor) -> list[str]:
    if options.layers:
        return [name.strip() for name in options.layers.split(",")]
    if options.depths < 1:
        raise InputError(f"--depths is {options.depths}; expected at least 1")
    if options.depths == len(network.depths):
        return list(network.depths)
    return list(zoo.find_depths(network.model, inputs, options.depths))


def _grad_cam(
    model: torch.nn.Module, layer: str, inputs: torch.Tensor, target: int, grid: torch.Size
) -> torch.Tensor | None:
    """Captum's Grad-CAM at a layer; None where the layer has no channels in dimension 1 to weigh."""
    cam = LayerGradCam(model, model.get_submodule(layer)).attribute(inputs, target, relu_attributions=True)
    return cam[0, 0].detach().cpu() if cam.dim() == 4 and cam.shape[2:] == grid else None


def _numbered(layers: Sequence[str]) -> list[str]:
    return [f"({number}) {layer}" for number, layer in enumerate(layers, 1)]


def _best_classes(network: zoo.Network, scores: torch.Tensor) -> str:
    best = scores.topk(min(10, len(scores)))
    lines = [f"best classes of {network.name} (scores before softmax)"]
    for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
        lines.append(f"  {rank:2d}  {score:8.2f}  {network.class_name(index)} ({index})")
    return "\n".join(lines)


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
