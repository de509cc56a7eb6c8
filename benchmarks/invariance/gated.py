"""Activations: gated linear units, and gates of a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import Function, Pair, family

_GROUP = "activations"
_WIDE, _BIAS = fixed(8, 6, seed=22), fixed(8, seed=23)


def pairs() -> Iterator[Pair]:
    """All pairs of this group that are no functions of single elements."""

    def two_layers(gate: Function) -> Function:
        return lambda x: F.linear(x, _WIDE[:4], _BIAS[:4]) * gate(F.linear(x, _WIDE[4:], _BIAS[4:]))

    def chunked(gate: Function) -> Function:
        def halves(x: torch.Tensor) -> torch.Tensor:
            a, b = F.linear(x, _WIDE, _BIAS).chunk(2, -1)
            return a * gate(b)

        return halves

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-x))

    yield from family(
        _GROUP,
        "glu",
        lambda x: F.glu(F.linear(x, _WIDE, _BIAS), -1),
        {
            "chunk": chunked(torch.sigmoid),
            "two layers": two_layers(torch.sigmoid),
            "chunk, sigmoid by hand": chunked(by_hand),
            "two layers, sigmoid by hand": two_layers(by_hand),
            "two layers, tanh": two_layers(lambda x: 0.5 * (1 + torch.tanh(0.5 * x))),
            "nn.GLU": lambda x: nn.GLU()(F.linear(x, _WIDE, _BIAS)),
        },
    )
    yield from family(
        _GROUP,
        "swiglu",
        two_layers(F.silu),
        {
            "chunk": chunked(F.silu),
            "x * sigmoid": two_layers(lambda x: x * torch.sigmoid(x)),
            "x / (1 + exp(-x))": two_layers(lambda x: x / (1 + torch.exp(-x))),
            "x * sigmoid by hand": two_layers(lambda x: x * by_hand(x)),
        },
    )
    yield from family(
        _GROUP,
        "geglu",
        two_layers(F.gelu),
        {
            "chunk": chunked(F.gelu),
            "gelu by hand": two_layers(lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        },
    )
    yield from family(
        _GROUP,
        "gate of one channel",
        lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
        {
            "sigmoid by hand": lambda x: x * by_hand(x.mean(-1, keepdim=True)),
            "quotient": lambda x: x / (1 + torch.exp(-x.mean(-1, keepdim=True))),
            "expanded": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)).expand_as(x),
            "tanh": lambda x: x * (0.5 + 0.5 * torch.tanh(0.5 * x.mean(-1, keepdim=True))),
            "reversed": lambda x: torch.sigmoid(x.mean(-1, keepdim=True)) * x,
            "mul": lambda x: torch.mul(torch.sigmoid(x.mean(-1, keepdim=True)), x),
            "einsum": lambda x: torch.einsum("ncd,nc->ncd", x, torch.sigmoid(x.mean(-1))),
        },
    )
    yield from family(
        _GROUP,
        "hard gate",
        lambda x: x * F.hardsigmoid(4 * x.mean(-1, keepdim=True)),
        {
            "relu6(x + 3) / 6": lambda x: x * F.relu6(4 * x.mean(-1, keepdim=True) + 3) / 6,
            "clamp": lambda x: x * (4 * x.mean(-1, keepdim=True) / 6 + 0.5).clamp(0, 1),
        },
    )
    yield from family(
        _GROUP,
        "mixture by a gate",
        lambda x: torch.sigmoid(x) * x.tanh() + (1 - torch.sigmoid(x)) * x,
        {
            "lerp": lambda x: torch.lerp(x, x.tanh(), torch.sigmoid(x)),
            "x + gate * (y - x)": lambda x: x + torch.sigmoid(x) * (x.tanh() - x),
            "y + (1 - gate) * (x - y)": lambda x: x.tanh() + (1 - torch.sigmoid(x)) * (x - x.tanh()),
            "sigmoid of the negative": lambda x: torch.sigmoid(x) * x.tanh() + torch.sigmoid(-x) * x,
        },
    )
