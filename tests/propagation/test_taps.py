"""Taps: where the graph begins, and whose memory the tapped tensors share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav.propagation.marks import Mark, get_mark
from captum_cav.propagation.saved_values import SavedValues
from captum_cav.propagation.taps import Tapped, as_carrier, memory_aliases, note_alias, tap
from captum_cav.propagation.traits import Trait
from tests.propagation.engine import Pass
from tests.support.errors import cav_error


def tapped(value: Any) -> tuple[Any, Tapped]:
    return tap(value, SavedValues().save, lambda carrier, source: None)


# Carriers -----------------------------------------------------------------------------------------------------------


def test_a_carrier_shares_the_memory_and_begins_a_graph() -> None:
    x = torch.tensor([1.0, 2.0])
    carrier = as_carrier(x)
    assert carrier.data_ptr() == x.data_ptr()
    assert carrier.requires_grad
    assert not x.requires_grad


def test_the_model_may_write_into_a_carrier() -> None:
    x = torch.tensor([1.0, 2.0])
    carrier, found = tapped(x)
    carrier.mul_(3)  # Torch refuses this for leaves that require grad.
    assert x.tolist() == [3.0, 6.0]
    (coefficients,) = torch.autograd.grad(carrier.sum(), found.edges)
    assert coefficients.tolist() == [3.0, 3.0]


def test_the_graph_goes_on_through_a_later_tap() -> None:
    first, of_first = tapped(torch.tensor([2.0]))
    second, of_second = tapped(first * 5)
    coefficients = torch.autograd.grad((second * 7).sum(), [*of_first.edges, *of_second.edges])
    assert [c.tolist() for c in coefficients] == [[35.0], [7.0]]


def test_nothing_before_the_first_tap_is_in_the_graph() -> None:
    parameter = torch.tensor([2.0], requires_grad=True)
    carrier, _ = tapped(parameter)
    assert all(grad is None for grad in torch.autograd.grad(carrier.sum(), parameter, allow_unused=True))


# Structures ---------------------------------------------------------------------------------------------------------


def test_floating_point_tensors_in_structures_are_tapped_and_all_else_is_passed_on() -> None:
    a, b, indices = torch.tensor([1.0]), torch.tensor([2.0], dtype=torch.float64), torch.tensor([3])
    passed_on, found = tapped({"a": a, "rest": (b, [indices, None, "text", 4])})
    assert passed_on["a"].requires_grad
    assert passed_on["rest"][0].requires_grad
    assert passed_on["rest"][1] == [indices, None, "text", 4]
    assert passed_on["rest"][1][0] is indices
    assert [value.tolist() for value in found.values] == [[1.0], [2.0]]
    assert found.kind == "dict"
    assert len(found.edges) == 2


def test_the_value_of_a_tap_stays_what_it_was() -> None:
    values, x = SavedValues(), torch.tensor([1.0])
    carrier, found = tap(x, values.save, lambda carrier, source: None)
    values.before_writing(carrier)
    carrier.add_(1)
    assert [value.tolist() for value in found.values] == [[1.0]]
    assert carrier.tolist() == [2.0]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_tensors_are_refused(layout: torch.layout) -> None:
    sparse = torch.eye(2).to_sparse(layout=layout)
    with cav_error(TypeError, "sparse tensor", str(layout), "pick a layer before or behind it"):
        tapped((torch.zeros(1), sparse))


def test_complex_tensors_are_refused() -> None:
    with cav_error(TypeError, "complex numbers (torch.complex64)", "Pick a layer before or behind it"):
        tapped(torch.ones(1, dtype=torch.complex64))


# Aliases ------------------------------------------------------------------------------------------------------------


def test_all_who_share_memory_know_each_other() -> None:
    source = torch.zeros(1)
    first = as_carrier(source)
    note_alias(source, first)
    second = as_carrier(first)
    note_alias(first, second)
    assert [id(alias) for alias in memory_aliases(source)] == [id(first), id(second)]
    assert [id(alias) for alias in memory_aliases(first)] == [id(source), id(second)]
    assert [id(alias) for alias in memory_aliases(second)] == [id(source), id(first)]
    assert memory_aliases(torch.zeros(1)) == []


def test_an_alias_that_nobody_keeps_is_forgotten() -> None:
    source = torch.zeros(1)
    carrier = as_carrier(source)
    note_alias(source, carrier)
    del carrier
    assert memory_aliases(source) == []


def test_what_is_written_into_a_carrier_is_found_in_the_tensor_for_which_it_stands() -> None:
    one = Pass()
    before = one.run(torch.neg, one.tapped(-2.0, -3.0))
    carrier = one.propagation.tap(before)
    one.run(torch.Tensor.mul_, carrier, one.tapped(5.0, 7.0))
    assert before.tolist() == carrier.tolist() == [10.0, 21.0]
    assert get_mark(before, one.trace.run) == get_mark(carrier, one.trace.run)
    # Whoever reads the tensor reads what was written: the contributions go through both taps and through the factor.
    edges = [edge for found in one.trace.taps for edge in found.edges]
    coefficients = torch.autograd.grad(before.sum(), edges)
    assert [c.tolist() for c in coefficients] == [[-5.0, -7.0], [5.0, 7.0], [2.0, 3.0]]


def test_what_autograd_saved_of_a_carrier_may_be_read_although_its_tensor_before_follows() -> None:
    one = Pass()
    before = one.run(torch.neg, one.tapped(-2.0, 3.0))
    carrier = one.propagation.tap(before)
    one.run(torch.relu_, carrier)  # Autograd saves the result.
    assert before.tolist() == [2.0, 0.0]
    edges = [edge for found in one.trace.taps for edge in found.edges]
    coefficients = torch.autograd.grad(carrier.sum(), edges)
    assert [c.tolist() for c in coefficients] == [[-1.0, 0.0], [1.0, 0.0]]


def test_what_is_written_into_a_view_of_the_tensor_before_is_found_in_the_carrier() -> None:
    one = Pass()
    before = one.run(torch.neg, one.tapped(-2.0, -3.0))
    carrier = one.propagation.tap(before)
    part = one.run(torch.Tensor.__getitem__, before, slice(0, 1))
    one.run(torch.Tensor.add_, part, one.tapped(10.0))
    assert carrier.tolist() == [12.0, 3.0]
    assert get_mark(carrier, one.trace.run) == get_mark(before, one.trace.run)


# Marks of taps ------------------------------------------------------------------------------------------------------


def test_each_tap_has_a_bit_and_traits_are_kept() -> None:
    one = Pass()
    x = one.input(1.0)
    first = one.propagation.tap(x)
    second = one.propagation.tap(first)
    third = one.propagation.tap(torch.zeros(1))
    before = Trait.BEFORE_FIRST_LAYER.value
    run = one.trace.run
    assert get_mark(x, one.trace.run) == Mark(run, 0, before)
    assert get_mark(first, one.trace.run) == Mark(run, 0b001, before)
    assert get_mark(second, one.trace.run) == Mark(run, 0b011, before)
    assert get_mark(third, one.trace.run) == Mark(run, 0b100, 0)


def test_the_layers_behind_some_tensors_are_known() -> None:
    one = Pass()
    a, b, bypassing, constant = one.tapped(1.0), one.tapped(1.0), one.input(1.0), torch.zeros(1)
    assert one.trace.descent([a, b, bypassing, constant], frozenset()) == 0b11
    assert one.trace.descent([a, b], frozenset([id(a)])) == 0b10
    assert one.trace.descent([], frozenset()) == 0
