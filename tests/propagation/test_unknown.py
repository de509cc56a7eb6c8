"""The messages for what cannot be followed."""

from __future__ import annotations

import math
import types
from typing import Any

import pytest
import torch

from captum_cav.errors import UnsupportedOperationError
from captum_cav.operations import TABLE
from captum_cav.propagation import unknown
from captum_cav.propagation.operation import UNKNOWN, Operation
from tests.propagation.engine import Pass

WHERE = " in module 'layer1' (Layer)"


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (torch.cos, "torch.cos"),
        (torch.Tensor.cos, "torch.Tensor.cos"),
        (torch.special.i0, "torch.special.i0"),
        (torch.nn.functional.pdist, "torch.nn.functional.pdist"),
        (torch.segment_reduce, "torch.segment_reduce"),
        (torch.convolution, "torch.convolution"),
        (torch.ops.aten.cos.default, "torch.ops.aten.cos.default"),
        (torch.ops.aten.cos, "torch.ops.aten.cos"),
        (math.cos, "math.cos"),
    ],
    ids=str,
)
def test_a_function_is_named_as_a_key_of_rules(function: object, key: str) -> None:
    assert unknown.key_of(function) == key  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_every_key_that_a_message_names_is_the_function() -> None:
    functions = [*torch.overrides.get_testing_overrides(), *(getattr(torch, name) for name in dir(torch))]
    wrong = []
    for function in functions:
        name = getattr(function, "__name__", "_")
        if isinstance(function, types.BuiltinFunctionType) and not name.startswith("_"):
            try:
                found = eval(unknown.key_of(function))  # noqa: S307
            except (AttributeError, NameError):
                found = None
            if found is not function and TABLE.treatments[found].name != TABLE.treatments[function].name:
                wrong.append(unknown.key_of(function))
    assert not wrong


def operation(function: Any, *sources: torch.Tensor) -> Operation:
    return Operation("cos", UNKNOWN, function, sources, {}, list(sources), False, Pass().propagation)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("sources", "output", "advice"),
    [
        (
            (X,),
            X,
            (
                "rules.pass_through})  # y_i comes from x_i alone (equation 7);\n"
                "or rules.linear where y is linear in its input, or "
            ),
        ),
        ((X,), X[0], "rules.linear})  # y is linear in its input;\nor "),
        ((X,), (X, X), "rules.linear})  # y is linear in its input;\nor "),
        ((X, X), X, "rules.linear})  # y is linear in its input;\nor "),
        ((X.cfloat(),), X, "rules.linear})  # y is linear in its input;\nor "),
    ],
    ids=["elementwise", "another shape", "several outputs", "several inputs", "complex"],
)
def test_an_operation_without_a_rule(sources: tuple[torch.Tensor, ...], output: Any, advice: str) -> None:
    error = unknown.no_rule(operation(torch.cos, *sources), output, WHERE)
    assert isinstance(error, UnsupportedOperationError)
    assert str(error) == (
        "'cos' in module 'layer1' (Layer) has no rule for how it passes contributions on. "
        "Define one for this attribution:\n"
        "    from captum_cav import rules\n"
        f"    LayerCAV(..., rules={{torch.cos: {advice}your own function of a rules.Operation.\n"
        'on_unknown="gradient" goes on with its plain gradient instead.'
    )


def test_an_operation_on_quantized_numbers() -> None:
    for function in (torch.ops.quantized.linear, torch.ops.quantized.linear.default):
        assert unknown.is_quantized(function)
        message = str(unknown.quantized(operation(function, X), WHERE))
        assert "in module 'layer1' (Layer) runs on quantized numbers" in message
        assert "pass the float model that it was made from" in message
    assert not unknown.is_quantized(torch.cos)


def test_a_tensor_that_was_made_unseen() -> None:
    tensor = torch.ones(2, 3, requires_grad=True).exp()
    message = str(unknown.unseen(tensor, "comes out", WHERE))
    assert message.startswith(
        "A tensor of shape (2, 3) that requires grad comes out in module 'layer1' (Layer) but was made by "
        "'ExpBackward0', which captum_cav could not see"
    )
    assert "rules={module: rules.PassThroughRule()}" in message


def test_derivatives_that_the_model_takes() -> None:
    message = str(unknown.derivatives_taken(WHERE))
    assert message.startswith("The model takes derivatives in its forward pass in module 'layer1' (Layer), which")
    assert "detach the tensor if it should count as a constant" in message


def test_a_kernel_of_a_custom_function() -> None:
    class Kernel(torch.autograd.Function):
        pass

    message = str(unknown.hidden_kernel(Kernel, WHERE))
    assert message.startswith("Kernel, a custom autograd.Function in module 'layer1' (Layer), computes in a way")
    assert "under torch.no_grad()" in message
