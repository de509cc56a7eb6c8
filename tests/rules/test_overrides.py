"""Which rule an operation meets: keys from a module's instance to a torch function, Captum's rules, lists, errors.

To see which rule was chosen, most tests use rules that multiply what they pass on by a prime number each: the map over
the map without rules is the product of those that ruled.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils import lrp_rules
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, presets, rules
from captum_cav.errors import CAVError, ModelError, UnsupportedOperationError
from captum_cav.propagation.explanation import RuleTable
from tests.support.networks import fixed
from tests.support.traces import left_as_it_was

Function = Callable[[torch.Tensor], torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def filled(net: nn.Module) -> nn.Module:
    """The same parameters every time, in float64."""
    generator = torch.Generator().manual_seed(2)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=torch.float64))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 1)
    return net


def largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max())


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert largest(found - expected) <= tolerance * largest(expected)


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return coefficients * ctx.factor, None


class Times(rules.Rule):
    """Passes on what the default would, times a number."""

    def __init__(self, factor: float, *operations: str) -> None:
        self.factor = factor
        self.operations = frozenset(operations) or None  # type: ignore[misc]

    def __call__(self, operation: rules.Operation, /) -> torch.Tensor:
        return _Multiplied.apply(operation.by_default(), self.factor)


# The most specific wins ----------------------------------------------------------------------------------------------


class Special(nn.Linear):
    """A type that comes before Linear in its own lineage."""


class Block(nn.Module):
    """A linear layer, and a function without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Special(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x))


def nested() -> nn.Sequential:
    """Linear operations in "block.inner" and "head", tanh in "block"."""
    return filled(nn.Sequential(OrderedDict(block=Block(), head=nn.Linear(4, 2))))


def factor(net: Callable[..., Any], chosen: Mapping[Any, Any]) -> int:
    """The product of the factors that were at work, at the input: each operation is on every way to it."""
    x = fixed(2, 4)
    found, plain = (InputCAV(net, rules=given, normalize=None).attribute(x, 1) for given in (chosen, None))
    products = found / plain
    product = round(products.flatten()[0].item())
    torch.testing.assert_close(products, torch.full_like(products, product))
    return product


LINEAR = {number: Times(number, "linear") for number in (2, 3, 5, 7, 11, 13)}
# Keys and numbers of rules for linear operations; and the product of those of block.inner and of head.
PRECEDENCE: dict[str, tuple[Callable[[Any], dict[Any, int]], int]] = {
    "none": (lambda net: {}, 1 * 1),
    "instance before all": (
        lambda net: {F.linear: 2, nn.Linear: 3, "block.inner": 5, net.block.inner: 7},
        7 * 3,
    ),
    "pattern before type": (lambda net: {"block.inner": 5, F.linear: 2, nn.Linear: 3}, 5 * 3),
    "type before function": (lambda net: {Special: 3, F.linear: 2}, 3 * 2),
    "function": (lambda net: {F.linear: 2}, 2 * 2),
    "the order of the mapping does not matter": (
        lambda net: {net.block.inner: 7, "block.inner": 5, nn.Linear: 3, F.linear: 2},
        7 * 3,
    ),
    "an outer instance before an inner pattern": (lambda net: {net.block: 2, "block.inner": 3, Special: 5}, 2 * 1),
    "the whole model's instance before a pattern": (lambda net: {net: 2, "head": 3}, 2 * 2),
    "an outer pattern before an inner type": (lambda net: {"block": 2, Special: 3}, 2 * 1),
    "an outer type before a function": (lambda net: {Block: 2, F.linear: 3}, 2 * 3),
    "of instances the innermost": (lambda net: {net.block.inner: 2, net.block: 3, net: 5}, 2 * 5),
    "of patterns the innermost": (lambda net: {"block.inner": 2, "block": 3}, 2 * 1),
    "a glob for the innermost before a name": (lambda net: {"block": 2, "b*r": 3}, 3 * 1),
    "of types the innermost": (lambda net: {nn.Linear: 2, Block: 3}, 2 * 2),
    "the innermost of any type": (lambda net: {nn.Module: 2, Block: 3}, 2 * 2),
    "a subclass": (lambda net: {nn.Linear: 2}, 2 * 2),
    "the nearest of a lineage": (lambda net: {Special: 3, nn.Linear: 2, nn.Module: 5}, 3 * 2),
    "the nearest of a lineage, the other way round": (lambda net: {nn.Module: 5, nn.Linear: 2, Special: 3}, 3 * 2),
    "a name before a glob": (lambda net: {"block.inner": 2, "block.inne?": 3, "*block.inner*": 5}, 2 * 1),
    "a longer glob before a shorter": (lambda net: {"block.*": 2, "b*": 3}, 2 * 1),
    "a longer glob before a shorter, the other way round": (lambda net: {"*": 3, "block.*": 2}, 2 * 3),
    "of globs as long the later": (lambda net: {"blo*": 2, "*ner": 3}, 3 * 1),
    "of globs as long the later, the other way round": (lambda net: {"*ner": 3, "blo*": 2}, 2 * 1),
    "a question mark counts as little as a star": (lambda net: {"?lock.inner": 2, "block.inne*": 3}, 3 * 1),
    "a set of letters": (lambda net: {"[bh]*": 2}, 2 * 2),
    "the empty name is the model": (lambda net: {"": 2, "head": 3}, 2 * 3),
}


@pytest.mark.parametrize("name", PRECEDENCE)
def test_the_most_specific_rule_wins(name: str) -> None:
    net = nested()
    keys, expected = PRECEDENCE[name]
    assert factor(net, {key: LINEAR[number] for key, number in keys(net).items()}) == expected


def test_a_rule_governs_the_functions_inside_its_module() -> None:
    net = nested()
    assert factor(net, {net.block: Times(3)}) == 3 * 3  # its linear operation and its tanh
    assert factor(net, {"block": Times(3, "tanh")}) == 3
    assert factor(net, {Block: Times(3, "tanh"), F.linear: Times(5)}) == 3 * 5 * 5
    assert factor(net, {net: Times(2)}) == 2**3
    assert factor(net, {nn.Module: Times(2), Block: Times(3, "tanh")}) == 2 * 2 * 3


def test_where_the_most_specific_rule_does_not_govern_the_next_one_does() -> None:
    net = nested()
    for_tanh = Times(3, "tanh")
    assert factor(net, {net.block.inner: for_tanh, nn.Linear: LINEAR[2]}) == 2 * 2
    assert factor(net, {net: for_tanh, "block": LINEAR[5], F.linear: LINEAR[7]}) == 3 * 5 * 7


def test_a_layer_is_taken_out_of_a_wider_rule_by_the_rule_of_the_paper() -> None:
    net = nested()
    assert factor(net, {nn.Linear: LINEAR[2], "head": rules.ContributionRule()}) == 2
    assert factor(net, {F.linear: LINEAR[2], "block": rules.ContributionRule()}) == 2


def test_a_module_has_a_rule_under_each_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    net = filled(nn.Sequential(OrderedDict(a=shared, b=nn.Tanh(), c=shared, d=nn.Linear(4, 2))))
    for key in ("a", "c", shared, "[ac]"):
        assert factor(net, {key: LINEAR[3]}) == 3 * 3
    assert factor(net, {"c": LINEAR[3], "[ac]": LINEAR[2]}) == 3 * 3


def test_every_form_of_a_torch_function_is_one_key() -> None:
    def score(x: torch.Tensor) -> torch.Tensor:
        return torch.add(x.tanh(), F.tanh(x)) + torch.tanh(x).tanh_()

    for key in (torch.tanh, torch.Tensor.tanh, torch.Tensor.tanh_, F.tanh, torch.ops.aten.tanh.default):
        x = fixed(2, 3)
        found = InputCAV(score, rules={key: Times(2)}, normalize=None).attribute(x, 0)
        t = torch.tanh(x)
        assert_near(found[:, 0], (2 * t + 2 * t + 2 * 2 * torch.tanh(t))[:, 0])


# module.rule ---------------------------------------------------------------------------------------------------------


def test_the_rule_of_a_module_itself_is_honoured_and_stays() -> None:
    net = nested()
    rule = net.block.inner.rule = LINEAR[3]
    x = fixed(2, 4)
    plain = InputCAV(nested(), normalize=None).attribute(x, 1)
    cav = InputCAV(net, normalize=None)
    with left_as_it_was(net, x):
        for _ in range(2):
            assert_near(cav.attribute(x, 1), 3 * plain)
    assert net.block.inner.rule is rule
    del net.block.inner.rule  # the user's to take away, and read at each call
    assert torch.equal(cav.attribute(x, 1), plain)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (lambda net: {net.block.inner: 2}, 2),
        (lambda net: {net.block: 2}, 3),
        (lambda net: {net: 2}, 3 * 2),
        (lambda net: {"block.inner": 2, Special: 5, nn.Linear: 7}, 3 * 7),
        (lambda net: {F.linear: 2}, 3 * 2),
    ],
    ids=["this module", "an outer module", "the model", "name and type", "function"],
)
def test_the_rule_of_a_module_itself_is_as_specific_as_an_instance(keys: Any, expected: int) -> None:
    net = nested()
    net.block.inner.rule = LINEAR[3]
    assert factor_of(net, {key: LINEAR[number] for key, number in keys(net).items()}) == expected
    assert isinstance(net.block.inner.rule, Times)


def factor_of(net: nn.Module, chosen: Mapping[Any, Any]) -> int:
    """As :func:`factor`, for a net whose modules have rules of their own."""
    x = fixed(2, 4)
    products = InputCAV(net, rules=chosen, normalize=None).attribute(x, 1) / InputCAV(
        nested(), normalize=None
    ).attribute(x, 1)
    torch.testing.assert_close(products, products[:1, :1].expand_as(products))
    return round(products[0, 0].item())


def test_the_rule_of_a_module_governs_what_is_inside_it() -> None:
    net = nested()
    net.block.rule = Times(3)
    assert factor_of(net, {}) == 3 * 3
    net.block.inner.rule = LINEAR[2]
    assert factor_of(net, {}) == 2 * 3
    net.rule = Times(5)
    assert factor_of(net, {}) == 2 * 3 * 5


def test_an_attribute_of_that_name_that_is_no_rule_is_the_models_own_affair() -> None:
    net = nested()
    net.rule, net.head.rule, net.block.rule = "majority", None, nn.Linear(1, 1)
    assert factor(net, {}) == 1


# Captum's rules ------------------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """Layers that Captum's LRP knows: it has no rule for Flatten, and none for functions."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(4) if norm else None
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AvgPool2d(2)
        self.fc1, self.relu3, self.fc2 = nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x) if self.norm is None else self.norm(self.conv1(x))
        x = self.pool1(self.relu1(x))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


CAPTUM: dict[str, Callable[[], lrp_rules.PropagationRule]] = {
    "epsilon": lrp_rules.EpsilonRule,
    "epsilon 0.25": lambda: lrp_rules.EpsilonRule(0.25),
    "gamma": lrp_rules.GammaRule,
    "gamma 1": lambda: lrp_rules.GammaRule(1.0),
    "gamma, no bias": lambda: lrp_rules.GammaRule(0.5, set_bias_to_zero=True),
    "alpha 1 beta 0": lrp_rules.Alpha1_Beta0_Rule,
    "alpha 1 beta 0, no bias": lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}
WHERE = {
    "first": ["conv1"],
    "later": ["conv2", "fc1"],
    "last": ["fc2"],
    "all": ["conv1", "conv2", "fc1", "fc2"],
}


def by_captum(
    net: nn.Module, chosen: Mapping[str, lrp_rules.PropagationRule], x: torch.Tensor, target: Any
) -> torch.Tensor:
    """In units of the score; Captum changes the weights meanwhile and takes the rules away."""
    net = copy.deepcopy(net)
    for name, rule in chosen.items():
        net.get_submodule(name).rule = rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it sets requires_grad on the inputs
        return LRP(net).attribute(x.clone(), target).detach()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", CAPTUM)
def test_captums_rules_give_captums_numbers(name: str, where: str) -> None:
    net, x = filled(Pictures()), fixed(3, 2, 13, 12)
    for target in (1, [2, 0, 1]):
        expected = by_captum(net, {key: CAPTUM[name]() for key in WHERE[where]}, x, target)
        ruled = {key: CAPTUM[name]() for key in WHERE[where]}
        found = InputCAV(net, rules=ruled, normalize=None).attribute(x, target)
        assert_near(found, expected, 1e-6)
        set_on_modules = copy.deepcopy(net)
        for key, rule in ruled.items():
            set_on_modules.get_submodule(key).rule = rule
        for _ in range(2):
            assert torch.equal(InputCAV(set_on_modules, normalize=None).attribute(x, target), found)
        assert all(set_on_modules.get_submodule(key).rule is rule for key, rule in ruled.items())
    if name != "epsilon":
        assert largest(found - InputCAV(net, normalize=None).attribute(x, target)) > 1e-3 * largest(found)


@pytest.mark.parametrize("name", ["epsilon 0.25", "gamma, no bias", "alpha 1 beta 0"])
def test_captums_rules_leave_a_batch_norm_behind_their_layer_to_itself(name: str) -> None:
    net, x = filled(Pictures(norm=True)), fixed(3, 2, 13, 12)
    expected = by_captum(net, {"conv1": CAPTUM[name](), "conv2": CAPTUM[name]()}, x, 1)
    assert_near(InputCAV(net, rules={nn.Conv2d: CAPTUM[name]()}, normalize=None).attribute(x, 1), expected, 1e-6)


@pytest.mark.parametrize("key", ["norm", nn.BatchNorm2d])
def test_captums_identity_takes_a_batch_norm_out(key: Any) -> None:
    net, x = filled(Pictures(norm=True)), fixed(3, 2, 13, 12)
    expected = by_captum(net, {"norm": lrp_rules.IdentityRule()}, x, 1)
    found = InputCAV(net, rules={key: lrp_rules.IdentityRule()}, normalize=None).attribute(x, 1)
    assert_near(found, expected, 1e-5)  # Captum stabilises twice where we divide once
    assert largest(found - InputCAV(net, normalize=None).attribute(x, 1)) > 1e-2 * largest(found)


def test_captums_rules_mix_with_ours() -> None:
    net, x = filled(Pictures()), fixed(3, 2, 13, 12)
    mixed = {"conv1": rules.EpsilonRule(1e-9), "conv2": lrp_rules.GammaRule(), nn.Linear: lrp_rules.EpsilonRule(0.1)}
    captums = {"conv1": lrp_rules.EpsilonRule(), "conv2": lrp_rules.GammaRule()}
    captums |= {"fc1": lrp_rules.EpsilonRule(0.1), "fc2": lrp_rules.EpsilonRule(0.1)}
    found = InputCAV(net, rules=mixed, normalize=None).attribute(x, 1)
    assert_near(found, by_captum(net, captums, x, 1), 1e-6)


def test_captums_gamma_is_ours_where_all_inputs_are_positive_and_there_is_no_bias() -> None:
    """Captum raises positive weights, ours what agrees with the output's sign."""
    layer = filled(nn.Linear(4, 2, bias=False))
    layer.weight.data[0] = torch.tensor([1.0, -2.0, 3.0, 1.0])
    x = torch.tensor([[1.0, 1.0, 2.0, 0.5], [-3.0, 1.0, 3.0, -1.0]], dtype=torch.float64)  # scores 5.5 and 3
    captums, ours = (
        InputCAV(layer, rules={nn.Linear: rule}, normalize=None).attribute(x, 0)
        for rule in (lrp_rules.GammaRule(0.5), rules.GammaRule(0.5))
    )
    z = x * layer.weight[0].detach()  # 1 -2 6 0.5, and -3 -2 9 -1
    assert_near(captums[0], (z[0] + 0.5 * torch.tensor([1, 0, 6, 0.5])) * 5.5 / (5.5 + 0.5 * 7.5), 1e-8)
    assert_near(captums[1], (z[1] + 0.5 * torch.tensor([-3, 0, 9, -1])) * 3 / (3 + 0.5 * 5), 1e-8)
    assert_near(ours[0], captums[0], 1e-8)
    assert_near(ours[1], (z[1] + 0.5 * torch.tensor([0, 0, 9, 0])) * 3 / (3 + 0.5 * 9))


# Lists of rules ------------------------------------------------------------------------------------------------------


def test_of_several_rules_the_first_that_governs_rules() -> None:
    net = nested()
    several = [Times(2, "tanh"), Times(3, "tanh", "linear"), Times(5)]
    assert factor(net, {net: several}) == 2 * 3 * 3
    assert factor(net, {net: several[::-1]}) == 5**3
    assert factor(net, {F.linear: [Times(2, "linear"), Times(3)], torch.tanh: (Times(5), Times(7))}) == 2 * 5 * 2
    assert factor(net, {nn.Linear: [[Times(2, "tanh")], (Times(3),)]}) == 3 * 3
    assert factor(net, {net: [Times(2, "tanh"), LINEAR[3]], F.linear: LINEAR[5]}) == 2 * 3 * 3


def test_an_empty_list_leaves_everything_as_it_is() -> None:
    net = nested()
    assert factor(net, {net.block: [], F.linear: LINEAR[2]}) == 2 * 2


class Branching(nn.Module):
    """Two first layers, and one that sees the input and what a first layer made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.joint, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(7, 4), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), torch.tanh(self.b(x))
        return self.head(torch.cat([b, self.joint(torch.cat([x, a], 1))], 1))


FIRST_LAYERS: dict[str, tuple[Function, tuple[int, ...], int]] = {
    "layer by layer": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,), 1),
    "function": (lambda x: F.linear(F.linear(x, fixed(4, 4)), fixed(2, 4)), (4,), 1),
    "matrix product": (lambda x: F.linear(x @ fixed(4, 4), fixed(2, 4)), (4,), 0),
    "padding": (lambda x: F.linear(F.linear(F.pad(x, (1, 2), value=0.5), fixed(4, 7)), fixed(2, 4)), (4,), 1),
    "flatten": (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 2)), (2, 2), 1),
    "normalised": (lambda x: F.linear(F.linear((x - 0.3) / 0.5, fixed(4, 4)), fixed(2, 4)), (4,), 1),
    "activation": (lambda x: F.linear(torch.tanh(x), fixed(2, 4)), (4,), 1),
    "attention patches": (lambda x: F.linear(F.linear(x.unfold(1, 2, 2), fixed(4, 2)).mean(1), fixed(2, 4)), (4,), 1),
    "convolution": (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)), (1, 4), 0),
    "written in place": (lambda x: F.linear(F.linear((x * 1).relu_(), fixed(4, 4)), fixed(2, 4)), (4,), 1),
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_a_rule_for_the_first_layer_is_for_it_alone(name: str) -> None:
    """Behind padding or reshaping the layer is still the first; behind a convolution or a product it is not."""
    net, shape, first = FIRST_LAYERS[name]
    net = filled(net) if isinstance(net, nn.Module) else net
    table = InputCAV(net, rules={F.linear: [rules.AtInput(LINEAR[2]), LINEAR[3]]}).explain_rules(fixed(2, *shape))
    chosen = [row.rule for row in table if row.operation == "linear"]
    assert ["AtInput" in rule for rule in chosen] == [True] * first + [False] * (len(chosen) - first)
    assert len(chosen) >= 1


def test_a_network_may_have_several_first_layers() -> None:
    net, x = filled(Branching()), fixed(2, 4)
    chosen = {nn.Linear: [rules.AtInput(LINEAR[2]), LINEAR[3]]}
    rows = InputCAV(net, rules=chosen).explain_rules(x)
    assert {row.module: "AtInput" in row.rule for row in rows if row.operation == "linear"} == {
        "a": True,
        "b": True,
        "joint": False,
        "head": False,
    }
    h = torch.tanh(net.b(x))
    inner = (h / net.b(x)).detach()
    w = net.head.weight[1].detach()
    of_b = (w[:3] * inner) @ net.b.weight.detach()
    through_joint = w[3:] @ net.joint.weight.detach()
    expected = x * (3 * (2 * of_b + 3 * (through_joint[:4] + 2 * through_joint[4:] @ net.a.weight.detach())))
    assert_near(InputCAV(net, rules=chosen, normalize=None).attribute(x, 1), expected.detach())


def test_the_first_layer_is_the_models_not_the_first_behind_a_requested_layer() -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(2, 4)
    chosen = {nn.Linear: rules.AtInput(LINEAR[2])}
    behind = LayerCAV(net, "0", rules=chosen, normalize=None)
    assert torch.equal(behind.attribute(x, 1), LayerCAV(net, "0", normalize=None).attribute(x, 1))
    of_input = behind.attribute(x, 1, attribute_to_layer_input=True)
    assert_near(of_input, 2 * InputCAV(net, normalize=None).attribute(x, 1))


def test_an_operation_of_several_tensors_is_of_the_first_layer_if_all_of_them_are() -> None:
    weight, x = fixed(4, 4), fixed(2, 4)
    chosen = {torch.mul: [rules.AtInput(Times(2)), Times(3)]}
    for other, number in ((torch.tanh, 2), (lambda x: F.linear(x, weight), 3)):
        score = lambda x, other=other: (x * other(x)).sum(1)  # noqa: E731
        found, plain = (InputCAV(score, rules=given, normalize=None).attribute(x) for given in (chosen, None))
        assert_near(found, number * plain)


def test_a_rule_for_the_first_layer_alone_leaves_others_their_default() -> None:
    net = nested()
    assert factor(net, {F.linear: rules.AtInput(LINEAR[2])}) == 2
    assert factor(net, {net: rules.AtInput(LINEAR[2]), F.linear: LINEAR[5]}) == 2 * 5
    assert factor(net, {"head": rules.AtInput(LINEAR[2])}) == 1


# The same rule by any key --------------------------------------------------------------------------------------------


def conv_net() -> nn.Sequential:
    layers = OrderedDict(
        first=nn.Conv2d(2, 4, 3), act=nn.GELU(), pool=nn.MaxPool2d(2), flat=nn.Flatten(), head=nn.Linear(16, 3)
    )
    return filled(nn.Sequential(layers))


SAME: dict[str, tuple[rules.Rule, str, type[nn.Module], list[Any]]] = {
    "gamma": (rules.GammaRule(0.5), "first", nn.Conv2d, [F.conv2d, torch.conv2d]),
    "epsilon": (rules.EpsilonRule(0.1), "head", nn.Linear, [F.linear, torch.nn.functional.linear]),
    "flat": (rules.FlatRule(), "first", nn.Conv2d, [F.conv2d]),
    "z-box": (rules.ZBoxRule(-5.0, 5.0), "first", nn.Conv2d, [F.conv2d]),
    "gradient": (rules.GradientRule(), "act", nn.GELU, [F.gelu]),
    "proportional": (rules.ProportionalPoolingRule(), "pool", nn.MaxPool2d, [F.max_pool2d, torch.max_pool2d]),
    "captum": (lrp_rules.GammaRule(0.5), "first", nn.Conv2d, [F.conv2d]),
}


@pytest.mark.parametrize("name", SAME)
def test_any_key_for_the_same_operation_gives_the_same_map(name: str) -> None:
    rule, where, kind, functions = SAME[name]
    net, x = conv_net(), fixed(2, 2, 6, 6)
    instance = net.get_submodule(where)
    keys = [instance, where, where[:-1] + "?", f"*{where[1:]}", kind, *functions]
    maps = {key: InputCAV(net, rules={key: rule}, normalize=None).attribute(x, 1) for key in keys}
    for key in (instance, kind, *functions):
        by_function = InputCAV(lambda x: net(x), rules={key: rule}, normalize=None)
        maps["callable", key] = by_function.attribute(x, 1)
        at_first = LayerCAV(lambda x: net(x), net.first, rules={key: rule}, normalize=None)
        assert torch.equal(
            at_first.attribute(x, 1), LayerCAV(net, "first", rules={where: rule}, normalize=None).attribute(x, 1)
        )
    instance.rule = rule
    maps["module.rule"] = InputCAV(net, normalize=None).attribute(x, 1)
    maps["module.rule", "callable"] = InputCAV(lambda x: net(x), normalize=None).attribute(x, 1)
    assert all(torch.equal(found, maps[where]) for found in maps.values())
    assert largest(maps[where] - InputCAV(conv_net(), normalize=None).attribute(x, 1)) > 1e-6 * largest(maps[where])


def test_a_function_written_without_modules_has_the_same_map() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)

    def functional(x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(F.conv2d(x, net.first.weight, net.first.bias))
        return F.linear(torch.flatten(F.max_pool2d(x, 2), 1), net.head.weight, net.head.bias)

    chosen = {F.conv2d: rules.GammaRule(0.5), F.linear: rules.EpsilonRule(0.1), F.gelu: rules.GradientRule()}
    found = InputCAV(functional, rules=chosen, normalize=None).attribute(x, 1)
    assert torch.equal(found, InputCAV(net, rules=chosen, normalize=None).attribute(x, 1))


# Several attributions, several calls ---------------------------------------------------------------------------------


def other_rules(net: nn.Sequential) -> list[dict[Any, Any]]:
    return [
        {"first": rules.GammaRule(0.5), nn.Linear: rules.EpsilonRule(0.1)},
        {net.first: rules.FlatRule(), F.max_pool2d: rules.UniformPoolingRule(), nn.GELU: rules.PassThroughRule()},
    ]


def test_a_second_call_equals_the_first() -> None:
    net, x, other = conv_net(), fixed(2, 2, 6, 6), fixed(3, 2, 6, 6, seed=5)
    for chosen in other_rules(net):
        cav = LayerCAV(net, ["first", "act"], rules=chosen, normalize=None)
        first, deltas = cav.attribute(x, 1, return_convergence_delta=True)
        cav.attribute(other, 2)
        for _ in range(2):
            again, its_deltas = cav.attribute(x, 1, return_convergence_delta=True)
            assert all(map(torch.equal, [*again, *its_deltas], [*first, *deltas]))


def test_two_attributions_of_one_model_do_not_see_each_others_rules() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    cavs = [InputCAV(net, rules=chosen, normalize=None) for chosen in [*other_rules(net), None]]
    expected = [
        InputCAV(fresh, rules=chosen, normalize=None).attribute(x, 1)
        for fresh, chosen in [(n, c) for n in [conv_net()] for c in [*other_rules(n), None]]
    ]
    assert largest(expected[0] - expected[1]) > 1e-3
    for turn in range(6):
        assert torch.equal(cavs[turn % 3].attribute(x, 1), expected[turn % 3])


def test_a_mapping_that_is_changed_afterwards_changes_nothing() -> None:
    net = nested()
    chosen = {F.linear: LINEAR[2]}
    cav, x = InputCAV(net, rules=chosen, normalize=None), fixed(2, 4)
    before = cav.attribute(x, 1)
    chosen[F.linear] = LINEAR[7]
    chosen[net] = LINEAR[5]
    assert torch.equal(cav.attribute(x, 1), before)


def test_two_threads_on_one_model_have_their_own_rules() -> None:
    net = conv_net()
    chosen = other_rules(net)
    chosen[0]["act"] = rules.pass_through  # a module as one operation: it is hooked while it runs
    pictures = [fixed(2, 2, 6, 6, seed=seed) for seed in range(20)]
    cavs = [LayerCAV(net, ["first", "act"], rules=one, normalize=None) for one in chosen]
    expected = [[cav.attribute(x, 1) for x in pictures] for cav in cavs]
    assert largest(expected[0][0][0] - expected[1][0][0]) > 1e-3
    barrier = threading.Barrier(2)

    def work(cav: LayerCAV) -> list[Any]:
        found = []
        for x in pictures:
            barrier.wait(30)
            found.append(cav.attribute(x, 1))
        return found

    with left_as_it_was(net), ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, cavs))
    for found, right in zip(results, expected, strict=True):
        assert len(found) == 20
        for maps, right_maps in zip(found, right, strict=True):
            assert all(map(torch.equal, maps, right_maps))


class Meeting(nn.Module):
    """A tanh that returns when another thread is in it, too."""

    barrier = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.barrier is not None:
            self.barrier.wait(10)
        y = torch.tanh(x)
        if self.barrier is not None:
            self.barrier.wait(10)
        return y


def test_two_threads_meet_in_a_module_that_each_rules_as_one() -> None:
    net = filled(nn.Sequential(nn.Linear(4, 4), Meeting(), nn.Linear(4, 2)))
    pictures = [fixed(2, 4, seed=seed) for seed in (1, 2)]
    cavs = [InputCAV(net, rules={Meeting: rule}, normalize=None) for rule in (rules.pass_through, rules.linear)]
    expected = [cav.attribute(x, 1) for cav, x in zip(cavs, pictures, strict=True)]
    assert largest(expected[0] - cavs[1].attribute(pictures[0], 1)) > 1e-3
    net[1].barrier = threading.Barrier(2)
    with left_as_it_was(net), ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            found = threads.map(lambda cav, x: cav.attribute(x, 1), cavs, pictures)
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("of_input", [False, True])
def test_another_thread_that_is_in_a_module_when_its_attribution_ends_goes_on(of_input: bool) -> None:
    """It entered with the attribution's hooks on the module, and leaves when they are gone."""
    net, x, other = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(2, 4), fixed(3, 4)
    inside, ended = threading.Event(), threading.Event()
    main, expected = threading.current_thread(), net(other)
    futures: list[Any] = []

    def stay(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not main:
            inside.set()
            assert ended.wait(30)

    def start(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is main:
            futures.append(threads.submit(net, other))
            assert inside.wait(30)

    with ThreadPoolExecutor(1) as threads:
        # In the first module the attribution's hooks on the second are there already.
        handles = [net[1].register_forward_pre_hook(stay), net[0].register_forward_pre_hook(start)]
        cav = LayerCAV(net, "1", rules={nn.Tanh: rules.PassThroughRule()}, normalize=None)
        found = cav.attribute(x, 1, attribute_to_layer_input=of_input)
        ended.set()
        assert torch.equal(futures[0].result(30), expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(cav.attribute(x, 1, attribute_to_layer_input=of_input), found)


# Nothing is left on the model ----------------------------------------------------------------------------------------


class Raises(rules.Rule):
    """Raises in the forward or in the backward pass."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, operation: rules.Operation, /) -> torch.Tensor:
        if self.where == "forward":
            raise KeyError("in the forward pass")
        return _Raising.apply(operation.value())


class RaisesAsOne(Raises):
    as_one = True


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> torch.Tensor:
        raise KeyError("in the backward pass")


class RaisingShares(rules.AffineRule):
    """Raises where it shares out."""

    def shares(self, summands: rules.Summands) -> list[rules.Share]:
        raise KeyError("in the backward pass")


@pytest.mark.parametrize("keys", [0, 1])
@pytest.mark.parametrize("make", [LayerCAV, InputCAV, NeuronCAV], ids=lambda make: make.__name__)
def test_rules_leave_nothing_on_the_model(make: Any, keys: int) -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    net.head.rule = lrp_rules.GammaRule()
    net.act.rule = rules.PassThroughRule()
    net.first.weight.requires_grad_(False)
    handle = net.pool.register_forward_hook(lambda *_: None)
    chosen = other_rules(net)[keys]
    with left_as_it_was(net, x):
        cav = make(net, rules=chosen) if make is InputCAV else make(net, "act", rules=chosen)
        assert largest(cav.attribute(x, (0, 1, 1) if make is NeuronCAV else 1)) > 0
        cav.attribute(x, (0, 1, 1) if make is NeuronCAV else 1, return_convergence_delta=True)
        if make is not NeuronCAV:
            cav.explain_rules(x)
    handle.remove()
    assert isinstance(net.head.rule, lrp_rules.GammaRule)


@pytest.mark.parametrize(
    ("key", "rule", "where"),
    [
        (nn.GELU, Raises("forward"), "forward"),
        (F.linear, Raises("forward"), "forward"),
        (nn.GELU, RaisesAsOne("forward"), "forward"),
        (nn.GELU, Raises("backward"), "backward"),
        (nn.GELU, RaisesAsOne("backward"), "backward"),
        (nn.Conv2d, RaisingShares(), "backward"),
        (F.linear, [rules.AtInput(rules.GammaRule()), Raises("backward")], "backward"),
    ],
    ids=["type", "function", "as one", "type, backward", "as one, backward", "affine", "list"],
)
def test_a_rule_that_raises_leaves_nothing_on_the_model(key: Any, rule: Any, where: str) -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    net.head.rule = rules.AtInput(rules.EpsilonRule())
    right = InputCAV(net, rules="gamma").attribute(x, 1)
    for with_delta in (False, True):
        with left_as_it_was(net, x), pytest.raises(KeyError, match=f"in the {where} pass"):
            InputCAV(net, rules={key: rule}).attribute(x, 1, return_convergence_delta=with_delta)
    assert torch.equal(InputCAV(net, rules="gamma").attribute(x, 1), right)


def test_a_module_that_raises_while_it_is_ruled_as_one_leaves_nothing() -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), Fragile(), nn.Linear(4, 2))), fixed(2, 4)
    cav = InputCAV(net, rules={Fragile: rules.PassThroughRule()}, normalize=None)
    right = cav.attribute(x, 1)
    net[1].broken = True
    with left_as_it_was(net, x), pytest.raises(ZeroDivisionError):
        cav.attribute(x, 1)
    with left_as_it_was(net, x), pytest.raises(ZeroDivisionError):
        InputCAV(net, rules={"": rules.linear}).attribute(x, 1)
    net[1].broken = False
    assert torch.equal(cav.attribute(x, 1), right)


class Fragile(nn.Module):
    broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) if not self.broken else x / (0 // 0)


def test_a_model_that_catches_what_a_module_raised_goes_on() -> None:
    class Cautious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fragile, self.head = nn.Linear(4, 4), Fragile(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            try:
                return self.head(self.fragile(h))
            except ZeroDivisionError:
                return self.head(torch.tanh(h))

    net, x = filled(Cautious()), fixed(2, 4)
    expected = InputCAV(net, normalize=None).attribute(x, 1)
    net.fragile.broken = True
    with left_as_it_was(net, x):
        found = InputCAV(net, rules={Fragile: rules.PassThroughRule()}, normalize=None).attribute(x, 1)
    assert_near(found, expected)


# Modules as one operation --------------------------------------------------------------------------------------------


class _Softsign(torch.autograd.Function):
    """x / (1 + |x|), of which nothing can be seen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x / (1 + x.abs())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise AssertionError("its own gradient was used")


class Composite(nn.Module):
    """An activation of several operations, one of them a custom autograd.Function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * _Softsign.apply(2 * x) + 0.1 * x


class InPlace(nn.Module):
    """The same, written over its argument."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(0.5 * _Softsign.apply(2 * x) + 0.1 * x)


class Keyword(nn.Module):
    """The same, of an argument by name alone."""

    def forward(self, *, hidden: torch.Tensor) -> torch.Tensor:
        return 0.5 * _Softsign.apply(2 * hidden) + 0.1 * hidden


def composite(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + 2 * x.abs()) + 0.1 * x


class Around(nn.Module):
    """Two linear layers around an activation, and how it is called."""

    def __init__(self, act: nn.Module, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.act, self.head, self.call = nn.Linear(4, 5), act, nn.Linear(5, 2), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.call(self.act, self.first(x)))

    def contributions(self, x: torch.Tensor, target: int) -> tuple[torch.Tensor, torch.Tensor]:
        """By hand: at the activation, before it as behind it, and at the input."""
        with torch.no_grad():
            h = self.first(x)
            at = composite(h) * self.head.weight[target]
            return at, x * ((at / h) @ self.first.weight)


def positional(act: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return act(h)


AS_ONE: dict[str, Any] = {
    "PassThroughRule": rules.PassThroughRule(),
    "pass_through": rules.pass_through,
    "lambda": lambda operation: rules.pass_through(operation),
    "list": [rules.GammaRule(), rules.PassThroughRule()],
}


@pytest.mark.parametrize("act", [Composite, InPlace], ids=lambda act: act.__name__)
def test_what_cannot_be_seen_into_is_refused_without_a_rule(act: type[nn.Module]) -> None:
    net = filled(Around(act(), positional))
    with pytest.raises(UnsupportedOperationError, match=r"_Softsign, a custom autograd\.Function in module 'act'"):
        InputCAV(net).attribute(fixed(2, 4), 1)
    # A rule for the operations inside does not help.
    with pytest.raises(UnsupportedOperationError, match="cannot see"):
        InputCAV(net, rules={act: rules.GradientRule()}).attribute(fixed(2, 4), 1)


@pytest.mark.parametrize("rule", AS_ONE.values(), ids=AS_ONE)
@pytest.mark.parametrize("act", [Composite, InPlace], ids=lambda act: act.__name__)
def test_a_module_is_ruled_as_one_operation(act: type[nn.Module], rule: Any) -> None:
    net, x = filled(Around(act(), positional)), fixed(3, 4)
    at, at_input = net.contributions(x, 1)
    for key in (act, "act", "a?t", net.act):
        found, delta = InputCAV(net, rules={key: rule}, normalize=None).attribute(x, 1, return_convergence_delta=True)
        assert_near(found, at_input)
        assert largest(delta) < 1e-12
    with left_as_it_was(net, x):
        before, behind = (
            LayerCAV(net, "act", rules={act: rule}, normalize=None).attribute(x, 1, attribute_to_layer_input=before)
            for before in (True, False)
        )
    assert_near(before, at)
    assert_near(behind, at)
    assert_near(LayerCAV(net, "first", rules={act: rule}, normalize=None).attribute(x, 1), at)
    of_all = LayerCAV(net, ["first", "act", "head"], rules={act: rule}, normalize=None).attribute(x, 1)
    assert_near(of_all[0], at)
    assert_near(of_all[1], at)


@pytest.mark.parametrize("act", [Composite, InPlace], ids=lambda act: act.__name__)
def test_the_neuron_of_a_module_that_is_ruled_as_one(act: type[nn.Module]) -> None:
    net, x = filled(Around(act(), positional)), fixed(3, 4)
    h = net.first(x).detach()
    for of_input, value in ((False, composite(h)), (True, h)):
        cav = NeuronCAV(net, "act", rules={act: rules.PassThroughRule()}, normalize=None)
        found = cav.attribute(x, 2, attribute_to_neuron_input=of_input)
        expected = x * net.first.weight[2].detach() * (value / h)[:, 2:3]
        assert_near(found, expected)


def test_a_module_that_is_ruled_as_one_may_be_called_several_times() -> None:
    def twice(act: nn.Module, h: torch.Tensor) -> torch.Tensor:
        return act(act(h))

    for act in (Composite, InPlace):
        net, x = filled(Around(act(), twice)), fixed(3, 4)
        found = InputCAV(net, rules={act: rules.PassThroughRule()}, normalize=None).attribute(x, 1)
        with torch.no_grad():
            h = net.first(x)
            expected = x * ((composite(composite(h)) * net.head.weight[1] / h) @ net.first.weight)
        assert_near(found, expected)


@pytest.mark.parametrize(
    ("act", "call"),
    [
        (Composite, lambda act, h: act(x=h)),
        (InPlace, lambda act, h: act(x=h)),
        (Keyword, lambda act, h: act(hidden=h)),
    ],
    ids=["by name", "in place, by name", "by a name of its own"],
)
@pytest.mark.parametrize("rule", [rules.PassThroughRule(), rules.pass_through], ids=["PassThroughRule", "pass_through"])
def test_a_module_that_is_ruled_as_one_may_be_called_by_keyword(act: type[nn.Module], call: Any, rule: Any) -> None:
    net, x = filled(Around(act(), call)), fixed(3, 4)
    if act is InPlace:  # what it wrote over is gone
        with left_as_it_was(net, x), pytest.raises(ModelError, match="call it by position"):
            InputCAV(net, rules={act: rule}).attribute(x, 1)
        return
    at, at_input = net.contributions(x, 1)
    assert_near(InputCAV(net, rules={act: rule}, normalize=None).attribute(x, 1), at_input)
    cav = LayerCAV(net, "act", rules={act: rule}, normalize=None)
    assert_near(cav.attribute(x, 1, attribute_to_layer_input=True), at)


@pytest.mark.parametrize("act", [Composite, InPlace], ids=lambda act: act.__name__)
@pytest.mark.parametrize("inplace_relu", [False, True])
def test_an_argument_that_is_used_afterwards_has_the_value_that_the_module_left(
    act: type[nn.Module], inplace_relu: bool
) -> None:
    """What a module writes over its argument is part of what the model computes."""

    def both(act: nn.Module, h: torch.Tensor) -> torch.Tensor:
        y = act(h)
        return y + 2 * h

    made = nn.ReLU(inplace=act is InPlace) if inplace_relu else act()
    net, x = filled(Around(made, both)), fixed(3, 4)
    cav = LayerCAV(net, ["first", "head"], rules={type(made): rules.PassThroughRule()}, normalize=None)
    at_first, at_head = cav.attribute(x, 1)
    with torch.no_grad():
        assert_near(at_head[:, 1], net(x)[:, 1])
        h = net.first(x)
        made_of_it = F.relu(h) if inplace_relu else composite(h)
        assert_near(at_first, (3 * made_of_it if act is InPlace else made_of_it + 2 * h) * net.head.weight[1])


def test_a_module_that_is_ruled_as_one_and_writes_over_what_it_does_not_return_is_refused() -> None:
    """The rule knows what it returned, and nothing of what else it changed."""

    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            x.tanh_()
            return y

    def both(act: nn.Module, h: torch.Tensor) -> torch.Tensor:
        y = act(h)
        return y + h

    net, x = filled(Around(Silent(), both)), fixed(3, 4)
    said = (
        r"module 'act' \(Silent\) is ruled as one by PassThroughRule\(\), but writes into an argument that it does not"
    )
    with left_as_it_was(net, x), pytest.raises(ModelError, match=said):
        InputCAV(net, rules={Silent: rules.PassThroughRule()}).attribute(x, 1)
    found = InputCAV(net, rules={Silent: rules.GradientRule()}, normalize=None).attribute(x, 1)  # rules what is inside
    with torch.no_grad():
        h = net.first(x)
        slopes = 2 + 1 - torch.tanh(h) ** 2
        assert_near(found, x * ((slopes * net.head.weight[1]) @ net.first.weight))


class Inner(nn.Module):
    """A linear layer and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(5, 5), Composite()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.linear(x))


def test_modules_that_are_ruled_as_one_may_be_nested() -> None:
    """The outermost of them rules; what is inside it, of whatever key, has no say."""
    net, x = filled(Around(Inner(), positional)), fixed(3, 4)
    with torch.no_grad():
        h = net.first(x)
        y = net.act(h)
        at = y * net.head.weight[1]
        outer = x * ((at / h) @ net.first.weight)
        inner_h = net.act.linear(h)
        inner = x * ((at / inner_h) @ net.act.linear.weight @ net.first.weight)
    one = rules.PassThroughRule()
    for chosen in ({Inner: one}, {Inner: one, Composite: one}, {"act": one, net.act.act: rules.StopRule()}):
        assert_near(InputCAV(net, rules=chosen, normalize=None).attribute(x, 1), outer)
    for chosen in ({Composite: one}, {"act.act": one, Inner: rules.ContributionRule()}):
        assert_near(InputCAV(net, rules=chosen, normalize=None).attribute(x, 1), inner)
    # An outer rule for what is inside it does not go before a rule for the module as one.
    assert_near(InputCAV(net, rules={net.act: LINEAR[3], Composite: one}, normalize=None).attribute(x, 1), 3 * inner)


@pytest.mark.parametrize("key", ["*", "act", "instance", "module.rule", nn.Module], ids=str)
def test_a_rule_that_does_not_govern_a_module_as_one_leaves_it_to_one_that_does(key: Any) -> None:
    """Gamma for everything, and an activation that gamma is not for by a key that is less specific."""
    net, x = filled(Around(Composite(), positional)), fixed(3, 4)
    chosen: dict[Any, Any] = {Composite: rules.PassThroughRule()}
    if key == "module.rule":
        net.act.rule = rules.GammaRule(0.5)
    else:
        chosen[net.act if key == "instance" else key] = rules.GammaRule(0.5)
    table = InputCAV(net, rules=chosen).explain_rules(x)
    assert [(row.rule, row.why) for row in table if row.module == "act"] == [("PassThroughRule()", "type Composite")]


def test_a_more_specific_rule_for_all_that_is_inside_goes_before_one_for_the_module_as_one() -> None:
    """A rule for every operation governs those inside, so nothing of the module is left to be ruled as one."""
    net, x = filled(Around(nn.GELU(), positional)), fixed(3, 4)
    one = {nn.GELU: rules.PassThroughRule()}
    gradient = InputCAV(net, rules={"act": rules.GradientRule()}, normalize=None).attribute(x, 1)
    passed_on = InputCAV(net, rules=one, normalize=None).attribute(x, 1)
    assert largest(gradient - passed_on) > 1e-3 * largest(passed_on)
    both = {**one, "act": rules.GradientRule()}
    assert torch.equal(InputCAV(net, rules=both, normalize=None).attribute(x, 1), gradient)
    outer = {**one, "": rules.GradientRule()}  # of a module around it: the call itself has a rule of its own
    assert [row.rule for row in InputCAV(net, rules=outer).explain_rules(x)] == [
        "GradientRule()",
        "PassThroughRule()",
        "GradientRule()",
    ]


@pytest.mark.parametrize("of_input", [False, True])
def test_a_layer_inside_a_module_that_is_ruled_as_one_is_refused(of_input: bool) -> None:
    net, x = filled(Around(Inner(), positional)), fixed(3, 4)
    for layer in ("act.linear", ["first", "act.linear"]):
        with left_as_it_was(net, x), pytest.raises(CAVError):
            LayerCAV(net, layer, rules={Inner: rules.PassThroughRule()}).attribute(
                x, 1, attribute_to_layer_input=of_input
            )
    assert LayerCAV(net, "act.linear", rules={Composite: rules.PassThroughRule()}).attribute(x, 1).abs().sum() > 0


class Pair(nn.Module):
    """Linear, in two parts, one of them in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = self.linear(x)
        return y[:, :2], {"rest": y[:, 2:]}


def test_a_module_that_returns_several_tensors_is_ruled_as_one() -> None:
    def joined(act: nn.Module, h: torch.Tensor) -> torch.Tensor:
        a, b = act(h)
        return torch.cat([torch.tanh(a), b["rest"][:, :3]], 1)

    net, x = filled(Around(Pair(), joined)), fixed(3, 4)
    expected, deltas = LayerCAV(net, ["first", "act"], normalize=None).attribute(x, 1, return_convergence_delta=True)
    cav = LayerCAV(net, ["first", "act"], rules={Pair: rules.linear}, normalize=None)
    found, its_deltas = cav.attribute(x, 1, return_convergence_delta=True)
    assert_near(found[0], expected[0])
    assert [part.shape for part in found[1]] == [(3, 2), (3, 4)]
    for one, other in zip(found[1], expected[1], strict=True):
        assert_near(one, other)
    for delta in (*deltas, *its_deltas):
        assert largest(delta) < 1e-12
    stopped = LayerCAV(net, "act", rules={Pair: rules.StopRule()}, normalize=None).attribute(x, 1)
    assert all(map(torch.equal, stopped, found[1]))  # what it gave is behind the stop
    with pytest.raises(ModelError, match="the score does not depend on layer 'first'"):
        LayerCAV(net, "first", rules={Pair: rules.StopRule()}).attribute(x, 1)
    with pytest.raises(CAVError, match=r"pass_through is for elementwise operations; 'Pair' made a tuple of \(3, 5\)"):
        InputCAV(net, rules={Pair: rules.PassThroughRule()}).attribute(x, 1)


def test_a_rule_of_ones_own_sees_a_modules_call() -> None:
    seen = []

    class Gated(nn.Module):
        def forward(self, x: torch.Tensor, scale: float, *, shift: torch.Tensor) -> torch.Tensor:
            return x * scale + shift

    def mine(operation: rules.Operation) -> Any:
        seen.append((operation.name, operation.argument(1, "scale"), operation.argument(2, "shift").shape))
        assert operation.carries(operation.argument(0, "x"))
        assert not operation.depends_on_inputs(operation.argument(2, "shift"))
        output = operation.value()
        operation.add_constant(output, operation.argument(2, "shift"))
        return output

    net, x = filled(Around(Gated(), lambda act, h: act(h, 3.0, shift=torch.ones(5).double()))), fixed(3, 4)
    found, delta = InputCAV(net, rules={Gated: mine}).attribute(x, 1, return_convergence_delta=True)
    expected = InputCAV(net).attribute(x, 1)
    assert_near(found, expected)
    assert largest(delta) < 1e-12
    assert seen == [("Gated", 3.0, (5,))]


def test_what_bypasses_a_requested_layer_passes_a_module_as_one_as_a_constant() -> None:
    """The layer in the second branch; the first runs through a module that is ruled as one without carrying."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act, self.late, self.head = nn.Linear(4, 5), Composite(), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x)
            return self.head(self.act(h) + self.late(h))

    net, x = filled(Branches()), fixed(3, 4)
    found, delta = LayerCAV(net, "late", rules={Composite: rules.PassThroughRule()}, normalize=None).attribute(
        x, 1, return_convergence_delta=True
    )
    with torch.no_grad():
        assert_near(found, net.late(net.stem(x)) * net.head.weight[1])
        torch.testing.assert_close(delta, (composite(net.stem(x)) * net.head.weight[1]).sum(1))


def test_a_function_for_functions_in_particular_rules_what_is_inside() -> None:
    @rules.rule(torch.tanh)
    def doubled(operation: rules.Operation) -> torch.Tensor:
        return _Multiplied.apply(operation.by_default(), 2)

    net = nested()
    assert factor(net, {net: doubled}) == 2
    assert factor(net, {torch.tanh: doubled, nn.Linear: doubled}) == 2


# Rules for anything --------------------------------------------------------------------------------------------------


def test_contributions_end_where_they_are_stopped() -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(2, 4)

    class Residual(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.net, self.inplace = net, inplace

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.net(x)
            if self.inplace:
                y = y.clone()
                y += 3 * x[:, :2]
                return y.tanh_()
            return torch.tanh(y + 3 * x[:, :2])

    for inplace in (False, True):
        model = Residual(inplace)
        cav = InputCAV(model, rules={net[2]: rules.StopRule()}, normalize=None)
        found, delta = cav.attribute(x, 1, return_convergence_delta=True)
        score = model(x)[:, 1].detach()
        before = (net(x)[:, 1] + 3 * x[:, 1]).detach()
        expected = torch.zeros_like(x)
        expected[:, 1] = score / before * 3 * x[:, 1]
        assert_near(found, expected)
        assert largest(delta) < 1e-12  # what it gave counts as a constant's
        at_the_end = InputCAV(model, rules={torch.tanh: rules.StopRule()}, normalize=None)
        if inplace:
            assert torch.equal(at_the_end.attribute(x, 1), torch.zeros_like(x))
            continue
        with pytest.raises(ModelError, match="the score does not depend on the inputs by anything that carries"):
            at_the_end.attribute(x, 1)


def test_the_gradient_rule_is_activation_times_gradient() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    for key in (nn.GELU, "act", F.gelu, net):
        assert_near(InputCAV(net, rules={key: rules.GradientRule()}, normalize=None).attribute(x, 1), x * gradient)
    assert largest(InputCAV(net, normalize=None).attribute(x, 1) - x * gradient) > 1e-3


RECURRENT = filled(nn.LSTM(4, 3))
COMPOSITES: dict[str, tuple[Any, Function]] = {
    "group norm": (F.group_norm, lambda x: F.group_norm(x, 2)),
    "attention": (F.scaled_dot_product_attention, lambda x: F.scaled_dot_product_attention(x, x, x)),
    "glu": (F.glu, lambda x: F.glu(x, -1)),
    "addmm": (torch.addmm, lambda x: torch.addmm(x[0], x[1], fixed(4, 4))),
    "addcmul": (torch.addcmul, lambda x: torch.addcmul(x, x, fixed(4))),
    "lerp": (torch.lerp, lambda x: torch.lerp(x, fixed(4), 0.25)),
    "lstm": (torch.lstm, lambda x: RECURRENT(x)[0]),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_rule_of_ones_own_may_go_on_from_the_default_of_an_operation_that_is_written_out(name: str) -> None:
    key, function = COMPOSITES[name]
    x = fixed(2, 4, 4)
    score = lambda x: function(x).sum().reshape(1)  # noqa: E731

    def doubled(operation: rules.Operation) -> Any:
        output = operation.by_default()
        parts = output if isinstance(output, tuple) else (output,)
        made = tuple(_Multiplied.apply(part, 2) for part in parts)
        return made if isinstance(output, tuple) else made[0]

    plain = InputCAV(score, normalize=None).attribute(x)
    assert_near(InputCAV(score, rules={key: doubled}, normalize=None).attribute(x), 2 * plain)


def test_the_rule_of_the_paper_on_a_layer_undoes_a_preset_there() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    undone = presets.gamma() | {"first": rules.ContributionRule(), "head": rules.ContributionRule()}
    default = InputCAV(net, normalize=None).attribute(x, 1)
    assert torch.equal(InputCAV(net, rules=undone, normalize=None).attribute(x, 1), default)
    half = presets.gamma() | {nn.Conv2d: rules.ContributionRule()}
    by_hand = InputCAV(net, rules={"head": rules.GammaRule()}, normalize=None).attribute(x, 1)
    assert torch.equal(InputCAV(net, rules=half, normalize=None).attribute(x, 1), by_hand)


# Errors --------------------------------------------------------------------------------------------------------------


@contextmanager
def refused(builtin: type[Exception], *texts: str) -> Iterator[None]:
    """Expect an error of the package that is of a builtin kind, too, and says all the texts."""
    with pytest.raises(CAVError) as caught:
        yield
    assert isinstance(caught.value, builtin)
    for text in texts:
        assert text in str(caught.value)


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
    with refused(ValueError, f"rules has the name pattern {pattern!r}, which matches no module", near):
        make(nested(), rules={pattern: GAMMA})


def test_a_pattern_needs_a_module_to_look_it_up_in() -> None:
    net = nested()
    said = ("rules has the name pattern 'block.*', but forward_func is not a module", "the module itself, its type or")
    with refused(ValueError, *said):
        InputCAV(lambda x: net(x), rules={"block.*": GAMMA})
    with refused(ValueError, *said):
        LayerCAV(lambda x: net(x), net.head, rules={"block.*": GAMMA})


@every_maker
def test_a_module_of_another_model_is_refused(make: Callable[..., Any]) -> None:
    with refused(ValueError, "rules names a module (Special) that does not belong to this model (Sequential)"):
        make(nested(), rules={nested().block.inner: GAMMA})


@every_maker
@pytest.mark.parametrize("key", [3, None, int, torch.Tensor, ("block", "head"), torch.ones(2)], ids=repr)
def test_a_key_of_no_kind_is_refused(make: Callable[..., Any], key: Any) -> None:
    said = (f"rules has the key {key!r} ({type(key).__name__})", 'pattern as "features.*"', "torch.nn.Linear")
    with refused(TypeError, *said, "or a torch function as torch.relu"):
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
def test_a_rule_of_no_kind_is_refused(make: Callable[..., Any], key: Any, value: Any, what: str) -> None:
    said = (
        f"the rule of {key!r} is {what}",
        "expected a rule as rules.GammaRule(0.25), a list of rules, or a function",
    )
    with refused(TypeError, *said):
        make(nested(), rules={key: value})


def test_a_captum_rule_of_the_users_own_is_refused() -> None:
    class Own(lrp_rules.EpsilonRule):
        pass

    said = "Own is a rule of Captum's LRP that captum_cav does not know; write it as a rules.Rule"
    with refused(TypeError, said):
        InputCAV(nested(), rules={nn.Linear: Own()})
    net = nested()
    net.head.rule = Own()
    with refused(TypeError, said), left_as_it_was(net):
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
    with refused(ValueError, f"is not for {name!r}; it is for ", example, "Use a rule that is, or a function of your"):
        make(nested(), rules={key: rule})


def test_a_list_for_a_function_needs_one_rule_that_is_for_it() -> None:
    """The others may be for what else the list is given for, as in a preset."""
    with refused(ValueError, "is not for 'relu'"):
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
    with refused(builtin, *texts):
        make(nested(), rules=given)


HALF = torch.tensor([0.0, 0.5])
PARAMETERS: dict[str, tuple[Callable[[], Any], str]] = {
    "epsilon": (lambda: rules.EpsilonRule(-1e-9), "epsilon is -1e-09; expected a finite number of at least 0"),
    "epsilon nan": (lambda: rules.EpsilonRule(float("nan")), "epsilon is nan"),
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
        'share is \'x\'; expected "gates", "halves", "first", "second" or "magnitude"',
    ),
    "addition": (lambda: rules.AdditionRule("x"), 'share is \'x\'; expected "signed" or "magnitude"'),
    "preset": (lambda: presets.gamma(-1.0), "gamma is -1.0"),
    "preset of box": (lambda: presets.epsilon_gamma_box(1, 0), "low is 1 and high 0"),
    "preset attnlrp": (lambda: presets.attnlrp(-1.0), "gamma is -1.0"),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_wrong_parameters_are_refused(name: str) -> None:
    make, text = PARAMETERS[name]
    with refused(ValueError, text):
        make()


def test_a_decorator_needs_torch_functions() -> None:
    with refused(TypeError, "rule() names no torch function; expected @rule("):
        rules.rule()
    with refused(TypeError, "<built-in function print> is not a torch function; give the rule for its module's type"):
        rules.rule(torch.relu, print)


# What was chosen -----------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """An operation for each kind of key, a gate, and one by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = Block()
        self.gate = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.act = Composite()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(F.gelu(self.first(x)))
        x = x * torch.sigmoid(self.gate(x))
        return self.head(self.act(self.norm(x)))


def everything() -> tuple[nn.Module, dict[Any, Any]]:
    net = filled(Everything())
    net.gate.rule = rules.FlatRule(bias="absorb")
    return net, {
        net.first: [rules.AtInput(rules.ZBoxRule(-9, 9)), rules.GammaRule()],
        "block.*": rules.EpsilonRule(0.5),
        nn.LayerNorm: rules.NormRule("identity"),
        F.gelu: rules.GradientRule(),
        Composite: rules.pass_through,
        F.linear: rules.ZPlusRule(),
        "block": Times(3, "tanh"),
    }


def test_every_choice_of_a_rule_is_explained() -> None:
    net, chosen = everything()
    expected = [
        ("first", "linear", "AtInput(rule=ZBoxRule(low=-9, high=9))", "this module", ""),
        ("Everything", "gelu", "GradientRule()", "function gelu", ""),
        ("block.inner", "linear", "EpsilonRule(epsilon=0.5)", "'block.*'", ""),
        ("block", "tanh", "Times()", "'block'", ""),
        ("gate", "linear", "FlatRule(bias='absorb')", "module.rule", ""),
        ("Everything", "sigmoid", "pass_through", "default", ""),
        ("Everything", "mul", "product", "default", "2 of 2"),
        ("norm", "layer_norm", "NormRule(statistic='identity')", "type LayerNorm", ""),
        ("act", "Composite as one", "pass_through", "type Composite", ""),
        ("head", "linear", "AlphaBetaRule(alpha=1.0, beta=0.0)", "function linear", ""),
    ]
    x = fixed(2, 4)
    with left_as_it_was(net, x):
        table = InputCAV(net, rules=chosen).explain_rules(x)
    assert isinstance(table, RuleTable)
    assert list(table) == expected
    assert table[0]._fields == ("module", "operation", "rule", "why", "constant")
    # Only what lies behind the requested layer.
    for layer, start in (("first", 1), ("block", 4), ("norm", 8), (["head", "act"], 9), ("head", 10)):
        assert list(LayerCAV(net, layer, rules=chosen).explain_rules(x)) == expected[start:]


def test_the_explanation_is_of_the_rules_that_attribute_uses() -> None:
    """With a factor of its own for each operation, the map says which were at work."""
    net = nested()
    chosen = {net.block.inner: Times(2), "block": Times(3), nn.Linear: Times(5), F.linear: Times(7)}
    rows = InputCAV(net, rules=chosen).explain_rules(fixed(2, 4))
    by_key = {"this module": 2, "'block'": 3, "type Linear": 5, "function linear": 7, "default": 1}
    product = 1
    for row in rows:
        product *= by_key[row.why]
    assert product == factor(net, chosen) == 2 * 3 * 5


def test_the_explanation_prints_as_a_table_with_aligned_columns() -> None:
    net, chosen = everything()
    table = InputCAV(net, rules=chosen).explain_rules(fixed(2, 4))
    assert str(table) == repr(table)
    head, *lines = str(table).splitlines()
    names = ["module", "operation", "rule", "because of", "constant"]
    starts = [head.index(name) for name in names]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert head.split("  ")[0] == "module"
    assert len(lines) == len(table) == 10
    ends = [*starts[1:], None]
    for line, row in zip(lines, table, strict=True):
        assert line == line.rstrip()
        line = line.ljust(starts[-1])
        cells = [line[start:end] for start, end in zip(starts, ends, strict=True)]
        assert [cell.strip() for cell in cells] == list(row)
        # Columns are apart, and no wider than they must be.
        assert all(cell.endswith("  ") for cell in cells[:-1])
    for column, (start, end) in enumerate(zip(starts, ends[:-1], strict=False)):
        assert end - start - 2 == max(len(cell) for cell in [names[column], *(row[column] for row in table)])


def test_an_explanation_of_nothing_is_a_head_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    table = LayerCAV(net, "0").explain_rules(torch.ones(1, 2))
    assert list(table) == []
    assert str(table).split() == ["module", "operation", "rule", "because", "of", "constant"]


def test_attention_is_explained_with_what_it_holds_constant() -> None:
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v).flatten(1)  # noqa: E731
    inputs = (fixed(1, 2, 3), fixed(1, 2, 3, seed=2), fixed(1, 2, 3, seed=3))
    rows = {row.operation: row for row in InputCAV(attend).explain_rules(inputs)}
    assert rows["scaled_dot_product_attention"].constant == "1 and 2 of 3"
    assert rows["scaled_dot_product_attention"].rule == "scaled_dot_product_attention, written out"
    assert rows["matmul"].why == "default"
    every = {F.scaled_dot_product_attention: rules.AttentionRule("all")}
    rows = {row.operation: row for row in InputCAV(attend, rules=every).explain_rules(inputs)}
    assert rows["scaled_dot_product_attention"] == (
        "",
        "scaled_dot_product_attention",
        "AttentionRule(carry='all')",
        "function scaled_dot_product_attention",
        "",
    )


def test_the_operations_of_a_plain_function_have_no_module_and_those_of_its_modules_have_their_type() -> None:
    net = nested()
    rows = InputCAV(lambda x: torch.relu(net(x)), rules={nn.Linear: LINEAR[2]}).explain_rules(fixed(2, 4))
    assert [(row.module, row.operation, row.why) for row in rows] == [
        ("Special", "linear", "type Linear"),
        ("Block", "tanh", "default"),
        ("Linear", "linear", "type Linear"),
        ("", "relu", "default"),
    ]
