"""What runs a recording: its operations one after another, fused kernels, or one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch

from captum_cav.compilation.program import as_function
from captum_cav.compilation.recording import Recording
from captum_cav.torch_graphs import below_autograd, fused

Backend: TypeAlias = Literal["replay", "inductor", "cudagraphs"]
#: Runs a graph: takes the inputs, then the constants, and returns the results.
Runner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def replay(recording: Recording) -> Runner:
    """The same operations in the same order, without autograd and without the model's Python code."""
    function = as_function(recording.graph)

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with below_autograd():
            return function(tensors)

    return run


def inductor(recording: Recording) -> Runner:
    """Fused kernels, made by torch's compiler. Rounding differs from that of the operations one after another."""
    function = fused(recording.graph.as_module(), [*recording.inputs, *recording.graph.constants])

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return function(tensors)

    return run


RUNNERS: dict[str, Callable[[Recording], Runner]] = {"replay": replay, "inductor": inductor}
