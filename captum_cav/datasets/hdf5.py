"""The maps of one layer as a file of HDF5, in the form that ViRelAy reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captum_cav.datasets.reading import ExplainedDataset
from captum_cav.errors import InputError, UnavailableError


def export_hdf5(out: ExplainedDataset, file: str | os.PathLike[str], layer: str) -> int:
    """Write the maps of one layer as HDF5, in the form that ViRelAy reads as attributions.

    The file has ``attribution`` (float32, rows x channels x height x width; a group with one entry for each row if the
    maps differ in size), ``prediction`` (float32, rows x classes, the scores of the model), ``label`` (the explained
    class) and ``index`` (the number of the picture in the dataset). Maps that are summed over channels have one
    channel. Rows with an error are left out.

    Args:
        out: an output whose maps and scores were kept.
        file: the file; it must not exist.
        layer: the name of the layer; "input" for an :class:`captum_cav.InputCAV`, which ViRelAy expects.

    Returns:
        How many rows were written.

    Raises:
        UnavailableError: if h5py is not installed.
        InputError: if the file exists or cannot be written, or if there are no maps with a height and a width, no
            scores, or no targets that are classes.
        LayerError: if the layer was not explained.

    Source: the database specification of ViRelAy.

    Example::

        >>> import tempfile, torch
        >>> from captum_cav import InputCAV, datasets
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> pictures = torch.utils.data.TensorDataset(torch.rand(5, 3, 2, 2))
        >>> folder = tempfile.mkdtemp()
        >>> out = datasets.explain_dataset(InputCAV(net), [one for one, in pictures], folder, targets=0, progress=False)
        >>> export_hdf5(out, f"{folder}/maps.h5", "input")
        5
    """
    try:
        import h5py
    except ImportError as error:
        raise UnavailableError("export_hdf5() needs h5py: pip install h5py.") from error
    path = Path(file)
    if path.exists():
        raise InputError(f"{path} exists; give the name of a new file.")
    rows = [row for row in out.rows() if not row["error"]]
    if not rows:
        raise InputError(f"{out.folder} has no row without an error.")
    if not all(isinstance(row["target"], int) for row in rows):
        raise InputError(f"the targets of {out.folder} are no classes, which ViRelAy expects.")
    places = [number for number, row in enumerate(out.rows()) if not row["error"]]
    shapes = {_map(out, number, layer).shape for number in places}
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with h5py.File(unfinished, "w") as store:
            store["index"] = np.array([row["index"] for row in rows], dtype=np.uint32)
            store["label"] = np.array([row["target"] for row in rows], dtype=np.uint32)
            scores = store.create_dataset("prediction", (len(rows), *out.scores(places[0]).shape), dtype="float32")
            maps: Any = (
                store.create_dataset("attribution", (len(rows), *shapes.pop()), dtype="float32")
                if len(shapes) == 1
                else _Group(store.create_group("attribution"))
            )
            for row, number in enumerate(places):
                maps[row] = _map(out, number, layer).numpy()
                scores[row] = out.scores(number).numpy()
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(rows)


class _Group:
    """A group of HDF5 with one entry for each row, so that natural order is the order of the rows."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __setitem__(self, row: int, values: Any) -> None:
        self._group.create_dataset(f"{row:08d}", data=values)


def _map(out: ExplainedDataset, number: int, layer: str) -> torch.Tensor:
    """A map of shape (channels, height, width)."""
    found = out.map(number, layer)
    if found.dim() not in (2, 3):
        raise InputError(
            f"the maps of layer {layer} have shape {tuple(found.shape)}; expected (height, width) or (channels, "
            "height, width)."
        )
    return found if found.dim() == 3 else found[None]
