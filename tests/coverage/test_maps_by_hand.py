"""Maps of architectures with gates, norms and attention, against the same modified gradient written by hand.

Conservation alone proves nothing: a map that shares with attention weights conserves too. Here each non-linear function
is replaced, in the test, by its linear stand-in in plain torch, and the map is input x gradient / score.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import SqueezeExcitation

from captum_cav import InputCAV
from tests.support.networks import OTHERS, heavy_are_slow, network, shape_of


def ratio_of(function: Any) -> Any:
    return lambda self, x: x * (function(x) / x).detach()


def layer_norm(x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> torch.Tensor:
    dims = tuple(range(-len(shape), 0))
    deviation = (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()
    return (x - x.mean(dims, keepdim=True)) / deviation * weight + bias


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1).detach() @ value


def lstm(self: nn.LSTM, x: torch.Tensor) -> tuple[torch.Tensor, None]:
    tanh = ratio_of(torch.tanh)
    for layer in range(self.num_layers):
        directions = []
        for suffix in ("", "_reverse"):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(self, f"{kind}_l{layer}{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = c = torch.zeros(x.shape[1], self.hidden_size, dtype=x.dtype)
            states = []
            for x_t in x.flip(0) if suffix else x:
                i, f, g, o = (x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
                c = f.sigmoid().detach() * c + i.sigmoid().detach() * tanh(None, g)
                h = o.sigmoid().detach() * tanh(None, c)
                states.append(h)
            directions.append(torch.stack(states[::-1] if suffix else states))
        x = torch.cat(directions, -1)
    return x, None


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax, gelu, silu, hardswish = F.softmax, F.gelu, F.silu, F.hardswish
    monkeypatch.setattr(F, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).detach())
    monkeypatch.setattr(F, "layer_norm", layer_norm)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(nn.GELU, "forward", ratio_of(gelu))
    monkeypatch.setattr(nn.SiLU, "forward", ratio_of(silu))
    monkeypatch.setattr(nn.Tanh, "forward", ratio_of(torch.tanh))
    monkeypatch.setattr(nn.Hardswish, "forward", ratio_of(hardswish))
    monkeypatch.setattr(nn.ReLU6, "forward", ratio_of(lambda x: x.clamp(0, 6)))
    monkeypatch.setattr(SqueezeExcitation, "forward", lambda self, x: self._scale(x).detach() * x)
    monkeypatch.setattr(nn.LSTM, "forward", lstm)


@pytest.fixture(params=heavy_are_slow(OTHERS))
def explained(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, int, torch.Tensor]:
    """A network in float64, an input, a target and captum_cav's map, made before anything is replaced."""
    net = copy.deepcopy(network(request.param)).double()
    x = torch.randn(1, *shape_of(request.param), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = int(net(x).argmax(1))
    return net, x, target, InputCAV(net).attribute(x, target)


def test_map_equals_the_modified_gradient(
    explained: tuple[nn.Module, torch.Tensor, int, torch.Tensor], by_hand: None
) -> None:
    net, x, target, ratios = explained
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation = lambda y: ratio_of(F.gelu)(None, y)
    x.requires_grad_()
    # Recording a graph keeps nn.TransformerEncoder off its fused path.
    score = net(x)[0, target]
    expected = (x * torch.autograd.grad(score, x)[0] / score).detach()
    assert (ratios - expected).norm() < 1e-9 * expected.norm()
