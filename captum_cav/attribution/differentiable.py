"""Contributions that can be differentiated: to train a model towards a map, or to attribute a loss of a map.

In some networks every operation behind the layer passes contributions on by its own derivative: in networks of linear
operations, ReLU, max pooling and batch norm, such as those of the paper. There contributions are activation x gradient,
and autograd can differentiate them again with respect to parameters and inputs. In other networks autograd would
differentiate the surrogates, whose second derivatives mean nothing. So other networks are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import GradientEdge

from captum_cav import checks
from captum_cav.attribution.backward import seeds_of
from captum_cav.attribution.input_checks import Arguments
from captum_cav.attribution.options import Normalize
from captum_cav.errors import UnsupportedOperationError
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.propagation.records import RuleLog
from captum_cav.propagation.taps import as_carrier
from captum_cav.torch_internals import edge_of, modules_of, tree_map

#: The tensors of one call of a layer, and their places in the graph.
Call: TypeAlias = tuple[list[torch.Tensor], list[GradientEdge]]


def contributions_with_graph(
    forward_func: Callable[..., Any],
    arguments: Arguments,
    sites: Sequence[Site],
    call: int,
    log: RuleLog,
    scores_of: Callable[[Any], torch.Tensor],
    normalize: Normalize,
    multiply_by_inputs: bool,
    grad_kwargs: dict[str, Any],
) -> list[tuple[torch.Tensor, ...]]:
    """Activations times gradients of the scores, as functions of parameters and inputs.

    Args:
        forward_func: the model.
        arguments: the arguments of the model.
        sites: the explained layers; the inputs are explained if there is none.
        call: which call of each layer is meant.
        log: the rules that the operations of the model met.
        scores_of: selects the scores, shape (N,), from the output of the model.
        normalize: what contributions are divided by.
        multiply_by_inputs: whether to multiply gradients by activations.
        grad_kwargs: passed on to :func:`torch.autograd.grad`.

    Returns:
        For each layer, the contributions of each of its tensors, with their graph.

    Raises:
        UnsupportedOperationError: if a rule is not the derivative of its operation.
    """
    _check_derivatives(log)
    output, calls = _run(forward_func, arguments, sites, tap_inputs=not sites)
    chosen = [of_site[call] for of_site in calls]
    edges = [edge for _, call_edges in chosen for edge in call_edges]
    with torch.enable_grad():
        scores = scores_of(output)
        seeds = seeds_of(scores, normalize)
        found = iter(torch.autograd.grad(scores, edges, seeds, **{"allow_unused": True, **grad_kwargs}))
        results = []
        for values, _ in chosen:
            parts = [(value, next(found)) for value in values]
            results.append(
                tuple(
                    torch.zeros_like(x) if part is None else x * part if multiply_by_inputs else part
                    for x, part in parts
                )
            )
    return results


def _check_derivatives(log: RuleLog) -> None:
    """Refuse a forward pass in which a rule is not the derivative of its operation.

    Args:
        log: the rules that the operations met.

    Raises:
        UnsupportedOperationError: names the first such operation.
    """
    if log.inexact:
        row = log.inexact[0]
        where = f" in {row.module}" if row.module else ""
        raise UnsupportedOperationError(
            f"create_graph=True asks for contributions that can be differentiated, but {row.operation!r}{where} passes "
            f"contributions on by {row.rule}, which is not the derivative of the operation. Use create_graph=True in "
            "networks of linear operations, ReLU, max pooling and batch norm, or explain a layer behind all other "
            "operations."
        )


def _run(
    forward_func: Callable[..., Any], arguments: Arguments, sites: Sequence[Site], *, tap_inputs: bool
) -> tuple[Any, list[list[Call]]]:
    """Run an ordinary forward pass, and keep the tensors at the sites with their graph.

    Args:
        forward_func: the model.
        arguments: the arguments of the model.
        sites: where to keep tensors.
        tap_inputs: whether the inputs are the first site.

    Returns:
        What the model returned; and for each site, the tensors and gradient edges of each call.
    """
    thread = threading.get_ident()
    calls: list[list[Call]] = [[] for _ in range(len(sites) + tap_inputs)]

    def tapped(number: int, value: Any) -> Any:
        values: list[torch.Tensor] = []
        edges: list[GradientEdge] = []

        def remember(leaf: Any) -> Any:
            if not checks.is_floating(leaf):
                return leaf
            # The model may write into the tensor that it goes on with.
            values.append(leaf.clone())
            going_on = as_carrier(leaf)
            edges.append(edge_of(going_on))
            return going_on

        handed_on = tree_map(remember, value)
        calls[number].append((values, edges))
        return handed_on

    def after(number: int) -> Callable[..., Any]:
        return lambda module, args, output: tapped(number, output) if threading.get_ident() == thread else None

    def before(number: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: tapped(number, (args, kwargs)) if threading.get_ident() == thread else None

    with ExitStack() as hooks, noted_tensors(modules_of(forward_func), thread), torch.enable_grad():
        for number, site in enumerate(sites, int(tap_inputs)):
            if site.of_input:
                handle = site.module.register_forward_pre_hook(before(number), with_kwargs=True)
            else:
                handle = site.module.register_forward_hook(after(number))
            hooks.callback(handle.remove)
        inputs = checks.copied(arguments.inputs)
        if tap_inputs:
            inputs = tapped(0, inputs)
        return forward_func(*inputs, *arguments.additional), calls
