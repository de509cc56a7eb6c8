"""What runs a recording: its operations one after another, fused kernels, or one CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch

from captum_cav.compilation.known import known_values
from captum_cav.compilation.program import as_function
from captum_cav.compilation.recording import Recording
from captum_cav.errors import RecordingError
from captum_cav.torch_graphs import below_autograd, fused

Backend: TypeAlias = Literal["replay", "inductor", "cudagraphs"]
#: Runs a graph: takes the inputs, then the constants, and returns the results in the order of the recording.
Runner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def replay(recording: Recording) -> Runner:
    """The same operations in the same order, without autograd and without the model's Python code.

    What hangs on parameters and buffers alone, such as their absolute values, a frozen recording computes once.
    """
    known = known_values(recording.graph) if recording.is_frozen else {}
    function, in_order = as_function(recording.graph, known), recording.graph.in_order

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with below_autograd():
            return in_order(function(tensors))

    return run


def fused_for_weights(recording: Recording) -> Runner:
    """Kernels that torch's compiler makes for the numbers of a frozen recording.

    Weights lie in memory as the kernels read them, and a batch norm becomes a part of its convolution. So sums are
    rounded in another way than by the operations one after another.
    """
    graph, count = recording.graph, len(recording.inputs)
    kernels, in_order = fused(graph.as_module(graph.constants), recording.inputs, freezing=True), graph.in_order

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return in_order(kernels(tensors[:count]))

    return run


def fused_between(recording: Recording) -> Runner:
    """Kernels that torch's compiler makes for what lies between convolutions and products, which stay as they are."""
    graph = recording.graph
    kernels, in_order = fused(graph.as_module(), [*recording.inputs, *graph.constants]), graph.in_order

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return in_order(kernels(tensors))

    return run


def cudagraphs(recording: Recording) -> Runner:
    """All operations as one CUDA graph, which the host starts by one call.

    Raises:
        RecordingError: if a tensor is not on a CUDA device.
    """
    elsewhere = {str(tensor.device) for tensor in [*recording.inputs, *recording.graph.constants] if not tensor.is_cuda}
    if elsewhere:
        raise RecordingError(
            f'backend="cudagraphs" was given tensors on {", ".join(sorted(elsewhere))}; expected the model and all '
            'inputs on one CUDA device. Pass backend="replay" or "inductor" elsewhere.'
        )
    return _CudaGraph(recording)


class _CudaGraph:
    """A CUDA graph of a recording. Threads and streams take turns: the graph has one memory for its inputs and results.

    Args:
        recording: the recording.
    """

    def __init__(self, recording: Recording) -> None:
        self._function, self._in_order = as_function(recording.graph), recording.graph.in_order
        self._inputs = [tensor.clone() for tensor in recording.inputs]
        self._lock, self._done = threading.Lock(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._addresses: list[int] = []

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the graph."""
        count = len(self._inputs)
        constants = tensors[count:]
        with self._lock, torch.no_grad(), torch.cuda.device(self._inputs[0].device):
            torch.cuda.current_stream().wait_event(self._done)
            for own, given in zip(self._inputs, tensors[:count], strict=True):
                own.copy_(given, non_blocking=True)
            # The graph reads parameters where they lay. Another tensor in the place of one needs another graph.
            addresses = list(map(torch.Tensor.data_ptr, constants))
            if addresses != self._addresses:
                self._capture(constants)
                self._addresses = addresses
            self._graph.replay()
            results = [result.clone() for result in self._results]
            self._done.record()
        return self._in_order(results)

    def _capture(self, constants: Sequence[torch.Tensor]) -> None:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with below_autograd():
            with torch.cuda.stream(aside):
                for _ in range(3):  # Libraries choose their kernels in the first calls.
                    self._function([*self._inputs, *constants])
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._results = self._function([*self._inputs, *constants])


BACKENDS: tuple[Backend, ...] = get_args(Backend)


def ways_to_run(backend: Backend, recording: Recording) -> list[Callable[[Recording], Runner]]:
    """What can run a recording, the fastest first. The first whose results are those of the attribution is taken."""
    if backend == "inductor":
        return [fused_for_weights, fused_between] if recording.is_frozen else [fused_between]
    return [replay if backend == "replay" else cudagraphs]
