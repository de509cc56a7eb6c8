"""``captum-cav demo`` explains the picture of the package, ``captum-cav explain IMAGE`` explains any other picture."""

from __future__ import annotations

import argparse
from typing import Any

from captum_cav.commands import options as shared
from captum_cav.errors import OptionError


def add_parser(commands: Any) -> None:
    """Add ``demo`` and ``explain``."""
    demo = commands.add_parser("demo", help="explain the embedded picture: a dog above a cat")
    explain = commands.add_parser("explain", help="explain a picture of yours")
    explain.add_argument("image", metavar="IMAGE", help="a picture file")
    shared.add_score(explain)
    demo.set_defaults(score="logit")
    for command, targets in ((demo, ["German shepherd", "tabby"]), (explain, None)):
        shared.add_network(command)
        shared.add_targets(command, targets)
        shared.add_depths(command)
        shared.add_output(command)
        command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    shared.writable(options.output)
    shared.check(options, [] if options.command == "demo" else [options.image], options.target)
    if ":" in options.score and options.target:
        raise OptionError(f"--score {options.score} chooses what is explained; expected no --target beside it.")
    from captum_cav.commands.running import explain

    explain.run(options)
