"""Small jobs, what they leave, and processes that are ended while they run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from captum_cav import LayerCAV, datasets
from captum_cav.datasets import ExplainedDataset

LAYERS = ["4", "1"]
#: 13 pictures in shards of 4 and batches of 2: the last shard and the last batch are smaller.
PICTURES, SIZES = 13, {"batch_size": 2, "shard_size": 4}


def network() -> nn.Sequential:
    """A small network with three classes, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        ).eval()


def attribution(**options: Any) -> LayerCAV:
    return LayerCAV(network(), LAYERS, **{"normalize": "abs"} | options)


def pictures(count: int = PICTURES, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def labelled(count: int = PICTURES) -> TensorDataset:
    return TensorDataset(pictures(count), torch.arange(count) % 3)


def write_pictures(folder: Path, count: int = PICTURES) -> Path:
    """Picture files of 8 x 8 pixels in three folders, one for each class."""
    for number, picture in enumerate(pictures(count)):
        file = folder / "abc"[number % 3] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(file)
    return folder


#: How long it takes to read a picture, in seconds.
delay = {0: 0.0}


def preprocess(picture: Image.Image) -> torch.Tensor:
    time.sleep(delay[0])
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def explain(dataset: Any, output: Path, **options: Any) -> ExplainedDataset:
    return datasets.explain_dataset(attribution(), dataset, output, **SIZES | {"progress": False} | options)


def tree(folder: Path) -> dict[str, bytes]:
    """All files of an output and their bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def start(run: Callable[[], Any]) -> BaseProcess:
    """Run a function in a process of its own, which has everything loaded already."""
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def status(child: BaseProcess) -> int:
    """The exit status of a process when it has ended; -9 if it was killed."""
    child.join()  # with a time limit, the processes that the child leaves would count, too
    assert child.exitcode is not None
    return child.exitcode


def in_child(run: Callable[[], Any], kill_after: float | None = None) -> int:
    """The exit status of a function in a process of its own, which may be killed after some seconds."""
    child = start(run)
    if kill_after is not None:
        child.join(kill_after)
        child.kill()
    return status(child)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
