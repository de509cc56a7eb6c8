"""``captum-cav summary DIR`` shows what a network goes by in an explained dataset, and finds possible shortcuts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import InputError


def add_parser(commands: Any) -> None:
    """Add ``summary``."""
    command = commands.add_parser(
        "summary", help="show what a network goes by in an explained dataset, class by class, on one HTML page"
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="the output of captum-cav dataset")
    command.add_argument(
        "--layer", metavar="NAME", help="the layer to look at (default: the coarsest with at least 12 x 12 places)"
    )
    command.add_argument(
        "--sample", type=int, default=300, metavar="N", help="how many rows of each class to analyse (default 300)"
    )
    command.add_argument(
        "--classes", type=int, default=30, metavar="N", help="how many classes the page shows (default 30)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="for what is chosen at random (default 0)")
    command.add_argument(
        "--model",
        metavar="NAME",
        help="the network that was explained, as for the other commands; with it the page draws the maps over the part "
        "of each picture that the network sees",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the page to write (default: summary.html in the folder)"
    )
    shared.add_force(command)
    shared.add_json(command)
    # What else chooses a network, for the options that all networks have.
    command.set_defaults(run=_run, weights=None, class_names=None, layers=None, depths=1)


def _run(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise InputError(f"there is no folder {options.folder}; expected the output of captum-cav dataset")
    options.output = options.output or options.folder / "summary.html"
    if options.output.is_dir():
        raise InputError(f"{options.output} is a folder; give a file with --output FILE")
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output is {options.output}; expected a file that ends in .html")
    read = [file for pattern in ("*.json", "*.csv", "shards/*") for file in options.folder.glob(pattern)]
    outputs = Outputs(options.output.parent, read, force=options.force)
    outputs.plan(options.output.name)
    shared.check_count(options.sample, "--sample")
    shared.check_count(options.classes, "--classes")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; expected 0 or more")
    if options.model is not None:
        shared.check(options)
    from captum_cav.commands.running import summary

    return summary.run(options, outputs)
