"""The files of an output, how they are written, and who may write them.

An output is a folder::

    job.json                     what the numbers hang on; written first
    pictures.csv                 the list of the picture files, if the dataset is a folder or a table
    shards/00000.safetensors     the maps of the first pictures
    shards/00000.csv             their rows
    shards/00000.json            what the shard holds; written last, so a shard with this file is finished
    manifest.json                all of this together; written when all shards are finished

Every file is written under another name, flushed to the disk and renamed, so a file is whole or not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from captum_cav.errors import InputError

FORMAT = 1
JOB, PICTURES, MANIFEST, SHARDS = "job.json", "pictures.csv", "manifest.json", "shards"
_LOCK, _UNFINISHED = ".lock", ".tmp"


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, or nothing.

    Args:
        path: the file. If it exists, it is replaced.
        data: what the file holds.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full. The file is as it was before.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _flush_folder(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. Finished shards are kept; start the same job again when "
            "the reason is gone, and it goes on from there."
        ) from error


def _flush_folder(folder: Path) -> None:
    """Let the disk know the new name of a file, where the system can do that."""
    with contextlib.suppress(PermissionError, NotImplementedError):  # Windows opens no folders.
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, without NaN. The same values give the same bytes."""
    write_file(path, (json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote; None if there is no such file.

    Raises:
        InputError: if the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. It is not as this package wrote it.") from error


def shard_name(number: int) -> str:
    """The name of the files of a shard, without the suffix."""
    return f"{number:05d}"


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """A file of a shard: the rows (".csv"), the maps (".safetensors") or what the shard holds (".json")."""
    return folder / SHARDS / f"{shard_name(number)}{suffix}"


def shard_entry(folder: Path, number: int) -> dict[str, Any] | None:
    """What a finished shard holds.

    Args:
        folder: the output.
        number: the number of the shard.

    Returns:
        The entry of the shard in the manifest. None if the shard is not finished, or if one of its files is missing or
        has lost bytes since then.
    """
    entry: dict[str, Any] | None = read_json(shard_file(folder, number, ".json"))
    if entry is None:
        return None
    for suffix, size in entry["bytes"].items():
        path = shard_file(folder, number, suffix)
        if not path.is_file() or path.stat().st_size != size:
            return None
    return entry


class Claim:
    """The right to write some files. A process that ends, in whatever way, gives its claims back.

    Where the file system has no locks, everybody gets every claim. Then two processes may compute the same shard. They
    write the same bytes, so nothing is wrong but the time.

    Args:
        folder: where the files are.
        name: what the claim is for.
        files: the names of the files, as a pattern.
    """

    def __init__(self, folder: Path, name: str, files: str) -> None:
        self._folder, self._files = folder, files
        self._path = folder / f".{name}{_LOCK}"
        self._lock: BaseFileLock = FileLock(self._path)

    def take(self, *, wait: bool = False) -> bool:
        """Take the claim, and remove what a process left that was killed while writing.

        Args:
            wait: whether to wait until whoever has the claim gives it back.

        Returns:
            Whether the claim was taken.

        Raises:
            InputError: if nothing can be written in the folder.
        """
        try:
            self._lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        except NotImplementedError:
            return True
        except OSError as error:
            raise InputError(f"cannot write to {self._folder}: {error.strerror or error}") from error
        for left in self._folder.glob(f".{self._files}.*{_UNFINISHED}"):
            left.unlink(missing_ok=True)
        return True

    def give_back(self) -> None:
        """Give the claim back, and leave no trace of it."""
        if self._lock.is_locked:
            # Whoever waits for the removed file finds the work done.
            self._path.unlink(missing_ok=True)
            self._lock.release()


@contextlib.contextmanager
def setting_up(folder: Path) -> Iterator[None]:
    """While this runs, no other process writes ``job.json``, ``pictures.csv`` or ``manifest.json``.

    Args:
        folder: the output; it is made if it does not exist.

    Raises:
        InputError: if nothing can be written there.
    """
    try:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    claim = Claim(folder, "job", "*")
    claim.take(wait=True)
    try:
        yield
    finally:
        claim.give_back()


def claim_shard(folder: Path, number: int) -> Claim:
    """The claim of a shard of an output."""
    return Claim(folder / SHARDS, shard_name(number), f"{shard_name(number)}.*")
