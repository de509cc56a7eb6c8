"""What a method costs: passes through the model, seconds, memory of the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What a method costs, for each example.

    Attributes:
        seconds: median over the repeats, after a warm-up.
        peak_bytes: the most memory of the GPU at one time, above what was in use before, of a whole batch; None on the
            CPU, where no such number can be told apart from the rest of the process.
        forwards: forward passes through the model; two examples that run in one batch are two.
        backwards: backward passes from the model's output, counted likewise.
    """

    seconds: float
    peak_bytes: int | None
    forwards: float
    backwards: float


@dataclass
class Passes:
    """Rows that went through a model, forward and backward."""

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[Passes]:
    """Count the passes through a model by hooks, which are gone afterwards.

    Args:
        model: returns a tensor with one row an example.

    Yields:
        The numbers so far.

    Example::

        >>> net = torch.nn.Linear(2, 1)
        >>> with counted(net) as passes:
        ...     net(torch.ones(4, 2)).sum().backward()
        >>> passes
        Passes(forward=4, backward=4)
    """
    passes = Passes()

    def count(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        passes.forward += len(output)
        if output.grad_fn is not None:
            place = output.output_nr

            # On the node: a hook on the tensor would be one more operation for whoever follows the operations.
            def count_backward(gradients: tuple[torch.Tensor, ...]) -> None:
                passes.backward += len(gradients[place])

            output.grad_fn.register_prehook(count_backward)

    with model.register_forward_hook(count):
        yield passes


def measure(
    run: Callable[[], Result], model: torch.nn.Module, examples: int, device: torch.device, repeats: int
) -> tuple[Result, Cost]:
    """Run something and tell what it costs.

    Args:
        run: what to run; once to warm up and count its passes, and ``repeats`` times by the clock.
        model: the model that it runs.
        examples: how many examples it explains.
        device: where it runs.
        repeats: how often to time it.

    Returns:
        What the first run returned, and the cost.
    """
    with counted(model) as passes:
        result = run()
    seconds = []
    peak = None
    for _ in range(repeats):
        level = _reset_memory(device)
        start = time.perf_counter()
        run()
        if level is not None:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        if level is not None:
            peak = max(peak or 0, torch.cuda.max_memory_allocated(device) - level)
    return result, Cost(
        statistics.median(seconds) / examples, peak, passes.forward / examples, passes.backward / examples
    )


def _reset_memory(device: torch.device) -> int | None:
    """The memory in use on a GPU that has finished its work, from which on the peak is measured; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
