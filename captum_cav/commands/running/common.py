"""What the subcommands share: what their options choose, and parts of the output."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from captum_cav import presets, zoo
from captum_cav.attribution.scores import ScoreName
from captum_cav.commands.options import read_class_names, running_factory
from captum_cav.depths import layers as find_layers
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
        with running_factory(options.model):
            network = zoo.load_factory(options.model, options.weights)
    network.model.to(device)
    names = read_class_names(options.class_names)
    return dataclasses.replace(network, classes=names) if names else network


def choose_rules(options: argparse.Namespace, network: zoo.Network) -> str:
    """The preset of ``--rules``. If that is "auto", the recommended preset is named on standard error."""
    rules = presets.name_for(options.rules, network.model)
    if rules != options.rules:
        tqdm.write(f"captum-cav: {presets.auto(network.model).title}", file=sys.stderr)
    return rules


def open_pictures(files: Sequence[Path]) -> tuple[list[tuple[Path, Image.Image]], int]:
    """Open picture files. A damaged file is named on standard error and left out.

    Args:
        files: the files.

    Returns:
        The files with their pictures, and how many files were left out.

    Raises:
        InputError: if there are files and no file can be opened.
    """
    opened = [(file, picture) for file in files if (picture := open_or_skip(file, alone=len(files) == 1)) is not None]
    if files and not opened:
        raise InputError(f"none of the {len(files)} pictures can be opened")
    return opened, len(files) - len(opened)


def open_or_skip(file: Path, *, alone: bool) -> Image.Image | None:
    """Open a picture file. A damaged file is named on standard error, and there is no picture.

    Args:
        file: the file.
        alone: whether the file is the only one.

    Returns:
        The picture, or None.

    Raises:
        InputError: if the only file cannot be opened.
    """
    try:
        return zoo.open_picture(file)
    except InputError as error:
        if alone:
            raise
        tqdm.write(f"captum-cav: skipped: {error}", file=sys.stderr)
        return None


def size_of(file: Path) -> str:
    """The size of a file, as "640 kB"."""
    size = file.stat().st_size
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def choose_score(options: argparse.Namespace, network: zoo.Network) -> tuple[zoo.Network, ScoreName]:
    """A network whose output is what ``--score`` says, and the name of what is explained of that output.

    Args:
        options: the options of the command.
        network: the network.

    Returns:
        The network and a score of :class:`captum_cav.LayerCAV`. A region or a box is the single class of the network.
    """
    kind, _, which = options.score.partition(":")
    if not which:
        return network, kind
    if kind == "box":
        score: ScoreFunction = Detection(index=int(which))
        name = f"box {which}"
    else:
        index = network.class_index(which)
        score, name = Region(index), f"region of {network.class_name(index)}"
    model = with_score(network.model, lambda output: score(output)[:, None])
    return dataclasses.replace(network, model=model, classes=(name,)), "output"


def choose_layers(options: argparse.Namespace, network: zoo.Network, inputs: torch.Tensor) -> list[str]:
    """The layers of ``--layers``, or as many layers as ``--depths`` says, from the last layer toward the input."""
    if options.layers:
        return [name.strip() for name in options.layers.split(",")]
    if options.depths == len(network.depths):
        return list(network.depths)
    return list(find_layers(network.model, inputs, options.depths))


def layer_panels(layers: Sequence[str], maps: Sequence[torch.Tensor], *, signed: bool) -> list[Panel]:
    """Panels with the maps of one class, under the titles "(1) features.12", "(2) ..."."""
    return [
        Panel(f"({number}) {layer}", ratios, signed)
        for number, (layer, ratios) in enumerate(zip(layers, maps, strict=True), 1)
    ]


def grad_cam_panel(cam: torch.Tensor | None) -> Panel:
    """A panel with the map of Grad-CAM, or with the picture alone if the layer has no such map."""
    return Panel("Grad-CAM not defined here", None) if cam is None else Panel("Grad-CAM", cam, unit="")


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
