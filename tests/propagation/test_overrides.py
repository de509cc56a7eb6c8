"""The user's rules: which of them is for an operation, and what may be a key and a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav.propagation.module_stack import ModuleStack
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.rule import FunctionRule, Rule
from tests.propagation.engine import Pass, rulebook
from tests.support.errors import cav_error


@dataclass(frozen=True, repr=False)
class Named(Rule):
    """A rule that is told apart by its name."""

    name: str


class ForRelu(Rule):
    operations = frozenset(["relu"])


class ForMul(Rule):
    operations = frozenset(["mul"])


class AsOne(Rule):
    as_one = True


class Model(nn.Module):
    """``block`` encloses ``block.first`` and ``block.second``."""

    def __init__(self) -> None:
        super().__init__()
        self.block: Any = nn.Sequential()
        self.block.add_module("first", nn.ReLU())
        self.block.add_module("second", nn.ReLU6())


def names_in(model: nn.Module) -> Any:
    return lambda module: [name for name, known in model.named_modules(remove_duplicate=False) if known is module]


def chosen(
    rules: Rulebook, model: nn.Module, modules: Sequence[nn.Module], function: Any = torch.relu
) -> tuple[Rule, str] | None:
    """The rule for an operation that runs inside some modules, the outermost first."""
    stack = ModuleStack(rules, names_in(model))
    for module in modules:
        stack.enter(module)
    one = Pass()
    operation = one.operation(function, one.tapped(1.0))
    return rules.choose(operation, operation.name, stack.candidates)


# The order of the keys ----------------------------------------------------------------------------------------------


def test_the_more_specific_key_wins() -> None:
    model = Model()
    first = model.block.first
    keys = {first: "instance", "block.first": "pattern", nn.ReLU: "type", torch.relu: "function"}
    why = ["this module", "'block.first'", "type ReLU", "function relu"]
    for place, expected in enumerate(why):
        remaining = dict(list(keys.items())[place:])
        # The order in which they are given does not matter.
        for given in (remaining, dict(reversed(remaining.items()))):
            rules = rulebook({key: Named(name) for key, name in given.items()}, model)
            found = chosen(rules, model, [model, model.block, first])
            assert found == (Named(next(iter(remaining.values()))), expected)


def test_without_a_rule_the_default_is_left() -> None:
    model = Model()
    assert chosen(rulebook({}, model), model, [model]) is None
    assert chosen(rulebook({torch.mul: Named("x")}, model), model, [model]) is None
    assert chosen(rulebook({nn.Linear: Named("x")}, model), model, [model]) is None


def test_the_kind_of_key_goes_before_the_depth_of_the_module() -> None:
    model = Model()
    modules = [model, model.block, model.block.first]
    outer_instance = rulebook({model.block: Named("outer"), "block.first": Named("inner")}, model)
    assert chosen(outer_instance, model, modules) == (Named("outer"), "this module")
    outer_pattern = rulebook({"block": Named("outer"), nn.ReLU: Named("inner")}, model)
    assert chosen(outer_pattern, model, modules) == (Named("outer"), "'block'")


def test_of_enclosing_modules_the_innermost_wins() -> None:
    model = Model()
    block, first = model.block, model.block.first
    modules = [model, block, first]
    of_each_kind: list[list[Any]] = [
        [model, block, first],
        ["", "block", "block.first"],
        [Model, nn.Sequential, nn.ReLU],
    ]
    for keys in of_each_kind:
        for given in (keys, keys[::-1]):
            rules = rulebook({key: Named(str(keys.index(key))) for key in given}, model)
            found = chosen(rules, model, modules)
            assert found is not None
            assert found[0] == Named("2")


def test_an_exact_name_wins_and_then_the_longest_pattern_and_then_the_later_one() -> None:
    model = Model()
    patterns = ["*", "block*", "block.*", "block.f*", "block.first"]
    for count in range(1, len(patterns) + 1):
        for given in (patterns[:count], patterns[:count][::-1]):
            rules = rulebook({pattern: Named(pattern) for pattern in given}, model)
            found = chosen(rules, model, [model.block.first])
            assert found == (Named(patterns[count - 1]), repr(patterns[count - 1]))
    rules = rulebook({"block.f*": Named("earlier"), "*k.first": Named("later")}, model)
    found = chosen(rules, model, [model.block.first])
    assert found is not None
    assert found[0] == Named("later")


def test_an_exact_name_wins_over_a_later_pattern_of_the_same_length() -> None:
    model = Model()
    rules = rulebook({"block.first": Named("exact"), "block.first*": Named("pattern")}, model)
    found = chosen(rules, model, [model.block.first])
    assert found is not None
    assert found[0] == Named("exact")


def test_the_stars_of_a_pattern_do_not_count() -> None:
    model = Model()
    rules = rulebook({"b*l*o*c*k*": Named("five letters"), "block.*": Named("six letters")}, model)
    found = chosen(rules, model, [model.block.first])
    assert found is not None
    assert found[0] == Named("six letters")


def test_a_module_with_several_names_matches_by_any() -> None:
    model = nn.Module()
    model.one = model.other = nn.ReLU()
    found = chosen(rulebook({"oth*": Named("x")}, model), model, [model.one])
    assert found == (Named("x"), "'oth*'")


def test_the_nearest_type_wins() -> None:
    model = Model()
    assert issubclass(nn.ReLU6, nn.Hardtanh)
    for given in ([nn.Module, nn.Hardtanh, nn.ReLU6], [nn.ReLU6, nn.Hardtanh, nn.Module]):
        rules = rulebook({key: Named(key.__name__) for key in given}, model)
        found = chosen(rules, model, [model.block.second])
        assert found == (Named("ReLU6"), "type ReLU6")
    rules = rulebook({nn.Module: Named("far"), nn.Hardtanh: Named("near")}, model)
    assert chosen(rules, model, [model.block.second]) == (Named("near"), "type Hardtanh")


def test_the_attribute_of_a_module_goes_behind_its_instance_and_before_its_name() -> None:
    model = Model()
    first = model.block.first
    first.rule = Named("attribute")
    both = rulebook({first: Named("instance"), "block.first": Named("pattern")}, model)
    assert chosen(both, model, [first]) == (Named("instance"), "this module")
    assert chosen(rulebook({"block.first": Named("x")}, model), model, [first]) == (Named("attribute"), "module.rule")


def test_another_attribute_of_that_name_is_no_rule() -> None:
    model = Model()
    first = model.block.first
    first.rule = "a word"
    rules = rulebook({}, model)
    assert not rules.may_be_for(first)
    assert rules.of_module(first, ["block.first"], 0) == []


# The rules of a key -------------------------------------------------------------------------------------------------


def test_the_first_rule_of_a_list_that_governs_the_operation_is_taken() -> None:
    model = Model()
    rules = rulebook({"block": [ForMul(), [ForRelu(), Named("rest")]]}, model)
    for function, kind in ((torch.relu, ForRelu), (torch.mul, ForMul), (torch.neg, Named)):
        found = chosen(rules, model, [model.block], function)
        assert found is not None
        assert type(found[0]) is kind


def test_a_rule_that_does_not_govern_the_operation_leaves_it_to_the_next_key() -> None:
    model = Model()
    rules = rulebook({model.block: ForMul(), nn.Sequential: Named("type"), torch.relu: Named("function")}, model)
    assert chosen(rules, model, [model.block]) == (Named("type"), "type Sequential")
    rules = rulebook({model.block: ForMul(), torch.relu: Named("function")}, model)
    assert chosen(rules, model, [model.block]) == (Named("function"), "function relu")


def test_a_rule_for_a_module_as_one_is_for_no_operation_inside() -> None:
    model = Model()
    rules = rulebook({model.block: AsOne(), torch.relu: Named("function")}, model)
    assert chosen(rules, model, [model.block]) == (Named("function"), "function relu")


def test_a_plain_function_rules_a_module_as_one_and_a_torch_function_as_itself() -> None:
    def own(operation: Operation) -> Any:
        return operation.value()

    model = Model()
    rules = rulebook({model.block: own, torch.relu: own}, model)
    assert chosen(rules, model, [model.block]) == (FunctionRule(own), "function relu")
    stack = ModuleStack(rules, names_in(model))
    stack.enter(model.block)
    assert stack.rule_of_call() == (FunctionRule(own), "this module")


def test_every_form_of_a_torch_function_is_the_same_key() -> None:
    for key in (torch.relu, F.relu, torch.relu_, torch.Tensor.relu, torch.ops.aten.relu.default):
        assert rulebook({key: Named("x")}).of_function("relu") == (Named("x"),)


def test_a_function_that_is_not_torchs_own_is_the_key_itself() -> None:
    def kernel(x: torch.Tensor) -> torch.Tensor:
        return x

    rules = rulebook({kernel: Named("x")})
    assert rules.of_function(kernel) == (Named("x"),)
    assert rules.of_function("kernel") == ()


def test_which_modules_may_have_a_rule() -> None:
    model = Model()
    assert not rulebook({}, model).may_be_for(model)
    assert not rulebook({torch.relu: Named("x")}, model).may_be_for(model)
    for key in (model.block, "block", nn.ReLU):
        assert rulebook({key: Named("x")}, model).may_be_for(model)
    model.block.rule = Named("x")
    assert rulebook({}, model).may_be_for(model.block)


# Rule objects of other libraries ------------------------------------------------------------------------------------


class Foreign:
    """A rule object of another library."""

    def __init__(self, name: str) -> None:
        self.name = name


def translate(value: object) -> Rule | None:
    return Named(f"translated {value.name}") if isinstance(value, Foreign) else None


def test_rule_objects_of_another_library_are_translated() -> None:
    model = Model()
    rules = rulebook({"block": [ForMul(), Foreign("a")], torch.relu: Foreign("b")}, model, translate)
    assert chosen(rules, model, [model.block]) == (Named("translated a"), "'block'")
    assert chosen(rules, model, []) == (Named("translated b"), "function relu")


def test_a_rule_object_of_another_library_may_be_the_attribute_of_a_module() -> None:
    model = Model()
    model.block.rule = Foreign("a")
    rules = rulebook({}, model, translate)
    assert chosen(rules, model, [model.block]) == (Named("translated a"), "module.rule")
    with cav_error(TypeError, "the attribute rule of module 'block'", "is a Foreign"):
        chosen(rulebook({}, model), model, [model.block])


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [3, None, int, torch.zeros(1), ("block",)], ids=repr)
def test_a_key_of_another_type_is_refused(key: Any) -> None:
    with cav_error(TypeError, "rules has the key", type(key).__name__, "torch.relu"):
        rulebook({key: Named("x")}, Model())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Named, "the class Named"),
        (3, "a int"),
        (nn.ReLU(), "a ReLU"),
        ("x", "a str"),
        ([Named("x"), None], "a NoneType"),
    ],
    ids=["class", "number", "module", "text", "in a list"],
)
def test_a_rule_of_another_type_is_refused(value: Any, shown: str) -> None:
    with cav_error(TypeError, "the rule of 'block' is", shown, "rules.GammaRule(0.25)"):
        rulebook({"block": value}, Model())


def test_a_module_of_another_model_is_refused() -> None:
    with cav_error(ValueError, "a module (ReLU) that does not belong to this model (Model)"):
        rulebook({nn.ReLU(): Named("x")}, Model())


def test_a_module_is_a_key_for_a_model_that_is_a_function() -> None:
    module = nn.ReLU()
    assert rulebook({module: Named("x")}, lambda x: module(x)).may_be_for(module)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with cav_error(ValueError, "'block.frist'", "matches no module", "'block.first'", "model.named_modules()"):
        rulebook({"block.frist": Named("x")}, Model())


def test_a_pattern_for_a_function_is_refused() -> None:
    with cav_error(ValueError, "the name pattern 'block'", "not a module", "a torch function as the key"):
        rulebook({"block": Named("x")}, torch.relu)


def test_a_function_for_which_no_rule_is_meant_is_refused() -> None:
    with cav_error(ValueError, "ForMul() and ForRelu() is not for 'neg'", "it is for mul, relu"):
        rulebook({torch.neg: [ForMul(), ForRelu()]})
    # It is enough if one of them is.
    assert rulebook({torch.neg: [ForMul(), Named("any")]}).of_function("neg")[1:] == (Named("any"),)
