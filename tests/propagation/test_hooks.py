"""The hooks of one forward pass: in whose calls they act, and that none stays behind."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.propagation.hooks import Site, hooked
from captum_cav.propagation.operation import Operation
from tests.propagation.engine import Pass, rulebook
from tests.support.traces import InjectedError, inject, left_as_it_was

X = torch.tensor([1.0, -2.0])


class Hooked:
    """The hooks of a pass, and what they saw."""

    def __init__(self, model: nn.Module, *sites: Site, rules: dict[Any, Any] | None = None) -> None:
        self.sites = sites
        self.one = Pass(rules=rulebook(rules, model))
        self.seen: list[tuple[int, Any]] = []
        self.replace: Callable[[Any], Any] = lambda value: value

    def at_site(self, index: int, value: Any) -> Any:
        self.seen.append((index, value))
        return self.replace(value)

    def __call__(self, *, follows_modules: bool = False) -> AbstractContextManager[None]:
        return hooked(self.sites, self.at_site, self.one.propagation, follows_modules)


def in_another_thread(act: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


# Taps ---------------------------------------------------------------------------------------------------------------


def test_the_output_of_a_layer_is_tapped_and_replaced() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Identity())
    case = Hooked(model, Site(model[1], False), Site(model[0], False))
    case.replace = lambda value: value + 10
    with case():
        output = model(X)
    # The sites have their numbers, in whatever order the forward pass meets them.
    assert [(index, value.tolist()) for index, value in case.seen] == [(1, [1.0, 0.0]), (0, [11.0, 10.0])]
    assert output.tolist() == [21.0, 20.0]


def test_the_input_of_a_layer_is_tapped_and_replaced_with_its_keywords() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, *, more: torch.Tensor) -> torch.Tensor:
            return x + more

    model = Sum()
    case = Hooked(model, Site(model, True))
    case.replace = lambda value: ((value[0][0] * 100,), {"more": value[1]["more"] * 1000})
    with case():
        output = model(torch.tensor([1.0]), more=torch.tensor([2.0]))
    assert case.seen == [(0, ((torch.tensor([1.0]),), {"more": torch.tensor([2.0])}))]
    assert output.tolist() == [2100.0]


def test_a_layer_is_tapped_at_both_ends() -> None:
    model = nn.ReLU()
    case = Hooked(model, Site(model, False), Site(model, True))
    with case():
        model(X)
    assert [index for index, _ in case.seen] == [1, 0]


def test_nothing_stays_behind() -> None:
    model = nn.Sequential(nn.ReLU())
    sites = [Site(model[0], False), Site(model[0], True)]
    for follows_modules in (False, True):
        with left_as_it_was(model):
            with Hooked(model, *sites)(follows_modules=follows_modules):
                model(X)
            with pytest.raises(InjectedError), Hooked(model, *sites)(follows_modules=follows_modules):
                raise InjectedError
    seen = Hooked(model, *sites)
    with seen():
        pass
    model(X)
    assert seen.seen == []


# Other threads, attributions and copies -----------------------------------------------------------------------------


def test_other_threads_are_not_tapped() -> None:
    model = nn.Sequential(nn.ReLU())
    case = Hooked(model, Site(model[0], False), Site(model[0], True), rules={nn.ReLU: lambda operation: None})
    case.replace = lambda value: None
    with case(follows_modules=True):
        output = in_another_thread(lambda: model(X))
    assert case.seen == []
    assert output.tolist() == [1.0, 0.0]


def test_an_attribution_inside_the_forward_pass_is_not_tapped() -> None:
    model = nn.Sequential(nn.ReLU())
    case = Hooked(model, Site(model[0], False), Site(model[0], True))
    case.one.propagation.is_suspended = True
    with case(follows_modules=True):
        model(X)
    assert case.seen == []
    assert case.one.propagation.modules.modules == []


def test_a_copy_of_the_model_has_hooks_that_do_nothing() -> None:
    model = nn.Sequential(nn.ReLU())
    case = Hooked(model, Site(model[0], False), Site(model[0], True))
    with case():
        copied = copy.deepcopy(model)
        assert copied(X).tolist() == [1.0, 0.0]
        assert case.seen == []
        model(X)
    assert len(case.seen) == 2
    assert copied(X).tolist() == [1.0, 0.0]


# Modules ------------------------------------------------------------------------------------------------------------


class Asking(nn.Module):
    """Notes the modules of the pass."""

    def __init__(self, found: list[list[nn.Module]]) -> None:
        super().__init__()
        self.found = found
        self.case: Hooked | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.case is not None
        self.found.append(list(self.case.one.propagation.modules.modules))
        return x


@pytest.mark.parametrize("follows_modules", [False, True])
def test_modules_are_followed_if_asked(follows_modules: bool) -> None:
    found: list[list[nn.Module]] = []
    asking = Asking(found)
    model = nn.Sequential(asking)
    case = asking.case = Hooked(model)
    with case(follows_modules=follows_modules):
        model(X)
    assert found == [[model, asking] if follows_modules else []]
    assert case.one.propagation.modules.modules == []


def test_a_module_that_raises_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.ReLU())
    inject(monkeypatch, model[0], InjectedError())
    case = Hooked(model)
    with case(follows_modules=True):
        with pytest.raises(InjectedError):
            model(X)
        assert case.one.propagation.modules.modules == []


# Modules as one -----------------------------------------------------------------------------------------------------


def doubled(operation: Operation) -> Any:
    return operation.value() * 1.0


def hooks_of(module: nn.Module) -> Sequence[Any]:
    return list(vars(module)["_forward_hooks"].values())


def test_a_module_that_is_ruled_as_one_has_a_hook_while_it_runs() -> None:
    counts: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            counts.append(len(hooks_of(self)))
            return x * 1

    model = Counting()
    case = Hooked(model, rules={Counting: doubled})
    with case(follows_modules=True):
        for _ in range(2):
            with case.one.propagation:
                model(case.one.tapped(1.0))
            assert hooks_of(model) == []
    assert counts == [1, 1]
    assert not case.one.propagation.is_paused


def test_another_thread_may_call_a_hook_that_was_removed_meanwhile() -> None:
    # Torch reads the hooks of a module when a call begins, and asks later which of them take keyword arguments. A hook
    # that is removed in between is called without them.
    late: list[Any] = []

    class Running(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (hook,) = hooks_of(self)
            late.append(in_another_thread(lambda: (hook(self, (x,), x), hook(self, (x,), {}, x))))
            return x * 1

    model = Running()
    case = Hooked(model, rules={Running: doubled})
    with case(follows_modules=True), case.one.propagation:
        found = model(case.one.tapped(1.0))
    assert late == [(None, None)]
    assert found.tolist() == [1.0]
    assert case.one.taps_of(found) == 1


def test_a_module_that_is_ruled_as_one_meets_what_was_tapped_at_its_input() -> None:
    model = nn.Tanh()
    arguments: list[Any] = []

    def look(operation: Operation) -> Any:
        arguments.append(operation.args[0])
        return operation.value()

    case = Hooked(model, Site(model, True), rules={nn.Tanh: look})
    case.replace = case.one.propagation.tap
    with case(follows_modules=True), case.one.propagation:
        model(case.one.input(1.0))
    assert [case.one.taps_of(argument) for argument in arguments] == [1]


def test_a_module_that_raises_while_it_is_ruled_as_one_ends_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Tanh()
    inject(monkeypatch, model, InjectedError())
    case = Hooked(model, rules={nn.Tanh: doubled})
    with case(follows_modules=True):
        with pytest.raises(InjectedError), case.one.propagation:
            model(case.one.tapped(1.0))
        assert not case.one.propagation.is_paused
        assert hooks_of(model) == []
