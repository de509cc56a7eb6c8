"""Where the pictures of a job come from: a dataset of torch, a folder or a pattern of picture files, or a table."""

from __future__ import annotations

import abc
import csv
import dataclasses
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from captum_cav.checks.options import as_integer
from captum_cav.datasets.describing import describe
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.zoo.pictures import open_picture

#: What turns an RGB picture into the input of the model.
Preprocess = Callable[[Image.Image], torch.Tensor]
#: The keys of dictionaries that datasets give, and the columns of tables. The first that is there counts.
_INPUT_KEYS = ("input", "inputs", "image", "picture", "pixel_values", "img", "x")
_LABEL_KEYS = ("label", "labels", "target", "class", "y")
_PATH_KEYS = ("path", "file", "filename", "image_path")
_TABLES = (".csv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture of a dataset, or why it cannot be read.

    Attributes:
        index: its place in the dataset.
        id: its name: the path inside the folder, the entry "id", or the index.
        path: of its file; empty if the dataset does not tell it.
        label: the index of its class; None if it is not known.
        input: shape (C, H, W), or whatever the model takes of one sample; None if it cannot be read.
        error: why it cannot be read; empty if it was read.
    """

    index: int
    id: str
    path: str
    label: int | None
    input: torch.Tensor | None = None
    error: str = ""


class Source(abc.ABC):
    """What gives the pictures of a job, by their index.

    Attributes:
        classes: names of the classes that the labels are indices of; empty if they are not known.
        is_slow: whether reading a picture takes so long that other processes should do it.
    """

    classes: tuple[str, ...]
    is_slow: bool

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def load(self, index: int) -> Item:
        """Read one picture. A picture that cannot be read is an item with its error."""

    @abc.abstractmethod
    def described(self) -> dict[str, Any]:
        """What the pictures hang on, as values for JSON."""


class Listed(NamedTuple):
    """A picture file of a folder or a table.

    Attributes:
        path: relative to the root of the source, or absolute.
        label: as the folder or the table names it; empty if it has no label.
        id: its name.
    """

    path: str
    label: str
    id: str


class PictureFiles(Source):
    """Picture files with labels.

    Args:
        root: the folder that the paths are relative to.
        listed: the files.
        preprocess: turns an RGB picture into the input of the model.
        classes: the names of the model's classes, in the order of the scores; empty if they are not known.
    """

    is_slow = True

    def __init__(self, root: Path, listed: Sequence[Listed], preprocess: Preprocess, classes: Sequence[str]) -> None:
        self.root = root
        self._preprocess, self._known_classes = preprocess, classes
        self.take(listed)

    def take(self, listed: Sequence[Listed]) -> None:
        """Take another list of files."""
        self.listed = listed
        self._labels, self.classes = _label_indices([one.label for one in listed], self._known_classes)

    def __len__(self) -> int:
        return len(self.listed)

    def load(self, index: int) -> Item:
        """Open and preprocess one picture."""
        one = self.listed[index]
        path = os.path.join(self.root, one.path)  # noqa: PTH118 (a Path for each of a million pictures is slow)
        item = Item(index, one.id, path, self._labels.get(one.label))
        try:
            given = self._preprocess(open_picture(path))
            return dataclasses.replace(item, input=_checked_input(given, "preprocess"))
        except Exception as error:  # noqa: BLE001 (whatever happens to one picture must not end the job)
            return dataclasses.replace(item, error=reason(error))

    def described(self) -> dict[str, Any]:
        """Where the files are, and how they become inputs."""
        return {
            "kind": "picture files",
            "root": str(self.root),
            "pictures": len(self),
            "labels": self._labels,
            "preprocess": describe(self._preprocess),
        }


class TorchDataset(Source):
    """A map-style dataset of torch.

    Args:
        dataset: has a length, and gives for each index a tensor, a pair of a tensor and a label, or a dictionary.
        preprocess: turns what the dataset gives into a tensor, if it is no tensor.
        classes: the names of the model's classes; empty if they are not known.
    """

    is_slow = False

    def __init__(self, dataset: Any, preprocess: Preprocess | None, classes: Sequence[str]) -> None:
        self.dataset = dataset
        self._preprocess = preprocess
        self.classes = tuple(map(str, classes or getattr(dataset, "classes", ())))

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> Item:
        """Ask the dataset for one item."""
        item = Item(index, str(index), "", None)
        try:
            return self._read(item, self.dataset[index])
        except Exception as error:  # noqa: BLE001 (whatever happens to one picture must not end the job)
            return dataclasses.replace(item, error=reason(error))

    def _read(self, item: Item, given: Any) -> Item:
        label = None
        if isinstance(given, Mapping):
            given, found = _entry(given, _INPUT_KEYS, required=True), given
            label = _entry(found, _LABEL_KEYS)
            item = dataclasses.replace(
                item, id=str(found.get("id", item.index)), path=str(_entry(found, _PATH_KEYS, required=False) or "")
            )
        elif isinstance(given, (tuple, list)):
            if len(given) != 2:
                raise CAVTypeError(
                    f"the dataset gave {len(given)} values for one item; expected a tensor, a pair of a tensor and a "
                    "label, or a dictionary."
                )
            given, label = given
        if self._preprocess is not None and not isinstance(given, torch.Tensor):
            given = self._preprocess(given)
        return dataclasses.replace(item, input=_checked_input(given, "the dataset"), label=_label(label))

    def described(self) -> dict[str, Any]:
        """What the dataset says about itself."""
        return {
            "kind": f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__}",
            "pictures": len(self),
            # A list of tensors is a dataset, too. Its text would be all numbers.
            "text": "" if isinstance(self.dataset, (list, tuple)) else describe(self.dataset),
            "preprocess": describe(self._preprocess),
        }


def torch_dataset(dataset: Any, preprocess: Preprocess | None, classes: Sequence[str]) -> TorchDataset:
    """A map-style dataset of torch, checked.

    Raises:
        CAVTypeError: for a dataset that can only be read from the beginning, and for what is no dataset.
    """
    if isinstance(dataset, IterableDataset):
        raise CAVTypeError(
            f"dataset is an IterableDataset ({type(dataset).__name__}), which can only be read from its beginning, so "
            "a job could not go on where it stopped; expected a dataset with a length and an item for each index "
            "(map-style), or a folder of pictures."
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(dataset, torch.Tensor):
        raise CAVTypeError(
            f"dataset is a {type(dataset).__name__}; expected a map-style dataset of torch (for tensors "
            "torch.utils.data.TensorDataset), or the path of a folder, a pattern of files, or a table."
        )
    return TorchDataset(dataset, preprocess, classes)


def find_pictures(where: str | os.PathLike[str]) -> tuple[Path, list[Listed]]:
    """The picture files of a folder, of a pattern, or of a table with a column of paths.

    In a folder, the name of the first folder inside is the label, if all pictures are in such folders.

    Args:
        where: a folder; a pattern such as ``"photos/*.jpg"`` (``**`` stands for folders in folders); or a table in a
            file with the suffix ``.csv`` or ``.parquet``, whose column "path" holds paths relative to the table.
            Columns "label" and "id" are optional.

    Returns:
        The folder that paths are relative to, and the files in order of their paths, or in order of the table.

    Raises:
        InputError: if there is no picture.
    """
    text = os.fspath(where)
    path = Path(text)
    if path.is_dir():
        root = path.resolve()
        found = sorted(
            file.relative_to(root).as_posix()
            for file in root.rglob("*")
            if file.suffix.lower() in IMG_EXTENSIONS and not any(part.startswith(".") for part in file.parts[-1:])
        )
        in_folders = all("/" in name for name in found)
        listed = [Listed(name, name.partition("/")[0] if in_folders else "", name) for name in found]
    elif path.suffix.lower() in _TABLES:
        root, listed = path.resolve().parent, _read_table(path)
    else:
        root = Path.cwd()
        # Pathlib has no patterns from the root of the file system.
        files = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
        listed = [Listed(name, "", name) for name in files if Path(name).suffix.lower() in IMG_EXTENSIONS]
    if not listed:
        raise InputError(_nothing_in(path, text))
    return root, listed


def _nothing_in(path: Path, text: str) -> str:
    """Says that a place holds no pictures."""
    if path.is_dir():
        return f"the folder {text} holds no picture; expected files that end in {', '.join(IMG_EXTENSIONS)}."
    if path.suffix.lower() in _TABLES:
        return f"the table {text} has no rows; expected one row for each picture."
    return f"there is no folder, table or picture {text}."


def _read_table(path: Path) -> list[Listed]:
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    listed = []
    for number, row in enumerate(rows):
        picture = _entry(row, _PATH_KEYS)
        if picture is None:
            raise InputError(
                f"the table {path} has no column of paths; it has {', '.join(map(repr, row))}; expected one of "
                f"{', '.join(map(repr, _PATH_KEYS))}."
            )
        label = _entry(row, _LABEL_KEYS)
        listed.append(Listed(str(picture), "" if label is None else str(label), str(row.get("id") or number)))
    return listed


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read the table {path}: {reason(error)}") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"the table {path} needs the package pyarrow, which cannot be imported ({error}): pip install pyarrow. "
            "A table as CSV needs nothing."
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the table {path}: {reason(error)}") from error
    return rows


def _label_indices(labels: Sequence[str], classes: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class that each label stands for, and the names of the classes.

    Labels are names of classes or their indices. Other labels count in alphabetical order, as in ``ImageFolder`` of
    torchvision, if there are as many labels as classes, or if the classes are not known.
    """
    names = sorted(set(labels) - {""})
    known = {name.casefold(): index for index, name in enumerate(classes)}
    indices = [known.get(name.casefold()) for name in names]
    if names and None not in indices and len(known) == len(classes):
        return {name: index for name, index in zip(names, indices, strict=True) if index is not None}, tuple(classes)
    if names and all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}, tuple(classes)
    if not classes or len(classes) == len(names):
        return {name: index for index, name in enumerate(names)}, tuple(classes or names)
    return {}, tuple(classes)


def _entry(given: Mapping[str, Any], keys: Sequence[str], *, required: bool = False) -> Any:
    """The value of the first key that is there."""
    for key in keys:
        if key in given and given[key] is not None:
            return given[key]
    if required:
        raise CAVTypeError(
            f"the dataset gave a dictionary with the keys {', '.join(map(repr, given))}; expected the input under one "
            f"of {', '.join(map(repr, keys))}."
        )
    return None


def _label(given: Any) -> int | None:
    if given is None:
        return None
    label = as_integer(given)
    if label is None:
        raise CAVTypeError(f"the dataset gave the label {given!r} ({type(given).__name__}); expected a class index.")
    return label


def _checked_input(given: Any, giver: str) -> torch.Tensor:
    if not isinstance(given, torch.Tensor):
        hint = "; pass preprocess=..., which makes a tensor of it" if isinstance(given, Image.Image) else ""
        raise CAVTypeError(f"{giver} gave a {type(given).__name__}; expected a tensor{hint}.")
    return given.detach()


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def picture_files(where: str | os.PathLike[str], preprocess: Preprocess | None, classes: Sequence[str]) -> PictureFiles:
    """The pictures of a folder, a pattern or a table.

    Raises:
        OptionError: without ``preprocess``.
        InputError: if there is no picture.
    """
    if preprocess is None:
        raise OptionError(
            f"dataset is the path {os.fspath(where)}; expected preprocess=..., which turns an RGB picture into the "
            "input of the model, such as zoo.load(...).preprocess or the transforms of a model of torchvision."
        )
    root, listed = find_pictures(where)
    return PictureFiles(root, listed, preprocess, classes)
