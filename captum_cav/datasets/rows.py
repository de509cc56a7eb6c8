"""The rows of an output: their columns, how they become text, and how text becomes rows again."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from captum_cav.datasets.jobs import Job
from captum_cav.datasets.layout import shard_name
from captum_cav.datasets.sources import Item

#: The values of a row by column. None where there is nothing to say.
Row: TypeAlias = dict[str, Any]
#: Where a score came from, seen at one layer: a column for each of these and each layer, such as "raised:layer4".
SHARES = ("raised", "lowered", "constants", "unexplained")
_BEFORE = ("row", "index", "id", "path", "label", "target", "best", "score", "probability")
_BEHIND = ("shard", "group", "position", "error")
INTEGERS = {"row", "index", "label", "best", "group", "position"}
_TEXTS = {"id", "path", "shard", "error"}


def columns(layers: Sequence[str]) -> list[str]:
    """The names of all columns.

    Args:
        layers: the names of the layers.

    Example::

        >>> columns(["head"])[8:12]
        ['probability', 'raised:head', 'lowered:head', 'constants:head']
    """
    return [*_BEFORE, *(f"{share}:{layer}" for layer in layers for share in SHARES), *_BEHIND]


def map_name(group: int, layer: str) -> str:
    """The name of the maps of a layer in the file of a shard."""
    return f"{group}/maps/{layer}"


def scale_name(group: int, layer: str) -> str:
    """The name of what the numbers of float16 maps are multiples of."""
    return f"{group}/scales/{layer}"


def scores_name(group: int) -> str:
    """The name of all scores of the model."""
    return f"{group}/scores"


def empty(job: Job, shard: int, item: Item) -> list[Row]:
    """The rows of a picture, one for each target, before anything was measured."""
    blank: Row = dict.fromkeys(columns(job.explainer.layers))
    targets: Sequence[Any] = [None] if isinstance(job.targets, str) else job.targets
    if job.targets == "label":
        targets = [item.label]
    return [
        blank
        | {
            "row": item.index * job.rows_per_picture + number,
            "index": item.index,
            "id": item.id,
            "path": item.path,
            "label": item.label,
            "target": target,
            "shard": shard_name(shard),
            "error": item.error,
        }
        for number, target in enumerate(targets)
    ]


def fill(
    job: Job, row: Row, score: float, probability: float, best: int | None, shares: Sequence[Sequence[float]]
) -> None:
    """Put what was measured into a row.

    Args:
        job: the job.
        row: the row.
        score, probability: of the target.
        best: the class with the highest score.
        shares: for each layer, the numbers of :data:`SHARES`.
    """
    row |= {"score": score, "probability": _number(probability), "best": best}
    for layer, of_layer in zip(job.explainer.layers, shares, strict=True):
        row |= {f"{share}:{layer}": _number(value) for share, value in zip(SHARES, of_layer, strict=True)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_csv(job: Job, found: Sequence[Row]) -> bytes:
    """Rows as the text of a table."""
    text = io.StringIO()
    names = columns(job.explainer.layers)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in found:
        writer.writerow([_text(row[name]) for name in names])
    return text.getvalue().encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return format(value, ".9g")  # the digits that tell numbers of float32 apart
    return json.dumps(value) if isinstance(value, (tuple, list)) else str(value)


def read_csv(data: str) -> Iterator[Row]:
    """The rows of a table that :func:`as_csv` wrote."""
    for row in csv.DictReader(io.StringIO(data)):
        yield {name: _value(name, text) for name, text in row.items()}


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if not text:
        return None
    if name in INTEGERS:
        return int(text)
    if name == "target":
        return tuple(json.loads(text)) if text.startswith("[") else int(text)
    return float(text)
