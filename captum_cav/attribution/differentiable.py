"""Contributions that can be differentiated: to train a model towards a map, or to attribute a loss of a map.

In some networks every operation behind the layer passes contributions on by its own derivative: in networks of linear
operations, ReLU, max pooling and batch norm, such as those of the paper. There contributions are activation x gradient,
and autograd can differentiate them again with respect to parameters and inputs. In other networks autograd would
differentiate the surrogates, whose second derivatives mean nothing. So other networks are refused.

What changes gradients changes no contributions: hooks, and custom autograd functions whose backward pass is not the
derivative of their forward pass. So autograd records the operations themselves, see :class:`_Derivatives`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from captum_cav import checks
from captum_cav.attribution.backward import seeds_of
from captum_cav.attribution.input_checks import Arguments
from captum_cav.attribution.options import Normalize
from captum_cav.errors import UnsupportedOperationError
from captum_cav.operations import TABLE
from captum_cav.propagation.constant_operations import usable
from captum_cav.propagation.function_mode import FunctionMode
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.kinds import Role
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.propagation.records import RuleLog
from captum_cav.propagation.taps import as_carrier, comes_from_carrier
from captum_cav.tensors import map_tensors, separate_node, tensors_in
from captum_cav.torch_internals import (
    apply_as_torch_does,
    edge_of,
    modules_of,
    patched_torch,
    run_as_written,
    tree_map,
)

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


class _Derivatives(FunctionMode):
    """While this mode is active, autograd records the derivatives of the operations, and nothing that changes them.

    Hooks that the model registers on tensors with contributions, or on their nodes, never run. The operations in the
    forward pass of a custom autograd function are recorded instead of its backward pass. Tensors of inference mode are
    copied, because autograd saves no such tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_paused = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused:
            return func(*args, **kwargs)
        role = TABLE.treatments[func].role
        if role is Role.REGISTERS_HOOK and _carries(args[0]):
            return RemovableHandle(OrderedDict())
        if role is Role.READS_NODE and _carries(args[0]):
            return separate_node(args[0])
        if role is Role.COMPUTES and any(tensor.requires_grad for tensor in tensors_in([*args, *kwargs.values()])):
            args = tuple(map_tensors(usable, value) for value in args)
            kwargs = {key: map_tensors(usable, value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this context is active, the mode lets torch calls pass."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def apply(self, function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply a custom autograd function of the model."""
        of_torch = function.__module__.startswith("torch.")  # Activation checkpoints.
        # A function of parameters alone, such as a straight-through estimator, has the gradients that the user wants.
        with self.paused():
            carries = any(map(_carries, tensors_in([*args, *kwargs.values()])))
        if of_torch or not carries:
            return apply_as_torch_does(function, args, kwargs)
        output, constants = run_as_written(function, args, kwargs)
        return map_tensors(lambda tensor: tensor.detach() if id(tensor) in constants else tensor, output)


def _carries(tensor: torch.Tensor) -> bool:
    """Whether a tensor has contributions: its graph begins at an explained layer or at the inputs."""
    return tensor.requires_grad and comes_from_carrier(tensor)


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
    thread, derivatives = threading.get_ident(), _Derivatives()
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

        with derivatives.paused():
            handed_on = tree_map(remember, value)
        calls[number].append((values, edges))
        return handed_on

    def after(number: int) -> Callable[..., Any]:
        return lambda module, args, output: tapped(number, output) if threading.get_ident() == thread else None

    def before(number: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: tapped(number, (args, kwargs)) if threading.get_ident() == thread else None

    with (
        ExitStack() as hooks,
        noted_tensors(modules_of(forward_func), thread),
        patched_torch(derivatives.apply, lambda: False),
        torch.enable_grad(),
    ):
        for number, site in enumerate(sites, int(tap_inputs)):
            if site.of_input:
                handle = site.module.register_forward_pre_hook(before(number), with_kwargs=True)
            else:
                handle = site.module.register_forward_hook(after(number))
            hooks.callback(handle.remove)
        inputs = checks.copied(arguments.inputs)
        if tap_inputs:
            inputs = tapped(0, inputs)
        with derivatives:
            return forward_func(*inputs, *arguments.additional), calls
