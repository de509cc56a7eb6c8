"""A comparison in a folder: tensors as safetensors, the rest as JSON, and a manifest that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from captum_cav.errors import InputError

_FORMAT = 1
_TENSORS, _FACTS, _MANIFEST = "maps.safetensors", "comparison.json", "manifest.json"


def write(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write all files, the manifest last. The files of an earlier call are replaced.

    Args:
        folder: the folder; it is made if it does not exist.
        tensors: the tensors by name.
        facts: values for JSON, without NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    # A file that safetensors itself writes is readable for its owner alone, whatever the umask says.
    (folder / _TENSORS).write_bytes(save({name: one.detach().cpu().contiguous() for name, one in tensors.items()}))
    (folder / _FACTS).write_text(json.dumps(facts, allow_nan=False, indent=1), encoding="utf-8")
    manifest = {"format": _FORMAT, "sha256": {name: _hash(folder / name) for name in (_TENSORS, _FACTS)}}
    unfinished = folder / f"{_MANIFEST}.tmp"
    unfinished.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    unfinished.replace(folder / _MANIFEST)


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Args:
        folder: the folder.

    Returns:
        The tensors by name, and the other values.

    Raises:
        InputError: if the folder has no comparison, only a part of one, or changed files.
    """
    manifest_file = folder / _MANIFEST
    if not manifest_file.is_file():
        is_unfinished = any((folder / name).exists() for name in (_TENSORS, _FACTS))
        found = "an unfinished comparison, without its manifest" if is_unfinished else "no comparison"
        raise InputError(f"{folder} holds {found}; pass a folder that Comparison.save() has finished.")
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        version, hashes = manifest["format"], dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest_file} is not the manifest of a comparison.") from error
    if version != _FORMAT:
        raise InputError(f"{folder} has format {version!r}; this version of captum_cav reads format {_FORMAT}.")
    for name in (_TENSORS, _FACTS):
        if not (folder / name).is_file() or hashes.get(name) != _hash(folder / name):
            raise InputError(f"{folder / name} is missing or was changed since the comparison was saved.")
    return load_file(folder / _TENSORS), json.loads((folder / _FACTS).read_text(encoding="utf-8"))


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
