"""Error messages for what cannot be followed: operations without a rule, and operations that were not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from captum_cav.errors import ModelError, UnsupportedOperationError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.records import Unknown
from captum_cav.torch_internals import Overload, OverloadPacket, overload_name

_OF_QUANTIZED = ("quantized", "quantized_decomposed", "torchao")
_NO_RULE = """{operation!r}{where} has no rule for how it passes contributions on. Define one for this attribution:
    from captum_cav import rules
    LayerCAV(..., rules={{{key}: {advice.rule}}})  # {advice.when};
or {advice.others}your own function of a rules.Operation.
on_unknown="gradient" goes on with its plain gradient instead."""

_REMEDY = (
    "Write that step in torch operations, or give the module that does it a rule as one operation "
    "(rules={module: rules.linear} where its output is linear in its input, rules={module: rules.PassThroughRule()} "
    "where y_i comes from x_i alone, or your own function), or detach the tensor if it should count as a constant."
)


class Advice(NamedTuple):
    """A rule for an operation without a rule.

    Attributes:
        rule: the rule, as a user writes it.
        when: when the rule is right.
        others: another rule, and when it is right. May be empty.
    """

    rule: str
    when: str
    others: str = ""


_ELEMENTWISE = Advice(
    "rules.pass_through", "y_i comes from x_i alone (equation 7)", "rules.linear where y is linear in its input, or "
)
_LINEAR = Advice("rules.linear", "y is linear in its input")


def advice_for(operation: Operation, output: Any) -> Advice:
    """A rule that can be given for an operation.

    Args:
        operation: the operation.
        output: its output.
    """
    x = operation.argument(0, "input")
    is_elementwise = (
        len(operation.sources) == 1
        and operation.sources[0] is x
        and not x.is_complex()
        and isinstance(output, torch.Tensor)
        and output.shape == x.shape
    )
    return _ELEMENTWISE if is_elementwise else _LINEAR


def key_of(function: Callable[..., Any]) -> str:
    """The key for a function in ``rules``, as a user writes it."""
    key = torch.overrides.resolve_name(function)
    if key is None:
        # The class in which torch keeps some of its functions is no name that a user can write.
        if getattr(torch, function.__name__, None) is function:
            return f"torch.{function.__name__}"
        return f"{function.__module__}.{function.__qualname__}"
    return f"torch.ops.{key}" if isinstance(function, (Overload, OverloadPacket)) else key


def no_rule(operation: Operation, output: Any, where: str) -> UnsupportedOperationError:
    """The error for an operation without a rule.

    Args:
        operation: the operation.
        output: its output.
        where: where in the model the operation ran, such as `` in module 'layer1' (Layer)``.
    """
    return UnsupportedOperationError(
        _NO_RULE.format(
            operation=operation.name,
            where=where,
            key=key_of(operation.function),
            advice=advice_for(operation, output),
        )
    )


def noted(operation: Operation, output: Any, module: str) -> Unknown:
    """The note of an operation without a rule.

    Args:
        operation: the operation.
        output: its output.
        module: the innermost module in which the operation ran, for messages. Empty outside of modules.
    """
    advice = advice_for(operation, output)
    return Unknown(operation.name, module, key_of(operation.function), advice.rule, advice.when)


def is_quantized(function: Callable[..., Any]) -> bool:
    """Whether a function is one of the operations on quantized numbers that have a namespace of their own."""
    return key_of(function).startswith(tuple(f"torch.ops.{namespace}." for namespace in _OF_QUANTIZED))


def quantized(operation: Operation, where: str) -> UnsupportedOperationError:
    """The error for an operation on quantized numbers.

    Args:
        operation: the operation.
        where: where in the model the operation ran, such as `` in module 'layer1' (Layer)``.
    """
    function = operation.function
    plain = overload_name(function)[1] if isinstance(function, Overload) else operation.name.rpartition(".")[2]
    return UnsupportedOperationError(
        f"{plain!r}{where} runs on quantized numbers, which carry no contributions; pass the float model that it was "
        "made from."
    )


def quantized_weight(function: Callable[..., Any], where: str) -> UnsupportedOperationError:
    """The error for a function of a quantized weight that gives several results.

    Args:
        function: the function.
        where: where in the model the function ran.
    """
    return UnsupportedOperationError(
        f"{getattr(function, '__name__', function)!r}{where} takes a quantized weight and gives several results; "
        "expected one tensor. Pass the float model that it was made from."
    )


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


def overwritten(shape: tuple[int, ...], by: str) -> UnsupportedOperationError:
    """The error for a tensor that the model uses after something wrote into it unseen.

    Args:
        shape: of the tensor.
        by: what wrote into it, such as "module 'act' (Act)".
    """
    return UnsupportedOperationError(
        f"{by} writes into a tensor of shape {shape}, and the model uses the tensor afterwards. captum_cav cannot "
        "follow what was written there. Write that step out of place, as x = x - y instead of x -= y."
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


def resized(name: str | None, result: torch.Tensor, out: torch.Tensor, where: str) -> ModelError:
    """The error for ``out=`` of another shape than the result.

    Args:
        name: the plain name of the operation.
        result: its result.
        out: the tensor that the model gave.
        where: where in the model, such as `` in module 'layer1' (Layer)``.
    """
    return ModelError(
        f"{name!r}{where} writes a result of shape {tuple(result.shape)} into out= of shape {tuple(out.shape)}, which "
        "would resize it; pass a tensor of the result's shape."
    )


def unrecorded(name: str | None, where: str) -> ModelError:
    """The error for a write into a carrier under ``torch.no_grad()``.

    Args:
        name: the plain name of the operation that writes.
        where: where in the model, such as `` in module 'layer1' (Layer)``.
    """
    return ModelError(
        f"{name!r}{where} writes into a tensor that carries contributions while the model is under torch.no_grad(), so "
        "autograd does not record that; pick a layer behind it."
    )
