"""Seconds of calls that take turns, and the memory that a call needs beyond what was there."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

Call = Callable[[], object]
Result = TypeVar("Result")

_LEAST, _MOST = 9, 100
_MEBI = 2**20


class Quartiles(NamedTuple):
    """The middle of some samples, and where a quarter of them lies below and above."""

    low: float
    median: float
    high: float


@dataclass
class Cell:
    """What came out for one column of a row.

    Attributes:
        seconds: of one call.
        ratio: to the floor's seconds in the same round.
        samples: how many calls were timed.
        page_faults: median number of pages that a call made the system map: memory that the allocator had given back.
        operations: how many aten operations a call calls, views aside; None where nobody counted.
        mebibytes: peak memory beyond what was there before the call.
        reason: why there is no time.
    """

    seconds: Quartiles | None = None
    ratio: Quartiles | None = None
    samples: int = 0
    page_faults: float = 0.0
    operations: int | None = None
    mebibytes: float | None = None
    reason: str = ""


class Sample(NamedTuple):
    """One call: its seconds, and how many pages it made the system map."""

    seconds: float
    page_faults: int


def sample(call: Call, device: torch.device) -> Sample:
    """Time one call."""
    gc.collect()  # what others left is not this call's
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    seconds = time.perf_counter() - start
    return Sample(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(columns: Mapping[str, Call], floor: str, budget: float, device: torch.device) -> dict[str, Cell]:
    """Time calls that take turns, in a new order each round, so that a machine whose speed drifts is fair to all.

    Args:
        columns: the calls.
        floor: the one that the others are compared with, round by round.
        budget: seconds that all rounds together may take, but at least nine are run. A call that takes longer than
            this, and more than thrice as long as the floor, is timed once.
        device: where the calls compute.

    Returns:
        A cell a column; what a call raised is its reason.
    """
    gc.collect()
    gc.freeze()  # makes the collection before each sample short
    tried = {name: attempt(functools.partial(_warmed, call, device, budget)) for name, call in columns.items()}
    warm = {name: found for name, found in tried.items() if not isinstance(found, str)}
    longest = max(budget, 3 * warm[floor].seconds) if floor in warm else budget
    taken = {name: [] if found.seconds <= longest else [found] for name, found in warm.items()}
    again = [name for name, samples in taken.items() if not samples]
    rounds = int(budget / max(sum(warm[name].seconds for name in again), 1e-9))
    for _ in range(min(max(rounds, _LEAST), _MOST)):
        for index in torch.randperm(len(again)).tolist():
            taken[again[index]].append(sample(columns[again[index]], device))
    gc.unfreeze()
    floors = [each.seconds for each in taken.get(floor, ())]
    return {
        name: Cell(reason=found) if isinstance(found, str) else _cell(taken[name], floors)
        for name, found in tried.items()
    }


def _warmed(call: Call, device: torch.device, budget: float) -> Sample:
    """A second call, which finds all that is made once, unless the first took too long."""
    first = sample(call, device)
    return sample(call, device) if first.seconds < budget else first


def _cell(samples: Sequence[Sample], floors: Sequence[float]) -> Cell:
    seconds = [each.seconds for each in samples]
    if len(seconds) != len(floors):
        floors = [statistics.median(floors)] * len(seconds) if floors else []
    ratios = [mine / its for mine, its in zip(seconds, floors, strict=False)]
    return Cell(
        seconds=_quartiles(seconds),
        ratio=_quartiles(ratios) if ratios else None,
        samples=len(seconds),
        page_faults=statistics.median(each.page_faults for each in samples),
    )


def attempt(make: Callable[[], Result]) -> Result | str:
    """What a function gives, or what it raised: for a method that is compared, that is its result."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - see above
        return f"{type(error).__name__}: {error}"


def _quartiles(samples: Iterable[float]) -> Quartiles:
    ordered = sorted(samples)
    if len(ordered) == 1:
        return Quartiles(*ordered * 3)
    return Quartiles(*statistics.quantiles(ordered, method="inclusive"))


def peak(call: Call, device: torch.device) -> float | None:
    """Mebibytes that a call needs at its worst beyond what is there before; None where the system does not tell.

    On CUDA it is what the allocator handed out. On Linux with glibc it is resident memory (``VmHWM``, reset by
    ``clear_refs``): that of the tensors and whatever else the call needs. It says what a call needs only in a process
    that gives memory back at once, see :data:`GIVING_BACK`.

    Args:
        call: what to measure.
        device: where it computes.
    """
    call()  # what is made once (kernels, tables) is there then
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MEBI
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left in small pieces
    Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS")
    call()
    return (_status("VmHWM") - resident) / 1024


def _status(key: str) -> int:
    """Kibibytes of a line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


#: Settings of glibc under which a tensor's memory is mapped for it alone, and given back when it is freed. By default
#: freed memory is kept for the next call, so that most of what a call needs is there before.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """The result of a function in a process of its own.

    Raises:
        BrokenProcessPool: if the process was killed, for the memory it took say.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
