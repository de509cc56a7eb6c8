"""Rules and networks that show which rule was chosen.

Most rules here multiply what they pass on by a prime number each. The map divided by the map without rules is then the
product of the numbers of the rules that were at work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from captum_cav import InputCAV, rules
from tests.support.networks import fixed
from tests.support.tensors import largest


def filled(net: nn.Module) -> nn.Module:
    """The same parameters every time, in float64."""
    generator = torch.Generator().manual_seed(2)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=torch.float64))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 1)
    return net


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert largest(found - expected) <= tolerance * largest(expected)


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return coefficients * ctx.factor, None


class Times(rules.Rule):
    """Passes on what the default would, times a number."""

    def __init__(self, factor: float, *operations: str) -> None:
        self.factor = factor
        self.operations = frozenset(operations) or None  # type: ignore[misc]

    def __call__(self, operation: rules.Operation, /) -> torch.Tensor:
        return _Multiplied.apply(operation.by_default(), self.factor)


class Special(nn.Linear):
    """A type that comes before Linear in its own lineage."""


class Block(nn.Module):
    """A linear layer, and a function without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Special(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x))


def nested() -> nn.Sequential:
    """Linear operations in "block.inner" and "head", tanh in "block"."""
    return filled(nn.Sequential(OrderedDict(block=Block(), head=nn.Linear(4, 2))))


def factor(net: Callable[..., Any], chosen: Mapping[Any, Any]) -> int:
    """The product of the factors that were at work, at the input: each operation is on every way to it."""
    x = fixed(2, 4)
    found, plain = (InputCAV(net, rules=given, normalize=None).attribute(x, 1) for given in (chosen, None))
    products = found / plain
    product = round(products.flatten()[0].item())
    torch.testing.assert_close(products, torch.full_like(products, product))
    return product


LINEAR = {number: Times(number, "linear") for number in (2, 3, 5, 7, 11, 13)}


def conv_net() -> nn.Sequential:
    layers = OrderedDict(
        first=nn.Conv2d(2, 4, 3), act=nn.GELU(), pool=nn.MaxPool2d(2), flat=nn.Flatten(), head=nn.Linear(16, 3)
    )
    return filled(nn.Sequential(layers))


class _Softsign(torch.autograd.Function):
    """x / (1 + |x|), of which nothing can be seen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x / (1 + x.abs())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise AssertionError("its own gradient was used")


class Composite(nn.Module):
    """An activation of several operations, one of them a custom autograd.Function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * _Softsign.apply(2 * x) + 0.1 * x
