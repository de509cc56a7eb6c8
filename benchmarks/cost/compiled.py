"""What is compiled: attributions recorded by captum_cav, and the gradient by hand, recorded and compiled likewise."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cost.measure import Call
from benchmarks.cost.setups import Setup
from captum_cav.compilation.graphs import RecordedGraph
from captum_cav.compilation.program import as_function
from captum_cav.compilation.runners import Backend
from captum_cav.torch_graphs import below_autograd, fused, recorded_graph

Make = Callable[[Setup], Call]


def compiled(make: Make, backend: Backend) -> Make:
    """The call that ``make`` makes, with a compiled attribution, which is recorded here."""

    def make_compiled(setup: Setup) -> Call:
        setup = copy.copy(setup)
        setup.backend = backend
        call = make(setup)
        call()
        return call

    return make_compiled


def compiled_floor(make: Make, backend: Backend) -> Make:
    """The call of the floor, recorded and compiled like an attribution, its parameters frozen.

    Args:
        make: makes a call that returns gradients, from the inputs of the setup.
        backend: "replay" or "inductor".
    """

    def make_compiled(setup: Setup) -> Call:
        setup = copy.copy(setup)
        inputs = setup.inputs

        def gradients(given: torch.Tensor) -> list[torch.Tensor]:
            setup.inputs = given
            return [one for of_target in make(setup)() for one in of_target if one is not None]  # type: ignore[attr-defined]

        graph = RecordedGraph(recorded_graph(gradients, [inputs]), [inputs])
        if backend == "inductor":
            kernels = fused(graph.as_module(graph.constants), [inputs], freezing=True)

            def call() -> object:
                with torch.no_grad():
                    return kernels([inputs])

        else:
            function, tensors = as_function(graph), [inputs, *graph.constants]

            def call() -> object:
                with below_autograd():
                    return function(tensors)

        call()
        return call

    return make_compiled


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operations(call: Call) -> int:
    """How many aten operations a call calls, views aside: on a GPU, about as many kernels."""
    with torch.autograd.set_multithreading_enabled(False), _Counting() as counting:  # type: ignore[no-untyped-call]
        call()
    return int(counting.count)
