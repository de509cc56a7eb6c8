"""Softmax: fused, and by exponentials and sums; as an activation, as a gate and as attention weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import DIVIDED_LATER, Function, Pair, family

_GROUP = "softmax"
_QUERY, _KEY, _VALUE = (fixed(6, 6, seed=seed) for seed in (41, 42, 43))
_GATES = fixed(4, 6, seed=44)


def _largest(z: torch.Tensor) -> torch.Tensor:
    return z.amax(-1, keepdim=True)


def _over_sum(e: torch.Tensor) -> torch.Tensor:
    return e / e.sum(-1, keepdim=True)


#: Ways to write a softmax over the last dimension.
BY_HAND: dict[str, Function] = {
    "exp / sum": lambda z: _over_sum(torch.exp(z)),
    "exp / sum, maximum subtracted": lambda z: _over_sum(torch.exp(z - _largest(z))),
    "exp / sum, detached maximum": lambda z: _over_sum(torch.exp(z - _largest(z).detach())),
    "exp / sum, max with indices": lambda z: _over_sum(torch.exp(z - z.max(-1, keepdim=True)[0])),
    "exp * sum.reciprocal()": lambda z: torch.exp(z) * torch.exp(z).sum(-1, keepdim=True).reciprocal(),
    "exp * (1 / sum)": lambda z: torch.exp(z) * (1 / torch.exp(z).sum(-1, keepdim=True)),
    "normalize of p = 1": lambda z: F.normalize(torch.exp(z), p=1.0, dim=-1),
    "log_softmax, exp": lambda z: torch.log_softmax(z, -1).exp(),
    "exp(x - logsumexp)": lambda z: torch.exp(z - torch.logsumexp(z, -1, keepdim=True)),
    "exp(x - log of sum of exp)": lambda z: torch.exp(z - torch.log(torch.exp(z).sum(-1, keepdim=True))),
    "softmin of the negative": lambda z: F.softmin(-z, -1),
    "Tensor.softmax": lambda z: z.softmax(-1),
    "torch.special": lambda z: torch.special.softmax(z, -1),
    "F.softmax with dtype": lambda z: F.softmax(z, dim=-1, dtype=torch.float64),
    "shifted by a number": lambda z: torch.softmax(z + 3.0, -1),
    "shifted by the mean": lambda z: torch.softmax(z - z.mean(-1, keepdim=True), -1),
    "2 ** x": lambda z: _over_sum(2.0 ** (z * 1.4426950408889634)),
}


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from family(_GROUP, "softmax", lambda x: torch.softmax(x, -1), BY_HAND)
    yield from family(
        _GROUP,
        "softmax gate",
        lambda x: x * torch.softmax(x @ _KEY, -1),
        {name: _gate(way) for name, way in BY_HAND.items()},
    )
    yield from family(
        _GROUP,
        "softmax in attention",
        _attention(lambda z: torch.softmax(z, -1)),
        {name: _attention(way) for name, way in BY_HAND.items()},
    )
    yield from family(
        _GROUP,
        "attention pooling",
        lambda x: (torch.softmax(x @ _GATES[0], -1)[..., None] * x).sum(1),
        {
            "matmul": lambda x: (torch.softmax(x @ _GATES[0], -1)[:, None] @ x)[:, 0],
            "einsum": lambda x: torch.einsum("nc,ncd->nd", torch.softmax(x @ _GATES[0], -1), x),
            "exp / sum": lambda x: (_over_sum(torch.exp(x @ _GATES[0]))[..., None] * x).sum(1),
            "divided at the end": lambda x: (
                (torch.exp(x @ _GATES[0])[..., None] * x).sum(1) / torch.exp(x @ _GATES[0]).sum(-1, keepdim=True)
            ),
            "bmm": lambda x: torch.bmm(torch.softmax(x @ _GATES[0], -1)[:, None], x)[:, 0],
        },
        undecidable={"divided at the end": DIVIDED_LATER},
    )
    yield from family(
        _GROUP,
        "log_softmax",
        lambda x: F.log_softmax(x, -1),
        {
            "x - logsumexp": lambda x: x - torch.logsumexp(x, -1, keepdim=True),
            "log of softmax": lambda x: torch.log(torch.softmax(x, -1)),
            "x - log of sum of exp": lambda x: x - torch.log(torch.exp(x).sum(-1, keepdim=True)),
            "Tensor.log_softmax": lambda x: x.log_softmax(-1),
        },
    )
    yield from family(
        _GROUP,
        "logsumexp",
        lambda x: torch.logsumexp(x, -1),
        {
            "log of sum of exp": lambda x: torch.log(torch.exp(x).sum(-1)),
            "maximum subtracted": lambda x: x.amax(-1) + torch.log(torch.exp(x - _largest(x)).sum(-1)),
            "x - log_softmax": lambda x: (x - torch.log_softmax(x, -1))[..., 0],
        },
    )


def _gate(softmax: Function) -> Function:
    return lambda x: x * softmax(x @ _KEY)


def _attention(softmax: Function) -> Function:
    return lambda x: softmax((x @ _QUERY) @ (x @ _KEY).mT / 2) @ (x @ _VALUE)
