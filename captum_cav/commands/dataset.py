"""``captum-cav dataset FOLDER --output DIR`` explains every picture of a dataset and goes on where it stopped."""

from __future__ import annotations

import argparse
import glob
import re
from pathlib import Path
from typing import Any

from captum_cav.commands import names
from captum_cav.commands import options as shared
from captum_cav.errors import InputError, OptionError

_BEST_OR_LABEL = ("best", "label")


def add_parser(commands: Any) -> None:
    """Add ``dataset``."""
    command = commands.add_parser(
        "dataset",
        help="explain every picture of a dataset, in a job that goes on where it stopped",
        description="Explain every picture of a dataset. A job that was stopped, by whatever it may be, goes on when "
        "the same command is given again.",
    )
    command.add_argument(
        "pictures",
        metavar="FOLDER",
        help="a folder with pictures (in folders named like their classes, if they have labels), a pattern such as "
        "'photos/*.jpg', or a table (.csv, .parquet) with the column path, and if you like label and id",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder of rows and maps")
    shared.add_network(command)
    shared.add_score(command)
    command.add_argument(
        "--target",
        nargs="+",
        default=["best"],
        metavar="NAME_OR_INDEX",
        help="what is explained: best (default), the best class of each picture; label, the class that its folder or "
        "table names; or classes, each of which is explained for every picture",
    )
    shared.add_depths(command)
    shared.add_rules(command)
    command.add_argument(
        "--keep",
        nargs="+",
        choices=names.KEEP,
        default=["maps", "scores", "constants"],
        help="what is stored beside the rows (default: maps scores constants): maps summed over channels or all "
        "channels, all scores of the model, the shares of constants",
    )
    command.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of maps (default float16)")
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default 32)")
    command.add_argument(
        "--shard-size", type=int, default=256, metavar="N", help="pictures in the files of a shard (default 256)"
    )
    shared.add_compile(command, "batches")
    command.add_argument(
        "--engine", choices=("process", "ray"), default="process", help="this process (default), or a cluster of Ray"
    )
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="how many processes read pictures (default: at most 4), or with --engine ray how many explain them",
    )
    command.add_argument(
        "--shard",
        type=_part,
        metavar="I/N",
        help="explain only part I of N, from 0 to N-1, such as $SLURM_ARRAY_TASK_ID/8 (default: $RANK/$WORLD_SIZE, "
        "where torchrun sets them)",
    )
    shared.add_json(command)
    command.set_defaults(run=_run)


def _part(text: str) -> tuple[int, int]:
    """A value of ``--shard``."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; expected I/N with I from 0 to N-1, such as 0/8")
    return int(found[1]), int(found[2])


def _run(options: argparse.Namespace) -> int:
    for number, option in ((options.batch_size, "--batch-size"), (options.shard_size, "--shard-size")):
        shared.check_count(number, option)
    if options.workers is not None and options.workers < (options.engine == "ray"):
        raise InputError(f"--workers is {options.workers}; expected at least {int(options.engine == 'ray')}")
    if {"maps", "channels"} <= set(options.keep):
        raise OptionError("--keep names maps and channels; expected maps, which are summed over channels, or channels")
    is_class = options.target not in ([word] for word in _BEST_OR_LABEL)
    if ":" in options.score and options.target != ["best"]:
        raise OptionError(f"--score {options.score} chooses what is explained; expected no --target beside it.")
    if is_class and (words := [word for word in options.target if word in _BEST_OR_LABEL]):
        raise OptionError(f"--target names {words[0]} and classes; expected {words[0]} alone, or classes")
    if not Path(options.pictures).exists() and not (
        glob.has_magic(options.pictures) and glob.glob(options.pictures, recursive=True)  # noqa: PTH207 (a pattern)
    ):
        raise InputError(f"there is no folder, table or picture {options.pictures}")
    shared.check_known("preset", [options.rules], names.RULES)
    shared.check(options, options.target if is_class else None)
    from captum_cav.commands.running import dataset

    return dataset.run(options, is_class=is_class)
