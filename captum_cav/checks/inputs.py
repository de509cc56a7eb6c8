"""The arguments of the model: its inputs, and additional arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from captum_cav.checks.models import check_parameters
from captum_cav.checks.numbers import check_finite
from captum_cav.errors import CAVTypeError, InputError, ModelError
from captum_cav.tensors import is_number, keeps_numbers_elsewhere, tensors_in
from captum_cav.torch_internals import active_transform, tree_map

#: The types of numbers that embedding layers take.
_INDICES = (torch.int32, torch.int64)


def as_inputs(inputs: Any) -> tuple[Any, ...]:
    """The inputs as a tuple with one entry for each argument of the model; a list counts as a tuple."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def additional_arguments(additional_forward_args: Any) -> tuple[Any, ...]:
    """``additional_forward_args``, in the forms that Captum takes, as a tuple: a tuple, a single argument, or None."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def keyword_arguments(additional_forward_kwargs: Any) -> dict[str, Any]:
    """``additional_forward_kwargs`` as a dict: a mapping from names to arguments, or None.

    Raises:
        CAVTypeError: for anything else.
    """
    if additional_forward_kwargs is None:
        return {}
    given = additional_forward_kwargs
    if not (isinstance(given, Mapping) and all(isinstance(name, str) for name in given)):
        raise CAVTypeError(
            f"additional_forward_kwargs is a {type(given).__name__}; expected a dict from the names of arguments to "
            "their values, as additional_forward_kwargs={'attention_mask': mask}."
        )
    return dict(given)


def named_inputs(inputs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs that the model takes by keyword, as tokenizers return them: the tensors, and all other arguments.

    Raises:
        InputError: if there is no tensor.
        CAVTypeError: for names that are no text.
    """
    if not all(isinstance(name, str) for name in inputs):
        raise CAVTypeError("inputs is a dict whose keys are not all text; expected the names of the model's arguments.")
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(
            f"inputs is a {type(inputs).__name__} without a tensor; expected a dict from the names of the model's "
            'arguments to tensors, as a tokenizer gives it with return_tensors="pt".'
        )
    return tensors, {name: value for name, value in inputs.items() if name not in tensors}


def check_different(inputs: Mapping[str, Any], keywords: Mapping[str, Any]) -> None:
    """Refuse an argument that is given twice.

    Raises:
        InputError: names the argument.
    """
    for name in inputs:
        if name in keywords:
            raise InputError(f"{name!r} is in inputs and in additional_forward_kwargs; expected it in one of them.")


def input_name(given: Sequence[Any], number: int, names: Sequence[str] = ()) -> str:
    """An input as messages name it."""
    if names:
        return f"inputs[{names[number]!r}]"
    return f"inputs[{number}]" if len(given) > 1 else "inputs"


def is_floating(leaf: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def copied(arguments: Any) -> Any:
    """A (nested) structure with a copy of each of its tensors, so that a model may write into them."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, arguments)


def check_inputs(forward_func: Callable[..., Any], inputs: Any, names: Sequence[str] = ()) -> tuple[Any, ...]:
    """Inputs that can be explained: finite tensors that are not empty, on the device of the model.

    Args:
        forward_func: the model.
        inputs: a tensor or a tuple of tensors, one for each argument. As in Captum, an argument may also be a structure
            of tensors.
        names: the names of the inputs, if the model takes them by keyword.

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
        which = input_name(given, index, names)
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
    if keeps_numbers_elsewhere(tensor):
        raise CAVTypeError(
            f"{name} is a {type(tensor).__name__}, which keeps its numbers in another way; expected a plain tensor."
        )
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


def check_explained(inputs: Any, names: Sequence[str] = ()) -> None:
    """Refuse inputs that can have no contributions of their own: structures, and numbers that are no indices either.

    Args:
        inputs: the inputs. Those of floating-point numbers have contributions; those of integers may be indices.
        names: the names of the inputs, if the model takes them by keyword. Then masks may be among them.

    Raises:
        CAVTypeError: with what to do instead.
    """
    given = as_inputs(inputs)
    for number, one in enumerate(given):
        if isinstance(one, (tuple, list, dict)):
            raise CAVTypeError(
                f"inputs holds a {type(one).__name__}; the inputs themselves are explained as a tensor or a tuple "
                "of tensors. Pass a function of those as forward_func, or use LayerCAV."
            )
        is_decided = not isinstance(one, torch.Tensor) or is_number(one) or one.is_quantized or one.dtype in _INDICES
        if not names and not is_decided:
            refuse_integers(given, number)


def check_floating(given: Sequence[Any], names: Sequence[str] = ()) -> None:
    """Refuse inputs of integers where only floating-point inputs will do.

    Args:
        given: the inputs, one for each argument of the model.
        names: the names of the inputs, if the model takes them by keyword.

    Raises:
        CAVTypeError: says where to begin instead.
    """
    for number, tensor in enumerate(given):
        if isinstance(tensor, torch.Tensor) and not is_number(tensor):
            raise CAVTypeError(
                f"{input_name(given, number, names)} holds {tensor.dtype}, which carry no contributions; pass layer=, "
                "the layer that takes them, such as an embedding."
            )


def refuse_integers(given: Sequence[Any], number: int, names: Sequence[str] = ()) -> NoReturn:
    """Refuse an input of integers that no embedding layer takes, so that it has no contributions.

    Args:
        given: all inputs.
        number: which of them holds the integers.
        names: the names of the inputs, if the model takes them by keyword.

    Raises:
        CAVTypeError: always. The message says what to do instead.
    """
    tensor, name = given[number], input_name(given, number, names)
    if len(given) == 1:
        raise CAVTypeError(
            f"{name} are {tensor.dtype}, which carry no contributions, and no embedding layer takes them as they are; "
            "use LayerCAV at the layer that takes them, or pass floating-point inputs."
        )
    behind = any(isinstance(other, torch.Tensor) and is_number(other) for other in given[number:])
    how = "pass it by additional_forward_args, which follow the inputs"
    if names:
        how = "pass it by additional_forward_kwargs"
    elif behind:
        how = "pass a function of the other inputs, as forward_func=lambda x: model(ids, x)"
    raise CAVTypeError(
        f"{name} is a tensor of {tensor.dtype}, which carries no contributions, and no embedding layer takes it as it "
        f"is; {how}, or use LayerCAV at the layer that takes it."
    )
