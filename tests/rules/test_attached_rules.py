"""Rules in the attribute ``rule`` of a module; rules and another model; rules for scripted modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules, verify
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same


def net(last: nn.Module | None = None, middle: nn.Module | None = None) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), middle or nn.Tanh(), last or nn.Linear(4, 2)))


X = fixed(2, 3)


@pytest.mark.parametrize(
    ("attached", "same"),
    [
        ([rules.GammaRule(2.0)], rules.GammaRule(2.0)),
        ([rules.WinnerTakeAllRule(), rules.GammaRule(2.0)], rules.GammaRule(2.0)),
        ((rules.ZPlusRule(),), rules.ZPlusRule()),
        ([Alpha1_Beta0_Rule()], Alpha1_Beta0_Rule()),
        (rules.linear, rules.linear),
        ([rules.linear], rules.linear),
        (EpsilonRule(), EpsilonRule()),
    ],
    ids=str,
)
def test_whatever_rules_takes_may_be_attached(attached: Any, same: Any) -> None:
    model = net()
    expected = InputCAV(model, rules={"2": same}).attribute(X, 0)
    model[2].rule = attached
    cav = InputCAV(model)
    assert_same(cav.attribute(X, 0), expected)
    assert cav.explain_rules(X)[-1].why == "module.rule"


def test_a_class_of_modules_may_have_a_rule() -> None:
    class Governed(nn.Linear):
        rule = rules.GammaRule(2.0)

    model = net(Governed(4, 2))
    expected = InputCAV(net(), rules={"2": rules.GammaRule(2.0)}).attribute(X, 0)
    assert_same(InputCAV(model).attribute(X, 0), expected)


@pytest.mark.parametrize(
    "attached", [rules.GammaRule, EpsilonRule, 3, 0.25, True, torch.ones(2), [rules.GammaRule], [3], {"a": 1}], ids=str
)
def test_what_is_no_rule_is_refused(attached: Any) -> None:
    model = net()
    model[2].rule = attached
    said = ("the attribute rule of module '2'", "rename the attribute", "expected a rule as rules.GammaRule(0.25)")
    with cav_error(TypeError, *said):
        InputCAV(model).attribute(X, 0)
    del model[2].rule
    model[2].renamed = attached
    InputCAV(model).attribute(X, 0)


@pytest.mark.parametrize("name", ["gamma", "epsilon_plus_flat", "auto"])
@pytest.mark.parametrize("make", [InputCAV, lambda model: LayerCAV(model, "0"), lambda model: NeuronCAV(model, "1")])
def test_the_name_of_a_preset_is_no_rule(name: str, make: Callable[..., Any]) -> None:
    model = net()
    model[2].rule = name
    said = (f"the attribute rule of module '2' is {name!r}, the name of a preset", "expected a rule", "rename it")
    with cav_error(TypeError, *said):
        make(model)
    model[2].rule = rules.GammaRule()
    make(model)


def test_what_means_something_else_is_ignored() -> None:
    class WithMethod(nn.Linear):
        def rule(self) -> None:
            raise AssertionError

    class WithProperty(nn.Linear):
        @property
        def rule(self) -> int:
            raise AssertionError

    expected = InputCAV(net()).attribute(X, 0)
    for last in (WithMethod(4, 2), WithProperty(4, 2)):
        assert_same(InputCAV(net(last)).attribute(X, 0), expected)
    model = net()
    model[2].rule = "majority"
    assert_same(InputCAV(model).attribute(X, 0), expected)


# Another model ------------------------------------------------------------------------------------------------------

MAKERS: list[Callable[..., Any]] = [
    lambda model, chosen: InputCAV(model, rules=chosen),
    lambda model, chosen: LayerCAV(model, "0", rules=chosen),
    lambda model, chosen: NeuronCAV(model, "1", rules=chosen),
]


@pytest.mark.parametrize("make", MAKERS, ids=["inputs", "layer", "neuron"])
def test_rules_for_modules_must_fit_a_model_that_is_set_later(make: Callable[..., Any]) -> None:
    model = net()
    named = make(model, {"0": rules.GammaRule(2.0)})
    with cav_error(ValueError, "rules has the name pattern '0', but forward_func is not a module"):
        named.forward_func = lambda x: model(x)
    with cav_error(ValueError, "rules has the name pattern '0', which matches no module"):
        named.forward_func = nn.Identity()
    assert named.forward_func is model
    given = make(model, {model[0]: rules.GammaRule(2.0)})
    with cav_error(ValueError, "rules names a module (Linear) that does not belong to this model"):
        given.forward_func = copy.deepcopy(model)
    for callable_ in (lambda x: model(x), nn.DataParallel(model)):
        given.forward_func = callable_
    with cav_error(TypeError, "forward_func is a int"):
        given.forward_func = 3


def test_rules_by_name_hold_for_a_model_that_is_set_later() -> None:
    first, second = net(), net(nn.Linear(4, 2))
    with torch.no_grad():
        second[0].weight.mul_(2)
    chosen = {"0": rules.GammaRule(2.0)}
    cav = InputCAV(first, rules=chosen)
    cav.forward_func = nn.DataParallel(second)
    assert_same(cav.attribute(X, 0), InputCAV(second, rules=chosen).attribute(X, 0))


# Scripted modules ---------------------------------------------------------------------------------------------------


def scripted(module: nn.Module, x: torch.Tensor) -> nn.Module:
    return torch.jit.script(module)


def traced(module: nn.Module, x: torch.Tensor) -> nn.Module:
    return torch.jit.trace(module, x)


@pytest.fixture(params=[scripted, traced])
def compiled(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    def compile_module(module: nn.Module, x: torch.Tensor) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return request.param(module, x)

    return compile_module


def test_a_scripted_module_with_a_rule_as_one_operation(compiled: Callable[..., nn.Module]) -> None:
    expected = InputCAV(net()).attribute(X, 0)
    middle = compiled(nn.Tanh(), fixed(2, 4))
    model = net(middle=middle)
    with cav_error(RuntimeError, "module '1' is a scripted or traced module", "rules.PassThroughRule()"):
        InputCAV(model)
    with cav_error(RuntimeError, "module '1' is a scripted or traced module"):
        InputCAV(model, rules={"1": rules.GammaRule()})  # This rule is for operations inside the module.
    for key in ("1", "1*", middle, torch.jit.ScriptModule):
        for rule in (rules.PassThroughRule(), rules.pass_through):
            cav = InputCAV(model, rules={key: rule})
            found, delta = cav.attribute(X, 0, return_convergence_delta=True)
            assert_same(found, expected)
            assert float(delta.abs().max()) < 1e-12
    assert verify(model, X, 0, rules={"1": rules.PassThroughRule()}).ok
    stopped = LayerCAV(model, "1", rules={"1": rules.StopRule()}).attribute(X, 0)
    assert_same(stopped, LayerCAV(net(), "1").attribute(X, 0))
    model[1].rule = rules.PassThroughRule()
    assert_same(InputCAV(model).attribute(X, 0), expected)


def test_a_scripted_module_inside_a_module_that_is_ruled_as_one(compiled: Callable[..., nn.Module]) -> None:
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.Sequential(compiled(nn.Linear(4, 4), fixed(2, 4).float()))))
    found = InputCAV(model, rules={"1": rules.linear}, normalize=None).attribute(X, 0)
    weight = model[1][0].weight.detach()
    assert_same(found, X * (weight[0] @ model[0].weight.detach()))
    with cav_error(RuntimeError, "module '1.0' is a scripted or traced module"):
        InputCAV(model, rules={"0": rules.linear})


def test_a_scripted_model_as_one_operation(compiled: Callable[..., nn.Module]) -> None:
    linear = filled(nn.Linear(3, 2))
    found = InputCAV(compiled(linear, X), rules={"": rules.linear}, normalize=None).attribute(X, 1)
    assert_same(found, X * linear.weight[1].detach())
