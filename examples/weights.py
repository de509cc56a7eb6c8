"""TensorFlow checkpoints, read as data. No code in a checkpoint is executed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captum_cav.errors import ModelError


def read_checkpoint(index: Path) -> dict[str, torch.Tensor]:
    """Read the float32 arrays of a TensorFlow checkpoint of one shard, without TensorFlow.

    The index is a LevelDB table. The last 48 bytes give the place of a first block. This block gives the places of the
    other blocks. These have, for each name, a protobuf message with the type, the shape, the offset and the size of an
    array.

    Args:
        index: the file with the suffix ``.index``. The file ``.data-00000-of-00001`` must be in the same folder.

    Returns:
        The arrays by name.

    Raises:
        ModelError: if a file is missing or damaged.
    """
    try:
        table = index.read_bytes()
        data = index.with_name(f"{index.name.removesuffix('.index')}.data-00000-of-00001").read_bytes()
        if not table.endswith(_LEVELDB):
            raise ValueError("its index is damaged or no LevelDB table")
        footer = io.BytesIO(table[-48:])
        _place(footer)
        arrays = {}
        for _, place in _entries(table[_place(footer)]):
            for name, message in _entries(table[_place(io.BytesIO(place))]):
                # The entry without a name describes the whole checkpoint.
                if name and (entry := dict(_fields(message)))[1] == _FLOAT32:
                    shape = [dict(_fields(size))[1] for _, size in _fields(entry.get(2, b""))]
                    start = entry.get(4, 0)
                    array = np.frombuffer(data[start : start + entry[5]], dtype="<f4").reshape(shape)
                    arrays[name] = torch.from_numpy(array.copy())
        return arrays
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read the checkpoint {index}: {error}") from error


_FLOAT32 = 1
_LEVELDB = bytes.fromhex("57fb808b247547db")


def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7


def _place(stream: io.BytesIO) -> slice:
    """The place of a block."""
    start = _varint(stream)
    return slice(start, start + _varint(stream))


def _entries(block: bytes) -> Iterator[tuple[str, bytes]]:
    """The keys and values of a block. Each key is stored as a length of the key before, and the letters that follow."""
    # The last number is a count of the numbers before. These numbers give the places of keys that are stored in full.
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    stream, key = io.BytesIO(block[:end]), b""
    while stream.tell() < end:
        shared, added, size = _varint(stream), _varint(stream), _varint(stream)
        key = key[:shared] + stream.read(added)
        yield key.decode(), stream.read(size)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The field numbers and values of a protobuf message."""
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        number, kind = divmod(_varint(stream), 8)
        if kind == 0:
            yield number, _varint(stream)
        else:
            yield number, stream.read({1: 8, 2: 0, 5: 4}[kind] or _varint(stream))
