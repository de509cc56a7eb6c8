"""What a user's rule may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav.propagation.operation import Operation
from captum_cav.propagation.results import check_result, expected_of, is_users
from captum_cav.propagation.rule import FunctionRule, Rule
from captum_cav.rules import EpsilonRule
from tests.propagation.engine import Pass
from tests.support.errors import cav_error

ONES = torch.ones(2)


@pytest.mark.parametrize(
    "found",
    [ONES, torch.zeros(2), torch.ones(2, requires_grad=True)],
    ids=["the value", "another value", "with a graph"],
)
def test_a_tensor_of_the_same_shape_and_type_is_accepted(found: torch.Tensor) -> None:
    check_result(ONES, found, "x")


@pytest.mark.parametrize(
    ("found", "builtin", "text"),
    [
        (None, TypeError, "returned None; expected the operation's value, a tensor of shape (2,) and torch.float32"),
        (3.0, TypeError, "returned float; expected"),
        ((ONES,), TypeError, "returned tuple; expected"),
        (torch.ones(3), ValueError, "returned shape (3,) and torch.float32; expected"),
        (torch.ones(2, 1), ValueError, "returned shape (2, 1) and torch.float32; expected"),
        (torch.ones(2).double(), ValueError, "returned shape (2,) and torch.float64; expected"),
        (torch.tensor([1.0, torch.nan]), ValueError, "returned NaN or infinity"),
        (torch.tensor([1.0, torch.inf]), ValueError, "returned NaN or infinity"),
    ],
    ids=["None", "number", "tuple", "size", "shape", "type", "nan", "inf"],
)
def test_all_else_is_refused(found: Any, builtin: type[Exception], text: str) -> None:
    with cav_error(builtin, "the rule Mine() for 'relu' ", text):
        check_result(ONES, found, "Mine() for 'relu'")


def test_what_is_not_finite_anyway_may_be_so() -> None:
    check_result(torch.tensor([1.0, -torch.inf]), torch.tensor([torch.nan, -torch.inf]), "x")


def test_a_tuple_is_checked_part_by_part() -> None:
    expected = (ONES, (ONES, 3))
    check_result(expected, (ONES, (ONES, "anything")), "x")
    with cav_error(TypeError, "returned a list; expected a tuple of 2"):
        check_result(expected, [ONES, ONES], "x")
    with cav_error(TypeError, "returned a tuple; expected a tuple of 2"):
        check_result(expected, (ONES,), "x")
    with cav_error(ValueError, "returned shape (3,)"):
        check_result(expected, (ONES, (torch.ones(3), 3)), "x")


def test_whose_rule_it_is() -> None:
    class Mine(Rule):
        pass

    def mine(operation: Operation) -> Any:
        return operation.value()

    for users in (Mine(), mine, FunctionRule(mine)):
        assert is_users(users)
    for of_the_package in (EpsilonRule(), Operation.by_default, FunctionRule(Operation.by_default)):
        assert not is_users(of_the_package)


def test_the_expected_value_has_no_graph() -> None:
    one = Pass()
    expected = expected_of(one.operation(torch.relu, one.tapped(1.0, -2.0)))
    assert expected.tolist() == [1.0, 0.0]
    assert not expected.requires_grad


def test_the_expected_value_of_an_operation_in_place_is_not_written() -> None:
    one = Pass()
    x = one.tapped(1.0, -2.0)
    expected = expected_of(one.operation(torch.relu_, x, in_place=True))
    assert expected.tolist() == [1.0, 0.0]
    assert x.tolist() == [1.0, -2.0]
