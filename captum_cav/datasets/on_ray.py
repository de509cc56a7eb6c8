"""A job on Ray Data: actors on one machine or many, each with the model loaded, compute the same shards."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from captum_cav import errors
from captum_cav.datasets.jobs import Job
from captum_cav.datasets.running import Worker
from captum_cav.errors import CAVError, ModelError, UnavailableError
from captum_cav.memory import keep_freed_memory


class _Actor:
    """Computes shards in a process of Ray.

    Args:
        shared: refers to the job, which Ray sends to each machine once.
        has_rows: whether the output has rows without an error already.
        threads: how many threads torch may use.
    """

    def __init__(self, shared: Any, has_rows: bool, threads: int) -> None:
        # Ray lets torch use as many threads as the actor has CPUs, but not if OMP_NUM_THREADS says something else.
        torch.set_num_threads(threads)
        # This process belongs to the job alone.
        keep_freed_memory()
        self._entries: list[dict[str, Any]] = []
        self._worker = Worker(_ray().get(shared), has_rows, self._entries.append)

    def __call__(self, numbers: dict[str, Any]) -> dict[str, list[str]]:
        """Compute shards, and return nothing but their entries: the files are written.

        An error of this package is returned, too. Ray would repeat the shard and change the message.
        """
        self._entries.clear()
        try:
            self._worker.run([int(number) for number in numbers["shard"]], 0)
        except CAVError as error:
            return {"entry": [json.dumps({"error": [type(error).__name__, str(error)]})]}
        return {"entry": [json.dumps(entry) for entry in self._entries]}


def run(job: Job, numbers: Sequence[int], actors: int, has_rows: bool, done: Callable[[dict[str, Any]], None]) -> None:
    """Compute shards with Ray Data. An actor that is lost is replaced, and its shard is computed again.

    A cluster that ``ray.init`` joined or ``RAY_ADDRESS`` names is used; without one, Ray starts on this machine.

    Args:
        job: the job. The actors read and write the same folders as this process.
        numbers: of the shards.
        actors: how many processes compute; as many as the cluster has room for at most.
        has_rows: whether the output has rows without an error already.
        done: is called with the entry of each shard when the shard is written.

    Raises:
        UnavailableError: if Ray is not installed.
        CAVError: for what ends the job; finished shards stay.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        address = os.environ.get("RAY_ADDRESS", "local")
        # Ray Data needs a CPU beside those of the actors, or it waits for ever. A cluster has the CPUs that it has.
        here = max(os.cpu_count() or 1, actors + 1) if address == "local" else None
        ray.init(address, num_cpus=here, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        for entry in _entries(ray, job, numbers, actors, has_rows):
            done(entry)
    except ray.exceptions.RayError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        raise ModelError(
            f"Ray gave up ({type(error).__name__}): {''.join(last)} Finished shards are kept; start the same job again."
        ) from error
    finally:
        if is_ours:
            ray.shutdown()


def _ray() -> Any:
    # Set before the import, or Ray would tell its makers about this run.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UnavailableError(
            f'engine="ray" needs Ray with Ray Data, which cannot be imported ({error}): pip install "captum_cav[ray]"'
        ) from error
    return ray


def _entries(ray: Any, job: Job, numbers: Sequence[int], actors: int, has_rows: bool) -> Iterable[dict[str, Any]]:
    is_on_gpu = job.explainer.device.type == "cuda"
    threads = 1 if is_on_gpu else max(1, torch.get_num_threads() // actors)
    with _quiet(ray):
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        computed = shards.map_batches(
            _Actor,
            fn_constructor_args=(ray.put(job), has_rows, threads),
            batch_size=1,
            concurrency=(1, actors),
            num_cpus=threads,
            num_gpus=1 if is_on_gpu else 0,
        )
        for row in computed.iter_rows():
            entry = json.loads(row["entry"])
            if "error" in entry:
                kind, message = entry["error"]
                raise getattr(errors, kind)(message)
            yield entry


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Let Ray Data say nothing about its work; the job has a progress bar of its own."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    shown, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        logger.setLevel(level)
