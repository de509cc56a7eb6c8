"""A module whose call is ruled as one operation: what it gets, and what it gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from captum_cav.propagation.module_calls import ModuleCalls
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import FunctionRule
from tests.propagation.engine import Pass, rulebook
from tests.support.errors import cav_error


def value_and_first_input(operation: Operation) -> Any:
    """The value, whose coefficients reach the first input tenfold."""
    x = operation.args[0]
    return operation.value().detach() + 10 * (x - x.detach())


class OneModule:
    """A pass that is inside the call of a module with a rule for the module as one."""

    def __init__(self, module: nn.Module, rule: Any = value_and_first_input) -> None:
        self.module = module
        self.one = Pass(rules=rulebook({module: rule}, module))
        self.one.propagation.modules.enter(module)
        self.calls = ModuleCalls(self.one.propagation)


def test_the_module_runs_unseen_and_its_rule_rules_what_it_returned() -> None:
    case = OneModule(nn.Tanh())
    x = case.one.tapped(0.0, 2.0)
    got = case.calls.begin(case.module, (x,))
    assert got is not None
    paused = [case.one.propagation.is_paused]
    with case.one.propagation:
        output = torch.tanh(got[0])  # The small table has no row for tanh.
    found = case.calls.end({}, output)
    paused.append(case.one.propagation.is_paused)
    assert paused == [True, False]
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0]).tanh(), rtol=0, atol=0)
    (coefficients,) = torch.autograd.grad(found.sum(), case.one.trace.taps[0].edges)
    assert coefficients.tolist() == [10.0, 10.0]
    assert case.one.taps_of(found) == 1


def test_the_module_gets_copies_of_its_tensors() -> None:
    case = OneModule(nn.Tanh())
    x, other = case.one.tapped(1.0), torch.ones(1)
    got = case.calls.begin(case.module, (x, [other, 3, "text"]))
    assert got is not None
    copy, (copy_of_other, number, text) = got
    assert copy.tolist() == [1.0]
    assert copy.data_ptr() != x.data_ptr()
    assert copy_of_other.data_ptr() != other.data_ptr()
    assert (number, text) == (3, "text")


def test_a_module_without_such_a_rule_runs_as_ever() -> None:
    module = nn.Tanh()
    one = Pass(rules=rulebook({torch.relu: value_and_first_input}))
    one.propagation.modules.enter(module)
    assert ModuleCalls(one.propagation).begin(module, (one.tapped(1.0),)) is None
    assert not one.propagation.is_paused


def test_inside_a_module_that_is_ruled_as_one_no_other_is() -> None:
    module = nn.Sequential(nn.Tanh())
    one = Pass(rules=rulebook({nn.Module: value_and_first_input}, module))
    calls = ModuleCalls(one.propagation)
    one.propagation.modules.enter(module)
    assert calls.begin(module, (one.tapped(1.0),)) is not None
    one.propagation.modules.enter(module[0])
    assert calls.begin(module[0], (one.tapped(1.0),)) is None


def test_a_module_that_raises_ends_the_pause() -> None:
    case = OneModule(nn.Tanh())
    case.calls.begin(case.module, (case.one.tapped(1.0),))
    assert case.calls.end({}, None) is None
    assert not case.one.propagation.is_paused
    # And the next call is ruled again.
    assert case.calls.begin(case.module, (case.one.tapped(1.0),)) is not None


def test_the_rule_gets_the_arguments_by_position_and_by_name() -> None:
    seen: list[Any] = []

    def look(operation: Operation) -> Any:
        seen.extend([operation.name, operation.args, list(operation.kwargs), operation.argument(1, "any name")])
        return operation.value()

    case = OneModule(nn.Tanh(), FunctionRule(look))
    x, more = case.one.tapped(1.0), torch.ones(1)
    got = case.calls.begin(case.module, (x,))
    assert got is not None
    case.calls.end({"more": more}, got[0] * 2)
    assert seen[0] == "Tanh"
    assert seen[1][0] is x  # The rule sees the model's own tensors, not the copies.
    assert seen[2] == ["more"]
    assert seen[3] is more


def test_a_module_that_writes_into_its_argument_and_returns_it_writes_into_the_models_tensor() -> None:
    case = OneModule(nn.ReLU(inplace=True))
    x = case.one.run(torch.neg, case.one.tapped(2.0, -3.0))
    kept = case.one.trace.saved.save(x)
    got = case.calls.begin(case.module, (x,))
    assert got is not None
    found = case.calls.end({}, torch.relu_(got[0]))
    assert found is x
    assert x.tolist() == [0.0, 3.0]
    assert kept.value.tolist() == [-2.0, 3.0]
    (coefficients,) = torch.autograd.grad(x.sum(), case.one.trace.taps[0].edges)
    assert coefficients.tolist() == [-10.0, -10.0]


def test_an_argument_that_a_module_writes_into_and_does_not_return_must_not_be_used_afterwards() -> None:
    case = OneModule(nn.Tanh())
    x = case.one.tapped(1.0)
    got = case.calls.begin(case.module, (x,))
    assert got is not None
    output = got[0].mul_(2) + 1
    assert case.calls.end({}, output).tolist() == [3.0]
    with cav_error(NotImplementedError, "the module Tanh writes into a tensor of shape (1,)", "afterwards"):
        case.one.run(torch.neg, x)


def test_a_module_that_returns_an_argument_that_came_by_keyword_is_refused() -> None:
    case = OneModule(nn.Tanh())
    by_keyword = case.one.tapped(1.0)
    assert case.calls.begin(case.module, ()) == ()
    with cav_error(RuntimeError, "returns a keyword argument", "pass that argument by position"):
        case.calls.end({"x": by_keyword}, by_keyword)


def test_what_a_module_makes_of_tensors_that_bypass_the_layers_is_a_constant() -> None:
    asked: list[Operation] = []
    case = OneModule(nn.Tanh(), asked.append)
    got = case.calls.begin(case.module, (case.one.input(1.0),))
    assert got is not None
    parameter = torch.tensor([2.0], requires_grad=True)
    found = case.calls.end({}, got[0] * parameter)
    assert asked == []
    assert found.tolist() == [2.0]
    assert not found.requires_grad
    assert case.one.taps_of(found) == 0
