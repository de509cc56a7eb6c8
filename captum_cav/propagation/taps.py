"""Taps: where the propagation reads the contributions of a layer.

A tap hands a tensor on unchanged and remembers its value and its place in the graph. The first tap that the forward
pass meets is where the graph begins: nothing before it requires grad.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map

from captum_cav.errors import CAVTypeError
from captum_cav.propagation.kept import Kept
from captum_cav.propagation.surroundings import OwnFunction


class _HandOn(OwnFunction):
    """Identity that requires grad although its input may not.

    The output shares the input's memory without being a view or a leaf, so that the model may write into it.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (coefficients if ctx.needs_input_grad[0] else None), None


def hand_on(value: torch.Tensor) -> torch.Tensor:
    """A tensor of the same memory that requires grad: the beginning of a graph."""
    carrier: torch.Tensor = _HandOn.apply(value, torch.zeros((), device="cpu", requires_grad=True))
    return carrier


_TWINS = "_captum_cav_twins"


def make_twins(source: torch.Tensor, carrier: torch.Tensor) -> None:
    """Note that a tapped tensor is in the memory of the one that it stands for, which the model may still hold."""
    known: list[weakref.ref[torch.Tensor]] = getattr(source, _TWINS, None) or [weakref.ref(source)]
    known.append(weakref.ref(carrier))
    for tensor in (source, carrier):
        setattr(tensor, _TWINS, known)


def twins_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The other tensors in the same memory that are still held."""
    known = [reference() for reference in getattr(tensor, _TWINS, ())]
    return [twin for twin in known if twin is not None and twin is not tensor]


class Tapped:
    """The tensors of one layer in one call: their values and their places in the graph.

    Args:
        kind: type of what the layer gave.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.kept: list[Kept] = []
        self.edges: list[GradientEdge] = []

    @property
    def values(self) -> list[torch.Tensor]:
        """The values as the layer gave them."""
        return [kept.value for kept in self.kept]


def tap(
    value: Any, keep: Callable[[torch.Tensor], Kept], mark: Callable[[torch.Tensor, torch.Tensor], None]
) -> tuple[Any, Tapped]:
    """Tap every floating-point tensor of a layer's input or output.

    Args:
        value: a tensor or a (nested) tuple, list, dict or registered container of tensors.
        keep: keeps a value until it is read.
        mark: called with each tensor that is handed on and the tensor that it stands for.

    Returns:
        The same structure with tapped tensors in it, and what was tapped.
    """
    tapped = Tapped(type(value).__name__)

    def tapped_leaf(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.layout != torch.strided:
            raise CAVTypeError(
                f"the layer gives a sparse tensor ({leaf.layout}), whose units cannot be told apart; pick a layer "
                "before or behind it."
            )
        if isinstance(leaf, torch.Tensor) and leaf.is_complex():
            raise CAVTypeError(
                f"the layer gives complex numbers ({leaf.dtype}); contributions are defined for real numbers. Pick a "
                "layer before or behind it."
            )
        if not (isinstance(leaf, torch.Tensor) and leaf.is_floating_point()):
            return leaf
        carrier = hand_on(leaf if leaf.grad_fn is not None else leaf.detach())
        tapped.kept.append(keep(leaf))
        tapped.edges.append(get_gradient_edge(carrier))
        mark(carrier, leaf)
        return carrier

    return tapped_leaf(value) if isinstance(value, torch.Tensor) else tree_map(tapped_leaf, value), tapped
