"""What ``captum-cav report`` does."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_cav import page, single_image, zoo
from captum_cav.commands.outputs import Outputs
from captum_cav.commands.running import common


def run(options: argparse.Namespace, files: list[Path], outputs: Outputs) -> int:
    """Run ``report``: write the page.

    Args:
        options: the options.
        files: the pictures; if there are none, the page shows the embedded picture.
        outputs: where the page goes.

    Returns:
        The exit status, which is 1 if a picture was left out.
    """
    device = common.choose_device(options.device)
    opened, skipped = common.open_pictures(files)
    named = [(file.name, picture) for file, picture in opened] or [("dog_above_cat.png", zoo.demo_picture())]
    network = common.load_network(options, device)
    inputs = single_image.batch_of(network, named[0][1])
    network = single_image.with_logits(single_image.ready(network, inputs), inputs)
    layers = common.choose_layers(options, network, inputs)
    with outputs.writing(options.output.name) as path:
        page.write_page(path, network, named, options.target, layers, presets=options.presets)
    if line := single_image.about_scores(network):
        print(line)
    print(f"page: {options.output} ({common.size_of(options.output)})")
    return int(skipped > 0)
