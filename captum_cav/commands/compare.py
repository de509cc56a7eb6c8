"""``captum-cav compare IMAGE...`` compares attribution methods: a table, a figure for each picture, files."""

from __future__ import annotations

import argparse
from typing import Any

from captum_cav.commands import names
from captum_cav.commands import options as shared
from captum_cav.errors import InputError

_METHODS = ("cav", "cav:pinpoint", "gradcam", "layer_gradient_x_activation", "integrated_gradients", "occlusion")


def add_parser(commands: Any) -> None:
    """Add ``compare``."""
    command = commands.add_parser("compare", help="compare attribution methods on pictures of yours")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    shared.add_network(command)
    command.add_argument(
        "--methods", nargs="+", default=list(_METHODS), metavar="NAME", help=f"some of {', '.join(names.METHODS)}"
    )
    command.add_argument(
        "--metrics",
        nargs="*",
        default=list(names.DEFAULT_METRICS),
        metavar="NAME",
        help=f"measures (default: {' '.join(names.DEFAULT_METRICS)})",
    )
    command.add_argument(
        "--target",
        nargs="+",
        metavar="NAME_OR_INDEX",
        help="a class for all pictures, or one for each (default: the best of each)",
    )
    shared.add_depths(command)
    command.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="how often to time each method (default 3)"
    )
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default 8)")
    shared.add_output(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    shared.writable(options.output)
    # A name of CAV may end in "+log_odds". Then CAV explains a class against all other classes.
    log_odds = [f"{method}+log_odds" for method in names.METHODS if method.partition(":")[0] == "cav"]
    methods = [method for method in options.methods if method not in log_odds]
    shared.check_known("method", methods, [*names.METHODS, *names.CONTROLS])
    shared.check_known("metric", options.metrics, names.METRICS)
    shared.check_count(options.repeats, "--repeats")
    shared.check_count(options.batch_size, "--batch-size")
    targets, pictures = len(options.target or ()), len(options.images)
    if targets not in (0, 1, pictures):
        raise InputError(f"--target names {targets} classes for {pictures} pictures; give one, or one for each")
    shared.check(options, options.images, options.target)
    from captum_cav.commands.running import compare

    compare.run(options)
