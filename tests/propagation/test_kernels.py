"""Kernels that nobody can see into, as those of libraries for quantized weights: what the message advises is right."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, rules
from captum_cav.errors import UnsupportedOperationError
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same


class Product(torch.autograd.Function):
    """A product with a weight, computed out of sight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy().T)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.weight, None


class Packed(nn.Module):
    """As a linear layer with packed weights."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Product.apply(x, self.weight)


@pytest.mark.parametrize("outputs", [3, 4], ids=["another shape", "the same shape"])
def test_a_kernel_that_multiplies_is_linear(outputs: int) -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Packed(outputs))), fixed(2, 4)
    with pytest.raises(UnsupportedOperationError, match=r"rules=\{module: rules\.linear\} where its output is linear"):
        InputCAV(net).attribute(x, 1)
    seen = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, outputs, bias=False)))
    with torch.no_grad():
        seen[2].weight.copy_(net[2].weight)
    found, delta = InputCAV(net, rules={Packed: rules.linear}).attribute(x, 1, return_convergence_delta=True)
    expected, expected_delta = InputCAV(seen).attribute(x, 1, return_convergence_delta=True)
    assert_same(found, expected)
    assert_same(delta, expected_delta)


@torch.library.custom_op("captum_cav_tests::product", mutates_args=())
def custom_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.weight = inputs[1]


custom_product.register_autograd(lambda ctx, gradient: (gradient @ ctx.weight, None), setup_context=_save)


@pytest.mark.parametrize("form", ["function", "packet", "overload"])
def test_the_advice_for_a_custom_operation_can_be_copied(form: str) -> None:
    operation = {
        "function": custom_product,
        "packet": torch.ops.captum_cav_tests.product,
        "overload": torch.ops.captum_cav_tests.product.default,
    }[form]
    weight, x = fixed(3, 4), fixed(2, 4)
    with pytest.raises(UnsupportedOperationError) as caught:
        InputCAV(lambda x: operation(x, weight)).attribute(x, 1)
    advised = re.search(r"rules=(\{.*\})\)  # y is linear in its input;", str(caught.value))
    assert advised is not None
    chosen = eval(advised[1], {"torch": torch, "rules": rules})  # noqa: S307
    found = InputCAV(lambda x: operation(x, weight), rules=chosen, normalize=None).attribute(x, 1)
    assert_same(found, x * weight[1])
