"""One operation of the forward pass as a rule sees it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav.propagation.module_operation import ModuleCall
from captum_cav.propagation.operation import Operation, describe_rule
from captum_cav.propagation.rule import FunctionRule, Rule
from tests.propagation.engine import Pass, forward_of, rulebook
from tests.support.errors import cav_error

# The value ----------------------------------------------------------------------------------------------------------


def test_an_operation_can_be_evaluated_elsewhere() -> None:
    one = Pass()
    x = one.tapped(1.0)
    by_place = one.operation(torch.add, x, torch.tensor([5.0]), alpha=2)
    by_name = one.operation(torch.add, input=x, other=torch.tensor([5.0]), alpha=2)
    for operation in (by_place, by_name):
        assert operation.value().tolist() == [11.0]
        assert operation.evaluate(torch.tensor([3.0])).tolist() == [13.0]


def test_what_evaluates_holds_no_graph() -> None:
    one = Pass()
    x = one.run(torch.neg, one.tapped(1.0))
    evaluator = one.operation(torch.relu, x).evaluator()
    gc.disable()
    try:
        dead = weakref.ref(x)
        del x
        assert dead() is None
    finally:
        gc.enable()
    assert evaluator(torch.tensor([-1.0])).tolist() == [0.0]


def test_contributions_end_at_a_value_that_is_a_constant() -> None:
    one = Pass()
    x = one.tapped(2.0)
    assert not one.operation(torch.relu, x).value_as_constant().requires_grad


def test_a_constant_value_that_is_written_into_a_tensor_has_a_share() -> None:
    one = Pass(with_shares=True)
    x = one.tapped(-2.0, 3.0)
    output = one.operation(torch.relu_, x, in_place=True).value_as_constant()
    assert output is x
    assert x.tolist() == [0.0, 3.0]
    (coefficients,) = torch.autograd.grad((x * 10).sum(), one.trace.taps[0].edges)
    assert coefficients.tolist() == [0.0, 0.0]
    assert [float(share) for share in one.trace.shares.settle([1], torch.device("cpu"))] == [30.0]


def test_an_operation_runs_on_stand_ins() -> None:
    one = Pass()
    x, constant = one.tapped(1.0), torch.tensor([5.0])
    operation = one.operation(torch.add, x, other=constant)
    local = operation.on({id(x): torch.tensor([100.0]), id(constant): torch.tensor([7.0])})
    assert local.value().tolist() == [107.0]
    assert [source.tolist() for source in local.sources] == [[100.0]]
    assert operation.value().tolist() == [6.0]


def test_a_decomposed_operation_meets_the_rules_of_its_parts() -> None:
    def as_product(operation: Operation) -> Any:
        (x,) = operation.args
        return operation.decompose(lambda: x * -1)

    passed = forward_of(
        torch.neg, torch.tensor([2.0]), rules=rulebook({torch.neg: as_product}), with_rules=True, with_shares=True
    )
    assert passed.trace.rules is not None
    # The parts stand before the whole.
    assert [(row.operation, row.rule) for row in passed.trace.rules.rows] == [
        ("mul", "value"),
        ("neg", "as_product, written out"),
    ]


def test_the_body_of_a_function_of_torch_meets_the_rules_of_its_parts() -> None:
    one = Pass()
    operation = one.operation(F.tanhshrink, one.tapped(1.0))
    with cav_error(NotImplementedError, "'tanh'"):  # The small table has no row for tanh.
        operation.decompose_body()
    assert operation.is_decomposed


def test_a_function_without_a_body_is_refused() -> None:
    one = Pass()
    with cav_error(NotImplementedError, "'cos' has no rule"):
        one.operation(torch.cos, one.tapped(1.0)).decompose_body()


# The arguments ------------------------------------------------------------------------------------------------------


def test_an_argument_is_found_by_place_and_by_name_and_by_default() -> None:
    one = Pass()
    operation = one.operation(torch.add, one.tapped(1.0), 5, alpha=3)
    assert operation.argument(1, "other") == 5
    assert operation.argument(2, "alpha", 1) == 3
    assert operation.argument(3, "out", "nothing") == "nothing"


def test_what_carries_and_what_depends_on_the_inputs() -> None:
    one = Pass()
    carrier, bypassing, constant = one.tapped(1.0), one.input(1.0), torch.ones(1)
    operation = one.operation(torch.add, carrier, bypassing)
    assert [operation.carries(x) for x in (carrier, bypassing, constant, 3)] == [True, False, False, False]
    assert [operation.depends_on_inputs(x) for x in (carrier, bypassing, constant, 3)] == [True, True, False, False]
    assert operation.depends_on_inputs([constant, (carrier,)])


def test_traits_are_asked_of_tensors() -> None:
    one = Pass()
    x = one.tapped(1.0)
    gate, positive = one.run(torch.sigmoid, x), one.run(torch.relu, x)
    behind = one.run(F.linear, x, torch.ones(1, 1))
    operation = one.operation(torch.mul, gate, positive)
    assert [operation.is_gate(value) for value in (gate, positive, torch.ones(1), 3)] == [True, False, False, False]
    assert [operation.is_nonnegative(value) for value in (positive, x, torch.ones(1))] == [True, False, False]
    assert operation.is_at_input
    assert not one.operation(torch.add, x, behind).is_at_input


def test_a_detached_tensor_is_noted() -> None:
    one = Pass()
    x, y = one.tapped(1.0), one.tapped(2.0)
    operation = one.operation(torch.mul, x, y)
    assert not operation.detach(y).requires_grad
    assert operation.detached == {id(y)}
    assert operation.shares().taps == 0b01


def test_inputs_are_replaced_by_zeros() -> None:
    table_of_indices = torch.tensor([1])
    one = Pass()
    one.trace.mark_input(table_of_indices)
    constant = torch.ones(1)
    operation = one.operation(torch.add, one.tapped(1.0))
    found = operation.without_inputs([one.tapped(2.0), constant, table_of_indices, 3])
    assert found[0].tolist() == [0.0]
    assert found[1] is constant
    assert found[2] is table_of_indices
    assert found[3] == 3


# Constants ----------------------------------------------------------------------------------------------------------


def test_the_constant_part_of_an_output_is_measured_if_somebody_asks() -> None:
    for with_shares, expected in ((True, [15.0]), (False, [0.0])):
        one = Pass(with_shares=with_shares)
        operation = one.operation(torch.add, one.tapped(1.0), 5)
        output = operation.value()
        operation.add_constant(output, torch.tensor(5.0))
        assert operation.counts_constants is with_shares
        torch.autograd.grad((output * 3).sum(), one.trace.taps[0].edges)
        assert [float(share) for share in one.trace.shares.settle([1], torch.device("cpu"))] == expected


@pytest.mark.parametrize("later", ["later", "not"])
def test_the_constant_part_of_a_view_is_measured_in_its_base(later: str) -> None:
    one = Pass(with_shares=True)
    base = one.run(torch.neg, one.tapped(1.0, 2.0, 3.0))
    part = one.run(torch.Tensor.__getitem__, base, slice(1, None))
    part += 5
    one.operation(torch.add, part, 5).add_constant(part, torch.tensor(5.0))
    if later == "later":
        base *= 2  # What is written later goes on in the base as well.
    score = (base * torch.tensor([1.0, 10.0, 100.0])).sum()
    torch.autograd.grad(score, one.trace.taps[0].edges)
    assert [float(share) for share in one.trace.shares.settle([1], torch.device("cpu"))] == [
        1100.0 if later == "later" else 550.0
    ]


# Modules ------------------------------------------------------------------------------------------------------------


def test_the_call_of_a_module_is_an_operation_on_whatever_it_takes() -> None:
    one = Pass()
    module, x, more, output = nn.Tanh(), one.tapped(1.0), torch.ones(1), one.tapped(7.0)
    call = ModuleCall(module, (x,), {"more": more}, [x], output, one.propagation)
    assert call.name == "Tanh"
    assert call.value() is output
    assert call.by_default() is output
    assert call.argument(1, "any name") is more
    assert call.argument(2, "any name", "default") == "default"
    constant = call.evaluate(x)
    assert constant.tolist() == [7.0]
    assert not constant.requires_grad


def test_rules_are_described_as_people_write_them() -> None:
    class Mine(Rule):
        pass

    assert (
        describe_rule(test_rules_are_described_as_people_write_them)
        == test_rules_are_described_as_people_write_them.__name__
    )
    assert describe_rule(Mine()) == "Mine()"
    assert describe_rule(FunctionRule(Operation.by_default)) == "by_default"
