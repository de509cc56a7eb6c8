"""Results on disk, each under the hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import captum_cav

Tensors = dict[str, torch.Tensor]


class Cache:
    """Tensors on disk. What was measured once is read again.

    Args:
        folder: where the files lie; it is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
        """What is on disk for a key, or else what a function makes.

        Args:
            kind: what it is, the beginning of the name of the file.
            key: everything that the result depends on: strings and numbers, and hashes of all else.
            make: makes the result.

        Returns:
            Tensors by name.
        """
        path = self._path(kind, key)
        if not path.exists():
            made = make()
            # Another process, or one that is stopped here, must leave no half of a file.
            half = path.with_suffix(f".{os.getpid()}")
            torch.save(made, half)
            half.replace(path)
        found: Tensors = torch.load(path, weights_only=True)
        return found

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether a result is on disk."""
        return self._path(kind, key).exists()

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:24]
        return self.folder / f"{kind}-{digest}.pt"


def hash_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of the names and values of tensors, such as the state of a network."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_of_sources() -> str:
    """A hash of the package's own code, because maps depend on it."""
    folder = Path(captum_cav.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
