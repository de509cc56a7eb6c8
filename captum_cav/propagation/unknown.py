"""Error messages for what cannot be followed: operations without a rule, and operations that were not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.errors import ModelError, UnsupportedOperationError
from captum_cav.torch_internals import Overload, overload_name

_ADVICE = """{operation!r}{where} has no rule for how it passes contributions on. Define one for this attribution:
    from captum_cav import rules
    LayerCAV(..., rules={{{key}: rules.pass_through}})  # y_i comes from x_i alone (equation 7);
or rules.linear where y is linear in its input, or your own function of a rules.Operation.
on_unknown="gradient" goes on with its plain gradient instead."""

_REMEDY = (
    "Write that step in torch operations, or give the module that does it a rule as one operation "
    "(rules={module: rules.PassThroughRule()}, or your own function), or detach the tensor if it should count as a "
    "constant."
)


def key_of(name: str, function: Callable[..., Any] | None) -> str:
    """The key for a function in ``rules``, as a user writes it."""
    key = torch.overrides.resolve_name(function) if function is not None else None
    if isinstance(function, Overload):
        key = f"torch.ops.{key}"
    return key or f"the function {name}"


def no_rule(name: str, function: Callable[..., Any] | None, where: str) -> UnsupportedOperationError:
    """The error for an operation without a rule.

    Args:
        name: its plain name.
        function: the torch function, if it is known.
        where: where in the model the operation ran, such as `` in module 'layer1' (Layer)``.
    """
    resolved = (torch.overrides.resolve_name(function) if function is not None else None) or ""
    if resolved.startswith(("quantized.", "torch.ops.quantized.")):
        plain = overload_name(function)[1] if isinstance(function, Overload) else resolved.rpartition(".")[2]
        return UnsupportedOperationError(
            f"{plain!r}{where} runs on quantized numbers, which carry no contributions; pass the "
            "float model that it was made from."
        )
    return UnsupportedOperationError(_ADVICE.format(operation=name, where=where, key=key_of(name, function)))


def unseen(tensor: torch.Tensor, reached: str, where: str) -> UnsupportedOperationError:
    """The error for a tensor that was made in the forward pass, but not by an operation that the propagation saw.

    Args:
        tensor: the tensor.
        reached: what the tensor did, such as "comes out".
        where: where in the model, such as `` in module 'layer1' (Layer)``.
    """
    node = tensor.grad_fn
    assert node is not None
    return UnsupportedOperationError(
        f"A tensor of shape {tuple(tensor.shape)} that requires grad {reached}{where} "
        f"but was made by {node.name()!r}, which captum_cav "
        "could not see (a scripted function, torch.func.vmap, reentrant checkpointing, or a custom autograd.Function "
        f"whose apply was taken beforehand). {_REMEDY}"
    )


def derivatives_taken(where: str) -> UnsupportedOperationError:
    """The error for a model that takes derivatives in its forward pass."""
    return UnsupportedOperationError(
        f"The model takes derivatives in its forward pass{where}, which captum_cav cannot follow. {_REMEDY}"
    )


def hidden_kernel(function: type[torch.autograd.Function], where: str) -> UnsupportedOperationError:
    """The error for a custom autograd function whose forward pass is not made of torch operations."""
    return UnsupportedOperationError(
        f"{function.__name__}, a custom autograd.Function{where}, computes in a way that captum_cav "
        f"cannot see (a kernel of its own, or under torch.no_grad()). {_REMEDY}"
    )


def output_of_several(name: str | None, where: str) -> ModelError:
    """The error for a tensor that is written into, and that several tapped layers passed on side by side.

    Args:
        name: the plain name of the operation that writes.
        where: where in the model, such as `` in module 'layer1' (Layer)``.
    """
    return ModelError(
        f"{name!r}{where} writes into a tensor that several explained layers passed on unchanged, so that it is the "
        "output of each of them; explain one of these layers at a time, or make that operation out of place, as "
        "nn.ReLU(inplace=False)."
    )


def older_tensor(name: str | None, target: torch.Tensor, where: str) -> ModelError:
    """The error for contributions that are written into a tensor of the user's.

    Args:
        name: the plain name of the operation that writes.
        target: the tensor.
        where: where in the model, such as `` in module 'layer1' (Layer)``.
    """
    return ModelError(
        f"{name!r}{where} writes values that carry contributions into a tensor that was there before the model ran, a "
        f"{type(target).__name__}, which captum_cav must not change; write into a copy, as x.detach().clone()."
    )
