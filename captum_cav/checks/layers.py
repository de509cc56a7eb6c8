"""Layers of a model, and which call of a layer is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.checks.options import as_integer
from captum_cav.errors import CAVTypeError, LayerError
from captum_cav.suggestions import did_you_mean
from captum_cav.torch_internals import WRAPPERS


def find_layer(forward_func: Callable[..., Any], layer: Any) -> tuple[str, torch.nn.Module]:
    """A layer that is given as a module or by its qualified name.

    Args:
        forward_func: the model, as :func:`captum_cav.checks.check_model` returns it.
        layer: a module, or a qualified name. Names in a compiled or data-parallel model may have its prefix.

    Returns:
        The name of the layer for messages, and the module.

    Raises:
        LayerError: for a layer that does not belong to the model; suggests similar names.
        CAVTypeError: for another type.
    """
    is_module = isinstance(forward_func, torch.nn.Module)
    if isinstance(layer, str):
        if not is_module:
            raise LayerError(
                f"layer {layer!r} is a name, but forward_func is not a module to look it up in; pass the layer module."
            )
        known = dict(forward_func.named_modules())  # type: ignore[attr-defined]
        for wrapper in set(WRAPPERS.values()):
            # In the wrapper that the user has, the name of the layer starts with the name of the wrapped model.
            layer = layer if layer in known else layer.removeprefix(f"{wrapper}.")
        if layer not in known:
            raise LayerError(f"unknown layer {layer!r}{did_you_mean(layer, known)}; see model.named_modules().")
        return repr(layer), known[layer]
    if not isinstance(layer, torch.nn.Module):
        raise CAVTypeError(f"layer is a {type(layer).__name__}; expected a torch.nn.Module or its qualified name.")
    if not is_module:
        return type(layer).__name__, layer
    for name, module in forward_func.named_modules():  # type: ignore[attr-defined]
        if module is layer:
            return repr(name), layer
    raise LayerError(
        f"the given layer ({type(layer).__name__}) does not belong to this model ({type(forward_func).__name__}); "
        "take it from the same model object."
    )


def check_call(call: Any) -> int | None:
    """The number of a call of a layer, or None.

    Raises:
        CAVTypeError: for what is neither an integer nor None.
    """
    number = as_integer(call)
    if call is not None and number is None:
        raise CAVTypeError(f"call is {call!r} ({type(call).__name__}); expected 0 for the first call, -1 for the last.")
    return number


def choose_call(name: str, reached: int, call: int | None) -> int:
    """Which call of a layer is meant.

    Args:
        name: of the layer, as :func:`find_layer` returns it.
        reached: how often the forward pass reached the layer.
        call: the number of the call, negative from the last call back. None stands for the only call.

    Returns:
        The number of the call, from 0 to ``reached - 1``.

    Raises:
        LayerError: if there is no such call, or if ``call`` is None and there are several calls.

    Example::

        >>> choose_call("'relu'", 3, -1)
        2
        >>> choose_call("'relu'", 3, None)
        Traceback (most recent call last):
        captum_cav.errors.LayerError: layer 'relu' was reached 3 times; choose one with call=0 ... 2 (-1 for the last).
    """
    if not reached:
        raise LayerError(f"layer {name} was not reached by the forward pass; pick one that this input runs through.")
    if call is None and reached > 1:
        raise LayerError(
            f"layer {name} was reached {reached} times; choose one with call=0 ... {reached - 1} (-1 for the last)."
        )
    if not -reached <= (call or 0) < reached:
        raise LayerError(f"layer {name} was reached {reached} times; call={call} is out of range.")
    return range(reached)[call or 0]
