"""``captum-cav compare IMAGE...`` compares attribution methods: a table, a figure for each picture, files."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from captum_cav import single_image, zoo
from captum_cav.commands import common
from captum_cav.comparison import METRICS, NAMES, compare
from captum_cav.errors import InputError

_METHODS = ("cav", "cav:pinpoint", "gradcam", "layer_gradient_x_activation", "integrated_gradients", "occlusion")


def add_parser(commands: Any) -> None:
    """Add ``compare``."""
    command = commands.add_parser("compare", help="compare attribution methods on pictures of yours")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    common.add_network(command)
    command.add_argument(
        "--methods", nargs="+", default=list(_METHODS), metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    command.add_argument(
        "--metrics", nargs="*", default=list(METRICS), metavar="NAME", help=f"measures (default: {' '.join(METRICS)})"
    )
    command.add_argument(
        "--target",
        nargs="+",
        metavar="NAME_OR_INDEX",
        help="a class for all pictures, or one for each (default: the best of each)",
    )
    common.add_depths(command)
    command.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="how often to time each method (default 3)"
    )
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default 8)")
    common.add_output(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    output = common.writable(options.output)
    device = common.choose_device(options.device)
    pictures = [zoo.open_picture(image) for image in options.images]
    network = common.load_network(options, device)
    batches = [single_image.batch_of(network, picture) for picture in pictures]
    scores = [single_image.class_scores(network.model, batch) for batch in batches]
    targets = _targets(options, network, scores)
    comparison = compare(
        network.model,
        torch.cat(batches),
        targets,
        options.methods,
        common.choose_layers(options, network, batches[0]),
        options.metrics,
        batch_size=options.batch_size,
        repeats=options.repeats,
        # If one method does not work for the network, the results of the others are still wanted.
        on_error="record",
    )
    comparison.to_csv(output / "comparison.csv")
    comparison.save(output / "maps")
    for number, (image, picture, target) in enumerate(zip(options.images, pictures, targets, strict=True)):
        scored = f"the score of {network.class_name(target)}, {scores[number][target]:.2f} in {network.name}"
        figure = comparison.figure(number, network.display(picture), f"What raised (red) and lowered (blue) {scored}")
        file = output / f"comparison_{number + 1}.png"
        figure.savefig(file, dpi=110)
        print(f"{image}: {scored}; {file}")
    print(f"\n{comparison}\n\ntable: {output / 'comparison.csv'}, maps: {output / 'maps'}")


def _targets(options: argparse.Namespace, network: zoo.Network, scores: list[torch.Tensor]) -> list[int]:
    """One class for each picture: those of ``--target``, or the best."""
    if not options.target:
        return [int(one.argmax()) for one in scores]
    targets = [network.class_index(target) for target in options.target]
    if len(targets) not in (1, len(scores)):
        raise InputError(f"--target names {len(targets)} classes for {len(scores)} pictures; give one, or one for each")
    return targets * (len(scores) // len(targets))
