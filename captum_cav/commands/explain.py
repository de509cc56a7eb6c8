"""``captum-cav demo`` explains the picture of the package, ``captum-cav explain IMAGE ...`` explains other pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from captum_cav.commands import names, pictures
from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import OptionError

_EMBEDDED = "dog_above_cat"


def add_parser(commands: Any) -> None:
    """Add ``demo`` and ``explain``."""
    demo = commands.add_parser(
        "demo", help="explain the embedded picture, a dog above a cat, and write photographs to try other commands with"
    )
    explain = commands.add_parser("explain", help="explain pictures of yours")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="picture files, and folders of pictures")
    shared.add_score(explain)
    shared.add_output(demo, names.DEMO_FOLDER)
    shared.add_output(explain)
    shared.add_compile(explain, "the attribution")
    demo.set_defaults(score="logit", images=[], compile=False)
    for command, targets in ((demo, ["German shepherd", "tabby"]), (explain, None)):
        shared.add_network(command)
        shared.add_targets(command, targets)
        shared.add_depths(command)
        shared.add_rules(command)
        command.add_argument(
            "--normalize",
            choices=("abs", "score", "none"),
            default="abs",
            help="what the maps are divided by: the size of the score (abs, the default: red raised the score), the "
            "score with its sign (score, as in the paper), or nothing (none: units of the score)",
        )
        command.add_argument("--save-arrays", action="store_true", help="write the maps too, as NAME_maps.npz")
        shared.add_json(command)
        command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if ":" in options.score and options.target:
        raise OptionError(f"--score {options.score} chooses what is explained; expected no --target beside it.")
    files = pictures.find(options.images)
    named: dict[str, Path | None] = dict(zip(pictures.stems(files), files, strict=True)) or {_EMBEDDED: None}
    shared.check_known("preset", [options.rules], names.RULES)
    shared.check(options, options.target)
    outputs = Outputs(options.output, shared.inputs_of(options, files), force=options.force)
    for stem in named:
        outputs.plan(*names.explained_files(stem, arrays=options.save_arrays))
    outputs.plan(names.SHARES_FILE)
    photographs = None
    if not files:
        photographs = Outputs(options.output / names.PHOTOGRAPHS, force=options.force)
        photographs.plan(*names.DEMO_PHOTOGRAPHS)
    from captum_cav.commands.running import explain

    return explain.run(options, named, outputs, photographs)
