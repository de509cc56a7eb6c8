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
    """Explain every picture of a dataset, in a job that goes on where it stopped.

    Call the function again with the same arguments to go on. Each shard is written as a whole or not at all, and its
    bytes depend on the arguments alone. So a job that was killed, and a job that several processes share, leave the
    files of an undisturbed job. Pictures that cannot be read, or not explained, are rows with their error. When the job
    goes on, those that could not be read are tried again.

    Args:
        attribution: a :class:`captum_cav.LayerCAV`, an :class:`captum_cav.InputCAV`, one of these after
            ``captum_cav.compile``, or another object with ``forward_func`` and ``attribute(inputs, target)``, such as a
            method of Captum. With ``normalize="abs"`` the maps of all pictures have the same unit and sign.
        dataset: a map-style dataset of torch that gives tensors, pairs of a tensor and a class, or dictionaries (the
            tensor under "input", "image" or "pixel_values", the class under "label", optional "id" and "path"). It must
            give the same numbers each time. Or a path: a folder of pictures (in folders named like their classes, if
            they have labels), a pattern such as ``"photos/*.jpg"``, or a table, ``.csv`` or ``.parquet``, with the
            column "path" and, if you like, "label" and "id".
        output: the folder of the output. It is made if it does not exist.
        targets: ``"best"`` explains the class with the highest score; ``"label"`` the class that the dataset names; a
            class or a list of classes explains each of them for every picture; None if the model, or the score of the
            attribution, gives one number for each sample.
        keep: what is stored beside the rows. ``"maps"`` sums over channels, ``"channels"`` stores the attributions as
            they are. Layers without places, such as linear layers, are stored as they are. ``"scores"`` stores all
            scores of the model. ``"constants"`` measures the shares of constants, which needs a second derivative in a
            batch of several pictures.
        batch_size: how many pictures run at once. Pictures of one batch that differ in size run one after the other.
        dtype: the type of stored maps. A float16 map is stored as multiples of a power of two, so that its largest
            number is near the largest of float16. Nothing overflows, and every number has a relative error of at most
            2 ** -11, or an error of 2 ** -38 of the largest number of the map. Reading gives float32.
        resume: whether to go on with an output that was begun before. False refuses such an output.
        preprocess: turns an RGB picture of PIL into the input of the model. A path as the dataset needs it.
        classes: the names of the classes, in the order of the scores. By default those of the dataset.
        shard_size: how many pictures a shard has. A shard that was begun is lost when a job is killed, and a shard is
            in memory while it is computed.
        engine: ``"process"``: this process explains. ``"ray"``: processes of Ray explain, on this machine or on the
            cluster that ``ray.init`` has joined; each has a GPU if the model is on one.
        workers: how many other processes read pictures while this process explains; with Ray, how many explain. By
            default up to 4 for pictures in files, and none for datasets of torch.
        shard: ``(i, n)`` explains only part ``i`` of ``n``, from 0 to ``n - 1``, of a job that ``n`` processes divide.
            By default ``RANK`` and ``WORLD_SIZE`` of the environment, which torchrun sets.
        progress: whether to show a progress bar, on standard error.

    Returns:
        The output. It is complete unless parts of the job are missing.

    Raises:
        OptionError: if the output was begun with other settings, which the message names, or for options that cannot be
            used.
        InputError: if there is no picture, if the output cannot be written, for example because the disk is full, or if
            a process that reads pictures ended. Finished shards are kept.
        CAVError: if the attribution cannot explain this model, or none of the first pictures.

    Example::

        >>> import tempfile, torch
        >>> from captum_cav import LayerCAV, datasets
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...                           torch.nn.Linear(144, 2))
        >>> pictures = torch.utils.data.TensorDataset(torch.rand(10, 1, 8, 8), torch.arange(10) % 2)
        >>> cav = LayerCAV(net, ["1"], normalize="abs")
        >>> out = explain_dataset(cav, pictures, tempfile.mkdtemp(), targets="label", progress=False)
        >>> len(out), out[3].row["target"], out.map(3, "1").shape
        (10, 1, torch.Size([6, 6]))
    """
    checks.check_option("dtype", dtype, ("float16", "float32"))
    for name, number in {"batch_size": batch_size, "shard_size": shard_size}.items():
        checks.check_count(number, name)
    kept = check_keep(keep)
    explainer = Explainer(
        attribution,
        batch_size=batch_size,
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
