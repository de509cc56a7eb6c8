"""What the subcommands share: options, what these options choose, and parts of the output."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from captum_cav import zoo
from captum_cav.errors import InputError
from captum_cav.visualization import Panel


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--weights`` and ``--device``, for :func:`load_network` and :func:`choose_device`."""
    parser.add_argument(
        "--model",
        default="efficientnet_lite0",
        metavar="NAME",
        help="efficientnet_lite0 (default), squeezenet1_1, any torchvision classifier, or pkg.module:factory",
    )
    parser.add_argument("--weights", metavar="FILE", help="a state dict for the model instead of its own weights")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def add_targets(parser: argparse.ArgumentParser, default: list[str] | None = None) -> None:
    """Add ``--target``: classes by name or index. Without a default, :func:`choose_targets` takes the best class."""
    parser.add_argument(
        "--target",
        nargs="+",
        default=default,
        metavar="NAME_OR_INDEX",
        help=f"classes to explain (default: {' and '.join(default) if default else 'the best'})",
    )


def add_depths(parser: argparse.ArgumentParser) -> None:
    """Add ``--layers`` and ``--depths``, for :func:`choose_layers`."""
    depths = parser.add_mutually_exclusive_group()
    depths.add_argument("--layers", metavar="A,B,C", help="qualified names of the layers to look at")
    depths.add_argument("--depths", type=int, default=5, metavar="N", help="how many layers to choose (default 5)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, a folder for :func:`writable`."""
    parser.add_argument("--output", type=Path, default=Path("captum_cav_output"), metavar="DIR")


def writable(folder: Path) -> Path:
    """Make the folder if it does not exist, and check that files can be written there.

    Args:
        folder: the folder.

    Returns:
        The folder.

    Raises:
        InputError: if nothing can be written there; the message names the option ``--output``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another with --output DIR"
        ) from error


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
        # Like "python -m", look for modules in the current folder. An installed command does not look there.
        sys.path.insert(0, str(Path.cwd()))
        try:
            network = zoo.load_factory(options.model, options.weights)
        finally:
            sys.path.pop(0)
    network.model.to(device)
    return network


def choose_targets(options: argparse.Namespace, network: zoo.Network, scores: torch.Tensor) -> list[int]:
    """The classes of ``--target``, or the best class."""
    return [network.class_index(target) for target in options.target or [int(scores.argmax())]]


def choose_layers(options: argparse.Namespace, network: zoo.Network, inputs: torch.Tensor) -> list[str]:
    """The layers of ``--layers``, or as many layers as ``--depths`` says, from the last layer toward the input."""
    if options.layers:
        return [name.strip() for name in options.layers.split(",")]
    if options.depths < 1:
        raise InputError(f"--depths is {options.depths}; expected at least 1")
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


def best_classes(network: zoo.Network, scores: torch.Tensor) -> str:
    """The ten best classes as a printable table."""
    best = scores.topk(min(10, len(scores)))
    lines = [f"best classes of {network.name} (scores before softmax)"]
    for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
        lines.append(f"  {rank:2d}  {score:8.2f}  {network.class_name(index)} ({index})")
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
