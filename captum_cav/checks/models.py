"""The model that is explained, measured or changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_cav.errors import CAVTypeError, ModelError, OptionError
from captum_cav.torch_internals import WRAPPERS, acts_as_in_training, modules_of, own_parameters


def check_model(forward_func: Any) -> Callable[..., Any]:
    """The model that an attribution can follow.

    Args:
        forward_func: a module or another callable.

    Returns:
        ``forward_func``; of a compiled or data-parallel model, the module inside the wrapper.

    Raises:
        CAVTypeError: for what is not callable.
        ModelError: for a scripted function, and for models that are sharded over several processes.
            :func:`check_scripted` is for scripted modules.
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
            if type(module).__name__ == "FullyShardedDataParallel":
                raise ModelError(f"{which} is sharded over several processes; pass the whole model, on one device.")
    return forward_func  # type: ignore[no-any-return]


def check_scripted(
    forward_func: Callable[..., Any], is_one_operation: Callable[[torch.nn.Module, str], bool] = lambda *_: False
) -> None:
    """Refuse scripted or traced modules, whose operations cannot be seen.

    Args:
        forward_func: the model, as :func:`check_model` returns it.
        is_one_operation: takes a module and its name. Tells whether a rule treats the module as one operation, so that
            nobody needs to see into it.

    Raises:
        ModelError: names the first such module.
    """
    unseen: tuple[str, ...] = ()
    for name, module in forward_func.named_modules() if isinstance(forward_func, torch.nn.Module) else ():
        if f"{name}.".startswith(unseen):
            continue
        if is_one_operation(module, name):
            unseen += (f"{name}." if name else "",)
        elif isinstance(module, torch.jit.ScriptModule):
            which = f"module {name!r}" if name else "the model"
            raise ModelError(
                f"{which} is a scripted or traced module, whose operations cannot be seen; pass the eager model it was "
                "made from, or give the module a rule as one operation (rules={module: rules.linear} where its output "
                "is linear in its input, rules={module: rules.PassThroughRule()} where y_i comes from x_i alone)."
            )


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
    check_scripted(found)
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


def check_device_ids(device_ids: Any, model: Callable[..., Any], layers: Sequence[torch.nn.Module]) -> None:
    """Refuse device ids that name anything but the one device of the model.

    Captum reads ``device_ids`` only if a forward pass ran on several devices: there the ids tell in which order the
    parts of the batch follow each other. An attribution of this package runs on one device.

    Args:
        device_ids: None, or a list of integers, names or devices, as :class:`torch.nn.DataParallel` takes them.
        model: the model. A function has no parameters that tell its device, so its layers tell the device.
        layers: the explained layers.

    Raises:
        OptionError: names the device of the model, and says how to use several devices.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> check_device_ids(["cpu"], net, [net[0]])
        >>> check_device_ids([0, 1], net, [net[0]])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        captum_cav.errors.OptionError: device_ids is [0, 1]; expected None or a list of the one device of the model ...
    """
    if device_ids is None:
        return
    modules = [model] if isinstance(model, torch.nn.Module) else layers
    places = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    if len(places) == 1 and isinstance(device_ids, (list, tuple)) and len(device_ids) == 1:
        try:
            device = torch.device(device_ids[0])
        except (RuntimeError, TypeError):
            device = None
        (place,) = places
        if device is not None and device.type == place.type and device.index in (None, place.index):
            return
    known = ", ".join(sorted(map(str, places))) or "unknown, because it has no parameters"
    raise OptionError(
        f"device_ids is {device_ids!r}; expected None or a list of the one device of the model ({known}). "
        "An attribution runs on one device. To use several devices, copy the model to each of them and explain a part "
        "of the batch there."
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
