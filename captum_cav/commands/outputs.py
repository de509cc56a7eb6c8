"""The files that a command writes. Nothing that the command did not make itself is overwritten.

A command plans its files with :meth:`Outputs.plan` before torch loads, and writes each with :meth:`Outputs.writing`.
The hidden file ``.captum_cav_files.json`` beside the outputs keeps their hashes. So a later run of a command recognises
the files that it may replace: those that nobody has changed since.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captum_cav.errors import InputError

_RECORD = ".captum_cav_files.json"


class Outputs:
    """A folder that a command writes into.

    Args:
        folder: the folder; it is made if it does not exist.
        inputs: the files that the command reads. They are never overwritten, not even with ``force``.
        force: whether to replace files that captum-cav did not make, the value of ``--force``.

    Raises:
        InputError: if nothing can be written into the folder; the message names the option ``--output``.
    """

    def __init__(self, folder: Path, inputs: Iterable[str | os.PathLike[str]] = (), *, force: bool = False) -> None:
        self.folder = writable(folder)
        self._inputs = [Path(file) for file in inputs]
        self._force = force

    def plan(self, *names: str) -> None:
        """Check that files may be written.

        Args:
            names: names of files in the folder.

        Raises:
            InputError: for a file that the command reads, a folder, or a file that captum-cav did not make.
        """
        known = self._record()
        for name in names:
            file = self.folder / name
            if not file.exists():
                continue
            if any(other.exists() and other.samefile(file) for other in self._inputs):
                raise InputError(f"{file} is read by this command, so it is not overwritten; choose another --output")
            if file.is_dir():
                raise InputError(f"{file} is a folder; choose another --output")
            if not self._force and known.get(name) != _hash(file):
                raise InputError(
                    f"{file} exists, and captum-cav did not make it as it is now; choose another --output, or replace "
                    "it with --force"
                )

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write one file as a whole: an interruption leaves the file as it was before.

        Args:
            name: the name of the file in the folder.

        Yields:
            A path to write to. It has the suffix of the name. At the end the file there takes its place.

        Raises:
            InputError: as :meth:`plan` does.
        """
        self.plan(name)
        unfinished = self.folder / f".unfinished-{os.getpid()}-{name}"
        try:
            yield unfinished
            digest = _hash(unfinished)
            unfinished.replace(self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)
        self._remember({name: digest})

    def remember(self, *names: str) -> None:
        """Remember files that were written without :meth:`writing`, so that a later run may replace them.

        Args:
            names: names of files in the folder, which :meth:`plan` has checked.
        """
        self._remember({name: _hash(self.folder / name) for name in names})

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in UTF-8, like :meth:`writing`.

        Args:
            name: the name of the file in the folder.
            text: its content.

        Returns:
            The file.
        """
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8", newline="")
        return self.folder / name

    def _record(self) -> dict[str, str]:
        try:
            known = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, digests: Mapping[str, str]) -> None:
        unfinished = self.folder / f"{_RECORD}.{os.getpid()}"
        unfinished.write_text(json.dumps({**self._record(), **digests}, indent=1), encoding="utf-8")
        unfinished.replace(self.folder / _RECORD)


def writable(folder: Path) -> Path:
    """Make the folder if it does not exist, and check that files can be written there.

    Args:
        folder: the folder.

    Returns:
        The folder.

    Raises:
        InputError: if nothing can be written there; the message names the option ``--output``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another with --output DIR"
        ) from error


def json_text(values: Any) -> str:
    """Values as JSON, which has no NaN and no infinity: null stands for both.

    Args:
        values: mappings, lists, tuples, texts and numbers.

    Returns:
        The text, with one line for each value.

    Example::

        >>> print(json_text({"score": float("nan"), "places": (7, 7)}))
        {
         "score": null,
         "places": [
          7,
          7
         ]
        }
    """
    return json.dumps(_without_nan(values), indent=1, allow_nan=False, ensure_ascii=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
