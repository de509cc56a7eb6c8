"""What the subcommands share: what their options choose, and parts of the output."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from captum_cav import single_image, zoo
from captum_cav.attribution.logits import probabilities
from captum_cav.attribution.scores import ScoreName
from captum_cav.commands.options import current_folder_on_path
from captum_cav.errors import InputError
from captum_cav.scores import Detection, Region, ScoreFunction, with_score
from captum_cav.visualization import Panel


def choose_device(name: str) -> torch.device:
    """The device of ``--device``. "auto" is the GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device(name)


def load_network(options: argparse.Namespace, device: torch.device) -> zoo.Network:
    """The network of ``--model`` with the weights of ``--weights``, on a device."""
    if ":" not in options.model:
        network = zoo.load(options.model, options.weights)
    else:
        with current_folder_on_path():
            network = zoo.load_factory(options.model, options.weights)
    network.model.to(device)
    return network


def choose_score(
    options: argparse.Namespace, network: zoo.Network, inputs: torch.Tensor
) -> tuple[zoo.Network, ScoreName]:
    """A network whose output is what ``--score`` says, and the name of what is explained of that output.

    Args:
        options: the options of the command.
        network: the network.
        inputs: shape (1, 3, H, W), the picture.

    Returns:
        The network and a score of :class:`captum_cav.LayerCAV`. A region or a box is the single class of the network.
    """
    kind, _, which = options.score.partition(":")
    if kind == "output":
        return network, "output"
    if not which:
        return single_image.with_logits(network, inputs), "log_odds" if kind == "log_odds" else "output"
    if kind == "box":
        score: ScoreFunction = Detection(index=int(which))
        name = f"box {which}"
    else:
        index = network.class_index(which)
        score, name = Region(index), f"region of {network.class_name(index)}"
    model = with_score(network.model, lambda output: score(output)[:, None])
    return dataclasses.replace(network, model=model, classes=(name,)), "output"


def choose_targets(options: argparse.Namespace, network: zoo.Network, scores: torch.Tensor) -> list[int]:
    """The classes of ``--target``, or the best class."""
    return [network.class_index(target) for target in options.target or [int(scores.argmax())]]


def choose_layers(options: argparse.Namespace, network: zoo.Network, inputs: torch.Tensor) -> list[str]:
    """The layers of ``--layers``, or as many layers as ``--depths`` says, from the last layer toward the input."""
    if options.layers:
        return [name.strip() for name in options.layers.split(",")]
    if options.depths == len(network.depths):
        return list(network.depths)
    return list(zoo.find_depths(network.model, inputs, options.depths))


def layer_panels(layers: Sequence[str], maps: Sequence[torch.Tensor], *, signed: bool) -> list[Panel]:
    """Panels with the maps of one class, under the titles "(1) features.12", "(2) ..."."""
    return [
        Panel(f"({number}) {layer}", ratios, signed)
        for number, (layer, ratios) in enumerate(zip(layers, maps, strict=True), 1)
    ]


def grad_cam_panel(cam: torch.Tensor | None) -> Panel:
    """A panel with the map of Grad-CAM, or with the picture alone if the layer has no such map."""
    return Panel("Grad-CAM not defined here", None) if cam is None else Panel("Grad-CAM", cam, unit="")


def best_classes(network: zoo.Network, scores: torch.Tensor, inputs: torch.Tensor) -> str:
    """The ten best classes as a printable table.

    Args:
        network: the network; its model gives logits.
        scores: shape (classes,), the logits of one picture.
        inputs: shape (1, 3, H, W), the picture.
    """
    with torch.no_grad():
        shares = probabilities(network.model, inputs)[0].cpu()
    best = scores.topk(min(10, len(scores)))
    lines = [line] if (line := single_image.about_scores(network)) else []
    lines.append(f"best classes of {network.name} (scores before softmax, probabilities)")
    for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
        lines.append(f"  {rank:2d}  {score:8.2f}  {shares[index]:6.1%}  {network.class_name(index)} ({index})")
    return "\n".join(lines)


@contextmanager
def steps(*descriptions: str) -> Iterator[Callable[[], None]]:
    """A progress bar over named steps. The bar disappears at the end.

    Args:
        descriptions: the name of each step. The first step begins at once.

    Yields:
        A function that begins the next step.
    """
    with tqdm(total=len(descriptions), delay=1, leave=False) as progress:
        rest = iter(descriptions)
        progress.set_description(next(rest), refresh=False)

        def step() -> None:
            progress.set_description(next(rest), refresh=False)
            progress.update()

        yield step
        progress.update()
