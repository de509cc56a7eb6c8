"""What a rule is: for which operations, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import FunctionRule, Rule
from tests.propagation.engine import Pass
from tests.support.errors import cav_error


@dataclass(frozen=True, repr=False)
class Options(Rule):
    first: float
    second: float = 2.0
    third: str = field(default="x", kw_only=True)
    hidden: int = field(default=0, init=False)


class ForRelu(Rule):
    operations = frozenset(["relu"])


def own(operation: Operation) -> Any:
    return operation.value() * 3


def operation() -> Operation:
    one = Pass()
    return one.operation(torch.relu, one.tapped(1.0))


def test_a_rule_is_shown_as_the_call_that_makes_it() -> None:
    assert repr(Options(1.0)) == "Options(first=1.0)"
    assert repr(Options(1.0, 5.0, third="y")) == "Options(first=1.0, second=5.0, third='y')"
    assert repr(Options(first=1.0, second=2.0, third="x")) == "Options(first=1.0)"
    assert repr(ForRelu()) == "ForRelu()"
    assert eval(repr(Options(1.0, 5.0))) == Options(1.0, 5.0)  # noqa: S307


def test_a_rule_governs_the_operations_that_it_names_or_all() -> None:
    class ForTanh(Rule):
        operations = frozenset(["tanh"])

    assert ForRelu().governs(operation())
    assert not ForTanh().governs(operation())
    assert Options(1.0).governs(operation())


def test_a_rule_that_says_nothing_is_refused() -> None:
    with cav_error(NotImplementedError, "ForRelu does not say how to pass contributions on", "define __call__"):
        ForRelu()(operation())


def test_a_function_is_a_rule() -> None:
    rule = FunctionRule(own)
    assert rule(operation()).tolist() == [3.0]
    assert repr(rule) == "own"
    assert rule == FunctionRule(own)


def test_a_function_for_no_functions_in_particular_rules_a_module_as_one() -> None:
    assert FunctionRule(own).as_one
    assert FunctionRule(own).governs(operation())
    for_tanh = FunctionRule(own, frozenset(["tanh"]))
    assert not for_tanh.as_one
    assert not for_tanh.governs(operation())
    assert FunctionRule(own, frozenset(["relu"])).governs(operation())
