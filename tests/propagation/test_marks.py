"""Marks: whose they are, and what a view and its base have in common once something was written into the view."""

from __future__ import annotations

import pytest
import torch

from captum_cav.propagation.marks import Handoff, Mark, clear_mark, get_mark, set_mark
from captum_cav.propagation.taps import as_carrier
from captum_cav.propagation.traits import Trait

RUN = object()
GATE, NONNEGATIVE = Trait.GATE.value, Trait.NONNEGATIVE.value


def base_and_view() -> tuple[torch.Tensor, torch.Tensor]:
    base = as_carrier(torch.zeros(3))
    return base, base[:2]


def test_a_constant_has_no_mark() -> None:
    assert get_mark(torch.zeros(1), RUN) is None


def test_only_the_marks_of_the_own_pass_count() -> None:
    tensor = torch.zeros(1)
    set_mark(tensor, Mark(RUN, 1, 0))
    assert get_mark(tensor, RUN) == Mark(RUN, 1, 0)
    assert get_mark(tensor, object()) is None


def test_a_mark_that_is_cleared_is_gone() -> None:
    tensor = torch.zeros(1)
    set_mark(tensor, Mark(RUN, 1, 0))
    clear_mark(tensor)
    assert get_mark(tensor, RUN) is None
    clear_mark(tensor)


def test_a_later_pass_replaces_the_mark_of_an_earlier_pass() -> None:
    tensor, later = torch.zeros(1), object()
    set_mark(tensor, Mark(RUN, 1, 0))
    set_mark(tensor, Mark(later, 2, 0))
    assert get_mark(tensor, RUN) is None
    assert get_mark(tensor, later) == Mark(later, 2, 0)


def test_writing_into_a_view_merges_its_mark_with_that_of_its_base() -> None:
    base, view = base_and_view()
    set_mark(base, Mark(RUN, 0b01, GATE | NONNEGATIVE, Handoff()))
    set_mark(view, Mark(RUN, 0b10, NONNEGATIVE, Handoff()), written=True)
    # Contributions come from both; only what both are is true of the whole; and what was handed on is stale.
    assert get_mark(base, RUN) == Mark(RUN, 0b11, NONNEGATIVE, None)
    mark = get_mark(view, RUN)
    assert mark is not None
    assert mark.taps == 0b10


def test_a_base_without_a_mark_may_hold_negative_values_around_the_view() -> None:
    base, view = base_and_view()
    set_mark(view, Mark(RUN, 0b10, GATE | NONNEGATIVE, Handoff()), written=True)
    assert get_mark(base, RUN) == Mark(RUN, 0b10, GATE, None)


def test_a_mark_of_another_pass_on_the_base_does_not_count() -> None:
    base, view = base_and_view()
    set_mark(base, Mark(object(), 0b100, 0))
    set_mark(view, Mark(RUN, 0b10, GATE), written=True)
    assert get_mark(base, RUN) == Mark(RUN, 0b10, GATE)


def test_a_base_is_not_marked_when_nothing_was_written() -> None:
    base, view = base_and_view()
    set_mark(view, Mark(RUN, 0b10, 0))
    assert get_mark(base, RUN) is None


def test_a_base_that_carries_nothing_is_not_marked() -> None:
    base = torch.zeros(3)
    set_mark(base[:2], Mark(RUN, 0, 0), written=True)
    assert get_mark(base, RUN) is None


@pytest.mark.parametrize(
    ("consumers", "rectifiers", "is_rectified"), [(0, 0, False), (1, 0, False), (2, 1, False), (2, 2, True)]
)
def test_an_output_is_rectified_if_only_rectifiers_took_it(consumers: int, rectifiers: int, is_rectified: bool) -> None:
    handoff = Handoff()
    handoff.consumers, handoff.rectifiers = consumers, rectifiers
    assert handoff.is_rectified is is_rectified
