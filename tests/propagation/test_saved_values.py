"""Saved values stay what they were, and are copied only if somebody writes over them."""

from __future__ import annotations

import torch

from captum_cav.propagation.operation import Operation
from captum_cav.propagation.saved_values import SavedValue, SavedValues
from tests.propagation.engine import Pass, rulebook


def test_a_saved_value_is_no_copy_and_has_no_graph() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    saved = SavedValues().save(x)
    assert saved.value.data_ptr() == x.data_ptr()
    assert not saved.value.requires_grad


def test_a_saved_value_stays_what_it_was() -> None:
    values, x = SavedValues(), torch.tensor([1.0, 2.0])
    saved = values.save(x)
    values.before_writing(x)
    x.mul_(10)
    assert saved.value.tolist() == [1.0, 2.0]


def test_a_value_of_other_memory_is_not_copied() -> None:
    values, x = SavedValues(), torch.tensor([1.0])
    saved = values.save(x)
    values.before_writing(torch.tensor([1.0]))
    assert saved.value.data_ptr() == x.data_ptr()


def test_writing_into_a_view_copies_what_lies_in_the_same_memory() -> None:
    values, x = SavedValues(), torch.arange(6.0).reshape(2, 3)
    whole, row, column = values.save(x), values.save(x[1]), values.save(x[:, 2])
    values.before_writing(x[1, 1:])
    x[1, 1:] = 100
    assert whole.value.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert row.value.tolist() == [3.0, 4.0, 5.0]
    assert column.value.tolist() == [2.0, 5.0]


def test_a_released_value_is_freed_and_the_others_stay() -> None:
    values, x = SavedValues(), torch.tensor([1.0, 2.0])
    released, kept = values.save(x), values.save(x)
    values.release(released)
    values.release(released)  # A second time there is nothing to forget.
    values.before_writing(x)
    x.mul_(10)
    assert released.value.tolist() == [10.0, 20.0]
    assert kept.value.tolist() == [1.0, 2.0]
    values.release(kept)
    assert kept.value.tolist() == [1.0, 2.0]


def test_types_of_other_sizes_start_at_the_same_memory() -> None:
    values, x = SavedValues(), torch.zeros(4, dtype=torch.float64)
    saved = values.save(x[2:])
    values.before_writing(x[1:])
    x[1:] = 1
    assert saved.value.tolist() == [0.0, 0.0]


def test_a_value_is_copied_once() -> None:
    values, x = SavedValues(), torch.tensor([1.0])
    saved = values.save(x)
    values.before_writing(x)
    copy = saved.value.data_ptr()
    values.before_writing(x)
    assert saved.value.data_ptr() == copy
    x.mul_(10)
    assert values.save(x).value.tolist() == [10.0]
    assert saved.value.tolist() == [1.0]


def test_a_value_that_an_operation_saves_survives_writing_by_the_model() -> None:
    saved: list[SavedValue] = []

    def saving(operation: Operation) -> torch.Tensor:
        saved.append(operation.save(operation.args[0]))
        value: torch.Tensor = operation.value()
        return value

    one = Pass(rules=rulebook({torch.neg: saving}))
    x = one.tapped(3.0)
    one.run(torch.neg, x)
    assert saved[0].value.data_ptr() == x.data_ptr()
    one.run(torch.Tensor.mul_, x, 2)
    assert x.tolist() == [6.0]
    assert saved[0].value.tolist() == [3.0]
    # An operation that itself writes into its argument saves a copy.
    one.run(torch.Tensor.neg_, x)
    assert x.tolist() == [-6.0]
    assert saved[1].value.tolist() == [6.0]
