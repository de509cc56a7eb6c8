"""The model that is explained, measured or changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.errors import CAVTypeError, ModelError
from captum_cav.torch_internals import WRAPPERS, acts_as_in_training, modules_of, own_parameters


def check_model(forward_func: Any) -> Callable[..., Any]:
    """The model that an attribution can follow.

    Args:
        forward_func: a module or another callable.

    Returns:
        ``forward_func``; of a compiled or data-parallel model, the module inside the wrapper.

    Raises:
        CAVTypeError: for what is not callable.
        ModelError: for scripted or traced code, and for models that are sharded over several processes.
    """
    _check_callable(forward_func, "forward_func")
    wrapper = WRAPPERS.get(type(forward_func).__name__)
    if wrapper is not None and isinstance(forward_func, torch.nn.Module):
        return check_model(getattr(forward_func, wrapper))
    if isinstance(forward_func, torch.jit.ScriptFunction):
        raise ModelError(
            "forward_func is a scripted function, whose operations cannot be seen; pass its Python original."
        )
    if isinstance(forward_func, torch.nn.Module):
        for name, module in forward_func.named_modules():
            which = f"module {name!r}" if name else "the model"
            if isinstance(module, torch.jit.ScriptModule):
                raise ModelError(
                    f"{which} is a scripted or traced module, whose operations cannot be seen; "
                    "pass the eager model it was made from."
                )
            if type(module).__name__ == "FullyShardedDataParallel":
                raise ModelError(f"{which} is sharded over several processes; pass the whole model, on one device.")
    return forward_func  # type: ignore[no-any-return]


def check_measured_model(model: Any) -> None:
    """Refuse a model that a metric cannot run: what is not callable, and a model that acts at random.

    Scripted models are accepted, because a metric only runs the model and does not look inside.

    Raises:
        CAVTypeError, ModelError: with what to pass instead.
    """
    _check_callable(model, "model")
    check_evaluation(model)


def check_module(model: Any) -> torch.nn.Module:
    """A model that can be copied and changed.

    Returns:
        The module; of a compiled or data-parallel model, the module inside the wrapper.

    Raises:
        CAVTypeError, ModelError: for functions, and for whatever :func:`check_model` and :func:`check_evaluation`
            refuse.
    """
    found = check_model(model)
    if not isinstance(found, torch.nn.Module):
        raise CAVTypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module, of which a copy is changed."
        )
    check_evaluation(found)
    return found


def _check_callable(model: Any, name: str) -> None:
    if not callable(model):
        raise CAVTypeError(f"{name} is a {type(model).__name__}; expected a torch.nn.Module or another callable.")


def check_evaluation(forward_func: Callable[..., Any]) -> None:
    """Refuse a model that acts at random or changes its own statistics, as many modules do in training mode.

    Raises:
        ModelError: names the first such module.
    """
    modules = forward_func.named_modules() if isinstance(forward_func, torch.nn.Module) else ()
    for name, module in modules:
        if acts_as_in_training(module):
            raise ModelError(
                f"module {name!r} ({type(module).__name__}) is in training mode, where it acts at random or changes "
                "its statistics; call model.eval() first."
            )


def check_parameters(model: torch.nn.Module) -> set[torch.device]:
    """Refuse parameters that hold no numbers, or only a part of them.

    Returns:
        The devices of the parameters.

    Raises:
        ModelError: names the parameter.
    """
    devices = set()
    for module in modules_of(model):
        for name, parameter in own_parameters(module):
            _check_parameter(parameter, model, module, name)
            devices.add(parameter.device)
    return devices


def _check_parameter(parameter: torch.nn.Parameter, model: torch.nn.Module, module: torch.nn.Module, name: str) -> None:
    usual = type(parameter) is torch.nn.Parameter
    if usual and not parameter.is_meta and not parameter.is_inference():
        return
    where = next(where for where, known in model.named_modules() if known is module)
    name = f"parameter {'.'.join(filter(None, (where, name)))!r}"
    if torch.nn.parameter.is_lazy(parameter):
        raise ModelError(f"{name} is lazy and not initialized; run the model once.")
    if hasattr(parameter, "full_tensor"):
        raise ModelError(
            f"{name} is a DTensor, of which this process holds a part (fully_shard, tensor parallel); pass the model "
            "as it was before it was distributed."
        )
    if parameter.is_meta:
        raise ModelError(f"{name} is on the meta device, which holds no numbers; load the model.")
    if parameter.is_inference():
        raise ModelError("the model's parameters were created under torch.inference_mode(); build or load it outside.")
