"""Options that several subcommands have, and checks of their values. Neither torch nor Captum loads for them."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from captum_cav.errors import InputError, ModelError, OptionError
from captum_cav.suggestions import did_you_mean
from captum_cav.zoo import names as zoo_names


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--weights`` and ``--device``."""
    parser.add_argument(
        "--model",
        default=zoo_names.EFFICIENTNET_LITE0,
        metavar="NAME",
        help="efficientnet_lite0 (default), squeezenet1_1, any torchvision classifier, or pkg.module:factory",
    )
    parser.add_argument("--weights", metavar="FILE", help="a state dict for the model instead of its own weights")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def add_targets(parser: argparse.ArgumentParser, default: list[str] | None = None) -> None:
    """Add ``--target``: classes by name or index. Without a default, the best class is explained."""
    parser.add_argument(
        "--target",
        nargs="+",
        default=default,
        metavar="NAME_OR_INDEX",
        help=f"classes to explain (default: {' and '.join(default) if default else 'the best'})",
    )


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add ``--score``."""
    parser.add_argument(
        "--score",
        type=_score,
        default="logit",
        metavar="SCORE",
        help="what to explain: logit (default), log_odds or output; of your own networks that segment or detect also "
        "region:CLASS or box:NUMBER",
    )


def _score(text: str) -> str:
    """A value of ``--score``, as :func:`add_score` describes it."""
    if not re.fullmatch(r"logit|log_odds|output|region:.+|box:\d+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no score; expected logit, log_odds, output, region:CLASS or box:NUMBER"
        )
    return text


def add_depths(parser: argparse.ArgumentParser) -> None:
    """Add ``--layers`` and ``--depths``."""
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


def check(options: argparse.Namespace, pictures: Iterable[str] = (), classes: Iterable[str] | None = None) -> None:
    """Check everything that can be checked before torch loads: files, the number of layers, the network, its classes.

    Args:
        options: the options of :func:`add_network` and :func:`add_depths`.
        pictures: picture files.
        classes: names or indices of classes of the network.

    Raises:
        CAVError: for the first value that is wrong.
    """
    for picture in pictures:
        if reason := _why_unreadable(picture):
            raise InputError(f"cannot open the picture {picture}: {reason}")
    if options.weights is not None and (reason := _why_unreadable(options.weights)):
        raise ModelError(f"cannot read the weights {options.weights}: {reason}")
    check_count(options.depths, "--depths")
    if ":" in options.model:
        # The factory tells its classes only when it is called.
        with current_folder_on_path():
            zoo_names.find_factory(options.model)
        return
    models = zoo_names.torchvision_models()
    if models:
        zoo_names.check_network(options.model, [zoo_names.EFFICIENTNET_LITE0, *models])
    known_classes = zoo_names.torchvision_classes()
    if known_classes:
        for name_or_index in classes or ():
            zoo_names.find_class(name_or_index, known_classes, options.model)


def _why_unreadable(file: str) -> str | None:
    try:
        Path(file).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_count(number: int, option: str) -> None:
    """Refuse a number below 1.

    Raises:
        InputError: names the option.
    """
    if number < 1:
        raise InputError(f"{option} is {number}; expected at least 1")


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that do not exist.

    Args:
        kind: what the names are names of, for the message.
        names: what was given.
        known: the names that exist.

    Raises:
        OptionError: suggests similar names.
    """
    for name in names:
        if name not in known:
            raise OptionError(
                f"unknown {kind} {name!r}{did_you_mean(name, known)}; expected some of {', '.join(known)}."
            )


@contextmanager
def current_folder_on_path() -> Iterator[None]:
    """Look for modules in the current folder too, like "python -m". An installed command does not look there."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
