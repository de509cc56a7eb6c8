"""Taps: where the propagation reads the contributions of a layer.

A tap passes a tensor on unchanged, and remembers the tensor's value and its place in the graph. The graph begins at the
first tap that the forward pass meets: nothing before this tap requires grad.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from captum_cav.errors import CAVTypeError
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.torch_internals import OwnFunction, base_of, edge_of, tree_map


class _Carrier(OwnFunction):
    """The identity. Its output always requires grad.

    The output shares the input's memory, but is neither a view nor a leaf. So the model may write into the output.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (coefficients if ctx.needs_input_grad[0] else None), None


def as_carrier(value: torch.Tensor) -> torch.Tensor:
    """A tensor in the same memory that requires grad: the beginning of a graph."""
    carrier: torch.Tensor = _Carrier.apply(value, torch.zeros((), device="cpu", requires_grad=True))
    return carrier


def comes_from_carrier(tensor: torch.Tensor) -> bool:
    """Whether the graph of a tensor leads to a carrier."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            if node.name() == _CARRIER_NODE:
                return True
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return False


_CARRIER_NODE = f"{_Carrier.__name__}Backward"
_ALIASES = "_captum_cav_memory_aliases"


def note_alias(source: torch.Tensor, carrier: torch.Tensor) -> None:
    """Note that a carrier shares the memory of the tensor that it replaces. The model may use both later."""
    base = base_of(source)
    whole = source if base is None else base
    known: list[weakref.ref[torch.Tensor]] = getattr(whole, _ALIASES, None) or [weakref.ref(whole)]
    known.append(weakref.ref(carrier))
    for tensor in (whole, carrier):
        setattr(tensor, _ALIASES, known)


def all_in_memory(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in one memory that taps separated from each other and that still exist, in the order of the taps.

    The tensor itself is one of them. The list is empty if no tap separated anything from the tensor.
    """
    known = [reference() for reference in getattr(tensor, _ALIASES, ())]
    return [alias for alias in known if alias is not None]


def memory_aliases(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The other tensors in the same memory that still exist."""
    return [alias for alias in all_in_memory(tensor) if alias is not tensor]


class Tapped:
    """The tensors of one layer in one call: their values and their places in the graph.

    Args:
        kind: the type of the layer's output, for messages.

    Attributes:
        behind: bit set of the earlier taps from which the tensors come.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.behind = 0
        self.saved: list[SavedValue] = []
        self.edges: list[GradientEdge] = []

    @property
    def values(self) -> list[torch.Tensor]:
        """The values at the time of the tap."""
        return [saved.value for saved in self.saved]


def tap(
    value: Any, save: Callable[[torch.Tensor], SavedValue], mark: Callable[[torch.Tensor, torch.Tensor], None]
) -> tuple[Any, Tapped]:
    """Tap every floating-point tensor of a layer's input or output.

    Args:
        value: a tensor, or a (nested) tuple, list, dict or registered container of tensors.
        save: saves a value for the backward pass.
        mark: called with each carrier and the tensor that it replaces.

    Returns:
        The same structure with carriers inside, and the tap.

    Raises:
        CAVTypeError: for sparse tensors, quantized and complex numbers.
    """
    tapped = Tapped(type(value).__name__)

    def tapped_leaf(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.layout != torch.strided:
            raise CAVTypeError(
                f"the layer gives a sparse tensor ({leaf.layout}), whose units cannot be told apart; pick a layer "
                "before or behind it."
            )
        if isinstance(leaf, torch.Tensor) and leaf.is_quantized:
            raise CAVTypeError(
                f"the layer gives quantized numbers ({leaf.dtype}), which carry no contributions; pass the float model "
                "that this model was made from."
            )
        if isinstance(leaf, torch.Tensor) and leaf.is_complex():
            raise CAVTypeError(
                f"the layer gives complex numbers ({leaf.dtype}); contributions are defined for real numbers. Pick a "
                "layer before or behind it."
            )
        if not (isinstance(leaf, torch.Tensor) and leaf.is_floating_point()):
            return leaf
        carrier = as_carrier(leaf if leaf.grad_fn is not None else leaf.detach())
        tapped.saved.append(save(leaf))
        tapped.edges.append(edge_of(carrier))
        mark(carrier, leaf)
        return carrier

    return tapped_leaf(value) if isinstance(value, torch.Tensor) else tree_map(tapped_leaf, value), tapped
