"""The measures by their definitions: one example, one pixel at a time, in plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch


def places(rows: Any) -> list[float]:
    return [float(value) for row in rows for value in row]


def gini(rows: Any) -> float:
    """The mean difference between any two, over twice the mean."""
    sizes = [abs(value) for value in places(rows)]
    if not sum(sizes):
        return 0.0
    differences = sum(abs(one - other) for one in sizes for other in sizes)
    return differences / (2 * len(sizes) * sum(sizes))


def entropy(rows: Any) -> float:
    sizes = [abs(value) for value in places(rows)]
    if len(sizes) == 1:
        return 0.0
    if not sum(sizes):
        return 1.0
    shares = [size / sum(sizes) for size in sizes if size / sum(sizes)]
    return -sum(share * math.log(share) for share in shares) / math.log(len(sizes))


def ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in list(values)]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else math.nan


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    pair = [ranks(list(values)) for values in (one, other)]
    return cosine(*([rank - sum(of) / len(of) for rank in of] for of in pair))


def bilinear(rows: Any, size: tuple[int, int]) -> list[list[float]]:
    """Bilinear interpolation between the centres of cells, the window as wide as a new cell where that is wider."""
    lines = [_along([float(value) for value in row], size[1]) for row in rows]
    columns = [_along(list(column), size[0]) for column in zip(*lines, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _along(values: list[float], new: int) -> list[float]:
    scale = len(values) / new
    result = []
    for place in range(new):
        centre = (place + 0.5) * scale
        weights = [max(0.0, 1 - abs(cell + 0.5 - centre) / max(scale, 1.0)) for cell in range(len(values))]
        result.append(sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights))
    return result


def mass_accuracy(rows: Any, mask: Any) -> float:
    positive = bilinear([[max(float(value), 0.0) for value in row] for row in rows], (len(mask), len(mask[0])))
    total = sum(places(positive))
    inside = [value for value, is_in in zip(places(positive), places(mask), strict=True) if is_in]
    return sum(inside) / total if total else 0.0


def expected_over_orders(rows: Any, mask: Any, count: int) -> float:
    """How many of the ``count`` highest are inside, on average over all orders that put higher values first."""
    values, inside = places(rows), places(mask)
    hits = [
        sum(inside[place] for place in sorted(order, key=lambda place: -values[place])[:count])
        for order in itertools.permutations(range(len(values)))
    ]
    return sum(hits) / len(hits) / count


Model = Callable[[torch.Tensor], torch.Tensor]


def _value(model: Model, picture: torch.Tensor, target: int, probability: bool) -> float:
    scores = [float(score) for score in model(picture[None])[0]]
    if not probability:
        return scores[target]
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return exponentials[target] / sum(exponentials)


@torch.no_grad()
def area(
    model: Model,
    picture: torch.Tensor,
    rows: Any,
    target: int,
    baseline: torch.Tensor,
    *,
    steps: int,
    insert: bool,
    probability: bool = True,
) -> float:
    height, width = picture.shape[1:]
    values = places(bilinear(rows, (height, width)))
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    now, instead = (baseline.clone(), picture) if insert else (picture.clone(), baseline)
    taken, curve = 0, []
    for step in range(steps + 1):
        while taken * steps < step * len(order):
            row, column = divmod(order[taken], width)
            now[:, row, column] = instead[:, row, column]
            taken += 1
        curve.append(_value(model, now, target, probability))
    return sum((one + other) / 2 for one, other in itertools.pairwise(curve)) / steps


@torch.no_grad()
def single_deletion(
    model: Model,
    picture: torch.Tensor,
    rows: Any,
    target: int,
    baseline: torch.Tensor,
    *,
    cells: int,
    probability: bool = False,
) -> float:
    height, width = picture.shape[1:]
    spread = bilinear(rows, (height, width))
    means, drops = [], []
    for above, left in itertools.product(_parts(height, cells), _parts(width, cells)):
        changed = picture.clone()
        values = []
        for row in above:
            for column in left:
                changed[:, row, column] = baseline[:, row, column]
                values.append(spread[row][column])
        means.append(sum(values) / len(values))
        whole, without = (_value(model, one, target, probability) for one in (picture, changed))
        drops.append(whole - without)
    return spearman(means, drops)


def _parts(length: int, count: int) -> list[range]:
    """As even as can be, the longer ones first."""
    result, start = [], 0
    for part in range(count):
        end = start + length // count + (part < length % count)
        result.append(range(start, end))
        start = end
    return result


def blurred(picture: torch.Tensor) -> torch.Tensor:
    """A Gaussian of a sixteenth of the height (one pixel at least), cut off at two deviations, mirrored at borders."""
    deviation = max(picture.shape[1] / 16, 1.0)
    result = picture
    for dim in (1, 2):
        length = picture.shape[dim]
        radius = min(int(2 * deviation), length - 1)
        weights = [math.exp(-((offset / deviation) ** 2) / 2) for offset in range(-radius, radius + 1)]
        moved = torch.zeros_like(picture)
        for place in range(length):
            for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
                source = abs(place + offset)
                source = source if source < length else 2 * (length - 1) - source
                moved.select(dim, place).add_(weight / sum(weights) * result.select(dim, source))
        result = moved
    return result


def shares_in_cells(rows: Any) -> list[float]:
    """By the area that each place has in each quarter of the map."""
    height, width = len(rows), len(rows[0])

    def overlap(place: int, half: int, length: int) -> float:
        low, high = half * length / 2, (half + 1) * length / 2
        return max(0.0, min(place + 1, high) - max(place, low))

    shares = []
    for half, side in itertools.product((0, 1), (0, 1)):
        parts = [
            max(float(rows[row][column]), 0.0) * overlap(row, half, height) * overlap(column, side, width)
            for row in range(height)
            for column in range(width)
        ]
        shares.append(sum(parts))
    total = sum(shares)
    return [share / total if total else 0.0 for share in shares]
