"""The rows of a comparison as text: comma-separated values, and a Markdown table of means with notes."""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from captum_cav.comparison.methods import CONTROLS
from captum_cav.comparison.records import Place, Row, Settings

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def flat(row: Row) -> dict[str, Any]:
    """A row as columns: one for each metric, and the size of the map: height and width, depth, or length."""
    shape = row.native_shape or (None, None)
    names = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}[len(shape)]
    return {
        "method": row.method,
        "layer": row.layer,
        "example": row.example,
        "target": row.target,
        "score": row.score,
        **row.metrics,
        **dict(zip(names, shape, strict=True)),
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "forwards": row.forwards,
        "backwards": row.backwards,
        "error": row.error,
    }


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values, below one line of column names."""
    text = io.StringIO(newline="")
    columns = [flat(row) for row in rows]
    # Where a method failed, nobody knows whether its map has a depth.
    writer = csv.DictWriter(text, max((list(row) for row in columns), key=len), lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns)
    return text.getvalue()


def markdown(rows: Sequence[Row], settings: Settings) -> str:
    """One line for each method and layer, with means over the examples, and notes below the table.

    Args:
        rows: the rows of a comparison.
        settings: how they were measured.

    Returns:
        The table and the notes.
    """
    heads, *cells = _cells(rows, settings)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    return "\n".join([*lines, "", *_notes(_by_place(rows), settings)])


def as_html(rows: Sequence[Row], settings: Settings) -> str:
    """What :func:`markdown` shows, as HTML.

    Args:
        rows: the rows of a comparison.
        settings: how they were measured.
    """
    heads, *cells = _cells(rows, settings)

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell.strip('*'))}</{tag}>" for cell in row) + "</tr>"

    notes = "".join(f"<p>{html.escape(note)}</p>" for note in _notes(_by_place(rows), settings))
    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in cells)}</table>{notes}"


def _cells(rows: Sequence[Row], settings: Settings) -> list[list[str]]:
    """The names of the columns, and the cells of each method and layer. Without metrics, controls tell nothing."""
    directions = settings.directions
    places = {place: of_place for place, of_place in _by_place(rows).items() if directions or place[0] not in CONTROLS}
    heads = ["method", "layer", "map", *(f"{name}{_ARROWS[better]}" for name, better in directions.items())]
    heads += ["seconds", "forward", "backward", "GPU MiB"]
    means = {
        metric: {place: mean(row.metrics[metric] for row in of_place) for place, of_place in places.items()}
        for metric in directions
    }
    found = [heads]
    for place, (row, *_) in places.items():
        cells = [*place, "x".join(map(str, row.native_shape)) if row.native_shape else "-"]
        cells += [_metric_cell(means[metric], place, better) for metric, better in directions.items()]
        peak = None if row.peak_bytes is None else row.peak_bytes / 2**20
        costs = (row.seconds, row.forwards, row.backwards, peak)
        cells += [_number(None if place[0] in CONTROLS else cost) for cost in costs]
        found.append(cells)
    return found


def mean(values: Iterable[float]) -> float:
    """The mean of the numbers without NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _by_place(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    found: dict[Place, list[Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.layer), []).append(row)
    return found


def _metric_cell(means: Mapping[Place, float], place: Place, better: str | None) -> str:
    """A mean: bold if it is the best of all, with a star if a control at the same layer is as good."""
    value = means[place]
    if better is None or math.isnan(value):
        return _number(value)
    best: Callable[[Iterable[float]], float] = max if better == "higher" else min
    controls = [means[control, place[1]] for control in CONTROLS if not math.isnan(means[control, place[1]])]
    if place[0] in CONTROLS:
        return _number(value)
    if controls and best([value, *controls]) in controls:
        return f"{_number(value)}*"
    leads = value == best(other for other in means.values() if not math.isnan(other))
    return f"**{_number(value)}**" if leads else _number(value)


def _notes(places: Mapping[Place, Sequence[Row]], settings: Settings) -> list[str]:
    examples = len(next(iter(places.values())))
    clock = f"the median of {settings.repeats} after a warm-up, on {settings.device}"
    notes = [f"Means over {examples} examples."] if examples > 1 else []
    size = " x ".join(map(str, settings.size))
    passes = f"Metrics are of maps of {size}; passes" if settings.directions else "Passes"
    notes.append(f"{passes} and seconds ({clock}) are those of one example.")
    if settings.squashed_by:
        notes.append(f"The model ends in {settings.squashed_by}: scores and maps are those of the numbers before it.")
    if settings.directions:
        notes.append("Bold: the best. *: no better than a control (random or uniform) at that layer.")
    if settings.unsigned:
        notes.append(
            f"Without a sign (absolute values, of what the score is sensitive to): {', '.join(settings.unsigned)}."
        )
    failed: dict[tuple[str, str], list[str]] = {}
    for (method, layer), rows in places.items():
        if rows[0].error:
            failed.setdefault((method, rows[0].error), []).append(layer)
    notes += [f"{method} at {', '.join(layers)}: {error}" for (method, error), layers in failed.items()]
    return notes


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
