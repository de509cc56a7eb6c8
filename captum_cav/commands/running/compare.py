"""What ``captum-cav compare`` does."""

from __future__ import annotations

import argparse

import torch

from captum_cav import single_image, zoo
from captum_cav.commands.running import common
from captum_cav.comparison import compare


def run(options: argparse.Namespace) -> None:
    """Run ``compare``: print and write the table, write the maps and a figure for each picture."""
    output = options.output
    device = common.choose_device(options.device)
    pictures = [zoo.open_picture(image) for image in options.images]
    network = common.load_network(options, device)
    batches = [single_image.batch_of(network, picture) for picture in pictures]
    network = single_image.with_logits(network, batches[0])
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
    return targets * (len(scores) // len(targets))
