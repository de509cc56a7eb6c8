"""Memory does not grow with the dataset."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from captum_cav import LayerCAV, datasets
from captum_cav.datasets import shards

_STATM = Path("/proc/self/statm")


class Tiny(Dataset[Any]):
    """So many pictures that holding them, or anything for each of them, would be seen."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 40, 40), (index % 97) / 97), index % 3


def resident(output: Path, results: Any) -> None:
    """Explain 10 000 pictures, and tell how much memory is resident after each shard, in megabytes."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 38 * 38, 3)).eval()
    write, seen = shards.write, []

    def noting(*arguments: Any) -> Any:
        entry = write(*arguments)
        seen.append(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
        return entry

    with patch.object(shards, "write", noting):
        out = datasets.explain_dataset(
            LayerCAV(net, "1", normalize="abs"),
            Tiny(10_000),
            output,
            targets="label",
            batch_size=100,
            shard_size=200,
            dtype="float32",
            progress=False,
        )
    assert len(out) == 10_000
    for row in out.rows():
        assert not row["error"]
    for number in range(0, 10_000, 7):
        out.map(number, "1")
    seen.append(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    results.send(seen)


@pytest.mark.slow
@pytest.mark.skipif(not _STATM.exists(), reason="only Linux tells how much memory is resident in this way")
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=resident, args=(tmp_path, there))
    child.start()
    seen = here.recv()
    child.join()
    assert len(seen) == 51
    # The first shards load libraries. All maps together take 58 MB, which is more than may be added.
    assert seen[-2] < 1.05 * seen[4], seen
    assert seen[-1] < 1.05 * seen[4], seen
