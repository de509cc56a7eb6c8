"""Reading what :func:`captum_cav.datasets.explain_dataset` wrote."""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset

from captum_cav.datasets import layout, rows
from captum_cav.datasets.rows import Row
from captum_cav.errors import InputError, LayerError, UnavailableError
from captum_cav.suggestions import did_you_mean

if TYPE_CHECKING:
    import pandas

#: How many shards stay open.
_OPEN = 4


class Explained(NamedTuple):
    """One row of an output.

    Attributes:
        row: the values by column: ``row``, ``index``, ``id``, ``path``, ``label``, ``target``, ``best``, ``score``,
            ``probability``, for each layer ``raised:LAYER``, ``lowered:LAYER``, ``constants:LAYER`` and
            ``unexplained:LAYER``, then ``shard``, ``group``, ``position``, ``error``. None where there is nothing.
        maps: for each layer its map in float32; empty if the row has an error, or if no maps were kept.
    """

    row: Row
    maps: dict[str, torch.Tensor]


class _Shard(NamedTuple):
    rows: list[Row]
    tensors: Any


class ExplainedDataset(Dataset[Explained]):
    """The rows and maps of an output, read when they are asked for.

    A job that is not finished can be read, too: what is there are the rows of finished shards.

    Args:
        folder: the output.

    Raises:
        InputError: if there is no output in the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._shards = self.manifest["shards"]
        self._ends: list[int] = []
        for shard in self._shards:
            self._ends.append((self._ends[-1] if self._ends else 0) + shard["rows"])
        self._open = functools.lru_cache(_OPEN)(self._read)

    @property
    def layers(self) -> list[str]:
        """The names of the explained layers, in the order of the attribution."""
        return list(self.manifest["settings"]["layers"])

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the scores; empty if they are not known."""
        return list(self.manifest["settings"]["classes"])

    @property
    def is_complete(self) -> bool:
        """Whether all shards of the job are finished."""
        return bool(self.manifest["pictures"] == sum(shard["pictures"] for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Explained:
        shard, row = self._find(i)
        found = {}
        if self._has_maps and row["group"] is not None and not row["error"]:
            found = {layer: self._map(shard, row, layer) for layer in self.layers}
        return Explained(row, found)

    def rows(self) -> Iterator[Row]:
        """All rows, one after the other; no map is read."""
        for shard in self._shards:
            yield from self._read_rows(shard["shard"])

    def table(self) -> pandas.DataFrame:
        """All rows as a table of pandas.

        Raises:
            UnavailableError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise UnavailableError("table() needs pandas: pip install pandas. rows() needs nothing.") from error
        table = pd.DataFrame(list(self.rows()), columns=rows.columns(self.layers))
        whole = [name for name in rows.INTEGERS if name in table]
        return table.astype(dict.fromkeys(whole, "Int64"))

    def map(self, i: int, layer: str) -> torch.Tensor:
        """The map of one row at one layer.

        Args:
            i: the number of the row, as in ``output[i]``.
            layer: the name of the layer.

        Returns:
            Shape (h, w), or what the attribution gave for one sample where there is no map; float32, on the CPU.

        Raises:
            LayerError: if the layer was not explained.
            InputError: if the row has an error, or if no maps were kept.
        """
        if layer not in self.layers:
            raise LayerError(
                f"{self.folder} has no maps of {layer!r}{did_you_mean(layer, self.layers)}; expected one of "
                f"{', '.join(map(repr, self.layers))}."
            )
        if not self._has_maps:
            raise InputError(f'{self.folder} has no maps; expected keep=("maps", ...) when the job was started.')
        shard, row = self._find(i)
        if row["error"]:
            raise InputError(f"row {i} has no map: {row['error']}")
        return self._map(shard, row, layer)

    def scores(self, i: int) -> torch.Tensor:
        """All scores of the model for the picture of one row, before a last sigmoid or softmax.

        Args:
            i: the number of the row.

        Returns:
            Shape (classes,); float32, on the CPU.

        Raises:
            InputError: if the row has an error, or if no scores were kept.
        """
        if "scores" not in self.manifest["settings"]["keep"]:
            raise InputError(f'{self.folder} has no scores; expected keep=("scores", ...) when the job was started.')
        shard, row = self._find(i)
        if row["group"] is None:
            raise InputError(f"row {i} has no scores: {row['error']}")
        return _row_of(shard.tensors, rows.scores_name(row["group"]), row["position"])

    @property
    def _has_maps(self) -> bool:
        return not {"maps", "channels"}.isdisjoint(self.manifest["settings"]["keep"])

    def _find(self, i: int) -> tuple[_Shard, Row]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i %= len(self)
        place = bisect.bisect_right(self._ends, i)
        shard = self._open(self._shards[place]["shard"])
        return shard, shard.rows[i - (self._ends[place] - len(shard.rows))]

    def _map(self, shard: _Shard, row: Row, layer: str) -> torch.Tensor:
        group, position = row["group"], row["position"]
        found = _row_of(shard.tensors, rows.map_name(group, layer), position)
        if found.dtype == torch.float16:
            found = found.float() * _row_of(shard.tensors, rows.scale_name(group, layer), position)
        return found

    def _read(self, name: str) -> _Shard:
        path = self.folder / layout.SHARDS / f"{name}.safetensors"
        try:
            return _Shard(list(self._read_rows(name)), safe_open(path, "pt"))
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read {path}: {error}. It was changed since the job wrote it.") from error

    def _read_rows(self, name: str) -> Iterator[Row]:
        path = self.folder / layout.SHARDS / f"{name}.csv"
        try:
            return rows.read_csv(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Another process opens the files itself.
        self.__init__(state["folder"])  # type: ignore[misc]


def _row_of(tensors: Any, name: str, position: int) -> torch.Tensor:
    """One row of a tensor in a file. A part of the file is read, which safetensors 0.4 selects by slices only."""
    with torch.device("cpu"):  # safetensors makes a slice on the default device of torch.
        found: torch.Tensor = tensors.get_slice(name)[position : position + 1]
    return found[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output; of an unfinished one, what it would be with the shards that are finished.

    Args:
        folder: the output.

    Returns:
        The settings, how many pictures, rows and errors there are, and the entries of the shards.

    Raises:
        InputError: if there is no output in the folder.
    """
    begun = layout.read_json(folder / layout.JOB)
    if not isinstance(begun, dict) or "settings" not in begun:
        raise InputError(
            f"{folder} holds no explained dataset; pass the output of a job, the folder with {layout.JOB}."
        )
    if begun["format"] != layout.FORMAT:
        raise InputError(
            f"{folder} has format {begun['format']!r}; this version of captum_cav reads format {layout.FORMAT}."
        )
    finished: dict[str, Any] | None = layout.read_json(folder / layout.MANIFEST)
    return finished or unite(folder, begun["settings"])


def unite(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the shards that are finished.

    Args:
        folder: the output.
        settings: of the job.
    """
    pictures, size = settings["dataset"]["pictures"], settings["shard_size"]
    found = [layout.shard_entry(folder, number) for number in range(-(-pictures // size))]
    entries = [entry for entry in found if entry is not None]
    return {
        "format": layout.FORMAT,
        "settings": settings,
        "pictures": pictures,
        "rows": sum(entry["rows"] for entry in entries),
        "errors": sum(entry["errors"] for entry in entries),
        "shards": entries,
    }


def open_output(folder: str | os.PathLike[str]) -> ExplainedDataset:
    """Open the output of :func:`captum_cav.datasets.explain_dataset`, as ``datasets.open(folder)``.

    Args:
        folder: the output. The job may be unfinished.

    Returns:
        The rows and maps, read when they are asked for.

    Raises:
        InputError: if there is no output in the folder.
    """
    return ExplainedDataset(folder)
