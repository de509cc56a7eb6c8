"""Rules for any operation: stop, gradient, the paper's rule, and rules that call the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, presets, rules
from captum_cav.errors import ModelError
from tests.support.networks import fixed
from tests.support.rules import _Multiplied, assert_near, conv_net, filled
from tests.support.tensors import largest

Function = Callable[[torch.Tensor], torch.Tensor]


def test_the_stop_rule_ends_contributions() -> None:
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
def test_a_users_rule_may_use_the_default_of_a_decomposed_operation(name: str) -> None:
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
