"""What must hold before anything runs: each check raises one clear error or returns what the caller needs."""

from __future__ import annotations

import difflib
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from captum_cav.errors import CAVTypeError, InputError, LayerError, ModelError, ScoreWarning, TargetError
from captum_cav.tensors import tensors_in

_NEAR_ZERO = 1e-6


def check_model(forward_func: Any) -> Callable[..., Any]:
    """Refuse what cannot be followed: what is not callable, scripted code, sharded models.

    Returns:
        What is to be followed: the model that a compiled or data-parallel one wraps, else ``forward_func`` itself.
    """
    if not callable(forward_func):
        raise CAVTypeError(
            f"forward_func is a {type(forward_func).__name__}; expected a torch.nn.Module or another callable."
        )
    wrapper = _WRAPPERS.get(type(forward_func).__name__)
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


# What wraps a whole model without changing what it computes, and where it keeps it.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def check_inputs(forward_func: Callable[..., Any], inputs: Any) -> tuple[Any, ...]:
    """The inputs as a tuple, one for each argument, of finite, non-empty tensors on the model's device.

    An argument may be a structure of tensors, as in Captum. Nothing runs under inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(
            "attribute() was called under torch.inference_mode(), where torch records no graph; leave it, or use "
            "torch.no_grad() instead, which is fine."
        )
    devices = set()
    if isinstance(forward_func, torch.nn.Module):
        for module in modules_of(forward_func):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    _check_parameter(parameter, forward_func, module, name)
                    devices.add(parameter.device)
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not given:
        raise InputError("inputs is an empty tuple; expected at least one tensor.")
    for index, value in enumerate(given):
        which = f"inputs[{index}]" if len(given) > 1 else "inputs"
        tensors = tensors_in(value)
        if not tensors:
            held = ", in which no tensor was found" if isinstance(value, (tuple, list, dict)) else ""
            raise CAVTypeError(
                f"{which} is a {type(value).__name__}{held}; expected a tensor or a tuple of tensors (or of structures "
                "of tensors), one for each argument."
            )
        for tensor in tensors:
            _check_tensor(tensor, which, devices)
    return given


def modules_of(root: torch.nn.Module) -> Iterable[torch.nn.Module]:
    """Every module of a model, in order; torch's own walk also finds names and takes long beside a small network."""
    found: dict[torch.nn.Module, None] = {}
    waiting: list[torch.nn.Module | None] = [root]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting += reversed(module._modules.values())
    return found


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


def _check_tensor(tensor: torch.Tensor, which: str, devices: set[torch.device]) -> None:
    if tensor.is_nested:
        raise CAVTypeError(f"{which} is a nested tensor; pad it, or pass one sample at a time.")
    if tensor.layout != torch.strided:
        raise CAVTypeError(f"{which} is sparse ({tensor.layout}); pass {which}.to_dense().")
    if tensor.is_complex():
        raise CAVTypeError(f"{which} is complex ({tensor.dtype}); contributions are defined for real numbers.")
    if tensor.numel() == 0:
        raise InputError(f"{which} is empty (shape {tuple(tensor.shape)}); expected at least one sample.")
    if tensor.is_inference():
        raise InputError(f"{which} was created under torch.inference_mode(); pass {which}.clone() made outside it.")
    if devices and tensor.device not in devices:
        places = ", ".join(sorted(map(str, devices)))
        raise InputError(f"{which} is on {tensor.device} and the model on {places}; move one with .to(device).")
    if tensor.is_meta:
        raise InputError(f"{which} is on the meta device, which holds no numbers.")
    if tensor.is_floating_point():
        _check_finite(tensor, which)


def _check_finite(tensor: torch.Tensor, which: str) -> None:
    # Of the sum first: it costs a third, and where it overflows the rest is looked at.
    if bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()):
        return
    rows = torch.isfinite(tensor.reshape(len(tensor) if tensor.dim() else 1, -1)).all(1)
    samples = (~rows).nonzero().flatten().tolist()
    raise InputError(f"{which} holds NaN or infinity in {_samples(samples)}; expected finite numbers.")


def find_layer(forward_func: Callable[..., Any], layer: Any) -> tuple[str, torch.nn.Module]:
    """A layer given as a module or by its qualified name.

    Returns:
        A name for messages, and the module.
    """
    is_module = isinstance(forward_func, torch.nn.Module)
    if isinstance(layer, str):
        if not is_module:
            raise LayerError(
                f"layer {layer!r} is a name, but forward_func is not a module to look it up in; pass the layer module."
            )
        known = dict(forward_func.named_modules())  # type: ignore[attr-defined]
        for wrapper in set(_WRAPPERS.values()):
            # The name that it has in the wrapper that the user holds.
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'a' or 'b'?)``, or nothing where no name is near."""
    near = difflib.get_close_matches(word, [name for name in known if name], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def check_output(output: Any) -> torch.Tensor:
    """The model's output as a tensor with a first dimension of samples."""
    if not isinstance(output, torch.Tensor):
        raise CAVTypeError(
            f"the model returned a {type(output).__name__}; expected a tensor of scores. Pass a function that picks "
            "it, as forward_func=lambda *x: model(*x).logits, or [0]."
        )
    return output.reshape(1) if output.dim() == 0 else output


def resolve_target(output: torch.Tensor, target: Any) -> list[tuple[int, ...]] | tuple[int, ...] | None:
    """A target in any of Captum's forms as indices behind the batch dimension.

    Args:
        output: shape (N, ...), the model's output.
        target: an index, a tuple of indices, a list or 1-D tensor of one a sample, or None.

    Returns:
        A tuple of indices for all samples, a list of one a sample, or None for one score a sample.

    Raises:
        TargetError, CAVTypeError: where it does not select one score a sample.
    """
    shape = tuple(output.shape)
    samples = shape[0]
    if target is None:
        if output.numel() != samples:
            raise TargetError(
                f"target is missing: the model gives {output[0].numel()} values a sample (output shape {shape}); "
                f"pass {_example(shape)}."
            )
        return None
    if isinstance(target, torch.Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise CAVTypeError(f"target is a tensor of {target.dtype}; expected integers, as {_example(shape)}.")
        if target.numel() == 1:
            return _indices(int(target), "target", shape)
        if target.dim() != 1:
            raise TargetError(
                f"target has shape {tuple(target.shape)}; expected one index for each of {samples} samples."
            )
        target = target.tolist()
    if isinstance(target, list):
        if len(target) != samples:
            raise TargetError(f"target lists {len(target)} entries for {samples} samples; expected one for each.")
        return [_indices(entry, f"target[{sample}]", shape) for sample, entry in enumerate(target)]
    return _indices(target, "target", shape)


def _indices(entry: Any, which: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    indices = tuple(map(_as_integer, entry if isinstance(entry, tuple) else (entry,)))
    if None in indices:
        raise CAVTypeError(
            f"{which} is {entry!r} ({type(entry).__name__}); expected an integer, a tuple of integers, or a list or "
            f"tensor of one a sample, as {_example(shape)}."
        )
    if len(indices) != len(shape) - 1:
        raise TargetError(
            f"{which} is {entry!r}, which selects {len(indices)} of the {len(shape) - 1} dimensions behind the batch "
            f"(output shape {shape}); pass {_example(shape)}."
        )
    for index, size in zip(indices, shape[1:], strict=True):
        if not -size <= index < size:
            raise TargetError(f"{which} is {entry!r}, out of range for output shape {shape}: 0 to {size - 1}.")
    return indices


def _as_integer(value: Any) -> Any:
    """An integer of whatever kind (numpy's, a tensor of one) as Python's, or None."""
    is_boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    try:
        return None if is_boolean else operator.index(value)
    except TypeError:
        return None


def check_neuron(selector: Any, values: tuple[torch.Tensor, ...]) -> None:
    """Refuse a neuron selector that does not select from the layer's tensors; a function is taken as it is."""
    if callable(selector):
        return
    shape = tuple(values[0].shape)
    indices = selector if isinstance(selector, tuple) else (selector,)
    expected = f"one integer or slice for each of the sizes {shape[1:]}, or a function of the layer's output"
    if not all(isinstance(index, (int, slice)) and not isinstance(index, bool) for index in indices):
        raise CAVTypeError(f"neuron_selector is {selector!r} ({type(selector).__name__}); expected {expected}.")
    if len(values) > 1:
        raise TargetError(f"the layer gives {len(values)} tensors; pass a function that selects from them.")
    if len(indices) != len(shape) - 1:
        raise TargetError(f"neuron_selector is {selector!r} for a layer of shape {shape}; expected {expected}.")
    for index, size in zip(indices, shape[1:], strict=True):
        if isinstance(index, int) and not -size <= index < size:
            raise TargetError(f"neuron_selector is {selector!r}, out of range for a layer of shape {shape}.")


def _example(shape: Sequence[int]) -> str:
    choices = shape[1:]
    if not choices:
        return "no target"
    if len(choices) == 1:
        return f"target=i with i from 0 to {choices[0] - 1}"
    return f"target=(i, ...) with one index for each of the sizes {tuple(choices)}"


def check_finite_results(what: str, values: torch.Tensor, model: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Refuse scores or contributions that are not finite, and name the first module that gives such numbers.

    Args:
        what: what they are, for the message.
        values: shape (N, ...), the scores or contributions.
        model: what gave them; it is run once more where something is wrong.
        args: its arguments.
    """
    values = values.detach()
    # One number is soon summed; halves would overflow.
    if bool(torch.isfinite(values.sum(dtype=torch.float32 if values.itemsize < 4 else values.dtype))):
        return
    rows = ~torch.isfinite(values.reshape(len(values), -1)).all(1)
    if bool(rows.any()):
        raise ModelError(
            f"{what} not finite in {_samples(rows.nonzero().flatten().tolist())}: NaN or infinity first comes "
            f"{_first_not_finite(model, args)}. Look at the numbers there."
        )


def _first_not_finite(model: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Where in a forward pass the first number that is not finite comes from."""
    thread = threading.get_ident()
    found: list[torch.nn.Module] = []

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        if threading.get_ident() == thread and not found:
            tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                found.append(module)

    with torch.no_grad():
        handle = torch.nn.modules.module.register_module_forward_hook(look)
        try:
            model(*args)
        finally:
            handle.remove()
    if not found:
        return "between its modules or in the backward pass"
    modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    names = {module: name for name, module in modules}
    name, kind = names.get(found[0], ""), type(found[0]).__name__
    return f"out of module {name!r} ({kind})" if name else f"out of the module {kind}"


def warn_near_zero(scores: torch.Tensor, output: torch.Tensor) -> None:
    """Warn where a score is at or near zero compared with the sample's other scores."""
    rows = output.detach().reshape(len(scores), -1).abs()
    scale = rows.amax(1) if rows.shape[1] > 1 else torch.ones_like(rows[:, 0])
    sizes = scores.detach().abs()
    # The smallest numbers have no reciprocal; those of half precision are not divided by as they are.
    smallest = 1 / torch.finfo(sizes.dtype).max if sizes.itemsize >= 4 else 0.0
    meaningless = (sizes <= (_NEAR_ZERO * scale).clamp(min=smallest)).nonzero().flatten().tolist()
    if meaningless:
        warnings.warn(
            f"the score of {_samples(meaningless)} is at or near zero, so ratios to it mean nothing; "
            "normalize=None gives contributions in units of the score instead.",
            ScoreWarning,
            stacklevel=4,
        )


def _samples(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
    return f"sample {shown}" if len(indices) == 1 else f"samples {shown}"


def check_evaluation(forward_func: Callable[..., Any]) -> None:
    """Refuse a model that would act at random or change itself."""
    modules = forward_func.named_modules() if isinstance(forward_func, torch.nn.Module) else ()
    for name, module in modules:
        if acts_as_in_training(module):
            raise ModelError(
                f"module {name!r} ({type(module).__name__}) is in training mode, where it acts at random or changes "
                "its statistics; call model.eval() first."
            )


def acts_as_in_training(module: torch.nn.Module) -> bool:
    """Whether a module acts at random or changes itself when it runs."""
    return module.training and _differs_in_training(module)


def has_old_backward_hook(module: torch.nn.Module) -> bool:
    """Whether a module has a hook by ``register_backward_hook``, which torch attaches to what runs inside it."""
    return bool(module._backward_hooks) and module._is_full_backward_hook is False


def _differs_in_training(module: torch.nn.Module) -> bool:
    if _estimates_spectral_norm(module):
        return True
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        return module.track_running_stats
    return isinstance(module, torch.nn.RReLU)


def _estimates_spectral_norm(module: torch.nn.Module) -> bool:
    """Whether a module goes on estimating a largest singular value when it trains, by either of torch's ways."""
    if type(module).__name__ == "_SpectralNorm":
        return type(module).__module__ == "torch.nn.utils.parametrizations"
    return any(type(hook).__module__ == "torch.nn.utils.spectral_norm" for hook in module._forward_pre_hooks.values())
