"""What a comparison found: rows, maps, and tables, figures and files of them."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from captum_cav.checks import did_you_mean
from captum_cav.comparison import storage
from captum_cav.comparison.methods import CONTROLS
from captum_cav.errors import InputError, MapError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}

Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One map of one example.

    Attributes:
        method: the method's name.
        layer: the qualified name of the layer, or "input".
        example: its index.
        target: what was explained, None where the model gives one score.
        score: the model's score for it.
        metrics: the measures; NaN where one says nothing of such a map, or failed.
        native_shape: (h, w) of the map as the method made it.
        seconds, peak_bytes, forwards, backwards: see :class:`captum_cav.comparison.cost.Cost`; the same for all
            examples of a method and layer.
        error: what went wrong, where ``compare`` was told to go on.
    """

    method: str
    layer: str
    example: int
    target: int | tuple[int, ...] | None
    score: float
    metrics: Mapping[str, float]
    native_shape: tuple[int, int] | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    forwards: float | None = None
    backwards: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """What was compared, and how.

    Attributes:
        methods: of each name what it stood for.
        unsigned: the names of those whose maps have no sign: absolute values, of how sensitive the score is.
        shares: the names of those whose maps are shares of the score.
        directions: of each metric, which values are better.
        size: the common grid, (height, width).
        repeats: how often each method was timed.
        seed: of all that is drawn at random.
        batch_size: how many examples ran at once.
        device: where.
        versions: of the packages.
    """

    methods: Mapping[str, str]
    unsigned: tuple[str, ...]
    shares: tuple[str, ...]
    directions: Mapping[str, str | None]
    size: tuple[int, int]
    repeats: int
    seed: int
    batch_size: int
    device: str
    versions: Mapping[str, str]


class Maps(Mapping[Place, torch.Tensor]):
    """Maps by method and layer; where there is none, the error tells why.

    Args:
        found: the maps.
        errors: why some are missing.
    """

    def __init__(self, found: Mapping[Place, torch.Tensor], errors: Mapping[Place, str]) -> None:
        self._found = dict(found)
        self._errors = dict(errors)

    def __getitem__(self, place: Place) -> torch.Tensor:
        if place in self._found:
            return self._found[place]
        if place in self._errors:
            raise MapError(f"{place[0]!r} has no map at {place[1]!r}: {self._errors[place]}")
        method, layer = place
        near = did_you_mean(f"{method} at {layer}", [" at ".join(known) for known in self._found])
        raise MapError(f"no map of {method!r} at {layer!r} was asked for{near}.")

    def __contains__(self, place: object) -> bool:
        return place in self._found

    def __iter__(self) -> Iterator[Place]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side: what :func:`captum_cav.compare` returns.

    Attributes:
        rows: one for each method, layer and example.
        maps: by method and layer, maps of shape (N, H, W) on the common grid; each has the sum that it had before, and
            what is positive raised the score.
        raw: the same as the method made them, (N, h, w), channels summed.
        pictures: shape (N, H, W, 3), uint8: the inputs, stretched to what can be shown.
        settings: what was compared, and how.
    """

    rows: tuple[Row, ...]
    maps: Mapping[Place, torch.Tensor]
    raw: Mapping[Place, torch.Tensor]
    pictures: torch.Tensor = field(repr=False)
    settings: Settings

    def __str__(self) -> str:
        return self.to_markdown()

    def to_pandas(self) -> Any:
        """The rows as a ``DataFrame`` of pandas, which must be installed; each metric has its column."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas() needs the package pandas: pip install pandas") from error
        return pd.DataFrame([_flat(row) for row in self.rows])

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as comma-separated values; each metric has its column.

        Args:
            path: a file to write, too.

        Returns:
            The text.
        """
        text = io.StringIO(newline="")
        flat = [_flat(row) for row in self.rows]
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8", newline="")
        return text.getvalue()

    def to_markdown(self) -> str:
        """One line a method and layer: means over the examples, and notes on what they mean.

        The best value of each metric is bold; a star marks those that are no better than one of the controls, a random
        and an even map, at the same layer.
        """
        directions = self.settings.directions
        heads = ["method", "layer", "map", *(f"{name}{_ARROWS[way]}" for name, way in directions.items())]
        heads += ["seconds", "forward", "backward", "GPU MiB"]
        means = {
            metric: {place: _mean(row.metrics[metric] for row in rows) for place, rows in self._by_place().items()}
            for metric in directions
        }
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for place, (row, *_) in self._by_place().items():
            cells = [*place, "x".join(map(str, row.native_shape)) if row.native_shape else "-"]
            cells += [self._metric_cell(means[metric], place, way) for metric, way in directions.items()]
            peak = None if row.peak_bytes is None else row.peak_bytes / 2**20
            costs = (row.seconds, row.forwards, row.backwards, peak)
            cells += [_number(None if place[0] in CONTROLS else cost) for cost in costs]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        return "\n".join([*lines, "", *self._notes()])

    def figure(self, example: int = 0, picture: Any = None, title: str | None = None) -> Figure:
        """Methods in rows and layers in columns; those that explain the input itself side by side below.

        Red raised the score and blue lowered it; maps without a sign are heat. Each map has its own scale of colours.

        Args:
            example: which example.
            picture: what to lay the maps over, as :func:`captum_cav.visualization.show_rows` takes it; if None, the
                input, stretched.
            title: of the figure.

        Returns:
            The figure; nothing is shown.

        Raises:
            InputError: if there is no such example.
        """
        from captum_cav.comparison.figure import draw

        if not 0 <= example < len(self.pictures):
            raise InputError(f"example is {example!r}; expected 0 to {len(self.pictures) - 1}.")
        return draw(self, example, self.pictures[example].numpy() if picture is None else picture, title)

    def agreement(self, example: int | None = None) -> dict[tuple[Place, Place], float]:
        """How alike the maps of each two methods and layers are: Spearman's rank correlation on the common grid.

        Args:
            example: of which example; None for the mean over all.

        Returns:
            The correlation of each pair, NaN where a map is constant.
        """
        from captum_cav.metrics import agreement

        places = list(self.maps)
        chosen = slice(None) if example is None else slice(example, example + 1)
        return {
            (one, other): _mean(agreement(self.maps[one][chosen], self.maps[other][chosen]).tolist())
            for index, one in enumerate(places)
            for other in places[index + 1 :]
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything into a folder: maps as safetensors, the rest as JSON; nothing that could be executed.

        The manifest is written last, so that :meth:`load` recognises what was interrupted.

        Args:
            folder: is made if it is not there; what an earlier comparison left in it is replaced.
        """
        storage.write(
            Path(folder),
            {
                "pictures": self.pictures,
                **{f"{kind}/{index}": maps[place] for kind, maps in self._kinds() for index, place in enumerate(maps)},
            },
            {
                "rows": [_jsonable(row.__dict__) for row in self.rows],
                "places": list(self.maps),
                "settings": _jsonable(self.settings.__dict__),
            },
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if there is no comparison, or not all of it.
        """
        tensors, facts = storage.read(Path(folder))
        rows = tuple(Row(**_as_row(row)) for row in facts["rows"])
        places = [(method, layer) for method, layer in facts["places"]]
        settings = facts["settings"]
        settings |= {name: tuple(settings[name]) for name in ("unsigned", "shares", "size")}
        return build(
            rows,
            {place: tensors[f"maps/{index}"] for index, place in enumerate(places)},
            {place: tensors[f"raw/{index}"] for index, place in enumerate(places)},
            tensors["pictures"],
            Settings(**settings),
        )

    def _kinds(self) -> tuple[tuple[str, Mapping[Place, torch.Tensor]], ...]:
        return ("maps", self.maps), ("raw", self.raw)

    def _by_place(self) -> dict[Place, list[Row]]:
        found: dict[Place, list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.method, row.layer), []).append(row)
        return found

    def _metric_cell(self, means: Mapping[Place, float], place: Place, way: str | None) -> str:
        value = means[place]
        if way is None or math.isnan(value):
            return _number(value)
        best: Callable[[Iterable[float]], float] = max if way == "higher" else min
        controls = [means[control, place[1]] for control in CONTROLS if not math.isnan(means[control, place[1]])]
        if place[0] in CONTROLS:
            return _number(value)
        if controls and best([value, *controls]) in controls:
            return f"{_number(value)}*"
        leads = value == best(other for other in means.values() if not math.isnan(other))
        return f"**{_number(value)}**" if leads else _number(value)

    def _notes(self) -> list[str]:
        settings = self.settings
        examples = len(self.pictures)
        height, width = settings.size
        clock = f"the median of {settings.repeats} after a warm-up, on {settings.device}"
        notes = [f"Means over {examples} examples."] if examples > 1 else []
        notes.append(
            f"Metrics are of maps of {height} x {width}; passes and seconds ({clock}) are those of one example."
        )
        if settings.directions:
            notes.append("Bold: the best. *: no better than a control (random or uniform) at that layer.")
        if settings.unsigned:
            notes.append(
                f"Without a sign (absolute values, of what the score is sensitive to): {', '.join(settings.unsigned)}."
            )
        failed: dict[tuple[str, str], list[str]] = {}
        for (method, layer), rows in self._by_place().items():
            if rows[0].error:
                failed.setdefault((method, rows[0].error), []).append(layer)
        notes += [f"{method} at {', '.join(layers)}: {error}" for (method, error), layers in failed.items()]
        return notes


def build(
    rows: Sequence[Row],
    maps: Mapping[Place, torch.Tensor],
    raw: Mapping[Place, torch.Tensor],
    pictures: torch.Tensor,
    settings: Settings,
) -> Comparison:
    """A comparison whose missing maps say why they are missing."""
    errors = {(row.method, row.layer): row.error for row in rows if row.error}
    return Comparison(tuple(rows), Maps(maps, errors), Maps(raw, errors), pictures, settings)


def as_pictures(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of shape (N, C, H, W) as pictures, (N, H, W, 3) of uint8, each stretched to the range of its numbers."""
    low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
    shown = (inputs - low) / (high - low).clamp(min=torch.finfo(inputs.dtype).tiny)
    shown = shown if shown.shape[1] == 3 else shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * shown).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


def _flat(row: Row) -> dict[str, Any]:
    height, width = row.native_shape or (None, None)
    return {
        "method": row.method,
        "layer": row.layer,
        "example": row.example,
        "target": row.target,
        "score": row.score,
        **row.metrics,
        "height": height,
        "width": width,
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "forwards": row.forwards,
        "backwards": row.backwards,
        "error": row.error,
    }


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        name: {key: None if _is_nan(one) else one for key, one in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in values.items()
    }


def _as_row(values: Mapping[str, Any]) -> dict[str, Any]:
    shape, target = values["native_shape"], values["target"]
    return {
        **values,
        "metrics": {name: math.nan if value is None else value for name, value in values["metrics"].items()},
        "native_shape": None if shape is None else tuple(shape),
        "target": tuple(target) if isinstance(target, list) else target,
    }


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
