"""The modules in which the forward pass is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from captum_cav.propagation.module_stack import ModuleStack
from captum_cav.propagation.rule import Rule
from tests.propagation.engine import rulebook
from tests.support.errors import cav_error


class Outer(Rule):
    pass


class Inner(Rule):
    pass


class AsOne(Rule):
    as_one = True


class ForMulOnly(Rule):
    operations = frozenset(["mul"])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU())

    @property
    def relu(self) -> nn.Module:
        return self.block[0]


def stack_of(model: nn.Module, rules: dict[Any, Any] | None = None) -> ModuleStack:
    names = {module: [name] for name, module in model.named_modules()}
    return ModuleStack(rulebook(rules, model), lambda module: names.get(module, ()))


def test_modules_are_entered_and_left() -> None:
    model = Model()
    stack = stack_of(model)
    innermost = [stack.innermost]
    for module in (model, model.block):
        stack.enter(module)
        innermost.append(stack.innermost)
    for _ in range(2):
        stack.leave()
        innermost.append(stack.innermost)
    assert innermost == [None, model, model.block, model, None]
    stack.enter(model)
    stack.enter(model.block)
    assert stack.modules == [model, model.block]


def test_the_rules_of_a_module_are_there_while_the_forward_pass_is_in_the_module() -> None:
    model = Model()
    stack = stack_of(model, {"block": Outer(), "block.0": Inner()})

    def rules_here() -> list[type[Rule]]:
        return [type(rule) for candidate in stack.candidates for rule in candidate.rules]

    stack.enter(model)
    assert rules_here() == []
    stack.enter(model.block)
    assert rules_here() == [Outer]
    stack.enter(model.relu)
    assert rules_here() == [Inner, Outer]  # The best first.
    stack.leave()
    assert rules_here() == [Outer]
    stack.leave()
    assert rules_here() == []


def test_a_module_inside_itself_is_entered_twice() -> None:
    model = Model()
    stack = stack_of(model, {"block": Outer()})
    stack.enter(model.block)
    stack.enter(model.block)
    stack.leave()
    assert stack.innermost is model.block
    assert len(stack.candidates) == 1


# A module as one operation ------------------------------------------------------------------------------------------


def test_the_call_of_a_module_is_ruled_as_one_by_a_rule_for_that() -> None:
    model = Model()
    rule = AsOne()
    stack = stack_of(model, {"block": rule})
    stack.enter(model.block)
    assert stack.rule_of_call() == (rule, "'block'")
    stack.enter(model.relu)  # The rule is for the block, and not for what is inside it.
    assert stack.rule_of_call() is None


def test_a_rule_for_operations_leaves_the_call_to_the_next_rule() -> None:
    model = Model()
    rule = AsOne()
    stack = stack_of(model, {model.block: ForMulOnly(), nn.Sequential: rule})
    stack.enter(model.block)
    assert stack.rule_of_call() == (rule, "type Sequential")


def test_a_better_rule_for_all_that_is_inside_goes_before_a_rule_for_the_whole() -> None:
    model = Model()
    stack = stack_of(model, {model.block: Inner(), nn.Sequential: AsOne()})
    stack.enter(model.block)
    assert stack.rule_of_call() is None


def test_a_rule_of_a_module_further_out_does_not_keep_a_module_from_being_ruled_as_one() -> None:
    model = Model()
    rule = AsOne()
    stack = stack_of(model, {model: Outer(), nn.Sequential: rule})
    stack.enter(model)
    stack.enter(model.block)
    assert stack.rule_of_call() == (rule, "type Sequential")


# Modules that are refused -------------------------------------------------------------------------------------------


def test_a_module_that_acts_at_random_is_refused() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    stack = stack_of(model)
    stack.enter(model)
    with cav_error(RuntimeError, "module '0' (Dropout) is in training mode", "model.eval()"):
        stack.enter(model[0])
    assert stack.innermost is model  # What is refused is not entered.
    model.eval()
    stack.enter(model[0])


def test_a_module_with_an_old_backward_hook_is_refused() -> None:
    model = Model()
    handle = model.block.register_backward_hook(lambda module, inputs, outputs: None)
    stack = stack_of(model)
    with cav_error(RuntimeError, "module 'block' (Sequential) has a hook by register_backward_hook"):
        stack.enter(model.block)
    handle.remove()
    stack.enter(model.block)


# Names, for messages ------------------------------------------------------------------------------------------------


def test_modules_are_described_by_name_and_type() -> None:
    model = Model()
    stack = stack_of(model)
    assert stack.describe(model.block) == "module 'block' (Sequential)"
    assert stack.describe(model) == "the module Model"
    assert stack.describe(nn.Tanh()) == "the module Tanh"
    assert stack.short_name(model.block) == "block"
    assert stack.short_name(model) == "Model"
    assert stack.short_name(None) == ""


def test_messages_say_where_the_forward_pass_is() -> None:
    model = Model()
    stack = stack_of(model)
    assert stack.where() == ""
    stack.enter(model)
    stack.enter(model.block)
    assert stack.where() == " in module 'block' (Sequential)"
    stack.leave()
    assert stack.where() == " in the module Model"


def test_where_nobody_follows_the_modules_the_innermost_call_is_read_off_the_stack() -> None:
    found: list[str] = []

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(stack.where())
            return x

    model = nn.Sequential(Asking())
    stack = stack_of(model)
    model(torch.zeros(1))
    assert found == [" in module '0' (Asking)"]


def test_the_module_that_asked_for_the_attribution_is_not_named() -> None:
    found: list[str] = []

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(stack_of(self).where())
            return x

    Asking()(torch.zeros(1))
    assert found == [""]
