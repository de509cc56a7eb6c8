"""Weights of tensor classes that keep quantized numbers, such as those of torchao.

A function of such a weight has the rules of the same function with the weight as floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.propagation import unknown
from captum_cav.propagation.marks import get_mark
from captum_cav.tensors import is_quantized_weight, map_tensors, tensors_in


def are_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a quantized weight is among some arguments."""
    return any(map(is_quantized_weight, tensors_in([*args, *kwargs.values()])))


def run(propagation: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function that takes quantized weights.

    The value is that of the model's own kernel. What the kernel rounds in another way is a constant.

    Args:
        propagation: the mode of the forward pass.
        func: the function.
        args, kwargs: its arguments.

    Raises:
        UnsupportedOperationError: for a function with several results.
    """
    run_of = propagation.trace.run
    carriers = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if get_mark(tensor, run_of) is not None]
    with propagation.paused(), torch.set_grad_enabled(propagation.keeps_graphs and not carriers):
        value = func(*args, **kwargs)
    if not carriers:
        return value
    if not isinstance(value, torch.Tensor):
        raise unknown.quantized_weight(func, propagation.where())

    def as_floats(tensor: torch.Tensor) -> torch.Tensor:
        if not is_quantized_weight(tensor):
            return tensor
        with propagation.paused(), torch.no_grad():
            return tensor.dequantize().to(carriers[0].dtype)

    args = map_tensors(as_floats, args)
    kwargs = {name: map_tensors(as_floats, given) for name, given in kwargs.items()}
    with propagation:
        output = func(*args, **kwargs)
        return output + (value - output.detach())
