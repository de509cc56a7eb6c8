"""One forward pass under the propagation, and the backward passes through its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from captum_cav.errors import ModelError, UnsupportedOperationError
from captum_cav.propagation.custom_functions import CustomFunctions
from captum_cav.propagation.dispatch import OnUnknown, Propagation
from captum_cav.propagation.embedded import Embedded, Embeddings
from captum_cav.propagation.hooks import Site, hooked
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.reentrancy import running
from captum_cav.propagation.table import OperationTable
from captum_cav.propagation.trace import Trace
from captum_cav.tensors import tensors_in
from captum_cav.torch_internals import acts_as_in_training, has_old_backward_hook, modules_of, patched_torch, tree_map


@dataclass
class Forward:
    """The result of a forward pass: the output, and the graph behind the taps.

    Attributes:
        rerun: runs the model once more, without its score and without the propagation.
        output: what the model returned, or the function that goes on with its output.
        carriers: for each call of a site, its tensors that carry contributions. Empty unless the request keeps them.
        calls: for each site, the indices of its taps in ``trace.taps``, one for each call of the module. If the inputs
            were tapped, they are tap 0.
        trace: the state of the pass.
        propagation: the mode under which the pass ran.
        embedded: the calls of embedding layers that take integer inputs, which were tapped.
    """

    rerun: Callable[[], Any]
    output: Any
    carriers: list[Any]
    calls: list[list[int]]
    trace: Trace
    propagation: Propagation
    embedded: Sequence[Embedded] = ()

    def extend(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a function that goes on with tensors of the pass. Its operations have rules, too.

        Args:
            function: the function.
            args: its arguments, among them tensors of the pass.

        Raises:
            UnsupportedOperationError: for an operation without a rule.
        """
        with (
            self.propagation.resumed(),
            patched_torch(CustomFunctions(self.propagation).run, lambda: self.propagation.is_at_rest),
            torch.enable_grad(),
            running(self.propagation),
            self.propagation,
        ):
            found = function(*args)
        self.propagation.check_seen(found)
        return found

    def coefficients(
        self,
        scores: torch.Tensor | GradientEdge,
        seeds: torch.Tensor,
        chosen: Sequence[int],
        keep_graph: bool,
        **grad_kwargs: Any,
    ) -> list[list[torch.Tensor | None]]:
        """The contribution coefficients ``c`` of the chosen taps, from one backward pass for all of them.

        Args:
            scores: shape (N,), the scores to explain; or a place in the graph between the scores and the taps.
            seeds: shape (N,), the coefficient of each score: 1, or 1/score for ratios; or those at the place.
            chosen: indices of taps.
            keep_graph: whether another backward pass will follow.
            grad_kwargs: passed on to :func:`torch.autograd.grad`.

        Returns:
            For each chosen tap, the coefficients of each of its tensors, in the shape of the tensor. None for a tensor
            on which the score does not depend.

        Raises:
            ModelError: for a model that writes over a tensor that its own gradient needs.
            UnsupportedOperationError: for an operation that torch cannot differentiate.
        """
        edges = [edge for index in chosen for edge in self.trace.taps[index].edges]
        options = {"retain_graph": keep_graph or None, "allow_unused": True, **grad_kwargs}
        try:
            coefficients = iter(torch.autograd.grad(scores, edges, seeds, **options))
        except RuntimeError as error:
            if "derivative" in str(error) and "is not implemented" in str(error):
                said = str(error).rstrip(".")
                raise UnsupportedOperationError(
                    f"torch cannot differentiate an operation of the model: {said}. Give this operation a rule that "
                    "needs no derivative, as rules.pass_through where y_i comes from x_i alone, or your own function."
                ) from error
            if "modified by an inplace operation" not in str(error):
                raise
            raise ModelError(
                "the model writes over a tensor that its own gradient needs, so it could not be trained either; make "
                "that operation out of place, as nn.ReLU(inplace=False) or x = x + y, or give the module that does it "
                "a rule as one operation (rules={module: rules.PassThroughRule()})."
            ) from error
        return [[next(coefficients) for _ in self.trace.taps[index].edges] for index in chosen]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a forward pass.

    Attributes:
        table: what is known of each torch function.
        rules: the user's rules, which go before the defaults.
        called: a function that calls the model with the arguments in their places; None for the model itself.
        scored: a function that calls the model and goes on with its output; None for ``called`` alone.
        on_unknown: ``"error"``, ``"gradient"`` or ``"note"``: what to do with an operation without a rule.
        tap_inputs: whether to tap the inputs too, as the first tap.
        embeds: tells which modules are embedding layers, whose output is tapped where they take an integer input. None
            to tap none.
        keep_carriers: whether to keep, for each call of a site, its tensors that carry contributions.
        end_at_call: the call of a site at which contributions end, and after which the model goes on with plain
            tensors.
        with_shares: whether to measure the shares of constants.
        with_rules: whether to note which operation meets which rule.
        audited: whether to compare what goes into each operation in the backward pass and what comes out. Needs the
            shares of constants.
    """

    table: OperationTable
    rules: Rulebook
    called: Callable[..., Any] | None = None
    scored: Callable[..., Any] | None = None
    on_unknown: OnUnknown = "error"
    tap_inputs: bool = False
    embeds: Callable[[torch.nn.Module], bool] | None = None
    keep_carriers: bool = False
    end_at_call: int | None = None
    with_shares: bool = False
    with_rules: bool = False
    audited: bool = False


def run(
    forward_func: Callable[..., Any],
    inputs: tuple[Any, ...],
    additional: tuple[Any, ...],
    sites: Sequence[Site],
    request: Request,
) -> Forward:
    """Run a forward pass in which surrogates replace the operations.

    Args:
        forward_func: the model or any callable.
        inputs: the model's inputs. The model gets copies of the tensors among them.
        additional: further arguments, which the model gets unchanged.
        sites: where to tap.
        request: the options.

    Returns:
        The output and the taps. Nothing stays on the model, whether this function returns or raises.
    """
    modules = modules_of(forward_func)
    if not (request.with_rules or request.audited or _needs_modules(modules, request.rules)):
        try:
            return _run(forward_func, modules, inputs, additional, sites, request, follows_modules=False)
        except UnsupportedOperationError:
            pass  # The second run follows the modules, so that its message can name the module of the operation.
    return _run(forward_func, modules, inputs, additional, sites, request, follows_modules=True)


def _run(
    forward_func: Callable[..., Any],
    modules: Collection[torch.nn.Module],
    inputs: tuple[Any, ...],
    additional: tuple[Any, ...],
    sites: Sequence[Site],
    request: Request,
    *,
    follows_modules: bool,
) -> Forward:
    trace = Trace(with_shares=request.with_shares, with_rules=request.with_rules, audited=request.audited)
    propagation = Propagation(request.table, request.rules, request.on_unknown, trace, names_in(forward_func))
    # Clones: the model may write into its inputs.
    inputs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    calls: list[list[int]] = [[] for _ in sites]
    called = request.called or forward_func
    carriers: list[Any] = []

    def at_site(index: int, value: Any) -> Any:
        calls[index].append(len(trace.taps))
        ends = len(calls[index]) - 1 == request.end_at_call
        value = propagation.tap(value)
        if request.keep_carriers:
            # A copy: the model may write into the value with which it goes on, also under another name.
            with propagation.paused(), torch.enable_grad():
                carriers.append(tree_map(trace.copied, value))
            trace.note_consumer(value)
        if ends:
            value = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value)
        return value

    embeddings = None
    if request.embeds is not None:
        embeddings = Embeddings(inputs, request.embeds, lambda: len(trace.taps))

    def at_module(module: torch.nn.Module, args: Any, output: Any) -> Any:
        assert embeddings is not None
        return propagation.tap(output) if embeddings.note(module, args, output) else None

    for tensor in tensors_in(list(inputs)):
        trace.mark_input(tensor)
    try:
        with (
            random_state_kept(inputs),
            noted_tensors(modules, trace.run),
            patched_torch(CustomFunctions(propagation).run, lambda: propagation.is_at_rest),
            torch.enable_grad(),
            hooked(sites, at_site, propagation, follows_modules, at_module if embeddings is not None else None),
        ):
            if request.tap_inputs:
                inputs = propagation.tap(inputs)
            with running(propagation), propagation:
                output = (request.scored or called)(*inputs, *additional)
            propagation.check_seen(output)
            trace.note_consumer(output)
    finally:
        propagation.finish()
    rerun, embedded = functools.partial(called, *inputs, *additional), embeddings.found if embeddings else ()
    return Forward(rerun, output, carriers, calls, trace, propagation, embedded)


def names_in(forward_func: Callable[..., Any]) -> Callable[[torch.nn.Module], Sequence[str]]:
    """A function that gives the qualified names of a module in a model. A module may have several names, or none."""

    @functools.cache
    def names() -> dict[torch.nn.Module, list[str]]:
        by_module: dict[torch.nn.Module, list[str]] = {}
        if isinstance(forward_func, torch.nn.Module):
            for name, module in forward_func.named_modules(remove_duplicate=False):
                by_module.setdefault(module, []).append(name)
        return by_module

    return lambda module: names().get(module, ())


@contextmanager
def random_state_kept(inputs: tuple[Any, ...]) -> Iterator[None]:
    """A context after which the random number generators are as before."""
    devices = {tensor.device for tensor in tensors_in(list(inputs)) if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        yield


def _needs_modules(modules: Collection[torch.nn.Module], rules: Rulebook) -> bool:
    """Whether the forward pass must be followed module by module: a rule or a refusal may concern a module.

    Args:
        modules: the modules of the model. Empty for a function, whose modules are not known.
        rules: the user's rules.
    """
    return not modules or any(
        rules.may_be_for(module) or acts_as_in_training(module) or has_old_backward_hook(module) for module in modules
    )
