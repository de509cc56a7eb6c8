"""What ``captum-cav dataset`` does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from captum_cav import single_image, zoo
from captum_cav.attribution import LayerCAV
from captum_cav.commands.outputs import json_text
from captum_cav.commands.running import common
from captum_cav.compilation import compile as fused
from captum_cav.datasets import ExplainedDataset, explain_dataset
from captum_cav.datasets.sources import Listed, find_pictures
from captum_cav.errors import InputError, OptionError, RecordingError

# So many pictures may be damaged before one is found that shows the size of the inputs.
_MOST_DAMAGED = 100


def run(options: argparse.Namespace, *, is_class: bool) -> int:
    """Run ``dataset``: explain all pictures, and say how many rows there are.

    Args:
        options: the options.
        is_class: whether ``--target`` names classes.

    Returns:
        The exit status: 1 if a picture could not be explained, 130 after Ctrl-C.
    """
    network = common.load_network(options, _device(options.device))
    options.rules = common.choose_rules(options, network)
    root, listed = find_pictures(options.pictures)
    network, score = common.choose_score(options, network)
    inputs = single_image.batch_of(network, _example(root, listed))
    network = single_image.ready(network, inputs)
    cav = LayerCAV(
        network.model,
        common.choose_layers(options, network, inputs),
        rules=options.rules,
        # Positive contributions raised the score, also if the score is negative.
        normalize="abs",
        score=score,
    )
    try:
        out = explain_dataset(
            fused(cav, backend="inductor", freeze=True) if options.compile else cav,
            options.pictures,
            options.output,
            targets=[network.class_index(name) for name in options.target] if is_class else options.target[0],
            keep=options.keep,
            batch_size=options.batch_size,
            dtype=options.dtype,
            preprocess=network.preprocess,
            classes=network.classes,
            shard_size=options.shard_size,
            engine=options.engine,
            workers=options.workers,
            shard=options.shard,
        )
    except RecordingError as error:
        if not options.compile:
            raise
        raise OptionError(
            f"--compile cannot be used for {network.name}; expected no --compile, and another --output. The reason: "
            f"{error}"
        ) from error
    except KeyboardInterrupt:
        print("\ncaptum-cav: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return _tell(options, out)


def _device(name: str) -> torch.device:
    """The device of ``--device``; where torchrun starts several processes on a machine, each has a GPU of its own."""
    device = common.choose_device(name)
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if device.type == "cuda" and rank is not None else device


def _example(root: Path, listed: list[Listed]) -> Image.Image:
    """A picture of the dataset, which the network is tried on.

    Raises:
        InputError: if none of the first pictures can be opened.
    """
    errors: list[InputError] = []
    for one in listed[:_MOST_DAMAGED]:
        with collecting(errors):
            return zoo.open_picture(root / one.path)
    raise InputError(f"none of the first {len(errors)} pictures can be opened; {errors[0]}")


@contextmanager
def collecting(errors: list[InputError]) -> Iterator[None]:
    """Go on after a picture that cannot be opened."""
    try:
        yield
    except InputError as error:
        errors.append(error)


def _tell(options: argparse.Namespace, out: ExplainedDataset) -> int:
    """Say what there is; the exit status."""
    facts = {
        "output": str(out.folder),
        "complete": out.is_complete,
        "pictures": out.manifest["pictures"],
        "rows": len(out),
        "errors": out.manifest["errors"],
        "layers": out.layers,
    }
    first = next((row for row in out.rows() if row["error"]), None) if facts["errors"] else None
    if first is not None:
        print(
            f"captum-cav: {facts['errors']} of {facts['rows']} rows have an error instead of numbers; the first, "
            f"{first['id']}: {first['error']}",
            file=sys.stderr,
        )
    if options.json:
        print(json_text(facts))
    else:
        whole = "all shards are finished" if out.is_complete else "other parts of the job are not finished"
        print(f"{facts['rows']} rows of {facts['pictures']} pictures at {len(out.layers)} layers; {whole}")
        print(f'rows and maps: {out.folder}; captum_cav.datasets.open("{out.folder}") reads them')
    return int(first is not None)
