"""Operations that have no rule or cannot be seen: refused by name, with advice that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import (
    UnsupportedOperationError,
    UnsupportedOperationWarning,
)
from tests.support.errors import raising, refused
from tests.support.small_networks import Apply, net_around, samples, scripted_function

Function = Callable[[torch.Tensor], Any]


# Operations without a rule -------------------------------------------------------------------------------------------


UNKNOWN: dict[str, tuple[Function, str]] = {
    "torch.special.i0": (torch.special.i0, "special_i0"),
    "torch.i0": (torch.i0, "i0"),
    "Tensor.i0": (lambda x: x.i0(), "i0"),
    "Tensor.i0_": (lambda x: x.i0_(), "i0"),
    "aten.i0": (torch.ops.aten.i0.default, "i0"),
    "torch.special.i1e": (torch.special.i1e, "special_i1e"),
}


unknown = pytest.mark.parametrize(("function", "name"), list(UNKNOWN.values()), ids=list(UNKNOWN))


def rule_in(message: str) -> dict[Any, Any]:
    """The rules that an error's advice spells out, as a user would paste them."""
    found = re.search(r"rules=(\{.+?: rules\.\w+\})", message)
    assert found, message
    return eval(found[1], {"torch": torch, "rules": rules})  # noqa: S307


@unknown
def test_an_unknown_operation_is_refused_with_advice_that_works(function: Function, name: str) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    said = (
        f"{name!r} in module 'middle.1' (Apply) has no rule",
        "from captum_cav import rules",
        "rules.linear where y is linear in its input",
        "your own function of a rules.Operation",
        'on_unknown="gradient" goes on with its plain gradient',
    )
    with refused(NotImplementedError, *said, model=net):
        InputCAV(net).attribute(x, 0)
    with pytest.raises(NotImplementedError) as caught:
        LayerCAV(net, "first").attribute(x, 0)
    ratios, delta = LayerCAV(net, "first", rules=rule_in(str(caught.value))).attribute(
        x, 0, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-12
    # Equation 7: what a unit behind the operation contributes came from its own input.
    torch.testing.assert_close(ratios, LayerCAV(net, "middle").attribute(x, 0))


def test_the_rule_that_the_documentation_names_works_and_conserves() -> None:
    net, x = net_around(Apply(torch.special.i0)), samples().double()
    own = {torch.special.i0: rules.pass_through}
    for attribution in (LayerCAV(net, "first", rules=own), InputCAV(net, rules=own)):
        _, delta = attribution.attribute(x, 0, return_convergence_delta=True)
        assert delta.abs().max() < 1e-12
    _, delta = NeuronCAV(net, "last", rules=own).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


def test_an_unknown_linear_operation_can_be_declared_linear() -> None:
    def solved(x: torch.Tensor) -> torch.Tensor:
        root = torch.eye(x.shape[1], dtype=x.dtype) + torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril() / 4
        return torch.cholesky_solve(x.T, root).T

    net = net_around(Apply(solved))
    x = samples().double()
    with pytest.raises(NotImplementedError) as caught:
        LayerCAV(net, "first").attribute(x, 0)
    (function,) = rule_in(str(caught.value))
    _, delta = LayerCAV(net, "first", rules={function: rules.linear}).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


def test_an_unknown_operation_can_get_a_function_of_the_users_own() -> None:
    def own(operation: rules.Operation) -> Any:
        x = operation.args[0]
        return x * (operation.value() / x).detach()

    net, x = net_around(Apply(torch.special.i0)), samples().double()
    found = LayerCAV(net, "first", rules={torch.special.i0: own}).attribute(x, 0)
    torch.testing.assert_close(found, LayerCAV(net, "middle").attribute(x, 0))


def test_an_unknown_operation_outside_any_module_is_named_without_a_module() -> None:
    with refused(NotImplementedError, "'special_i0' has no rule", "torch.special.i0: rules.pass_through"):
        InputCAV(lambda x: torch.special.i0(x)).attribute(samples(), 0)


def test_an_unknown_operation_of_integers_needs_no_rule() -> None:
    net = net_around(Apply(lambda x: x * torch.bucketize(x, torch.zeros(1, dtype=x.dtype))))
    _, delta = LayerCAV(net, "first").attribute(samples().double(), 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


@unknown
def test_an_unknown_operation_uses_its_gradient_on_request(function: Function, name: str) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    said = re.escape(f"{name!r} in module 'middle.1' (Apply) has no rule; its plain gradient was passed on")
    with pytest.warns(UnsupportedOperationWarning, match=said):
        found = LayerCAV(net, "first", on_unknown="gradient").attribute(x, 0)
    hidden = net.first(x).detach().requires_grad_()
    scores = net.last(net.middle(hidden * 1))[:, 0]
    (gradient,) = torch.autograd.grad(scores.sum(), hidden)
    torch.testing.assert_close(found, hidden.detach() * gradient / scores.detach().unsqueeze(1))


# Operations that nobody sees -----------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """A function of the user's own that computes outside torch, as a kernel does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


UNSEEN: dict[str, tuple[Function, tuple[str, ...]]] = {
    "autograd.Function": (lambda x: Cube.apply(x), ("Cube, a custom autograd.Function", "cannot see")),
    "its apply, taken before": (Cube.apply, ("made by 'CubeBackward'", "apply was taken beforehand")),
    "scripted function": (scripted_function, ("a scripted function",)),
}


unseen = pytest.mark.parametrize(("function", "said"), list(UNSEEN.values()), ids=list(UNSEEN))


ADVICE = ("Write that step in torch operations", "detach the tensor")


@unseen
def test_an_unseen_operation_behind_a_layer_is_refused_by_name(function: Function, said: tuple[str, ...]) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    for _ in range(3):  # scripted functions are optimised from the second call on
        for attribution in (LayerCAV(net, "first"), LayerCAV(net, "middle.0"), InputCAV(net)):
            with refused(NotImplementedError, *said, *ADVICE, "in module 'middle.1' (Apply)", model=net):
                attribution.attribute(x, 0)


@unseen
def test_an_unseen_operation_that_ends_the_model_is_refused_by_name(function: Function, said: tuple[str, ...]) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), Apply(function)), samples()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(NotImplementedError, *said, *ADVICE, model=net):
            attribution.attribute(x, 0)


@unseen
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_an_unseen_operation_between_two_layers_is_refused_by_name(
    function: Function, said: tuple[str, ...], at_input: bool
) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    second = "last" if at_input else "middle"
    with refused(NotImplementedError, *said, *ADVICE, model=net):
        LayerCAV(net, ["first", second]).attribute(x, 0, attribute_to_layer_input=at_input)


@unseen
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_an_unseen_operation_before_a_neuron_is_refused_by_name(
    function: Function, said: tuple[str, ...], at_input: bool
) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    layer = "last" if at_input else "middle"
    with refused(NotImplementedError, *said, *ADVICE, model=net):
        NeuronCAV(net, layer).attribute(x, 0, attribute_to_neuron_input=at_input)


@unseen
def test_an_unseen_operation_before_the_layer_does_not_matter(function: Function, said: tuple[str, ...]) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    found, delta = LayerCAV(net, "last").attribute(x, 0, attribute_to_layer_input=True, return_convergence_delta=True)
    hidden = net.middle(net.first(x))
    torch.testing.assert_close(found, hidden.detach() * net.last.weight.detach()[0] / net(x).detach()[:, :1])
    assert delta.abs().max() < 1e-12


# Layers --------------------------------------------------------------------------------------------------------------


def test_an_operation_without_a_rule() -> None:
    net, x = net_around(nn.Identity(), Apply(torch.special.i0)), samples().double()
    said = (
        r"^'special_i0' in module 'middle\.1' \(Apply\) has no rule for how it passes contributions on\. Define one"
        r"[\s\S]*rules=\{torch\.special\.i0: rules\.pass_through\}[\s\S]*on_unknown=\"gradient\" goes on"
    )
    for attribution in (LayerCAV(net, "first"), InputCAV(net)):
        with raising(UnsupportedOperationError, NotImplementedError, said, net):
            attribution.attribute(x, 0)
