"""What ``captum-cav report`` does."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_cav import page, single_image, zoo
from captum_cav.commands.running import common


def run(options: argparse.Namespace) -> None:
    """Run ``report``: write the page."""
    device = common.choose_device(options.device)
    pictures = [(Path(image).name, zoo.open_picture(image)) for image in options.images]
    pictures = pictures or [("dog_above_cat.png", zoo.demo_picture())]
    with common.steps("loading the network", "contributions and ablations") as step:
        network = common.load_network(options, device)
        inputs = single_image.batch_of(network, pictures[0][1])
        network = single_image.with_logits(network, inputs)
        layers = common.choose_layers(options, network, inputs)
        step()
        page.write_page(options.output, network, pictures, options.target, layers, presets=options.presets)
    if line := single_image.about_scores(network):
        print(line)
    print(f"page: {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
