"""Contributions that can be differentiated themselves, to train against a map or to attribute a loss of one.

Where every operation behind a layer passes contributions on by its own derivative (linear operations, ReLU, max
pooling, batch norm: the networks of the paper), contributions are activation x gradient, and autograd can differentiate
those again, by parameters and inputs. Elsewhere it would differentiate the surrogates, which is not what they are for,
so those networks are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_cav.errors import UnsupportedOperationError
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.records import RuleLog
from captum_cav.propagation.taps import as_carrier
from captum_cav.torch_internals import tree_map

Call = tuple[list[torch.Tensor], list[GradientEdge]]


def check(log: RuleLog) -> None:
    """Refuse a forward pass in which some rule is not the derivative of its operation.

    Raises:
        UnsupportedOperationError: naming the first of them.
    """
    if log.inexact:
        row = log.inexact[0]
        where = f" in {row.module}" if row.module else ""
        raise UnsupportedOperationError(
            f"create_graph=True asks for contributions that can be differentiated, but {row.operation!r}{where} passes "
            f"them on by {row.rule}, which is not its derivative. It is to be had in networks of linear operations, "
            "ReLU, max pooling and batch norm, or at a layer behind all others."
        )


def run(
    forward_func: Callable[..., Any],
    inputs: tuple[Any, ...],
    additional: tuple[Any, ...],
    sites: Sequence[Site],
    tap_inputs: bool,
) -> tuple[Any, list[list[Call]]]:
    """Run a forward pass as it is, and remember what ran through the sites, with its graph.

    Args:
        forward_func, inputs, additional, sites: as for :func:`captum_cav.propagation.forward.run`.
        tap_inputs: whether the inputs are the first site.

    Returns:
        What the model returned; for each site, the values and gradient edges of each of its calls.
    """
    thread = threading.get_ident()
    calls: list[list[Call]] = [[] for _ in range(len(sites) + tap_inputs)]

    def tapped(number: int, value: Any) -> Any:
        values: list[torch.Tensor] = []
        edges: list[GradientEdge] = []

        def remember(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.is_floating_point()):
                return leaf
            # The model may write into what it goes on with.
            values.append(leaf.clone())
            going_on = as_carrier(leaf)
            edges.append(get_gradient_edge(going_on))
            return going_on

        handed_on = tree_map(remember, value)
        calls[number].append((values, edges))
        return handed_on

    def after(number: int) -> Callable[..., Any]:
        return lambda module, args, output: tapped(number, output) if threading.get_ident() == thread else None

    def before(number: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: tapped(number, (args, kwargs)) if threading.get_ident() == thread else None

    with ExitStack() as hooks, torch.enable_grad():
        for number, site in enumerate(sites, int(tap_inputs)):
            if site.of_input:
                handle = site.module.register_forward_pre_hook(before(number), with_kwargs=True)
            else:
                handle = site.module.register_forward_hook(after(number))
            hooks.callback(handle.remove)
        inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
        if tap_inputs:
            inputs = tapped(0, inputs)
        return forward_func(*inputs, *additional), calls


def contributions(
    scores: torch.Tensor, seeds: torch.Tensor, chosen: Sequence[Call], **grad_kwargs: Any
) -> list[tuple[torch.Tensor, ...]]:
    """Values times gradients of the scores, as functions of parameters and inputs.

    Args:
        scores: shape (N,).
        seeds: shape (N,), what each score's contributions are multiplied with.
        chosen: values and edges of a call of each site.
        grad_kwargs: passed on to :func:`torch.autograd.grad`.
    """
    edges = [edge for _, site in chosen for edge in site]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(scores, edges, seeds, **{"allow_unused": True, **grad_kwargs}))
        results = []
        for values, _ in chosen:
            parts = [(value, next(found)) for value in values]
            results.append(tuple(torch.zeros_like(x) if part is None else x * part for x, part in parts))
    return results
