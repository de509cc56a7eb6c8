"""The audit of operations, in numbers: contributions of the output, minus those of the inputs and the constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_cav.propagation.forward import Forward
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.marks import get_mark
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.traits import Trait
from tests.propagation.engine import all_contributions, contributions, forward_of, rulebook


def audited(
    function: Callable[[torch.Tensor], torch.Tensor], *values: float, rules: Rulebook | None = None, **more: Any
) -> tuple[list[tuple[str, float, float]], list[float]]:
    """Operation, residual and size of each entry, and the contributions of the inputs."""
    passed = forward_of(function, torch.tensor(values), rules=rules, with_shares=True, audited=True, **more)
    assert passed.trace.audited is not None
    (found,) = contributions(passed)
    return [(entry.operation, entry.residual, entry.size) for entry in passed.trace.audited], found


def entries_of(passed: Forward) -> list[str]:
    assert passed.trace.audited is not None
    return [entry.operation for entry in passed.trace.audited]


def test_a_rule_that_conserves_has_no_residual() -> None:
    entries, found = audited(lambda x: x * 2, 1.0, -2.0)
    # The output contributes 2 and -4, and so do the inputs.
    assert entries == [("mul", 0.0, 12.0)]
    assert found == [2.0, -4.0]


def test_the_share_of_a_constant_is_a_part_of_the_comparison() -> None:
    entries, _ = audited(lambda x: x + 3, 1.0)
    # 4 of the output; 1 of the input and 3 of the constant.
    assert entries == [("add", 0.0, 8.0)]


@pytest.mark.filterwarnings("ignore:'square' has no rule")
def test_the_residual_is_what_the_inputs_miss() -> None:
    with pytest.warns(UserWarning, match="'square' has no rule"):
        entries, found = audited(torch.square, 3.0, on_unknown="gradient")
    # The output contributes 9, and the input gets 3 * 6 = 18.
    assert entries == [("square", -9.0, 27.0)]
    assert found == [18.0]


def test_a_constant_that_nobody_reports_is_missing() -> None:
    entries, _ = audited(lambda x: x + 3, 1.0, rules=rulebook({torch.add: lambda operation: operation.value()}))
    assert entries == [("add", 3.0, 5.0)]


def test_each_operation_is_compared_with_what_reaches_it() -> None:
    entries, found = audited(lambda x: torch.relu(x * 2) * 5 + 1, 1.0, -3.0)
    # Of the output [11, 1], the sum gives [10, 0] to the product and 2 to the constant.
    assert entries == [("mul", 0.0, 20.0), ("relu", 0.0, 20.0), ("mul", 0.0, 20.0), ("add", 0.0, 24.0)]
    assert found == [10.0, 0.0]


def test_a_tensor_that_is_taken_twice_is_counted_once() -> None:
    entries, found = audited(lambda x: x + x, 3.0)
    assert entries == [("add", 0.0, 12.0)]
    assert found == [6.0]


def test_what_the_backward_pass_does_not_reach_has_no_size() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        torch.relu(x)
        return x * 2

    entries, _ = audited(model, 3.0)
    assert entries == [("relu", 0.0, 0.0), ("mul", 0.0, 12.0)]


def test_an_operation_that_writes_in_place_is_audited() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.mul_(-5)
        y += 3
        return y

    entries, found = audited(model, 1.0, 2.0)
    # The output is [-7, -17]: [-10, -20] from the inputs and [3, 3] from the constant.
    assert entries == [("mul", 0.0, 60.0), ("mul", 0.0, 60.0), ("add", 0.0, 24.0 + 30.0 + 6.0)]
    assert found == [-10.0, -20.0]


def test_views_are_not_compared() -> None:
    passed = forward_of(lambda x: x[:1].view(1, 1) * 2, torch.tensor([3.0, 4.0]), with_shares=True, audited=True)
    assert entries_of(passed) == ["mul"]
    assert contributions(passed) == [[6.0, 0.0]]


def test_nothing_is_compared_where_a_tensor_bypasses_the_layers() -> None:
    layer = torch.nn.ReLU()
    passed = forward_of(
        lambda x: layer(x) * 2 + x, torch.tensor([3.0]), sites=[Site(layer, False)], with_shares=True, audited=True
    )
    assert entries_of(passed) == ["mul"]


def test_the_parts_of_a_decomposed_operation_are_compared() -> None:
    def twice_and_one(operation: Operation) -> Any:
        (x,) = operation.args
        return operation.decompose(lambda: x * 2 + 1)

    rules = rulebook({torch.neg: twice_and_one})
    passed = forward_of(torch.neg, torch.tensor([3.0]), rules=rules, with_shares=True, audited=True)
    assert entries_of(passed) == ["mul", "add", "neg"]
    assert contributions(passed) == [[6.0]]
    assert passed.trace.audited is not None
    assert [entry.is_decomposed for entry in passed.trace.audited] == [False, False, True]
    assert [entry.residual for entry in passed.trace.audited] == [0.0, 0.0, 0.0]


def test_what_is_known_of_a_decomposed_result_is_known_under_an_audit() -> None:
    def rectified(operation: Operation) -> Any:
        (x,) = operation.args
        return operation.decompose(lambda: torch.relu(x * -1))

    rules = rulebook({torch.neg: rectified})
    for is_audited in (False, True):
        passed = forward_of(torch.neg, torch.tensor([-3.0]), rules=rules, with_shares=True, audited=is_audited)
        mark = get_mark(passed.output, passed.trace.run)
        assert mark is not None
        assert Trait.NONNEGATIVE in Trait(mark.traits)


def test_the_rule_and_the_module_are_noted() -> None:
    model = torch.nn.Sequential(torch.nn.ReLU())
    passed = forward_of(model, torch.tensor([3.0]), with_shares=True, audited=True)
    assert passed.trace.audited is not None
    (entry,) = passed.trace.audited
    assert entry.rule is Operation.value
    assert entry.module is model[0]


def test_what_a_rule_takes_as_a_constant_is_one_for_the_whole_pass() -> None:
    def by_first(operation: Operation) -> Any:
        a, b = operation.args
        return a * operation.detach(b)

    first, second = torch.nn.Identity(), torch.nn.Identity()
    passed = forward_of(
        lambda x: first(x) * second(x),
        torch.tensor([3.0]),
        sites=[Site(first, False), Site(second, False)],
        rules=rulebook({torch.mul: by_first}),
        with_shares=True,
        with_rules=True,
        audited=True,
    )
    assert all_contributions(passed) == [[[9.0]], [[]]]
    mark = get_mark(passed.output, passed.trace.run)
    assert mark is not None
    assert mark.taps == 0b01
    assert passed.trace.rules is not None
    assert [row.constant for row in passed.trace.rules.rows] == ["2 of 2"]
