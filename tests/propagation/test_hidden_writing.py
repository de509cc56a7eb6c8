"""Modules and custom autograd functions that write into their arguments: what the model does with these afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, rules, verify
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same, largest


class Shifted(torch.autograd.Function):
    """``relu(x - max x)`` plus 1; it writes over ``x``, as a sparsemax does that saves memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x -= x.amax(-1, keepdim=True)
        return (x + 1).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Sparse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Shifted.apply(x)


class Softened(nn.Module):
    """Writes over its argument without an autograd function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2).tanh()


class SparsemaxFunction(torch.autograd.Function):
    """The projection onto the simplex; it writes over its argument."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x -= x.amax(-1, keepdim=True)
        ordered, _ = x.sort(-1, descending=True)
        sums, counts = ordered.cumsum(-1) - 1, torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        size = (counts * ordered > sums).sum(-1, keepdim=True)
        return (x - sums.gather(-1, size - 1) / size).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Sparsemax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SparsemaxFunction.apply(x)


class Net(nn.Module):
    """A linear layer, a module that writes into its argument, and what the model makes of both."""

    def __init__(self, middle: nn.Module, use: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.head, self.use = nn.Linear(4, 4), middle, nn.Linear(4, 3), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.use(self.middle, self.first(x)))


ONCE: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "alone": lambda middle, h: middle(h),
    "of a product": lambda middle, h: middle(1.5 * h),
    "of a view": lambda middle, h: middle(h.view(-1, 4)),
    "of one of several views": lambda middle, h: middle(h.repeat(1, 2).chunk(2, 1)[0]),
    "behind relu": lambda middle, h: middle(torch.relu(h)),
}


@pytest.mark.parametrize("middle", [Sparse, Softened, Sparsemax])
@pytest.mark.parametrize("use", ONCE)
def test_a_module_that_is_ruled_as_one_writes_into_a_copy(use: str, middle: type[nn.Module]) -> None:
    net, x = filled(Net(middle(), ONCE[use])), fixed(3, 4)
    seen: list[torch.Tensor] = []
    hook = net.middle.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        expected = net(x)
        after = net.middle(seen[0].clone())
    hook.remove()
    for rule in (rules.PassThroughRule(), rules.pass_through):
        cav = LayerCAV(net, "middle", rules={middle: rule}, normalize=None)
        found, delta = cav.attribute(x, 1, attribute_to_layer_input=True, return_convergence_delta=True)
        # Equation 7: what comes out of the module goes to its own input.
        assert_same(found, torch.where(seen[0].abs() < 1e-12, 0.0, after * net.head.weight[1]), 1e-9)
        assert largest(delta) < 1e-9 or use == "behind relu"  # A ReLU gives zeros, whose outputs are constants.
        assert verify(net, x, 1, rules={middle: rule}).value == 0
    with torch.no_grad():
        assert_same(net(x), expected)
    with cav_error(RuntimeError, "the score does not depend on the inputs"):
        InputCAV(net, rules={middle: rules.StopRule()}).attribute(x, 1)


def test_a_stopped_module_may_do_what_cannot_be_followed() -> None:
    """The value of the branch counts as a constant."""
    net, x = filled(Net(Sparse(), lambda middle, h: middle(1.0 * h) + h)), fixed(3, 4)
    found, delta = LayerCAV(net, "first", rules={"middle": rules.StopRule()}, normalize=None).attribute(
        x, 1, return_convergence_delta=True
    )
    with torch.no_grad():
        assert_same(found, net.first(x) * net.head.weight[1])
    assert largest(delta) < 1e-12


AGAIN: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "in a sum": lambda middle, h: middle(h) + h,
    "by its base": lambda middle, h: middle(h.view(-1, 4)) + h,
    "as the output": lambda middle, h: middle(h) * 0 + nn.Identity()(h),
    "in place": lambda middle, h: h.add_(middle(h)),
}


@pytest.mark.parametrize("middle", [Sparse, Softened, Sparsemax])
@pytest.mark.parametrize("use", AGAIN)
def test_an_argument_that_was_written_into_unseen_must_not_be_used_again(use: str, middle: type[nn.Module]) -> None:
    net, x = filled(Net(middle(), AGAIN[use])), fixed(3, 4)
    for rule in (rules.PassThroughRule(), rules.StopRule(), rules.pass_through):
        with cav_error(NotImplementedError, "'middle'", "writes into a tensor of shape (3, 4)", "x = x - y"):
            InputCAV(net, rules={middle: rule}).attribute(x, 1)
    # Without such a rule all of it is seen.
    assert verify(net, x, 1).ok


@pytest.mark.parametrize("use", AGAIN)
def test_a_tap_counts_as_use(use: str) -> None:
    class Returned(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            self.middle(h)
            return h

    net = filled(Returned(Sparse(), AGAIN[use]))
    with cav_error(NotImplementedError, "writes into a tensor"):
        InputCAV(net, rules={Sparse: rules.PassThroughRule()}).attribute(fixed(3, 4), 1)


@pytest.mark.parametrize("rule", [rules.PassThroughRule(), rules.StopRule(), rules.pass_through], ids=str)
def test_a_constant_that_a_module_writes_into_gets_its_new_value(rule: Any) -> None:
    """Nobody follows constants, so the model goes on with what it would have without a rule."""

    def use(middle: nn.Module, h: torch.Tensor) -> torch.Tensor:
        constant = torch.arange(12.0, dtype=h.dtype).reshape(3, 4)
        return middle(constant) + constant * h

    net, x = filled(Net(Sparse(), use)), fixed(3, 4)
    expected = InputCAV(net).attribute(x, 1)
    assert_same(InputCAV(net, rules={Sparse: rule}).attribute(x, 1), expected)
    assert verify(net, x, 1, rules={Sparse: rule}).ok


def test_a_tensor_that_bypasses_the_layer_gets_its_new_value() -> None:
    class Branches(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = 1.0 * x
            return self.head(self.first(x) * self.middle(before) + before)

    net, x = filled(Branches(Sparse(), ONCE["alone"])), fixed(3, 4)
    expected = LayerCAV(net, "first").attribute(x, 1)
    assert_same(LayerCAV(net, "first", rules={Sparse: rules.PassThroughRule()}).attribute(x, 1), expected)


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("use", [use for use in ONCE if use != "behind relu"])
def test_a_function_that_writes_into_a_view_is_followed(use: str, of_input: bool) -> None:
    net, x = filled(Net(Sparse(), ONCE[use])), fixed(3, 4)
    layer = "middle" if of_input else "first"
    found, delta = LayerCAV(net, layer, normalize=None).attribute(
        x, 1, attribute_to_layer_input=of_input, return_convergence_delta=True
    )
    assert largest(delta) < 1e-12
    assert verify(net, x, 1).ok

    class OutOfPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x.amax(-1, keepdim=True) + 1).clamp(min=0)

    net.middle = OutOfPlace()
    assert_same(found, LayerCAV(net, layer, normalize=None).attribute(x, 1, attribute_to_layer_input=of_input))


def test_one_of_several_views_that_a_function_writes_into_must_not_be_used_again() -> None:
    def use(middle: nn.Module, h: torch.Tensor) -> torch.Tensor:
        part, _ = h.repeat(1, 2).chunk(2, 1)
        return middle(part) + part

    with cav_error(NotImplementedError, "Shifted in module 'middle' (Sparse) writes into a tensor", "x = x - y"):
        InputCAV(filled(Net(Sparse(), use))).attribute(fixed(3, 4), 1)


def test_a_function_that_returns_the_view_that_it_writes_into() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.mark_dirty(x)
            return x.mul_(0.5)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Halved.apply(x)

    net, x = filled(Net(Half(), lambda middle, h: middle(h.view(-1, 4)) + h)), fixed(3, 4)
    found = LayerCAV(net, "first", normalize=None).attribute(x, 1)
    assert_same(found, net.first(x).detach() * net.head.weight[1].detach())


def test_the_model_that_writes_over_what_its_gradient_needs_has_a_way_out() -> None:
    net, x = filled(Net(Sparse(), ONCE["behind relu"])), fixed(3, 4)
    with cav_error(RuntimeError, "writes over a tensor that its own gradient needs", "rules.PassThroughRule()"):
        InputCAV(net).attribute(x, 1)
    assert largest(InputCAV(net, rules={net.middle: rules.PassThroughRule()}).attribute(x, 1)) > 0
