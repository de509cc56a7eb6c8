"""Hiding: does the score fall where the map says that it came from?

The embedded picture shows a German shepherd above a tabby cat. Each cell of a 4 x 4 grid is hidden by itself, and the
change of a class's score is compared with what the map says that the cell contributed:

- Cells: Spearman's correlation of the 16 contributions with the 16 drops of the score. High is good; by chance 0 with
  a standard deviation of .26.
- Halves: whether, of the upper and the lower half, the one with the larger contribution is the one without which the
  score falls more. For each of the two classes; by chance 1 of 2.

A cell is hidden by grey (what the network's preprocessing makes 0) or by blur. Of "random", the mean over 100 maps.

    python -m benchmarks.hiding [--networks squeezenet1_1 efficientnet_lite0] [--methods cav gradcam ...]
        [--json FILE] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.localization import explain, methods
from benchmarks.networks import DEPTHS, load
from benchmarks.photographs import SEED
from benchmarks.versions import versions_with
from captum_cav import metrics, zoo
from captum_cav.ablation import ablate, box_mask
from captum_cav.ablation.result import By
from captum_cav.maps import resize_map

NETWORKS = ("squeezenet1_1", "efficientnet_lite0")
CLASSES = ("German shepherd", "tabby")
BY: tuple[By, ...] = ("zero", "blur")
CELLS = 4
RANDOM_MAPS = 100


def masks_of(rows: int, columns: int, size: tuple[int, int]) -> torch.Tensor:
    """The cells of a grid.

    Args:
        rows, columns: of the grid.
        size: (height, width) of the picture.

    Returns:
        Booleans, (rows * columns, height, width), row by row.
    """
    return torch.stack(
        [
            box_mask((column / columns, row / rows, (column + 1) / columns, (row + 1) / rows), size)
            for row in range(rows)
            for column in range(columns)
        ]
    )


def drops(
    model: torch.nn.Module, inputs: torch.Tensor, masks: torch.Tensor, by: By, targets: Sequence[int]
) -> torch.Tensor:
    """By how much scores fall when each of the masks is hidden.

    Args:
        model: the network.
        inputs: one picture, (1, 3, H, W).
        masks: (n, H, W).
        by: "zero" or "blur".
        targets: classes.

    Returns:
        (targets, n).
    """
    return -ablate(model, inputs.expand(len(masks), -1, -1, -1), None, masks, by=by).score_changes(targets).T


def contributions(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The sums of maps over masks.

    Args:
        maps: (targets, h, w), of any layer.
        masks: (n, H, W).

    Returns:
        (targets, n).
    """
    spread = resize_map(maps, (masks.shape[1], masks.shape[2]))
    return (spread[:, None] * masks).sum((2, 3), dtype=torch.float64)


def draws(
    method: str, network: zoo.Network, inputs: torch.Tensor, targets: Sequence[int]
) -> Iterator[dict[str, torch.Tensor]]:
    """The maps of a method at all depths; of random maps, many.

    Args:
        method: as for ``benchmarks.localization.explain``.
        network: the network.
        inputs: one picture, (1, 3, H, W).
        targets: classes.

    Yields:
        Of each depth, (targets, h, w).
    """
    for _ in range(RANDOM_MAPS if method == "random" else 1):
        yield explain(method, network.name, network.model, inputs, targets)


def measure(network: zoo.Network, chosen: Sequence[str]) -> dict[str, Any]:
    """Cells and halves of one network.

    Args:
        network: the network.
        chosen: methods.

    Returns:
        Of each way to hide: the scores and the drops of the halves and cells; of each method and depth, the correlation
        of each class, and the mean over draws of the number of classes whose halves are ranked right.
    """
    inputs = network.preprocess(zoo.demo_picture())[None]
    targets = [network.class_index(name) for name in CLASSES]
    size = (inputs.shape[2], inputs.shape[3])
    cells, halves = masks_of(CELLS, CELLS, size), masks_of(2, 1, size)
    fallen = {by: [drops(network.model, inputs, masks, by, targets).double() for masks in (cells, halves)] for by in BY}
    found: dict[str, Any] = {
        by: {"drops of cells": of_cells.tolist(), "drops of halves": of_halves.tolist(), "cells": {}, "halves": {}}
        for by, (of_cells, of_halves) in fallen.items()
    }
    with torch.no_grad():
        found["scores"] = network.model(inputs)[0, targets].tolist()
    for method in chosen:
        maps = list(draws(method, network, inputs, targets))
        for by, (of_cells, of_halves) in fallen.items():
            for depth in maps[0]:
                correlations, ranked = [], []
                for draw in maps:
                    correlations.append(metrics.spearman(contributions(draw[depth], cells), of_cells))
                    upper, lower = contributions(draw[depth], halves).T
                    ranked.append(((upper - lower) * (of_halves[:, 0] - of_halves[:, 1]) > 0).sum().double())
                found[by]["cells"].setdefault(method, {})[depth] = torch.stack(correlations).mean(0).tolist()
                found[by]["halves"].setdefault(method, {})[depth] = float(torch.stack(ranked).mean())
    return found


def tables(name: str, found: dict[str, Any]) -> str:
    """The tables of one network, in Markdown.

    Args:
        name: the network's name.
        found: what was measured.

    Returns:
        A table of cells and halves for each way to hide.
    """
    depths = DEPTHS[name]
    parts = [f"## {name}"]
    for by in BY:
        halves = "; ".join(
            f"{label} {score:.2f}, {score - upper:.2f} without the upper half, {score - lower:.2f} without the lower"
            for label, score, (upper, lower) in zip(CLASSES, found["scores"], found[by]["drops of halves"], strict=True)
        )
        lines = [f"| {' / '.join(CLASSES)} (halves) | {' | '.join(depths)} |", "|---" * (1 + len(depths)) + "|"]
        for method, of_cells in found[by]["cells"].items():
            row = [
                f"{' / '.join(f'{one:.2f}' for one in of_cells[depth])} ({found[by]['halves'][method][depth]:.3g})"
                if depth in of_cells
                else "-"
                for depth in depths
            ]
            lines.append(f"| {method} | {' | '.join(row)} |")
        parts += [f"### Hidden by {by}", f"Scores: {halves}.", "\n".join(lines)]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=DEPTHS)
    # What explains log-odds has other drops to be compared with.
    known = [method for method in methods() if not method.endswith("+log_odds")]
    default = [method for method in known if method in ("random", "gradcam") or method.startswith("cav")]
    parser.add_argument("--methods", nargs="+", default=default, choices=known, metavar="METHOD")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.hiding", *sys.argv[1:]]),
        "versions": versions_with("torch", "captum"),
        "seed": SEED,
        "classes": CLASSES,
        "networks": {},
    }
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    for name in options.networks:
        torch.manual_seed(SEED)
        report["networks"][name] = found = measure(load(name), options.methods)
        print(f"\n{tables(name, found)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
