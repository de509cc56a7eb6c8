"""A user's own rules: what they may return, and errors that they raise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules, verify
from captum_cav.errors import (
    CAVError,
    CAVTypeError,
    OptionError,
)
from tests.support.errors import raising
from tests.support.small_networks import samples, small_net
from tests.support.traces import InjectedError, left_as_it_was


def gives_none(operation: rules.Operation) -> Any:
    return None


def gives_less(operation: rules.Operation) -> Any:
    return operation.value()[:, :2]


def gives_nan(operation: rules.Operation) -> Any:
    return operation.value() * math.nan


def gives_a_tuple(operation: rules.Operation) -> Any:
    return (operation.value(),)


def gives_text(operation: rules.Operation) -> Any:
    return "contributions"


def gives_doubles(operation: rules.Operation) -> Any:
    return operation.value().double()


UNFIT: dict[Callable[..., Any], tuple[type[CAVError], type[Exception], str]] = {
    gives_none: (CAVTypeError, TypeError, r"None"),
    gives_a_tuple: (CAVTypeError, TypeError, r"tuple"),
    gives_text: (CAVTypeError, TypeError, r"str"),
    gives_less: (OptionError, ValueError, r"shape \(2, 2\)"),
    gives_doubles: (OptionError, ValueError, r"torch\.float64"),
    gives_nan: (OptionError, ValueError, r"NaN or infinity, where the operation's value has none"),
}


KEYS: dict[str, tuple[Any, str]] = {
    "function": (F.relu, r"'relu' in module '1' \(ReLU\)"),
    "name": ("1", r"module '1' \(ReLU\)"),
    "type": (nn.ReLU, r"module '1' \(ReLU\)"),
    "last layer": ("2", r"module '2' \(Linear\)"),
}


@pytest.mark.parametrize("rule", UNFIT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(("key", "where"), KEYS.values(), ids=KEYS)
def test_what_a_rule_returns_does_not_fit(rule: Callable[..., Any], key: Any, where: str) -> None:
    net, x = small_net(), samples()
    kind, builtin, what = UNFIT[rule]
    said = rf"^the rule {rule.__name__} for .*{where}.* returned .*{what}"
    with raising(kind, builtin, said, net):
        LayerCAV(net, "0", rules={key: rule}).attribute(x, 0)


def test_what_a_class_of_rules_returns_does_not_fit() -> None:
    class Empty(rules.Rule):
        def __call__(self, operation: rules.Operation, /) -> Any:
            return None

    net = small_net()
    with raising(CAVTypeError, TypeError, r"the rule Empty\(\) for 'relu' in module '1' \(ReLU\) returned None", net):
        InputCAV(net, rules={F.relu: Empty()}).attribute(samples(), 0)


def test_another_finite_value_is_found_by_verify() -> None:
    net, x = small_net(), samples()
    found = verify(net, x, 0, rules={F.relu: lambda operation: 2 * operation.by_default()})
    assert not found.ok
    assert found.value > 0.01


class RaisesLate(torch.autograd.Function):
    """Identity that raises in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: BaseException) -> torch.Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise ctx.error


def check_raises_the_same(net: nn.Module, key: Any, rule: Callable[..., Any], error: BaseException) -> None:
    x = samples()
    expected = LayerCAV(net, "0").attribute(x, 0)
    for attribution in (LayerCAV(net, "0", rules={key: rule}), InputCAV(net, rules={key: rule})):
        with left_as_it_was(net, x):
            with pytest.raises(InjectedError) as caught:
                attribution.attribute(x, 0)
            assert caught.value is error
    assert torch.equal(LayerCAV(net, "0").attribute(x, 0), expected)


@pytest.mark.parametrize("key", [F.relu, "1", nn.ReLU, "2"], ids=["function", "name", "type", "last layer"])
def test_a_rule_that_raises(key: Any) -> None:
    error = InjectedError("on purpose")

    def rule(operation: rules.Operation) -> Any:
        raise error

    check_raises_the_same(small_net(), key, rule, error)


@pytest.mark.parametrize("key", [F.relu, F.linear], ids=["relu", "linear"])
def test_a_rule_that_raises_in_the_backward_pass(key: Any) -> None:
    error = InjectedError("on purpose")

    def rule(operation: rules.Operation) -> Any:
        return RaisesLate.apply(operation.value(), error)

    check_raises_the_same(small_net(), key, rule, error)
