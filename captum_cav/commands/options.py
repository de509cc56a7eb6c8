"""Options that several subcommands have, and checks of their values. Neither torch nor Captum loads for them."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from captum_cav.commands import names
from captum_cav.commands.pictures import why_unreadable
from captum_cav.errors import CAVError, InputError, ModelError, OptionError
from captum_cav.suggestions import did_you_mean
from captum_cav.zoo import names as zoo_names


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--weights``, ``--class-names`` and ``--device``."""
    parser.add_argument(
        "--model",
        default=zoo_names.EFFICIENTNET_LITE0,
        metavar="NAME",
        help="efficientnet_lite0 (default), squeezenet1_1, any network of torchvision that classifies, segments or "
        "detects, or pkg.module:factory",
    )
    parser.add_argument("--weights", metavar="FILE", help="a state dict for the model instead of its own weights")
    parser.add_argument(
        "--class-names", metavar="FILE", help="the names of the classes: a text file with one name in each line"
    )
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
        help="what to explain: logit (default), log_odds or output; of networks that segment region:CLASS, of networks "
        "that detect box:NUMBER",
    )


def _score(text: str) -> str:
    """A value of ``--score``, as :func:`add_score` describes it."""
    if not re.fullmatch(r"logit|log_odds|output|region:.+|box:\d+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no score; expected logit, log_odds, output, region:CLASS or box:NUMBER"
        )
    return text


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add ``--rules``."""
    parser.add_argument(
        "--rules",
        default="paper",
        metavar="PRESET",
        help=f"a preset of rules (default: paper); one of {', '.join(names.RULES)}; auto is what the benchmarks "
        "recommend for the network",
    )


def add_compile(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--compile``.

    Args:
        parser: the command.
        what: what is compiled, for the help.
    """
    parser.add_argument(
        "--compile",
        action="store_true",
        help=f"fuse the kernels of {what} by torch's compiler, which takes minutes at the beginning; without it, what "
        "comes often is recorded and replayed",
    )


def add_depths(parser: argparse.ArgumentParser) -> None:
    """Add ``--layers`` and ``--depths``."""
    depths = parser.add_mutually_exclusive_group()
    depths.add_argument("--layers", metavar="A,B,C", help="qualified names of the layers to look at")
    depths.add_argument("--depths", type=int, default=5, metavar="N", help="how many layers to choose (default 5)")


def add_output(parser: argparse.ArgumentParser, default: str = "captum_cav_output") -> None:
    """Add ``--output``, a folder, and ``--force``, both for :class:`captum_cav.commands.outputs.Outputs`."""
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="DIR", help=f"the folder to write (default: {default})"
    )
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add ``--force``."""
    parser.add_argument(
        "--force", action="store_true", help="replace files that captum-cav did not make (never those that it reads)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``: standard output is one JSON value then, and all messages are on standard error."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON; messages go to standard error")


def inputs_of(options: argparse.Namespace, pictures: Iterable[Path]) -> list[Path]:
    """All files that a command reads: pictures, weights and names of classes.

    Args:
        options: the options of :func:`add_network`.
        pictures: the picture files.
    """
    return [*pictures, *(Path(file) for file in (options.weights, options.class_names) if file is not None)]


def check(options: argparse.Namespace, classes: Iterable[str] | None = None) -> None:
    """Check everything that can be checked before torch loads: files, the number of layers, the network, its classes.

    Args:
        options: the options of :func:`add_network` and :func:`add_depths`.
        classes: names or indices of classes of the network.

    Raises:
        CAVError: for the first value that is wrong.
    """
    if options.weights is not None and (reason := why_unreadable(options.weights)):
        raise ModelError(f"cannot read the weights {options.weights}: {reason}")
    check_count(options.depths, "--depths")
    if options.layers is not None and not all(name.strip() for name in options.layers.split(",")):
        raise OptionError(f"--layers is {options.layers!r}; expected names of layers, as --layers blocks.10,blocks.4")
    named = read_class_names(options.class_names)
    if named:
        for name_or_index in classes or ():
            zoo_names.find_class(name_or_index, named, options.model)
    if ":" in options.model:
        # The factory tells its classes only when it is called.
        with running_factory(options.model):
            zoo_names.find_factory(options.model)
        return
    models = zoo_names.torchvision_models()
    if models:
        others = [name for task in zoo_names.TASKS for name in zoo_names.torchvision_models(task)]
        zoo_names.check_network(options.model, [zoo_names.EFFICIENTNET_LITE0, *models, *others])
    task = zoo_names.task_of(options.model)
    if task:
        _check_task(options, task)
        return
    known_classes = zoo_names.torchvision_classes()
    if known_classes and not named:
        for name_or_index in classes or ():
            zoo_names.find_class(name_or_index, known_classes, options.model)


def _check_task(options: argparse.Namespace, task: str) -> None:
    """Refuse a score that a network of torchvision does not have.

    Args:
        options: the options of the command.
        task: what the network is for, one of :data:`captum_cav.zoo.names.TASKS`.

    Raises:
        OptionError: says what the network can be explained by.
    """
    form = zoo_names.TASKS[task]
    kind = form.partition(":")[0]
    if not getattr(options, "score", "").startswith(f"{kind}:"):
        raise OptionError(
            f"{options.model} is a network for {task}, which has no score for each class of the picture; expected "
            f"captum-cav explain IMAGE --model {options.model} --score {form}"
        )


def read_class_names(file: str | None) -> tuple[str, ...]:
    """The names of classes in the file of ``--class-names``.

    Args:
        file: a text file in UTF-8 with one name in each line, in the order of the scores.

    Returns:
        The names; empty if there is no file.

    Raises:
        InputError: for a file that cannot be read, or has an empty line among the names.
    """
    if file is None:
        return ()
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"cannot read the names of the classes in {file}: {reason}") from error
    found = tuple(line.strip() for line in text.rstrip().splitlines())
    if not found or not all(found):
        line = found.index("") + 1 if found else 1
        raise InputError(f"line {line} of {file} is empty; expected the name of one class in each line")
    return found


def check_count(number: int, option: str) -> None:
    """Refuse a number below 1.

    Raises:
        InputError: names the option.
    """
    if number < 1:
        raise InputError(f"{option} is {number}; expected at least 1")


def check_known(kind: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that do not exist.

    Args:
        kind: what the names are names of, for the message.
        given: what was given.
        known: the names that exist.

    Raises:
        OptionError: suggests similar names.
    """
    for name in given:
        if name not in known:
            raise OptionError(
                f"unknown {kind} {name!r}{did_you_mean(name, known)}; expected some of {', '.join(known)}."
            )


@contextmanager
def running_factory(spec: str) -> Iterator[None]:
    """Run code of the user, which makes a network. An error of that code is one line.

    Args:
        spec: the value of ``--model``.

    Raises:
        ModelError: names the error and the line that raised it.
    """
    with current_folder_on_path():
        try:
            yield
        except CAVError:
            raise
        except Exception as error:  # it may raise anything
            cause = " ".join(str(error).split())
            place = traceback.extract_tb(error.__traceback__)[-1]
            # The message of a mistake in the syntax names the line itself.
            where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
            raise ModelError(f"{spec} raised {type(error).__name__}: {cause}{where}") from error


@contextmanager
def current_folder_on_path() -> Iterator[None]:
    """Look for modules in the current folder too, like "python -m". An installed command does not look there."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
