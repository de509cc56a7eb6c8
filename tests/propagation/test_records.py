"""What a pass writes down for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_cav.propagation import explanation
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.module_operation import ModuleCall
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.records import RuleLog, RuleRow, RuleTable
from captum_cav.propagation.rule import Rule
from captum_cav.propagation.trace import Trace
from tests.propagation.engine import Pass


@dataclass(frozen=True, repr=False)
class Named(Rule):
    name: str


class ExactRule(Rule):
    is_derivative = True


def noted(operation: Operation, rule: Any, why: str = "default", module: str = "") -> tuple[RuleRow, bool]:
    """The row of an operation, and whether the rule passes on the derivative."""
    log = RuleLog()
    explanation.note(log, operation, rule, why, module)
    (row,) = log.rows
    assert log.inexact in ([], [row])
    return row, not log.inexact


def relu() -> Operation:
    one = Pass()
    return one.operation(torch.relu, one.tapped(1.0))


def product() -> Operation:
    one = Pass()
    return one.operation(torch.mul, one.tapped(1.0), one.tapped(2.0))


def test_a_row_says_which_operation_met_which_rule_and_why() -> None:
    row, _ = noted(relu(), Named("a"), "'block.*'", "block.0")
    assert row == RuleRow("block.0", "relu", "Named(name='a')", "'block.*'", "")


def test_tensors_that_were_constants_for_the_rule_are_counted_from_one() -> None:
    operation = product()
    operation.detach(operation.sources[1])
    row, is_exact = noted(operation, operation.spec.rule)
    assert row.constant == "2 of 2"
    assert not is_exact
    operation.detach(operation.sources[0])
    assert noted(operation, operation.spec.rule)[0].constant == "1 and 2 of 2"


def test_the_derivative_is_passed_on_by_rules_and_rows_that_say_so() -> None:
    assert noted(relu(), relu().spec.rule)[1]
    assert noted(relu(), ExactRule())[1]
    assert not noted(relu(), Named("a"))[1]
    assert not noted(relu(), lambda operation: operation.value())[1]
    # The row of the product says so for one tensor that depends on the inputs.
    assert not noted(product(), product().spec.rule)[1]
    one = Pass()
    scaled = one.operation(torch.mul, one.tapped(1.0), 3)
    assert noted(scaled, scaled.spec.rule)[1]
    never = one.operation(torch.relu, one.tapped(1.0))
    never.spec = OperationSpec(rule=Operation.value, derivative=Derivative.NEVER)
    assert not noted(never, Operation.value)[1]


def test_a_decomposed_operation_is_neither_exact_nor_inexact() -> None:
    operation = relu()
    operation.is_decomposed = True
    row, is_exact = noted(operation, Named("a"))
    assert row.rule == "Named(name='a'), written out"
    assert is_exact


def test_a_module_that_is_ruled_as_one_is_shown_so() -> None:
    one = Pass()
    x = one.tapped(1.0)
    call = ModuleCall(nn.Tanh(), (x,), {}, [x], x * 1, one.propagation)
    assert noted(call, Named("a"))[0].operation == "Tanh as one"


def test_the_rows_print_as_a_table() -> None:
    table = RuleTable(
        [RuleRow("block", "relu", "value", "default", ""), RuleRow("", "mul", "rule", "type X", "2 of 2")]
    )
    assert str(table).splitlines() == [
        "module  operation  rule   because of  constant",
        "block   relu       value  default",
        "        mul        rule   type X      2 of 2",
    ]
    assert repr(table) == str(table)
    assert str(RuleTable()) == "module  operation  rule  because of  constant"
    log = RuleLog(rows=list(table))
    assert log.table() == table


def test_a_trace_notes_what_is_asked() -> None:
    plain = Trace(with_shares=False, with_rules=False, audited=False)
    assert (plain.rules, plain.audited, plain.is_watched) == (None, None, False)
    assert Trace(with_shares=True, with_rules=False, audited=False).is_watched
    assert Trace(with_shares=False, with_rules=True, audited=False).rules is not None
    assert Trace(with_shares=True, with_rules=False, audited=True).audited == []


def test_two_passes_differ() -> None:
    one, other = (Trace(with_shares=False, with_rules=False, audited=False) for _ in range(2))
    assert one.run is not other.run
    assert one.began < other.began
