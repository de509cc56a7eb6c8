"""The one function that explains a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from captum_cav import checks
from captum_cav.datasets import layout, on_ray, reading, running
from captum_cav.datasets.explaining import Explainer
from captum_cav.datasets.jobs import Job, Targets, begin, check_keep, check_targets
from captum_cav.datasets.reading import ExplainedDataset
from captum_cav.datasets.sources import Preprocess, Source, picture_files, torch_dataset
from captum_cav.errors import InputError, OptionError

_MOST_WORKERS = 4


def explain_dataset(
    attribution: Any,
    dataset: Any,
    output: str | os.PathLike[str],
    *,
    targets: Targets = "best",
    keep: Sequence[str] = ("maps", "scores", "constants"),
    batch_size: int = 32,
    dtype: Literal["float16", "float32"] = "float16",
    resume: bool = True,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    shard_size: int = 256,
    engine: Literal["process", "ray"] = "process",
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> ExplainedDataset:
    """Explain every picture of a dataset. TODO."""
    checks.check_option("dtype", dtype, ("float16", "float32"))
    for name, number in {"batch_size": batch_size, "shard_size": shard_size}.items():
        checks.check_count(number, name)
    kept = check_keep(keep)
    explainer = Explainer(
        attribution,
        keep_channels="channels" in kept,
        with_constants="constants" in kept,
        is_half=dtype == "float16",
    )
    source = _source(dataset, preprocess, classes)
    if not len(source):
        raise InputError("dataset has no items; expected at least one.")
    checks.check_option("engine", engine, ("process", "ray"))
    least = 1 if engine == "ray" else 0
    if workers is None:
        workers = max(least, min(_MOST_WORKERS, _cpus()) if source.is_slow else 0)
    checks.check_count(workers, "workers", least)
    part, parts = _check_shard(shard)
    job = begin(
        Job(explainer, source, Path(output), check_targets(targets), kept, batch_size, shard_size), resume=resume
    )
    entries = {number: layout.shard_entry(job.folder, number) for number in job.shards}
    mine = [number for number in job.shards if number % parts == part]
    has_rows = any(entry is not None and entry["errors"] < entry["rows"] for entry in entries.values())
    with tqdm(total=sum(len(job.pictures_of(number)) for number in mine), disable=not progress, unit="picture") as bar:
        run = on_ray.run if engine == "ray" else running.run
        run(job, mine, workers, has_rows, lambda entry: bar.update(entry["pictures"]))
    finish(job)
    return ExplainedDataset(job.folder)


def finish(job: Job) -> None:
    """Write the manifest, if all shards of the job are finished."""
    with layout.setting_up(job.folder):
        begun = layout.read_json(job.folder / layout.JOB)
        manifest = reading.unite(job.folder, begun["settings"])
        if len(manifest["shards"]) == len(job.shards):
            layout.write_json(job.folder / layout.MANIFEST, manifest)


def _cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source(dataset: Any, preprocess: Preprocess | None, classes: Sequence[str]) -> Source:
    if isinstance(dataset, (str, os.PathLike)):
        return picture_files(dataset, preprocess, classes)
    return torch_dataset(dataset, preprocess, classes)


def _check_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """The part of the job that this process computes, and the number of parts."""
    if shard is None:
        rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        shard = (0, 1) if rank is None or size is None else (int(rank), int(size))
    part, parts = shard
    if not 0 <= part < parts:
        raise OptionError(f"shard is {part} of {parts}; expected a part from 0 to {parts - 1}.")
    return part, parts
