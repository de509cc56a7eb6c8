"""``captum-cav compare IMAGE...`` compares attribution methods: a table, a figure for each picture, files."""

from __future__ import annotations

import argparse
from typing import Any

from captum_cav.commands import names, pictures
from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import InputError

# Each needs about one forward and one backward pass.
_METHODS = ("cav", "cav:pinpoint", "gradcam", "layer_gradient_x_activation")


def add_parser(commands: Any) -> None:
    """Add ``compare``."""
    command = commands.add_parser("compare", help="compare attribution methods on pictures of yours")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="picture files, and folders of pictures")
    shared.add_network(command)
    command.add_argument(
        "--methods",
        nargs="+",
        default=list(_METHODS),
        metavar="NAME",
        help=f"some of {', '.join(names.METHODS)} (default: {' '.join(_METHODS)})",
    )
    command.add_argument(
        "--measures",
        nargs="*",
        default=(),
        metavar="NAME",
        help=f"measure the maps too, which takes minutes; without names: {' '.join(names.DEFAULT_METRICS)}; any of "
        f"{', '.join(names.METRICS)}",
    )
    command.add_argument(
        "--target",
        nargs="+",
        metavar="NAME_OR_INDEX",
        help="a class for all pictures, or one for each (default: the best of each)",
    )
    shared.add_depths(command)
    command.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="how often to time each method (default 1)"
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="changed pictures of measures at once (default 8)"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that was interrupted: keep the pictures that it finished with the same options",
    )
    shared.add_compile(command, "CAV")
    shared.add_json(command)
    shared.add_output(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # A name of CAV may end in "+log_odds". Then CAV explains a class against all other classes.
    log_odds = [f"{method}+log_odds" for method in names.METHODS if method.partition(":")[0] == "cav"]
    methods = [method for method in options.methods if method not in log_odds]
    shared.check_known("method", methods, [*names.METHODS, *names.CONTROLS])
    # argparse gives a list only for an option that stands on the command line.
    if options.measures == []:
        options.measures = list(names.DEFAULT_METRICS)
    shared.check_known("measure", options.measures, names.METRICS)
    shared.check_count(options.repeats, "--repeats")
    shared.check_count(options.batch_size, "--batch-size")
    files = pictures.find(options.images)
    if len(options.target or ()) not in (0, 1, len(files)):
        raise InputError(
            f"--target names {len(options.target)} classes for {len(files)} pictures; give one, or one for each"
        )
    shared.check(options, options.target)
    inputs = shared.inputs_of(options, files)
    outputs = Outputs(options.output, inputs, force=options.force)
    named = dict(zip(pictures.stems(files), files, strict=True))
    outputs.plan(names.COMPARISON_TABLE, *map(names.comparison_figure, named))
    for stem in named:
        folder = options.output / names.comparison_folder(stem)
        if folder.exists():
            Outputs(folder, inputs, force=options.force).plan(*names.COMPARISON_FILES)
    from captum_cav.commands.running import compare

    return compare.run(options, named, outputs)
