"""Contributions with a graph: equal to those without, and differentiated as activation x gradient written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import UnsupportedOperationError
from tests.support.networks import fixed
from tests.support.traces import left_as_it_was

AGAIN = {"create_graph": True}


class Net(nn.Module):
    """The paper's layers, batch norm, a residual, an activation written over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.norm(self.first(x)))
        x = F.max_pool2d(x + F.leaky_relu(self.second(x), 0.1), 2)
        return self.head(x.flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net().double().eval()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 1.5)
    return made


X = fixed(3, 2, 4, 4, seed=8)


def by_hand(net: Net, x: torch.Tensor, target: int) -> list[torch.Tensor]:
    """Ratios at the input, the first convolution and the second, as functions of all parameters and the input."""
    x = x if x.requires_grad else x.clone().requires_grad_()
    first = net.first(x)
    rectified = F.relu(net.norm(first))
    second = net.second(rectified)
    score = net.head(F.max_pool2d(rectified + F.leaky_relu(second, 0.1), 2).flatten(1))[:, target]
    gradients = torch.autograd.grad(score.sum(), (x, first, second), create_graph=True)
    return [v * g / score.reshape(-1, 1, 1, 1) for v, g in zip((x, first, second), gradients, strict=True)]


def loss(maps: list[torch.Tensor]) -> torch.Tensor:
    return sum((one * fixed(*one.shape, seed=9)).sum() + (one**2).sum() for one in maps)


def attributed(net: Net, x: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    layers = LayerCAV(net, ["first", "second"], **options).attribute(x, 1, grad_kwargs=AGAIN)
    return [InputCAV(net, **options).attribute(x, 1, grad_kwargs=AGAIN), *layers]


def test_the_maps_are_the_same_with_a_graph(net: Net) -> None:
    with left_as_it_was(net, X):
        found = attributed(net, X)
    plain = [InputCAV(net).attribute(X, 1), *LayerCAV(net, ["first", "second"]).attribute(X, 1)]
    for one, other in zip(found, plain, strict=True):
        assert one.requires_grad
        assert not other.requires_grad
        torch.testing.assert_close(one.detach(), other)


def test_a_loss_of_the_maps_has_the_gradients_written_by_hand(net: Net) -> None:
    parameters = dict(net.named_parameters())
    found = torch.autograd.grad(loss(attributed(net, X)), parameters.values(), allow_unused=True)
    expected = torch.autograd.grad(loss(by_hand(net, X, 1)), parameters.values(), allow_unused=True)
    for name, one, other in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)
        assert one is not None
        assert one.abs().max() > 0


def test_a_loss_of_the_maps_can_be_attributed_to_the_input(net: Net) -> None:
    x, again = X.clone().requires_grad_(), X.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(attributed(net, x)), x)
    (expected,) = torch.autograd.grad(loss(by_hand(net, again, 1)), again)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_network_learns_to_look_elsewhere(net: Net) -> None:
    """What the left half contributed before is gone after training against it, and the score still there."""

    def left_half() -> torch.Tensor:
        ratios = InputCAV(net).attribute(X, 1, grad_kwargs=AGAIN)
        return ratios[..., :2].abs().sum()

    before = float(left_half().detach())
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        (left_half() + (net(X)[:, 1] - 1).square().sum()).backward()
        optimiser.step()
    assert float(left_half().detach()) < 0.3 * before
    assert (net(X)[:, 1] - 1).abs().max() < 0.5


def test_frozen_parameters_stay_out(net: Net) -> None:
    net.requires_grad_(False)
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(attributed(net, x)), x)
    assert found.abs().max() > 0
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("normalize", ["score", "abs", None])
def test_the_scale_is_part_of_it(net: Net, normalize: Any) -> None:
    found = attributed(net, X, normalize=normalize)[1]
    score = net(X)[:, 1].reshape(-1, 1, 1, 1)
    factor = {"score": 1.0, "abs": score.sign(), None: score}[normalize]
    torch.testing.assert_close(found, by_hand(net, X, 1)[1] * factor)


def test_a_rule_that_is_no_derivative_is_refused_and_layers_behind_it_are_explained() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = fixed(2, 4)
    with (
        left_as_it_was(net, x),
        pytest.raises(
            UnsupportedOperationError, match=r"create_graph=True asks for .* 'gelu' in 1 passes contributions on"
        ),
    ):
        LayerCAV(net, "0").attribute(x, 1, grad_kwargs=AGAIN)
    found = LayerCAV(net, "2").attribute(x, 1, grad_kwargs=AGAIN)
    torch.testing.assert_close(found.detach(), LayerCAV(net, "2").attribute(x, 1))
    (gradient,) = torch.autograd.grad(found.square().sum(), net[0].weight)
    assert gradient.abs().max() > 0


def test_rules_that_are_no_derivatives_are_refused(net: Net) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"passes contributions on by GammaRule"):
        LayerCAV(net, "first", rules="gamma").attribute(X, 1, grad_kwargs=AGAIN)


# What changes gradients, but no contributions -------------------------------------------------------------------------


def doubled(*gradients: Any) -> tuple[Any, ...]:
    """A hook of a node or of a module: twice the first gradients that the hook gets."""
    return tuple(None if one is None else one * 2 for one in gradients[0])


class Acting(nn.Module):
    """Looks at its output, whose node in the graph the function may change."""

    def __init__(self, act: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        if y.requires_grad:
            self.act(y)
        return y


class Steep(torch.autograd.Function):
    """A ReLU whose backward pass is not the derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 100 * gradients[0]


class SteepModule(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Steep.apply(x)


class Anchored(nn.Module):
    """Uses numbers that a prediction made, in a buffer and in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode():
            self.register_buffer("scale", torch.ones(5).double())
            self.shift = torch.zeros(5).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() * self.scale + self.shift


def reached(y: torch.Tensor) -> Any:
    return y.grad_fn.next_functions[0][0]


def on_module(hook: Callable[[nn.Module], Any]) -> nn.Module:
    module = nn.ReLU()
    hook(module)
    return module


CHANGES_GRADIENTS: dict[str, Callable[[], nn.Module]] = {
    "tensor": lambda: Acting(lambda y: y.register_hook(lambda gradient: gradient * 2)),
    "node": lambda: Acting(lambda y: y.grad_fn.register_hook(doubled)),
    "before a node": lambda: Acting(lambda y: y.grad_fn.register_prehook(doubled)),
    "another node": lambda: Acting(lambda y: reached(y).register_prehook(doubled)),
    "edge": lambda: Acting(lambda y: torch.autograd.graph.get_gradient_edge(y).node.register_prehook(doubled)),
    "module": lambda: on_module(lambda module: module.register_full_backward_hook(lambda _, *given: doubled(*given))),
    "before a module": lambda: on_module(
        lambda module: module.register_full_backward_pre_hook(lambda _, *given: doubled(*given))
    ),
    "hook of a node": lambda: on_module(
        lambda module: module.register_forward_hook(
            lambda _, args, y: (y.grad_fn.register_hook(doubled) if y.grad_fn else None, y)[1]
        )
    ),
    "custom function": SteepModule,
    "inference tensors": Anchored,
}


def around(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 3)).double().eval()


@pytest.mark.parametrize("kind", CHANGES_GRADIENTS)
def test_what_changes_gradients_changes_no_map_with_a_graph(kind: str) -> None:
    """The same for the gradients of a loss of the map."""
    x = fixed(2, 4)
    net, plain = around(CHANGES_GRADIENTS[kind]()), around(nn.ReLU())
    plain.load_state_dict(net.state_dict(), strict=False)
    for attribute in (
        lambda model: InputCAV(model).attribute(x, 1, grad_kwargs=AGAIN),
        lambda model: LayerCAV(model, "0").attribute(x, 1, grad_kwargs=AGAIN),
        lambda model: LayerCAV(model, "1").attribute(x, 1, attribute_to_layer_input=True, grad_kwargs=AGAIN),
    ):
        found, expected = attribute(net), attribute(plain)
        torch.testing.assert_close(found, expected)
        weights = [net[0].weight, net[2].weight], [plain[0].weight, plain[2].weight]
        again, wanted = (
            torch.autograd.grad(one.square().sum(), of, allow_unused=True)
            for one, of in zip((found, expected), weights, strict=True)
        )
        for one, other in zip(again, wanted, strict=True):
            assert (one is None) is (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)


def test_weights_that_a_custom_function_makes_are_trained_by_its_backward_pass() -> None:
    """A straight-through estimator: the weights do not carry contributions, so their gradients are the user's."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
            return (weight * 8).round() / 8

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0]

    class Quantized(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, Rounded.apply(self.weight), self.bias)

    torch.manual_seed(0)
    net, x = nn.Sequential(Quantized(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(), fixed(2, 4)
    found = InputCAV(net).attribute(x, 1, grad_kwargs=AGAIN)
    torch.testing.assert_close(found.detach(), InputCAV(net).attribute(x, 1))
    (gradient,) = torch.autograd.grad(found.square().sum(), net[0].weight)
    assert gradient.abs().max() > 0


def test_hooks_on_parameters_see_the_gradients_of_a_loss_of_the_map() -> None:
    net, seen = around(nn.ReLU()), []

    class Registering(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not seen:
                seen.append("registered")
                self.weight.register_hook(lambda gradient: seen.append("called"))
            return super().forward(x)

    net[0].__class__ = Registering
    InputCAV(net).attribute(fixed(2, 4), 1, grad_kwargs=AGAIN).square().sum().backward()
    assert seen == ["registered", "called"]
