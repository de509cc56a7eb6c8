"""The cost of a method: passes through the model, seconds, memory of the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from captum_cav.propagation.reentrancy import node_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """The cost of a method for one example.

    Attributes:
        seconds: the median over the repeats, after a warm-up.
        peak_bytes: the peak of the GPU memory for a whole batch, minus the memory that was in use before; None on the
            CPU, where the memory of a method cannot be separated from the rest of the process.
        forwards: the number of forward passes through the model. Two examples in one batch count as two passes.
        backwards: the number of backward passes from the output of the model, counted in the same way.
    """

    seconds: float
    peak_bytes: int | None
    forwards: float
    backwards: float


@dataclass
class Passes:
    """How many examples went through a model.

    Attributes:
        forward: the number of examples in forward passes.
        backward: the number of examples in backward passes.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[Passes]:
    """Count the passes through a model with hooks. The hooks are removed at the end.

    Args:
        model: returns a tensor with one row for each example.

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
        node = node_of(output)
        if node is not None:
            place = output.output_nr

            # The hook is on the node, because a method that records operations would record a hook on the tensor.
            def count_backward(gradients: tuple[torch.Tensor, ...]) -> None:
                passes.backward += len(gradients[place])

            node.register_prehook(count_backward)

    with model.register_forward_hook(count):
        yield passes


def measure(
    run: Callable[[], Result],
    model: torch.nn.Module,
    examples: int,
    device: torch.device,
    repeats: int,
    compiled: Callable[[], Result] | None = None,
) -> tuple[Result, Cost]:
    """Run a function and measure its cost.

    Args:
        run: the function. It runs once as a warm-up, which counts the passes, and then ``repeats`` times by the clock.
        model: the model that the function runs.
        examples: how many examples the function explains.
        device: the device of the model.
        repeats: how often to time the function.
        compiled: the same function with fused kernels, which is timed instead if it is given. It runs once before.

    Returns:
        What the first run returned, and the cost for one example.
    """
    with counted(model) as passes:
        result = run()
    timed = compiled or run
    if compiled is not None:
        compiled()
    seconds = []
    peak = None
    for _ in range(repeats):
        before = _reset_memory(device)
        start = time.perf_counter()
        timed()
        if before is not None:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        if before is not None:
            peak = max(peak or 0, torch.cuda.max_memory_allocated(device) - before)
    return result, Cost(
        statistics.median(seconds) / examples, peak, passes.forward / examples, passes.backward / examples
    )


def _reset_memory(device: torch.device) -> int | None:
    """Wait for the GPU, reset its peak of memory, and return the memory in use; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
