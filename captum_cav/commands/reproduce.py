"""``captum-cav reproduce`` repeats the paper's experiments, figures 5 to 8 and table 1, and says which claims hold."""

from __future__ import annotations

import argparse
import re
from typing import Any

from captum_cav.commands import names, pictures
from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import InputError, OptionError

# For the embedded picture: the class that figure 8 explains, the class of the other object, and the upper half, where
# the other object is.
_CLASSES = ["tabby", "German shepherd"]
_REGION = "0,0,1,0.5"


def add_parser(commands: Any) -> None:
    """Add ``reproduce``."""
    command = commands.add_parser(
        "reproduce", help="repeat the paper's figures 5 to 8 and table 1, and judge its claims"
    )
    command.add_argument(
        "image", nargs="?", metavar="IMAGE", help="a picture of two objects (default: the embedded one)"
    )
    shared.add_network(command)
    command.add_argument(
        "--classes",
        nargs=2,
        metavar=("CLASS", "OTHER"),
        help=f"the class to explain, and that of the other object (embedded picture: {' and '.join(_CLASSES)})",
    )
    command.add_argument(
        "--region",
        metavar="L,T,R,B",
        help="the box of the other object in the picture as the network sees it: left, top, right, bottom, in pixels "
        f"or, with a decimal point among them, fractions (embedded picture: its upper half, {_REGION})",
    )
    shared.add_rules(command)
    shared.add_depths(command)
    shared.add_output(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    files = [] if options.image is None else pictures.find([options.image])
    if len(files) > 1:
        raise OptionError(f"{options.image} is a folder; expected one picture of two objects.")
    outputs = Outputs(options.output, shared.inputs_of(options, files), force=options.force)
    outputs.plan(*names.REPRODUCED_FIGURES, names.REPRODUCED_TABLE)
    if options.image is None:
        classes, region = options.classes or _CLASSES, options.region or _REGION
    elif options.classes and options.region:
        classes, region = options.classes, options.region
    else:
        raise InputError("a picture of yours needs --classes CLASS OTHER and --region L,T,R,B, the box of OTHER")
    box = _box(region)
    shared.check_known("preset", [options.rules], names.RULES)
    shared.check(options, classes)
    from captum_cav.commands.running import reproduce

    reproduce.run(options, files, classes, box, outputs)


def _box(region: str) -> tuple[float, ...]:
    """The four numbers of ``--region``: integers are pixels, decimal fractions are parts of the picture."""
    try:
        return tuple(int(edge) if re.fullmatch(r"\s*\d+\s*", edge) else float(edge) for edge in region.split(","))
    except ValueError as error:
        raise InputError(f"--region is {region!r}; expected four numbers, as --region {_REGION}") from error
