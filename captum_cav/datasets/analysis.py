"""What the maps of a dataset say, class by class: what the network goes by, and whether some pictures have a shortcut.

:func:`analyze` reads what :func:`captum_cav.datasets.explain_dataset` wrote::

    from captum_cav import datasets

    found = datasets.analyze(datasets.open("explained"))
    found.classes[0].name                       # the class in which one group of maps stands farthest apart
    found.classes[0].clustering.standout.mean   # what this group goes by, a map
    [one.name for one in found.reported]        # the classes with a possible shortcut

Needs scikit-learn: ``pip install "captum_cav[analysis]"``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from tqdm import tqdm

from captum_cav import checks
from captum_cav.datasets.clusters import (
    Cluster,
    Clustering,
    find_clusters,
    in_parts_of_size,
    require_sklearn,
    typical_first,
)
from captum_cav.datasets.reading import Explained, ExplainedDataset, open_output
from captum_cav.errors import InputError, LayerError
from captum_cav.maps import resize_map
from captum_cav.metrics import agreement
from captum_cav.suggestions import did_you_mean

__all__ = ["Analysis", "ClassAnalysis", "analyze"]

#: The class of a row: an index, or a tuple for models with more than one dimension of classes.
Target: TypeAlias = Any

# Maps are pooled to at most so many places a side. Finer maps of the same strategy have less in common.
_MOST_SIDE = 16
# The layer that is analysed if none is named has at least so many places a side, if there is such a layer.
_ENOUGH_SIDE = 12


@dataclass(frozen=True)
class ClassAnalysis:
    """What the maps of one class say.

    Positions in ``clustering`` are positions in ``rows``.

    Attributes:
        target: the class.
        name: its name.
        count: the number of rows of this class in the output.
        rows: the rows whose maps were analysed, in ascending order.
        maps: shape (N, h, w), their maps, pooled; the absolute values of a map add up to 1, and positive numbers raised
            the score.
        mean: shape (h, w), the mean of these maps.
        typical_first: positions in ``rows``, the row whose map is most similar to the mean first.
        constants: for each layer, the mean share of the score that constants have (as biases); None if it was not
            measured.
        agreement: for each pair of neighbouring layers, Spearman's rank correlation of their maps, the mean over the
            rows; NaN if a layer has no maps with places.
        clustering: the groups of maps.
    """

    target: Target
    name: str
    count: int
    rows: tuple[int, ...]
    maps: torch.Tensor
    mean: torch.Tensor
    typical_first: tuple[int, ...]
    constants: Mapping[str, float | None]
    agreement: Mapping[tuple[str, str], float]
    clustering: Clustering


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        output: the rows and maps that were analysed.
        layer: the layer whose maps were analysed.
        classes: all classes, that with the group that stands farthest apart first.
        skipped: how many of the chosen rows have no map that can be analysed: the map holds only zeros, or holds NaN or
            infinity.
    """

    output: ExplainedDataset
    layer: str
    classes: tuple[ClassAnalysis, ...]
    skipped: int

    @property
    def reported(self) -> tuple[ClassAnalysis, ...]:
        """The classes with a possible shortcut, in which one group goes by something that the others do not have."""
        return tuple(one for one in self.classes if one.clustering.is_reported)

    def to_dict(self) -> dict[str, Any]:
        """The analysis as values for JSON, without the maps of single pictures. NaN becomes None."""
        return {
            "folder": str(self.output.folder),
            "layer": self.layer,
            "rows": sum(len(one.rows) for one in self.classes),
            "skipped": self.skipped,
            "reported": [one.target for one in self.reported],
            "classes": [_class_as_dict(one) for one in self.classes],
        }


def analyze(
    output: ExplainedDataset | str | os.PathLike[str],
    *,
    layer: str | None = None,
    sample: int = 300,
    seed: int = 0,
    progress: bool = False,
) -> Analysis:
    """Find out what a network goes by, class by class.

    A row counts for the class that was explained. If several classes were explained for every picture, a picture counts
    for one of them only if that class has the highest score. The same output and the same arguments give the same
    result.

    Args:
        output: what :func:`captum_cav.datasets.open` returns, or the folder. The job may be unfinished.
        layer: the layer whose maps are analysed. If None, the layer with the fewest places among those with at least
            12 on each side; if there is no such layer, the layer with the most places.
        sample: how many rows of each class are analysed at most. They are chosen at random.
        seed: for this choice, and for :func:`captum_cav.datasets.clusters.find_clusters`.
        progress: whether to show a progress bar on standard error.

    Returns:
        The classes, that with the group that stands farthest apart first.

    Raises:
        LayerError: if there are no maps of the layer, or if the layer has no places.
        InputError: if the output has no rows with maps.
        UnavailableError: if scikit-learn is not installed.

    Example::

        >>> import tempfile
        >>> from captum_cav import LayerCAV, datasets
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 2)).eval()
        >>> pictures = torch.utils.data.TensorDataset(torch.rand(50, 1, 4, 4), torch.zeros(50, dtype=torch.long))
        >>> folder = tempfile.mkdtemp()
        >>> attribution = LayerCAV(model, ["0"], normalize="abs")
        >>> out = datasets.explain_dataset(attribution, pictures, folder, targets="label", progress=False)
        >>> found = analyze(out)
        >>> found.classes[0].target, found.classes[0].mean.shape, len(found.reported)
        (0, torch.Size([4, 4]), 0)
    """
    require_sklearn()
    checks.check_count(sample, "sample")
    if not isinstance(output, ExplainedDataset):
        output = open_output(output)
    chosen = _choose(output, sample, seed)
    layer = _find_layer(output, layer, next(iter(chosen.values())).rows[0])
    read = _read(output, chosen, layer, progress=progress)
    classes = [
        _analyze_class(output, target, one, seed)
        for target, one in tqdm(chosen.items(), "groups", disable=not progress, unit="class", leave=False, delay=1)
        if one.maps
    ]
    if not classes:
        raise InputError(
            f"all {read} maps of {layer} in {output.folder} hold only zeros, NaN or infinity; expected maps with "
            "contributions."
        )
    classes.sort(key=lambda one: -one.clustering.distance)  # equal distances stay in the order of the classes
    return Analysis(output, layer, tuple(classes), read - sum(len(one.rows) for one in classes))


class _Chosen:
    """The rows of one class that are analysed, and what was read of them."""

    def __init__(self, count: int, rows: Sequence[int]) -> None:
        self.count, self.rows = count, rows
        self.with_maps: list[int] = []
        self.maps: list[torch.Tensor] = []
        self.constants: dict[str, list[float]] = {}
        self.agreements: dict[tuple[str, str], list[float]] = {}


def _choose(output: ExplainedDataset, sample: int, seed: int) -> dict[Target, _Chosen]:
    """The rows of each class that are analysed."""
    targets = output.manifest["settings"]["targets"]
    several = isinstance(targets, list) and len(targets) > 1
    rows_of: dict[Target, list[int]] = {}
    for number, row in enumerate(output.rows()):
        if not row["error"] and (not several or row["best"] in (row["target"], None)):
            rows_of.setdefault(row["target"], []).append(number)
    if not rows_of:
        raise InputError(f"{output.folder} has no rows without errors; expected explained pictures.")
    generator = np.random.default_rng(seed)
    chosen = {}
    for target, rows in sorted(rows_of.items(), key=lambda item: _position(item[0])):
        some = generator.choice(rows, sample, replace=False) if len(rows) > sample else np.array(rows)
        chosen[target] = _Chosen(len(rows), sorted(some.tolist()))
    return chosen


def _position(target: Target) -> tuple[bool, Any]:
    """Where a class stands among all: by its index, and targets of other kinds behind these."""
    return (False, target) if isinstance(target, int) else (True, str(target))


def _find_layer(output: ExplainedDataset, layer: str | None, row: int) -> str:
    """The layer to analyse. All rows have maps of the same layers, so one row tells which layers have places."""
    if layer is not None and layer not in output.layers:
        raise LayerError(
            f"{output.folder} has no maps of {layer!r}{did_you_mean(layer, output.layers)}; expected one of "
            f"{', '.join(map(repr, output.layers))}."
        )
    sides = {}
    for name in output.layers:
        # Reading a map raises the reader's own error if no maps were kept.
        found = _places(output, output.map(row, name))
        if found is not None:
            sides[name] = min(found.shape)
    if layer is not None and layer in sides:
        return layer
    if layer is not None or not sides:
        raise LayerError(
            f"the maps of {layer or ', '.join(output.layers)} in {output.folder} have no places in two dimensions; "
            f"expected maps of shape (h, w){', as those of ' + ', '.join(sides) if sides else ''}."
        )
    enough = {one: side for one, side in sides.items() if side >= _ENOUGH_SIDE}
    return min(enough, key=lambda one: enough[one]) if enough else max(sides, key=lambda one: sides[one])


def _places(output: ExplainedDataset, found: torch.Tensor) -> torch.Tensor | None:
    """A map of shape (h, w), or None if the attributions have no places in two dimensions."""
    if found.dim() == 3 and "channels" in output.manifest["settings"]["keep"]:
        found = found.sum(0)
    return found if found.dim() == 2 else None


def _read(output: ExplainedDataset, chosen: Mapping[Target, _Chosen], layer: str, *, progress: bool) -> int:
    """Read the chosen rows in the order of the output, so that each shard is opened once. Returns their number."""
    class_of = {row: one for one in chosen.values() for row in one.rows}
    of_ratios = output.manifest["settings"].get("normalize") == "score"
    grid: tuple[int, int] | None = None
    for number in tqdm(sorted(class_of), "maps", disable=not progress, unit="map", leave=False, delay=1):
        explained = output[number]
        one = class_of[number]
        for name in output.layers:
            share = explained.row.get(f"constants:{name}")
            if share is not None:
                one.constants.setdefault(name, []).append(share)
        maps = _maps_by_layer(output, explained)
        for pair in itertools.pairwise(output.layers):
            similar = _agreement(maps, pair)
            if math.isfinite(similar):
                one.agreements.setdefault(pair, []).append(similar)
        found = maps.get(layer)
        if found is None:
            continue
        grid = grid or (min(found.shape[0], _MOST_SIDE), min(found.shape[1], _MOST_SIDE))
        # Ratios to a negative score have the opposite sign.
        sign = -1 if of_ratios and explained.row["score"] < 0 else 1
        one.with_maps.append(number)
        one.maps.append(sign * (found if tuple(found.shape) == grid else resize_map(found, grid)))
    return len(class_of)


def _maps_by_layer(output: ExplainedDataset, explained: Explained) -> dict[str, torch.Tensor]:
    """The maps of a row that have places, are finite and are not only zeros."""
    maps = {name: _places(output, found) for name, found in explained.maps.items()}
    return {
        name: found
        for name, found in maps.items()
        if found is not None and bool(found.isfinite().all()) and bool(found.any())
    }


def _agreement(maps: Mapping[str, torch.Tensor], pair: tuple[str, str]) -> float:
    first, second = (maps.get(name) for name in pair)
    return math.nan if first is None or second is None else float(agreement(first[None], second[None]))


def _analyze_class(output: ExplainedDataset, target: Target, chosen: _Chosen, seed: int) -> ClassAnalysis:
    maps = in_parts_of_size(torch.stack(chosen.maps).double())
    return ClassAnalysis(
        target=target,
        name=class_name(output, target),
        count=chosen.count,
        rows=tuple(chosen.with_maps),
        maps=maps,
        mean=maps.mean(0),
        typical_first=tuple(typical_first(maps)),
        constants={name: _mean(chosen.constants.get(name)) for name in output.layers},
        agreement={
            pair: math.nan if (mean := _mean(chosen.agreements.get(pair))) is None else mean
            for pair in itertools.pairwise(output.layers)
        },
        clustering=find_clusters(maps, seed=seed),
    )


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def class_name(output: ExplainedDataset, target: Target) -> str:
    """The name of a class: that of the output if there is one, or for example "class 3"."""
    if target is None:
        return "the score"
    is_known = isinstance(target, int) and 0 <= target < len(output.classes)
    return output.classes[target] if is_known else f"class {target}"


def _class_as_dict(one: ClassAnalysis) -> dict[str, Any]:
    clustering = one.clustering
    return {
        "target": one.target,
        "name": one.name,
        "count": one.count,
        "analysed": len(one.rows),
        "reported": clustering.is_reported,
        "distance": clustering.distance,
        "chance": clustering.chance,
        "standout": None if clustering.standout is None else _cluster_as_dict(one, clustering.standout),
        "clusters": [_cluster_as_dict(one, cluster) for cluster in clustering.clusters],
        "mean": one.mean.tolist(),
        "typical": [one.rows[position] for position in one.typical_first[:10]],
        "untypical": [one.rows[position] for position in one.typical_first[:-11:-1]],
        "constants": dict(one.constants),
        "agreement": [
            {"layers": list(pair), "mean": None if math.isnan(value) else value}
            for pair, value in one.agreement.items()
        ],
    }


def _cluster_as_dict(one: ClassAnalysis, cluster: Cluster) -> dict[str, Any]:
    return {
        "rows": [one.rows[position] for position in cluster.members],
        "distance": cluster.distance,
        "in_total": cluster.in_total,
        "at_place": cluster.at_place,
        "place": list(cluster.place),
        "has_more": cluster.has_more,
        "mean": cluster.mean.tolist(),
    }
