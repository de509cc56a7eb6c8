"""Wrong keys, rules and parameters are refused with a message that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, presets, rules
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import nested
from tests.support.traces import left_as_it_was

MAKERS: dict[str, Callable[..., Any]] = {
    "layer": lambda net, **options: LayerCAV(net, "block", **options),
    "inputs": InputCAV,
    "neuron": lambda net, **options: NeuronCAV(net, "block", **options),
}


every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


GAMMA = rules.GammaRule()


@every_maker
@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("blok", "did you mean 'block'"),
        ("block.iner", "'block.inner'"),
        ("heads.*", "did you mean 'head'"),
        ("zzz", "matches no module; see model.named_modules()"),
        ("*.weight", "matches no module; see model.named_modules()"),
        ("Block", "did you mean 'block'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(make: Callable[..., Any], pattern: str, near: str) -> None:
    with cav_error(ValueError, f"rules has the name pattern {pattern!r}, which matches no module", near):
        make(nested(), rules={pattern: GAMMA})


def test_a_pattern_needs_a_module_to_look_it_up_in() -> None:
    net = nested()
    said = ("rules has the name pattern 'block.*', but forward_func is not a module", "the module itself, its type or")
    with cav_error(ValueError, *said):
        InputCAV(lambda x: net(x), rules={"block.*": GAMMA})
    with cav_error(ValueError, *said):
        LayerCAV(lambda x: net(x), net.head, rules={"block.*": GAMMA})


@every_maker
def test_a_module_of_another_model_is_refused(make: Callable[..., Any]) -> None:
    with cav_error(ValueError, "rules names a module (Special) that does not belong to this model (Sequential)"):
        make(nested(), rules={nested().block.inner: GAMMA})


@every_maker
@pytest.mark.parametrize("key", [3, None, int, torch.Tensor, ("block", "head"), torch.ones(2)], ids=repr)
def test_a_key_of_a_wrong_type_is_refused(make: Callable[..., Any], key: Any) -> None:
    said = (f"rules has the key {key!r} ({type(key).__name__})", 'pattern as "features.*"', "torch.nn.Linear")
    with cav_error(TypeError, *said, "or a torch function as torch.relu"):
        make(nested(), rules={key: rules.linear})


@every_maker
@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("gamma", "a str"),
        (0.25, "a float"),
        (None, "a NoneType"),
        (rules.GammaRule, "the class GammaRule"),
        (lrp_rules.GammaRule, "the class GammaRule"),
        (nn.ReLU, "the class ReLU"),
        (presets.gamma(), "a Preset"),
        ([GAMMA, "gamma"], "a str"),
        ([[rules.FlatRule]], "the class FlatRule"),
    ],
    ids=[
        "str",
        "float",
        "None",
        "class",
        "Captum's class",
        "module class",
        "preset",
        "in a list",
        "in a list of lists",
    ],
)
@pytest.mark.parametrize("key", ["block", nn.Linear, F.linear], ids=["pattern", "type", "function"])
def test_a_rule_of_a_wrong_type_is_refused(make: Callable[..., Any], key: Any, value: Any, what: str) -> None:
    said = (
        f"the rule of {key!r} is {what}",
        "expected a rule as rules.GammaRule(0.25), a list of rules, or a function",
    )
    with cav_error(TypeError, *said):
        make(nested(), rules={key: value})


def test_a_captum_rule_of_the_users_own_is_refused() -> None:
    class Own(lrp_rules.EpsilonRule):
        pass

    said = "Own is a rule of Captum's LRP that captum_cav does not know; write it as a rules.Rule"
    with cav_error(TypeError, said):
        InputCAV(nested(), rules={nn.Linear: Own()})
    net = nested()
    net.head.rule = Own()
    with cav_error(TypeError, said), left_as_it_was(net):
        InputCAV(net).attribute(fixed(2, 4), 1)


@every_maker
@pytest.mark.parametrize(
    ("key", "rule", "name", "example"),
    [
        (torch.relu, GAMMA, "relu", "conv2d"),
        (F.relu, rules.AtInput(rules.FlatRule()), "relu", "linear"),
        (torch.Tensor.add_, GAMMA, "add", "matmul"),
        (F.max_pool2d, rules.EpsilonRule(), "max_pool2d", "einsum"),
        (F.conv2d, rules.WinnerTakeAllRule(), "conv2d", "max_pool2d"),
        (F.linear, rules.UniformPoolingRule(), "linear", "adaptive_max_pool2d"),
        (torch.add, rules.ProductRule(), "add", "mul"),
        (torch.mul, rules.AdditionRule(), "mul", "rsub"),
        (F.linear, rules.NormRule(), "linear", "layer_norm"),
        (torch.matmul, rules.AttentionRule(), "matmul", "scaled_dot_product_attention"),
        (F.conv2d, rules.MeanSlopeRule(), "conv2d", "gelu"),
        (F.gelu, lrp_rules.EpsilonRule(), "gelu", "linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_for_another_function_is_refused(
    make: Callable[..., Any], key: Any, rule: Any, name: str, example: str
) -> None:
    with cav_error(ValueError, f"is not for {name!r}; it is for ", example, "Use a rule for this function, or write a"):
        make(nested(), rules={key: rule})


def test_a_list_for_a_function_needs_one_rule_that_is_for_it() -> None:
    """The others may be for what else the list is given for, as in a preset."""
    with cav_error(ValueError, "is not for 'relu'"):
        InputCAV(nested(), rules={torch.relu: [GAMMA, rules.ProductRule()]})
    several = [rules.ProductRule("halves"), rules.EpsilonRule(0.5)]
    x = fixed(2, 4)
    net = nested()
    found = InputCAV(net, rules={F.linear: several}).attribute(x, 1)
    assert torch.equal(found, InputCAV(net, rules={F.linear: rules.EpsilonRule(0.5)}).attribute(x, 1))


@every_maker
@pytest.mark.parametrize(
    ("given", "builtin", "texts"),
    [
        ("gama", ValueError, ("unknown preset 'gama' (did you mean 'gamma'?)", "expected one of paper, epsilon,")),
        ("epsilon_flat", ValueError, ("unknown preset 'epsilon_flat'", "did you mean 'epsilon_plus_flat'")),
        ("zzz", ValueError, ("unknown preset 'zzz'; expected one of paper,", "alpha2_beta1", "cp_lrp")),
        (
            "epsilon_gamma_box",
            ValueError,
            ("'epsilon_gamma_box' needs low and high; pass rules=presets.epsilon_gamma_box(low, high)",),
        ),
        (presets.gamma, TypeError, ("rules is <function gamma", "as rules=presets.gamma()")),
        (GAMMA, TypeError, ("rules is GammaRule(); expected a mapping or a preset, as rules={torch.nn.Conv2d: rule}",)),
        (rules.GammaRule, TypeError, ("rules is a type; expected a mapping", "or its name")),
        ([(nn.Linear, GAMMA)], TypeError, ("rules is a list; expected a mapping from modules, names, types or torch",)),
        (lrp_rules.GammaRule(), TypeError, ("rules is a GammaRule; expected a mapping",)),
        (3, TypeError, ("rules is a int; expected a mapping",)),
    ],
    ids=["near", "near 2", "unknown", "needs", "function", "rule", "class", "list", "Captum's rule", "int"],
)
def test_rules_that_are_no_mapping_are_refused(
    make: Callable[..., Any], given: Any, builtin: type[Exception], texts: tuple[str, ...]
) -> None:
    with cav_error(builtin, *texts):
        make(nested(), rules=given)


HALF = torch.tensor([0.0, 0.5])


PARAMETERS: dict[str, tuple[Callable[[], Any], str]] = {
    "epsilon": (lambda: rules.EpsilonRule(-1e-9), "epsilon is -1e-09; expected a finite number of at least 0"),
    "epsilon nan": (lambda: rules.EpsilonRule(float("nan")), "epsilon is nan"),
    "absolute epsilon": (lambda: rules.AbsoluteEpsilonRule(-1.0), "epsilon is -1.0; expected a finite number of at"),
    "absolute epsilon inf": (lambda: rules.AbsoluteEpsilonRule(float("inf")), "epsilon is inf"),
    "gamma": (lambda: rules.GammaRule(-0.5), "gamma is -0.5; expected a finite number of at least 0"),
    "gamma inf": (lambda: rules.GammaRule(float("inf")), "gamma is inf; expected a finite number"),
    "gamma nan": (lambda: rules.GammaRule(float("nan")), "gamma is nan; expected a finite number"),
    "alpha beta": (lambda: rules.AlphaBetaRule(2.0, 2.0), "alpha is 2.0 and beta 2.0; expected alpha of at least 1"),
    "alpha below 1": (lambda: rules.AlphaBetaRule(0.5, -0.5), "alpha is 0.5 and beta -0.5; expected alpha of at"),
    "alpha alone": (lambda: rules.AlphaBetaRule(3.0), "alpha is 3.0 and beta 1.0"),
    "bias": (lambda: rules.EpsilonRule(bias="x"), 'bias is \'x\'; expected "share" or "absorb"'),
    "bias of gamma": (lambda: rules.GammaRule(bias=True), 'bias is True; expected "share" or "absorb"'),
    "bias of alpha-beta": (lambda: rules.AlphaBetaRule(bias="zero"), "bias is 'zero'"),
    "bias of z+": (lambda: rules.ZPlusRule(bias="x"), "bias is 'x'"),
    "bias of w2": (lambda: rules.WSquareRule(bias="x"), "bias is 'x'"),
    "bias of flat": (lambda: rules.FlatRule(bias=None), "bias is None"),
    "box": (lambda: rules.ZBoxRule(1.0, 0.0), "low is 1.0 and high 0.0; expected low below high everywhere"),
    "empty box": (lambda: rules.ZBoxRule(0, 0), "low is 0 and high 0"),
    "box of tensors": (lambda: rules.ZBoxRule(HALF, 0.5), "expected low below high everywhere"),
    "norm": (lambda: rules.NormRule("x"), 'statistic is \'x\'; expected "constant" or "identity"'),
    "attention": (lambda: rules.AttentionRule("x"), 'carry is \'x\'; expected "values" or "all"'),
    "product": (
        lambda: rules.ProductRule("x"),
        'share is \'x\'; expected one of "gates", "activations", "halves", "first", "second", "magnitude"',
    ),
    "addition": (lambda: rules.AdditionRule("x"), 'share is \'x\'; expected "signed" or "magnitude"'),
    "preset": (lambda: presets.gamma(-1.0), "gamma is -1.0"),
    "preset of box": (lambda: presets.epsilon_gamma_box(1, 0), "low is 1 and high 0"),
    "preset attnlrp": (lambda: presets.attnlrp(-1.0), "gamma is -1.0"),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_wrong_parameters_are_refused(name: str) -> None:
    make, text = PARAMETERS[name]
    with cav_error(ValueError, text):
        make()


def test_a_decorator_needs_torch_functions() -> None:
    with cav_error(TypeError, "rule() names no torch function; expected @rule("):
        rules.rule()
    with cav_error(TypeError, "<built-in function print> is not a torch function; give the rule for its module's type"):
        rules.rule(torch.relu, print)
