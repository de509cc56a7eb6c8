"""How outputs are marked: the layers behind them, and what is known of their values."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.propagation.marks import Handoff, get_mark
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.traits import Trait
from tests.propagation.engine import Pass, rulebook, small_table

NONNEGATIVE, GATE, BEFORE_FIRST_LAYER = Trait.NONNEGATIVE, Trait.GATE, Trait.BEFORE_FIRST_LAYER


# The layers behind a tensor -----------------------------------------------------------------------------------------


def test_a_constant_gets_no_mark() -> None:
    one = Pass()
    assert get_mark(one.run(torch.relu, torch.ones(2)), one.trace.run) is None


def test_what_bypasses_the_layers_has_a_mark_without_taps() -> None:
    one = Pass()
    for found in (one.run(torch.relu, one.input(1.0)), one.run(torch.add, one.input(1.0), 1)):
        assert one.taps_of(found) == 0
        assert not found.requires_grad


def test_a_sum_comes_from_the_layers_of_both_summands() -> None:
    one = Pass()
    a, b, c = one.tapped(1.0), one.tapped(1.0), one.input(1.0)
    assert (one.taps_of(a), one.taps_of(b)) == (0b01, 0b10)
    assert one.taps_of(one.run(torch.add, a, b)) == 0b11
    assert one.taps_of(one.run(torch.add, b, c)) == 0b10
    assert one.taps_of(one.run(torch.add, b, torch.ones(1))) == 0b10


def test_a_factor_that_the_rule_takes_as_a_constant_does_not_count() -> None:
    def by_first(operation: Operation) -> Any:
        a, b = operation.args
        return a * operation.detach(b)

    one = Pass(rules=rulebook({torch.mul: by_first}))
    a, b = one.tapped(2.0), one.tapped(3.0)
    assert one.taps_of(one.run(torch.mul, a, b)) == 0b01


def test_what_the_model_detaches_is_a_constant() -> None:
    one = Pass()
    assert get_mark(one.run(torch.Tensor.detach, one.tapped(1.0)), one.trace.run) is None
    # But what bypasses the layers still depends on the inputs.
    assert one.taps_of(one.run(torch.Tensor.detach, one.input(1.0))) == 0


def test_where_nothing_records_gradients_the_layers_are_bypassed() -> None:
    one = Pass()
    with torch.no_grad():
        found = one.run(torch.add, one.tapped(1.0), one.input(1.0))
    assert one.taps_of(found) == 0


def test_integers_get_no_mark() -> None:
    table = small_table()
    table.register("argmax", OperationSpec(rule=Operation.value))
    one = Pass(table)
    assert get_mark(one.run(torch.argmax, one.tapped(1.0, 2.0)), one.trace.run) is None
    assert get_mark(one.run(torch.argmax, one.input(1.0, 2.0)), one.trace.run) is None


def test_each_output_of_an_operation_is_marked() -> None:
    table = small_table()
    table.register("chunk", OperationSpec(rule=Operation.value, is_as_is=True, keeps=NONNEGATIVE))
    one = Pass(table)
    for x in (one.tapped(1.0, 2.0), one.run(torch.relu, one.tapped(1.0, 2.0))):
        for part in one.run(torch.chunk, x, 2):
            assert get_mark(part, one.trace.run) == get_mark(x, one.trace.run)


# What is known of the values ----------------------------------------------------------------------------------------


def test_an_input_lies_before_the_first_layer_with_weights() -> None:
    one = Pass()
    x = one.input(1.0)
    assert one.traits_of(x) == BEFORE_FIRST_LAYER
    assert one.traits_of(one.run(torch.neg, x)) == BEFORE_FIRST_LAYER
    behind = one.run(F.linear, x, torch.ones(1, 1))
    assert one.traits_of(behind) == Trait.NONE
    assert one.traits_of(one.run(torch.add, x, behind)) == Trait.NONE


def test_a_tap_keeps_the_traits() -> None:
    one = Pass()
    assert one.traits_of(one.tapped(1.0)) == BEFORE_FIRST_LAYER
    assert NONNEGATIVE in one.traits_of(one.propagation.tap(one.run(torch.relu, one.input(1.0))))


def test_a_tap_of_a_constant_knows_nothing() -> None:
    one = Pass()
    tapped = one.propagation.tap(torch.ones(1))
    assert (one.taps_of(tapped), one.traits_of(tapped)) == (1, Trait.NONE)


def test_a_trait_is_made_and_kept_and_lost() -> None:
    for of_a_pass in (Pass.tapped, Pass.input):  # The quick way and the long way.
        one = Pass()
        positive = one.run(torch.relu, of_a_pass(one, 1.0))
        assert NONNEGATIVE in one.traits_of(positive)
        assert NONNEGATIVE in one.traits_of(one.run(torch.Tensor.view, positive, 1, 1))
        assert NONNEGATIVE not in one.traits_of(one.run(torch.neg, positive))


def test_a_sum_is_nonnegative_if_all_summands_are() -> None:
    one = Pass()
    a, b = one.run(torch.relu, one.tapped(1.0)), one.run(torch.relu, one.input(1.0))
    assert NONNEGATIVE in one.traits_of(one.run(torch.add, a, b))
    assert NONNEGATIVE in one.traits_of(one.run(torch.add, input=a, other=b))
    assert NONNEGATIVE not in one.traits_of(one.run(torch.add, a, one.tapped(1.0)))
    assert NONNEGATIVE not in one.traits_of(one.run(torch.add, one.input(1.0), b))


def test_a_constant_or_a_number_takes_nonnegative_away() -> None:
    one = Pass()
    a = one.run(torch.relu, one.tapped(1.0))
    for other in (torch.ones(1), -1, 2.0):
        assert NONNEGATIVE not in one.traits_of(one.run(torch.add, a, other))
    assert NONNEGATIVE not in one.traits_of(one.run(torch.add, input=a, other=torch.ones(1)))


def test_a_setting_is_no_number_that_takes_part() -> None:
    table = small_table()
    table.register("sum", OperationSpec(rule=Operation.value, keeps_without_constants=NONNEGATIVE))
    one = Pass(table)
    assert NONNEGATIVE in one.traits_of(one.run(torch.sum, one.run(torch.relu, one.tapped(1.0, 2.0)), 0))


def test_a_gate_is_made() -> None:
    one = Pass()
    gate = one.run(torch.sigmoid, one.tapped(1.0))
    assert GATE in one.traits_of(gate)
    assert GATE in one.traits_of(one.run(torch.Tensor.view, gate, 1, 1))
    assert GATE not in one.traits_of(one.run(torch.relu, gate))


def test_a_gate_that_is_written_by_hand_is_found_by_the_traits_of_the_first_tensor() -> None:
    asked: list[Trait] = []

    def gate_of_positive(operation: Operation, traits: Trait) -> Trait:
        asked.append(traits)
        return GATE if NONNEGATIVE in traits else Trait.BOUNDED

    table = small_table()
    table.register("tanh", OperationSpec(rule=Operation.value, is_as_is=True, find_gate=gate_of_positive))
    one = Pass(table)
    positive = one.run(torch.relu, one.input(1.0))
    assert one.traits_of(one.run(torch.tanh, positive)) == GATE | BEFORE_FIRST_LAYER
    assert one.traits_of(one.run(torch.tanh, one.input(1.0))) == Trait.BOUNDED | BEFORE_FIRST_LAYER
    assert asked == [NONNEGATIVE | BEFORE_FIRST_LAYER, BEFORE_FIRST_LAYER]


# Writing ------------------------------------------------------------------------------------------------------------


def test_writing_into_a_view_marks_its_base() -> None:
    one = Pass()
    a, b = one.tapped(1.0, 2.0), one.tapped(3.0)
    part = one.run(torch.Tensor.__getitem__, a, slice(0, 1))
    one.run(torch.Tensor.add_, part, b)
    assert one.taps_of(part) == one.taps_of(a) == 0b11
    assert a.tolist() == [4.0, 2.0]


def test_a_constant_into_which_contributions_are_written_carries_them() -> None:
    one = Pass()
    held = torch.zeros(2)
    one.run(torch.Tensor.__setitem__, held, slice(0, 1), one.tapped(3.0))
    assert held.tolist() == [3.0, 0.0]
    assert held.requires_grad
    assert one.taps_of(held) == 1


def test_an_operation_that_writes_does_not_leave_the_old_traits() -> None:
    one = Pass()
    positive = one.run(torch.relu, one.tapped(1.0))
    one.run(torch.Tensor.add_, positive, -5)
    assert NONNEGATIVE not in one.traits_of(positive)


# What a rule leaves for the next rule -------------------------------------------------------------------------------


def test_consumers_of_a_handoff_are_counted() -> None:
    handoff = Handoff()

    def leave(operation: Operation) -> Any:
        operation.handoff = handoff
        return operation.value()

    table = small_table()
    table.register("exp", OperationSpec(rule=leave))
    table.register("contiguous", OperationSpec(rule=Operation.value, hands_on=True))
    one = Pass(table)
    output = one.run(torch.exp, one.tapped(1.0))
    assert handoff.consumers == 0
    one.run(torch.relu, output)
    one.trace.note_consumer((output, 3))
    assert handoff.consumers == 2
    handed_on = get_mark(one.run(torch.Tensor.contiguous, output), one.trace.run)
    assert handed_on is not None
    assert handed_on.handoff is handoff
    dropped = get_mark(one.run(torch.Tensor.view, output, 1, 1), one.trace.run)
    assert dropped is not None
    assert dropped.handoff is None
