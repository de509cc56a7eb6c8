"""A job in this process, with other processes that read pictures meanwhile."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from captum_cav.datasets import layout, shards
from captum_cav.datasets.jobs import Job
from captum_cav.errors import CAVError, InputError

_SECONDS_BETWEEN_LOOKS = 0.2
# What torch says when a process that it started to read pictures has ended.
_LOST = "DataLoader worker"


class Worker:
    """Computes shards of a job, those that nobody else computes.

    Args:
        job: the job.
        has_rows: whether the output has rows without an error already.
        done: is called with the entry of each shard when the shard is written.
    """

    def __init__(self, job: Job, has_rows: bool, done: Callable[[dict[str, Any]], None]) -> None:
        self._job, self._has_rows, self._done = job, has_rows, done
        self._claimed: deque[tuple[int, layout.Claim]] = deque()

    def run(self, numbers: Iterable[int], workers: int) -> None:
        """Compute shards. Those that another process computes are waited for.

        Args:
            numbers: of the shards.
            workers: how many processes read pictures.

        Raises:
            CAVError: for what ends the job; finished shards stay.
        """
        waiting = list(numbers)
        try:
            while waiting:
                left: list[int] = []
                self._pass(waiting, left, workers)
                if len(left) == len(waiting):
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                waiting, workers = left, 0
        finally:
            while self._claimed:
                self._claimed.popleft()[1].give_back()

    def _pass(self, numbers: Iterable[int], left: list[int], workers: int) -> None:
        indices = self._claim(numbers, left)
        batches = _read_beside(self._job, indices, workers) if workers else _read_here(self._job, indices)
        for first in batches:
            number, claim = self._claimed[0]
            rest = len(list(self._job.batches_of(number))) - 1
            self._finish(number, itertools.chain([first], itertools.islice(batches, rest)))
            claim.give_back()
            self._claimed.popleft()

    def _claim(self, numbers: Iterable[int], left: list[int]) -> Iterator[list[int]]:
        """The indices of the pictures of each shard that can be claimed, batch by batch; other shards are ``left``."""
        for number in numbers:
            claim = layout.claim_shard(self._job.folder, number)
            if not claim.take():
                left.append(number)
                continue
            entry = layout.shard_entry(self._job.folder, number)
            if entry is not None and not can_improve(self._job, entry):
                claim.give_back()
                self._done(entry)
                continue
            self._claimed.append((number, claim))
            yield from map(list, self._job.batches_of(number))

    def _finish(self, number: int, batches: Iterable[shards.Batch]) -> None:
        computed = shards.compute(self._job, number, batches)
        if computed.errors < len(computed.rows):
            self._has_rows = True
        elif not self._has_rows:
            _refuse_if_nothing_works(self._job, number, computed)
        self._done(shards.write(self._job, number, computed))


def run(job: Job, numbers: Sequence[int], workers: int, has_rows: bool, done: Callable[[dict[str, Any]], None]) -> None:
    """Compute shards in this process.

    Args:
        job: the job.
        numbers: of the shards.
        workers: how many other processes read pictures; 0 to read them in this process.
        has_rows: whether the output has rows without an error already.
        done: is called with the entry of each shard when the shard is written.

    Raises:
        CAVError: for what ends the job; finished shards stay.
    """
    try:
        Worker(job, has_rows, done).run(numbers, workers)
    except RuntimeError as error:
        # Torch raises this wherever this process is when one of the others ends.
        if isinstance(error, CAVError) or _LOST not in str(error):
            raise
        raise InputError(
            f"a process that reads pictures ended: {str(error).rstrip('.')}. Often the memory was full; fewer workers "
            "need less. Finished shards are kept; start the same job again, and it goes on from there."
        ) from error


def _refuse_if_nothing_works(job: Job, number: int, computed: shards.Computed) -> None:
    """End a job of which the first pictures all fail: more of them would only take time.

    Raises:
        InputError: if none of them can be read.
        CAVError: of the kind that the attribution raised for the first of them.
    """
    count, failure = len(job.pictures_of(number)), computed.failure
    if len(computed.unreadable) == count:
        raise InputError(
            f"none of the first {count} pictures can be read; the first error: {computed.rows[0]['error']}"
        )
    if failure is not None:
        raise type(failure)(f"none of the first {count} pictures can be explained; the first error: {failure}")


def can_improve(job: Job, entry: dict[str, Any]) -> bool:
    """Whether a picture of a finished shard can be read now that could not be read before."""
    return any(not job.source.load(index).error for index in entry["unreadable"])


def _read_here(job: Job, indices: Iterable[list[int]]) -> Iterator[shards.Batch]:
    for batch in indices:
        yield shards.collate([job.source.load(index) for index in batch])


def _read_beside(job: Job, indices: Iterable[list[int]], workers: int) -> Iterator[shards.Batch]:
    """The pictures, read by other processes."""
    loader: Iterable[shards.Batch] = DataLoader(
        shards.Loading(job.source),
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=shards.collate,
        pin_memory=job.explainer.device.type == "cuda",
    )
    return iter(loader)
