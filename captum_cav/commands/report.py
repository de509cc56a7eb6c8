"""``captum-cav report IMAGE ...`` writes one page that explains pictures in any browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from captum_cav import page, presets, single_image, zoo
from captum_cav.commands import common
from captum_cav.errors import InputError


def add_parser(commands: Any) -> None:
    """Add ``report``."""
    command = commands.add_parser("report", help="write one HTML page that explains pictures in any browser")
    command.add_argument(
        "images", nargs="*", metavar="IMAGE", help="picture files (default: the embedded picture, a dog above a cat)"
    )
    common.add_network(command)
    command.add_argument(
        "--target", nargs="+", metavar="NAME_OR_INDEX", help="classes to explain (default: each picture's five best)"
    )
    common.add_depths(command)
    command.add_argument(
        "--presets",
        nargs="+",
        default=["pinpoint", "paper"],
        metavar="NAME",
        help=f"presets of rules; the page shows the first at the start (default: pinpoint paper); any of "
        f"{', '.join(presets.NAMES)}",
    )
    command.add_argument("--output", type=Path, default=Path("captum_cav_report.html"), metavar="FILE")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    common.writable(options.output.parent)
    if options.output.is_dir():
        raise InputError(f"{options.output} is a folder; give a file with --output FILE")
    device = common.choose_device(options.device)
    pictures = [(Path(image).name, zoo.open_picture(image)) for image in options.images]
    pictures = pictures or [("dog_above_cat.png", zoo.demo_picture())]
    with common.steps("loading the network", "contributions and ablations") as step:
        network = common.load_network(options, device)
        layers = common.choose_layers(options, network, single_image.batch_of(network, pictures[0][1]))
        step()
        page.write_page(options.output, network, pictures, options.target, layers, presets=options.presets)
    print(f"page: {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
