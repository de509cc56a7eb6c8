"""What the rows are, and what is timed in each."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from benchmarks.cost.compiled import compiled, compiled_floor, count_operations
from benchmarks.cost.measure import Call, Cell, attempt, peak, take_turns
from benchmarks.cost.networks import NETWORKS
from benchmarks.cost.rivals import RIVALS
from benchmarks.cost.setups import Setup
from captum_cav import LayerCAV
from captum_cav.propagation.taps import as_carrier
from captum_cav.torch_internals import tree_map

FLOOR, FORWARD, OURS, FULL = "floor", "forward only", "ours", "gradient to the inputs"
REPLAY, INDUCTOR, CUDA_GRAPH = "ours, replayed", "ours, inductor", "ours, CUDA graph"
FLOOR_REPLAY, FLOOR_INDUCTOR = "floor, replayed", "floor, inductor"
#: Columns of compiled calls by the name of what compiles them.
COMPILED: dict[str, tuple[str, ...]] = {
    "replay": (REPLAY, FLOOR_REPLAY),
    "inductor": (INDUCTOR, FLOOR_INDUCTOR),
    "cudagraphs": (CUDA_GRAPH,),
}
_FIVE = [0, 1, 2, 3, 4]


def forward_only(setup: Setup) -> Call:
    """A forward pass that records nothing."""

    def call() -> torch.Tensor:
        with torch.no_grad():
            scores: torch.Tensor = setup.frozen(setup.inputs)
            return scores

    return call


def gradient(setup: Setup, layers: Sequence[str], targets: Sequence[int] = (0,)) -> Call:
    """A forward pass and the gradient of scores, by hand; nothing is recorded before the first of the layers.

    Args:
        setup: the network, whose parameters are frozen here.
        layers: names of layers, or none for the inputs.
        targets: classes, with a backward pass each.

    Returns:
        A call that returns for each class the gradients of the tensors of the layers, in the order of the forward pass.
    """
    model, inputs = setup.frozen, setup.inputs
    modules = [model.get_submodule(name) for name in layers]

    def call() -> list[tuple[torch.Tensor | None, ...]]:
        edges: list[GradientEdge] = []

        def tap(value: Any) -> Any:
            def tapped(leaf: Any) -> Any:
                if not (isinstance(leaf, torch.Tensor) and leaf.is_floating_point()):
                    return leaf
                carrier = as_carrier(leaf)  # what follows may write into it
                edges.append(get_gradient_edge(carrier))
                return carrier

            return tree_map(tapped, value)

        hooks = [module.register_forward_hook(lambda _, given, output: tap(output)) for module in modules]
        try:
            scores = model(inputs if modules else tap(inputs.clone()))
        finally:
            for hook in hooks:
                hook.remove()
        return [
            torch.autograd.grad(
                scores[:, target].sum(), edges, retain_graph=number < len(targets) or None, allow_unused=True
            )
            for number, target in enumerate(targets, 1)
        ]

    return call


def _explain(setup: Setup, **options: Any) -> Call:
    cav, inputs = setup.cav, setup.inputs
    return lambda: cav.attribute(inputs, 0, **options)


def _explain_five(setup: Setup) -> Call:
    cav, inputs = setup.cav, setup.inputs
    assert isinstance(cav, LayerCAV)
    return lambda: cav.attribute_targets(inputs, _FIVE)


def _no_layer(layers: list[str]) -> list[str]:
    return []


def _floor(setup: Setup) -> Call:
    return gradient(setup, setup.layers)


@dataclass(frozen=True)
class Kind:
    """A kind of row.

    Attributes:
        about: what it asks for.
        layers: picks layers out of the network's; none for the inputs.
        ours: makes our call.
        floor: makes the call that nobody can undercut, with which the others are compared.
        more: further columns.
        rivals: names of rivals that can be asked for the same.
        preset: name of the rules.
        is_compiled: whether there are columns of compiled calls.
    """

    about: str
    layers: Callable[[list[str]], list[str]] = list
    ours: Callable[[Setup], Call] = _explain
    floor: Callable[[Setup], Call] = _floor
    more: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    preset: str = "paper"
    is_compiled: bool = True

    def columns(self, backends: Sequence[str] = ()) -> dict[str, Callable[[Setup], Call]]:
        """What makes the call of each column.

        Args:
            backends: what compiles calls for further columns, keys of ``COMPILED``.
        """
        compiling = {
            REPLAY: compiled(self.ours, "replay"),
            FLOOR_REPLAY: compiled_floor(self.floor, "replay"),
            INDUCTOR: compiled(self.ours, "inductor"),
            FLOOR_INDUCTOR: compiled_floor(self.floor, "inductor"),
            CUDA_GRAPH: compiled(self.ours, "cudagraphs"),
        }
        further = [name for backend in backends if self.is_compiled for name in COMPILED[backend]]
        known = {FULL: lambda setup: gradient(setup, setup.entrance), **RIVALS}
        return {
            FLOOR: self.floor,
            FORWARD: forward_only,
            OURS: self.ours,
            **{name: compiling[name] for name in further},
            **{name: known[name] for name in (*self.more, *self.rivals)},
        }


_AT_LAYERS = ("Captum LayerLRP", "Captum LayerGradientXActivation")
_AT_A_LAYER = (*_AT_LAYERS, "Captum LayerGradCam", "Captum LayerIntegratedGradients, 20 steps")
_AT_INPUTS = ("Captum LRP", "Captum InputXGradient", "zennit", "autolrp")

KINDS = {
    "layers": Kind("all depths: the network's layers in one pass", rivals=_AT_LAYERS),
    "last": Kind("the last layer alone", lambda layers: layers[-1:], more=(FULL,), rivals=_AT_A_LAYER),
    "input": Kind("the inputs (of words, their embeddings)", _no_layer, rivals=_AT_INPUTS),
    **{
        preset: Kind(f"the inputs, by {preset}", _no_layer, rivals=("zennit", "autolrp"), preset=preset)
        for preset in ("gamma", "pinpoint", "epsilon_plus", "alpha2_beta1", "attnlrp")
    },
    "five_classes": Kind(
        "all depths, five classes",
        ours=_explain_five,
        floor=lambda setup: gradient(setup, setup.layers, _FIVE),
    ),
    "constants": Kind(
        "all depths, with the shares of constants",
        ours=functools.partial(_explain, return_convergence_delta=True),
    ),
    "all_over_first": Kind(
        "all depths against the first layer alone, ours both",
        floor=lambda setup: _explain(_first_alone(setup)),
        is_compiled=False,
    ),
}
MEMORY = ("layers", "last", "input")


def _first_alone(setup: Setup) -> Setup:
    first = copy.copy(setup)
    first.layers = setup.layers[:1]
    return first


@dataclass(frozen=True)
class Row:
    """A network, a batch and a kind; as text ``vgg16/8/last``."""

    network: str
    batch: int
    kind: str

    def __str__(self) -> str:
        return f"{self.network}/{self.batch}/{self.kind}"

    def setup(self, device: torch.device) -> Setup:
        """Build the network, the same in each process."""
        torch.manual_seed(0)
        network, kind = NETWORKS[self.network](), KINDS[self.kind]
        return Setup(network, self.batch, kind.layers(network.layers), kind.preset, device)


def rows(batches: Sequence[int]) -> Iterator[Row]:
    """Every row there is for some sizes of batches."""
    for network, batch, kind in itertools.product(NETWORKS, batches, KINDS):
        yield Row(network, batch, kind)


def is_usual(row: Row) -> bool:
    """Whether a row is measured where none are named: all would take hours."""
    if row.batch > 1:
        return row.kind == "layers"
    return row.kind in MEMORY or row.network in ("vgg16", "resnet50", "vit_b_16")


def time_row(
    row: Row, device: torch.device, threads: int, budget: float, backends: Sequence[str] = ()
) -> dict[str, Cell]:
    """Time the columns of a row, and count the operations of ours and of the floor's.

    Args:
        row: the row.
        device: where to compute.
        threads: of the CPU; 0 for torch's own number.
        budget: seconds for the rounds.
        backends: what compiles calls for further columns.
    """
    _prepare(threads)
    setup = row.setup(device)
    columns = KINDS[row.kind].columns(backends)
    made = {name: attempt(functools.partial(make, setup)) for name, make in columns.items()}
    calls = {name: call for name, call in made.items() if not isinstance(call, str)}
    reasons = {name: Cell(reason=reason) for name, reason in made.items() if isinstance(reason, str)}
    cells = take_turns(calls, FLOOR, budget, device) | reasons
    for name in (FLOOR, OURS, REPLAY):
        if name in cells and not cells[name].reason:
            cells[name].operations = count_operations(calls[name])
    return cells


def peak_of(row: Row, column: str, device: torch.device, threads: int, backends: Sequence[str] = ()) -> float | None:
    """Peak memory of one column of a row, in mebibytes."""
    _prepare(threads)
    setup = row.setup(device)
    return peak(KINDS[row.kind].columns(backends)[column](setup), device)


def _prepare(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # of scores near 0, as random networks have them, and what rivals warn of
