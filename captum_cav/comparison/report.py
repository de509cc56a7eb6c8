"""The result of a comparison: rows and maps, and tables, figures and files of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from captum_cav.comparison import storage, tables
from captum_cav.comparison.figure import draw, draw_sequences
from captum_cav.comparison.records import Maps, Place, Row, Settings
from captum_cav.errors import InputError
from captum_cav.metrics import agreement
from captum_cav.visualization.notebooks import html_image

__all__ = ["Comparison", "Place", "Row", "Settings", "as_pictures", "build"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods on the same inputs: what :func:`captum_cav.compare` returns.

    Attributes:
        rows: one row for each method, layer and example.
        maps: by method and layer, maps of shape (N, H, W) on the common grid. A map has the same sum on the common grid
            as on its own grid. A positive place raised the score.
        raw: by method and layer, maps of shape (N, h, w) as the method returned them, summed over channels.
        pictures: shape (N, H, W, 3), uint8: the inputs, stretched to the range of colours.
        settings: what was compared, and how.
    """

    rows: tuple[Row, ...]
    maps: Mapping[Place, torch.Tensor]
    raw: Mapping[Place, torch.Tensor]
    pictures: torch.Tensor = field(repr=False)
    settings: Settings

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        layers = list(dict.fromkeys(row.layer for row in self.rows))
        return (
            f"Comparison(methods={list(self.settings.methods)}, layers={layers}, examples={len(self.pictures)}, "
            f"measures={list(self.settings.directions)})"
        )

    def _repr_html_(self) -> str:
        return html_image(self.figure(), repr(self)) + tables.as_html(self.rows, self.settings)

    def to_pandas(self) -> Any:
        """The rows as a ``DataFrame`` of pandas, with one column for each metric. Pandas must be installed."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas() needs the package pandas: pip install pandas") from error
        return pd.DataFrame([tables.flat(row) for row in self.rows])

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as comma-separated values, with one column for each metric.

        Args:
            path: a file to write; None to write no file.

        Returns:
            The text.
        """
        text = tables.csv_text(self.rows)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8", newline="")
        return text

    def to_markdown(self) -> str:
        """A table with one line for each method and layer: means over the examples. Notes stand below the table.

        The best value of each metric is bold. A star marks a value that is no better than the value of a control at the
        same layer; the controls are a random map and a uniform map.
        """
        return tables.markdown(self.rows, self.settings)

    def figure(self, example: int = 0, picture: Any = None, title: str | None = None) -> Figure:
        """The maps of one example: methods in rows and layers in columns. Methods for the input share the first rows.

        Red raised the score and blue lowered the score. Maps without a sign are drawn as heat. Each map has a scale of
        colours for itself. Volumes and videos are seen along the depth: pictures are means and maps are sums.

        Args:
            example: the index of the example.
            picture: the picture under the maps, as :func:`captum_cav.visualization.show_rows` takes it; if None, the
                input, stretched to the range of colours. For a sequence the words, one for each place, and for a signal
                the numbers, of shape (T,); if None, the mean over the channels.
            title: the title of the figure; None for one that names the score.

        Returns:
            The figure. No window is opened.

        Raises:
            InputError: if there is no such example.
        """
        if not 0 <= example < len(self.pictures):
            raise InputError(f"example is {example!r}; expected 0 to {len(self.pictures) - 1}.")
        shown = self.pictures[example].numpy() if picture is None else picture
        flat = {place: maps.sum(1) if maps.dim() == 4 else maps for place, maps in self.raw.items()}
        if len(self.settings.size) == 1:
            shown = shown[0, :, 0].astype(float) if picture is None else picture
            return draw_sequences(self.rows, flat, self.settings, example, shown, title)
        return draw(self.rows, flat, self.settings, example, shown, title)

    def agreement(self, example: int | None = None) -> dict[tuple[Place, Place], float]:
        """How similar the maps of each pair of methods and layers are: Spearman's rank correlation on the common grid.

        Args:
            example: the index of an example; None for the mean over all examples.

        Returns:
            The correlation of each pair; NaN if a map is constant.
        """
        chosen = slice(None) if example is None else slice(example, example + 1)
        maps = {place: maps[chosen] for place, maps in self.maps.items()}
        places = list(maps)
        return {
            (one, other): tables.mean(agreement(maps[one], maps[other]).tolist())
            for index, one in enumerate(places)
            for other in places[index + 1 :]
        }

    @classmethod
    def join(cls, parts: Sequence[Comparison]) -> Comparison:
        """One comparison of several, which compared the same methods at the same layers on different examples.

        Args:
            parts: the comparisons, at least one. Their maps and pictures have the same sizes.

        Returns:
            A comparison whose examples are numbered through. A map that some part lacks is left out.
        """
        first = parts[0]
        places = [place for place in first.maps if all(place in part.maps for part in parts)]
        cells = list(dict.fromkeys((row.method, row.layer) for row in first.rows))
        rows, start = [], 0
        for part in parts:
            rows += [replace(row, example=row.example + start) for row in part.rows]
            start += len(part.pictures)
        return build(
            sorted(rows, key=lambda row: (cells.index((row.method, row.layer)), row.example)),
            {place: torch.cat([part.maps[place] for part in parts]) for place in places},
            {place: torch.cat([part.raw[place] for part in parts]) for place in places},
            torch.cat([part.pictures for part in parts]),
            first.settings,
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything into a folder: the maps as safetensors, the rest as JSON. No file can execute code.

        The manifest is written last. So :meth:`load` recognises a folder whose writing was interrupted.

        Args:
            folder: the folder; it is made if it does not exist. The files of an earlier comparison are replaced.
        """
        storage.write(
            Path(folder),
            {
                "pictures": self.pictures,
                **{
                    f"{kind}/{index}": maps[place]
                    for kind, maps in (("maps", self.maps), ("raw", self.raw))
                    for index, place in enumerate(maps)
                },
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

        Args:
            folder: the folder.

        Returns:
            The comparison.

        Raises:
            InputError: if the folder has no comparison, or only a part of one.
        """
        tensors, facts = storage.read(Path(folder))
        rows = tuple(Row(**_row_fields(row)) for row in facts["rows"])
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


def build(
    rows: Sequence[Row],
    maps: Mapping[Place, torch.Tensor],
    raw: Mapping[Place, torch.Tensor],
    pictures: torch.Tensor,
    settings: Settings,
) -> Comparison:
    """Make a comparison whose missing maps tell why they are missing.

    Args:
        rows, maps, raw, pictures, settings: as the attributes of :class:`Comparison`.

    Returns:
        The comparison.
    """
    errors = {(row.method, row.layer): row.error for row in rows if row.error}
    return Comparison(tuple(rows), Maps(maps, errors), Maps(raw, errors), pictures, settings)


def as_pictures(inputs: torch.Tensor) -> torch.Tensor:
    """The inputs of a network as pictures. The numbers of each input are stretched to the range of colours.

    Args:
        inputs: shape (N, C, H, W). Inputs that do not have three channels become grey. Of volumes and videos, of shape
            (N, C, D, H, W), the mean along the depth is taken. Signals, of shape (N, C, T), become a row, and token ids
            become a white row.

    Returns:
        Shape (N, H, W, 3), uint8, on the CPU.
    """
    if not inputs.is_floating_point():
        return torch.full((len(inputs), 1, inputs.shape[2], 3), 255, dtype=torch.uint8, device="cpu")
    inputs = inputs.mean(2) if inputs.dim() == 5 else inputs[:, :, None] if inputs.dim() == 3 else inputs
    low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
    shown = (inputs - low) / (high - low).clamp(min=torch.finfo(inputs.dtype).tiny)
    shown = shown if shown.shape[1] == 3 and shown.shape[2] > 1 else shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * shown).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for JSON, which has no NaN: None stands for NaN."""
    return {
        name: {key: None if _is_nan(one) else one for key, one in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in values.items()
    }


def _row_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row from their form in JSON."""
    shape, target = values["native_shape"], values["target"]
    return {
        **values,
        "metrics": {name: math.nan if value is None else value for name, value in values["metrics"].items()},
        "native_shape": None if shape is None else tuple(shape),
        "target": tuple(target) if isinstance(target, list) else target,
    }


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
