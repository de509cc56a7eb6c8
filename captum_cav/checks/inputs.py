"""The arguments of the model: its inputs, and additional arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.checks.models import check_parameters
from captum_cav.checks.numbers import check_finite
from captum_cav.errors import CAVTypeError, InputError, ModelError
from captum_cav.tensors import is_number, tensors_in
from captum_cav.torch_internals import active_transform, tree_map


def as_inputs(inputs: Any) -> tuple[Any, ...]:
    """The inputs as a tuple with one entry for each argument of the model; a list counts as a tuple."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def additional_arguments(additional_forward_args: Any) -> tuple[Any, ...]:
    """``additional_forward_args``, in the forms that Captum takes, as a tuple: a tuple, a single argument, or None."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def is_floating(leaf: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def copied(arguments: Any) -> Any:
    """A (nested) structure with a copy of each of its tensors, so that a model may write into them."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, arguments)


def check_inputs(forward_func: Callable[..., Any], inputs: Any) -> tuple[Any, ...]:
    """Inputs that can be explained: finite tensors that are not empty, on the device of the model.

    Args:
        forward_func: the model.
        inputs: a tensor or a tuple of tensors, one for each argument. As in Captum, an argument may also be a structure
            of tensors.

    Returns:
        A tuple with one entry for each argument.

    Raises:
        CAVTypeError, InputError: for inputs that cannot be explained.
        ModelError: for parameters that hold no numbers, and under ``torch.inference_mode()`` or inside a
            transform of ``torch.func``.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(
            "attribute() was called under torch.inference_mode(), where torch records no graph; leave it, or use "
            "torch.no_grad() instead, which is fine."
        )
    transform = active_transform()
    if transform is not None:
        raise ModelError(
            f"attribute() was called inside {transform}, which would transform the propagation too; call it outside. "
            "It takes a whole batch at once, and its contributions can be differentiated with "
            'grad_kwargs={"create_graph": True}.'
        )
    devices = check_parameters(forward_func) if isinstance(forward_func, torch.nn.Module) else set()
    given = as_inputs(inputs)
    if not given:
        raise InputError("inputs is an empty tuple; expected at least one tensor.")
    for index, value in enumerate(given):
        which = f"inputs[{index}]" if len(given) > 1 else "inputs"
        tensors = tensors_in(value)
        if not tensors:
            without = ", in which no tensor was found" if isinstance(value, (tuple, list, dict)) else ""
            raise CAVTypeError(
                f"{which} is a {type(value).__name__}{without}; expected a tensor or a tuple of tensors (or of "
                "structures of tensors), one for each argument."
            )
        for tensor in tensors:
            check_tensor(tensor, which, devices)
    return given


def check_tensor(tensor: torch.Tensor, name: str, devices: set[torch.device] | None = None) -> None:
    """Refuse a tensor without real, finite numbers, an empty tensor, and a tensor on another device than the model.

    Args:
        tensor: the tensor.
        name: of the argument, for messages.
        devices: where the model is; None if any device will do.

    Raises:
        CAVTypeError, InputError: with what is wrong with the tensor.
    """
    if tensor.is_nested:
        raise CAVTypeError(f"{name} is a nested tensor; pad it, or pass one sample at a time.")
    if tensor.layout != torch.strided:
        raise CAVTypeError(f"{name} is sparse ({tensor.layout}); pass {name}.to_dense().")
    if tensor.is_quantized:
        raise CAVTypeError(
            f"{name} holds quantized numbers ({tensor.dtype}), which carry no contributions; pass {name}.dequantize() "
            "and the float model."
        )
    if tensor.is_complex():
        raise CAVTypeError(f"{name} is complex ({tensor.dtype}); contributions are defined for real numbers.")
    if tensor.numel() == 0:
        raise InputError(f"{name} is empty (shape {tuple(tensor.shape)}); expected at least one sample.")
    if tensor.is_inference():
        raise InputError(f"{name} was created under torch.inference_mode(); pass {name}.clone() made outside it.")
    if devices and tensor.device not in devices:
        places = ", ".join(sorted(map(str, devices)))
        raise InputError(f"{name} is on {tensor.device} and the model on {places}; move one with .to(device).")
    if tensor.is_meta:
        raise InputError(f"{name} is on the meta device, which holds no numbers.")
    if tensor.is_floating_point():
        check_finite(tensor, name)


def check_floating(inputs: Any) -> None:
    """Refuse inputs that have no contributions of their own: integers, and structures of tensors.

    Raises:
        CAVTypeError: with what to do instead.
    """
    given = as_inputs(inputs)
    for index, tensor in enumerate(given):
        if isinstance(tensor, (tuple, list, dict)):
            raise CAVTypeError(
                f"inputs holds a {type(tensor).__name__}; the inputs themselves are explained as a tensor or a tuple "
                "of tensors. Pass a function of those as forward_func, or use LayerCAV."
            )
        if not isinstance(tensor, torch.Tensor) or is_number(tensor) or tensor.is_quantized:
            continue
        if len(given) == 1:
            raise CAVTypeError(
                f"inputs are {tensor.dtype}, which carry no contributions; use LayerCAV at the embedding layer, or "
                "pass floating-point inputs."
            )
        behind = any(isinstance(other, torch.Tensor) and is_number(other) for other in given[index:])
        how = (
            "pass a function of the other inputs, as forward_func=lambda x: model(ids, x)"
            if behind
            else "pass it by additional_forward_args, which follow the inputs"
        )
        raise CAVTypeError(
            f"inputs[{index}] is a tensor of {tensor.dtype}, which carries no contributions; {how}, or use LayerCAV at "
            "the embedding layer."
        )
