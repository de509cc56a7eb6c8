"""Squashed outputs: networks that end in a sigmoid, a softmax or another bounded function."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.invariance.activations import SOFTMAX_OF_TWO
from benchmarks.invariance.pair import Pair, family
from benchmarks.invariance.softmax import BY_HAND

_GROUP = "squashed outputs"


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from family(
        _GROUP,
        "softmax output",
        lambda z: torch.softmax(z, -1),
        {**BY_HAND, "nn.Softmax": nn.Softmax(-1)},
        is_last=True,
    )
    yield from family(
        _GROUP,
        "log_softmax output",
        lambda z: torch.log_softmax(z, -1),
        {
            "x - logsumexp": lambda z: z - torch.logsumexp(z, -1, keepdim=True),
            "log of softmax": lambda z: torch.log(torch.softmax(z, -1)),
            "x - log of sum of exp": lambda z: z - torch.log(torch.exp(z).sum(-1, keepdim=True)),
            "nn.LogSoftmax": nn.LogSoftmax(-1),
            "-cross_entropy": lambda z: (
                -torch.stack([F.cross_entropy(z, torch.full((2,), k), reduction="none") for k in range(3)], -1)
            ),
        },
        is_last=True,
    )
    yield from family(
        _GROUP,
        "sigmoid output",
        torch.sigmoid,
        {
            "1 / (1 + exp(-x))": lambda z: 1 / (1 + torch.exp(-z)),
            "exp(x) / (1 + exp(x))": lambda z: torch.exp(z) / (1 + torch.exp(z)),
            "(1 + tanh(x / 2)) / 2": lambda z: (1 + torch.tanh(z / 2)) / 2,
            "exp(logsigmoid)": lambda z: F.logsigmoid(z).exp(),
            "1 - sigmoid(-x)": lambda z: 1 - torch.sigmoid(-z),
            "reciprocal": lambda z: (1 + torch.exp(-z)).reciprocal(),
            "nn.Sigmoid": nn.Sigmoid(),
            "softmax of two": lambda z: torch.softmax(torch.stack([z, torch.zeros_like(z)]), 0)[0],
            "in place": torch.sigmoid_,
        },
        undecidable={"softmax of two": SOFTMAX_OF_TWO},
        is_last=True,
    )
    yield from family(
        _GROUP,
        "logsigmoid output",
        F.logsigmoid,
        {
            "log(sigmoid)": lambda z: torch.log(torch.sigmoid(z)),
            "-softplus(-x)": lambda z: -F.softplus(-z),
        },
        is_last=True,
    )
    yield from family(
        _GROUP,
        "tanh output",
        torch.tanh,
        {
            "2 sigmoid(2 x) - 1": lambda z: 2 * torch.sigmoid(2 * z) - 1,
            "quotient of exponentials": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
        },
        is_last=True,
    )
    yield from family(
        _GROUP,
        "scaled scores",
        lambda z: z / 2.0,
        {"* 0.5": lambda z: z * 0.5, "mean of two": lambda z: torch.stack([z, torch.zeros_like(z)]).mean(0)},
        is_last=True,
    )
