"""``captum-cav report IMAGE ...`` writes one page that explains pictures in any browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from captum_cav.commands import names, pictures
from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import InputError


def add_parser(commands: Any) -> None:
    """Add ``report``."""
    command = commands.add_parser("report", help="write one HTML page that explains pictures in any browser")
    command.add_argument(
        "images", nargs="*", metavar="IMAGE", help="picture files or folders (default: the embedded one)"
    )
    shared.add_network(command)
    command.add_argument(
        "--target", nargs="+", metavar="NAME_OR_INDEX", help="classes to explain (default: each picture's five best)"
    )
    shared.add_depths(command)
    command.add_argument(
        "--presets",
        nargs="+",
        default=["pinpoint", "paper"],
        metavar="NAME",
        help=f"presets of rules; the page shows the first at the start (default: pinpoint paper); any of "
        f"{', '.join(names.RULES)}; auto is what the benchmarks recommend for the network",
    )
    command.add_argument("--output", type=Path, default=Path("captum_cav_report.html"), metavar="FILE")
    shared.add_force(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    files = pictures.find(options.images)
    if options.output.is_dir():
        raise InputError(f"{options.output} is a folder; give a file with --output FILE")
    outputs = Outputs(options.output.parent, shared.inputs_of(options, files), force=options.force)
    outputs.plan(options.output.name)
    shared.check_known("preset", options.presets, names.RULES)
    shared.check(options, options.target)
    from captum_cav.commands.running import report

    return report.run(options, files, outputs)
