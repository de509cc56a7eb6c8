"""An attribution inside the forward pass of another one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from captum_cav.propagation.marks import get_mark
from captum_cav.propagation.reentrancy import running, suspends_outer_attribution
from tests.propagation.engine import Pass
from tests.support.traces import InjectedError


@suspends_outer_attribution
def attribution(outer: Pass) -> bool:
    """An attribution that only says whether the outer one is suspended."""
    return outer.propagation.is_suspended


def test_an_attribution_alone_suspends_nothing() -> None:
    assert not attribution(Pass())


def test_the_outer_attribution_is_suspended_meanwhile() -> None:
    outer = Pass()
    with running(outer.propagation):
        assert attribution(outer)
        assert not outer.propagation.is_suspended
        assert attribution(outer)  # And again.
    assert not attribution(outer)


def test_what_runs_while_suspended_is_not_seen() -> None:
    outer = Pass()
    x = outer.tapped(0.5)

    @suspends_outer_attribution
    def inner() -> torch.Tensor:
        return torch.cos(x)  # The small table has no row for this.

    with running(outer.propagation), outer.propagation:
        output = inner()
    assert get_mark(output, outer.trace.run) is None


def test_attributions_inside_attributions_suspend_the_one_around_them() -> None:
    outer, middle = Pass(), Pass()

    @suspends_outer_attribution
    def in_between() -> tuple[bool, bool]:
        with running(middle.propagation):
            return attribution(middle), outer.propagation.is_suspended

    with running(outer.propagation):
        assert in_between() == (True, True)
        assert not outer.propagation.is_suspended
        assert attribution(outer)


def test_the_outer_attribution_stays_suspended_until_the_first_one_inside_ends() -> None:
    outer = Pass()

    @suspends_outer_attribution
    def first() -> tuple[bool, bool]:
        return attribution(outer), outer.propagation.is_suspended

    with running(outer.propagation):
        assert first() == (True, True)
        assert not outer.propagation.is_suspended


def test_an_attribution_that_raises_resumes_the_outer_one() -> None:
    outer = Pass()

    @suspends_outer_attribution
    def failing() -> None:
        raise InjectedError

    with running(outer.propagation):
        with pytest.raises(InjectedError):
            failing()
        assert not outer.propagation.is_suspended
        assert attribution(outer)


def test_a_forward_pass_that_raises_no_longer_runs() -> None:
    outer = Pass()
    with pytest.raises(InjectedError), running(outer.propagation):
        raise InjectedError
    assert not attribution(outer)


def test_an_attribution_in_another_thread_suspends_nothing() -> None:
    outer = Pass()
    found: list[bool] = []
    with running(outer.propagation):
        thread = threading.Thread(target=lambda: found.append(attribution(outer)))
        thread.start()
        thread.join()
    assert found == [False]


def test_a_compiler_leaves_the_attribution_out(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def disable(function: Any) -> Any:
        def untraced(*args: Any) -> Any:
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
            events.append("untraced")
            return function(*args)

        return untraced

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "disable", disable)
    outer = Pass()
    with running(outer.propagation):
        assert attribution(outer)
    assert events == ["untraced"]


def test_the_wrapped_function_keeps_its_name_and_text() -> None:
    assert attribution.__name__ == "attribution"
    assert attribution.__doc__ is not None
