"""Modules that a rule treats as one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import CAVError, ModelError, UnsupportedOperationError
from tests.support.networks import fixed
from tests.support.rules import LINEAR, Composite, _Multiplied, _Softsign, assert_near, factor, filled, nested
from tests.support.tensors import largest
from tests.support.traces import left_as_it_was


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
def test_a_module_that_cannot_be_followed_is_refused_without_a_rule(act: type[nn.Module]) -> None:
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
        with left_as_it_was(net, x), pytest.raises(ModelError, match="pass that argument by position"):
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
    said = r"module 'act' \(Silent\) writes into a tensor of shape \(3, 5\), and the model uses the tensor afterwards"
    with left_as_it_was(net, x), pytest.raises(UnsupportedOperationError, match=said):
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
def test_the_first_rule_that_governs_a_module_as_one_operation_is_used(key: Any) -> None:
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


def test_a_users_rule_sees_a_modules_call() -> None:
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


def test_a_rule_for_certain_functions_governs_them_inside_a_module() -> None:
    @rules.rule(torch.tanh)
    def doubled(operation: rules.Operation) -> torch.Tensor:
        return _Multiplied.apply(operation.by_default(), 2)

    net = nested()
    assert factor(net, {net: doubled}) == 2
    assert factor(net, {torch.tanh: doubled, nn.Linear: doubled}) == 2
