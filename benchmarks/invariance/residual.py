"""Residual connections: sums of two branches in all their forms, and joins of branches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import SUM_OF_LAYERS, Function, Pair, family

_GROUP = "residual"
_WEIGHT, _BIAS = fixed(6, 6, seed=101), fixed(6, seed=102)
_HEAD, _HEAD_BIAS = fixed(3, 12, seed=103), fixed(3, seed=104)
_WEIGHTS = (
    "A product with a weight is a layer, whatever numbers the weight holds. If ones and zeros were told from other "
    "numbers, a map would jump when a weight changes a little."
)
_EYE = torch.eye(6, dtype=torch.float64)


def _branch(x: torch.Tensor) -> torch.Tensor:
    return F.linear(F.relu(F.linear(x, _WEIGHT, _BIAS)), _WEIGHT.T, _BIAS)


def _sum(add: Function) -> Function:
    return lambda x: add(x, _branch(x))


def _into(target: Function) -> Function:
    """A sum that is written into a tensor."""

    def written(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = target(x)
        torch.add(x, y, out=out)
        return out

    return written


def _increased(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x += y
    return x


def _index_added(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.index_add(1, torch.arange(4), y)


def _set(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = torch.empty_like(x)
    z[:] = x
    z[:, :2] += y[:, :2]
    z[:, 2:] = z[:, 2:] + y[:, 2:]
    return z


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from family(
        _GROUP,
        "x + f(x)",
        _sum(lambda x, y: x + y),
        {
            "f(x) + x": _sum(lambda x, y: y + x),
            "torch.add": _sum(torch.add),
            "alpha": _sum(lambda x, y: torch.add(x, y / 2, alpha=2)),
            "x - (-f(x))": _sum(lambda x, y: x - (-y)),
            "torch.sub": _sum(lambda x, y: torch.sub(x, -y)),
            "f(x).add_(x)": _sum(lambda x, y: y.add_(x)),
            "+=": lambda x: _increased(_branch(x), x),
            "x += f(x)": _sum(lambda x, y: _increased(x.clone(), y)),
            "x += f(x), on x itself": _sum(_increased),
            "out=": _sum(_into(torch.empty_like)),
            "stack, sum": _sum(lambda x, y: torch.stack([x, y]).sum(0)),
            "stack, 2 mean": _sum(lambda x, y: 2 * torch.stack([x, y]).mean(0)),
            "cat, linear": _sum(lambda x, y: torch.cat([x, y], -1) @ torch.cat([_EYE, _EYE])),
            "cat, reshape, sum": _sum(lambda x, y: torch.cat([x, y], -1).reshape(2, 4, 2, 6).sum(2)),
            "Python sum": _sum(lambda *branches: sum(branches[1:], start=branches[0])),
            "index_add": _sum(_index_added),
            "part by part": _sum(_set),
            "addcmul": _sum(lambda x, y: torch.addcmul(x, y, torch.ones((), dtype=x.dtype))),
            "lerp": _sum(lambda x, y: 2 * torch.lerp(x, y, 0.5)),
            "einsum": _sum(lambda x, y: torch.einsum("snld->nld", torch.stack([x, y]))),
            "f of a copy": lambda x: x + _branch(x.clone()),
            "copies": lambda x: x.clone() + _branch(x),
            "drop path": _sum(lambda x, y: x + y * torch.ones(2, 1, 1, dtype=x.dtype)),
            "scaled by 1": _sum(lambda x, y: x + 1.0 * y),
            "layer scale": _sum(lambda x, y: x + torch.ones(6, dtype=x.dtype) * y),
        },
        undecidable={"cat, linear": _WEIGHTS},
    )
    yield from family(
        _GROUP,
        "x + f(x), relu",
        lambda x: F.relu(x + F.linear(x, _WEIGHT, _BIAS)),
        {
            "in place": lambda x: F.relu(F.linear(x, _WEIGHT, _BIAS).add_(x), inplace=True),
            "clamp": lambda x: (x + F.linear(x, _WEIGHT, _BIAS)).clamp(min=0),
            "stack, sum": lambda x: F.relu(torch.stack([x, F.linear(x, _WEIGHT, _BIAS)]).sum(0)),
        },
    )
    yield from family(
        _GROUP,
        "linear of cat",
        lambda x: F.linear(torch.cat([x, _branch(x)], -1), _HEAD, _HEAD_BIAS),
        {
            "hstack": lambda x: F.linear(torch.cat([x.mT, _branch(x).mT], 1).mT, _HEAD, _HEAD_BIAS),
            "stack": lambda x: F.linear(torch.stack([x, _branch(x)], 2).flatten(2), _HEAD, _HEAD_BIAS),
            "preallocated": lambda x: F.linear(_preallocated(x), _HEAD, _HEAD_BIAS),
            "pad and add": lambda x: F.linear(F.pad(x, (0, 6)) + F.pad(_branch(x), (6, 0)), _HEAD, _HEAD_BIAS),
            "sum of two": lambda x: F.linear(x, _HEAD[:, :6], _HEAD_BIAS) + F.linear(_branch(x), _HEAD[:, 6:]),
        },
        undecidable={"sum of two": SUM_OF_LAYERS},
    )
    yield from family(
        _GROUP,
        "(x + f(x)) / 2",
        lambda x: (x + _branch(x)) / 2,
        {
            "x / 2 + f(x) / 2": lambda x: x / 2 + _branch(x) / 2,
            "mean of stack": lambda x: torch.stack([x, _branch(x)]).mean(0),
            "lerp": lambda x: torch.lerp(x, _branch(x), 0.5),
            "x + (f(x) - x) / 2": lambda x: x + (_branch(x) - x) / 2,
        },
    )
    yield from family(
        _GROUP,
        "x",
        lambda x: x * 1.0,
        {
            "clone": lambda x: x.clone(),
            "nothing": lambda x: x,
            "x + 0": lambda x: x + 0,
            "x - y + y": lambda x: x - _BIAS + _BIAS,
            "identity matrix": lambda x: x @ _EYE,
            "reshape": lambda x: x.reshape(-1).reshape(2, 4, 6),
            "transposed twice": lambda x: x.mT.contiguous().mT,
            "sorted and back": lambda x: x.sort(-1)[0].gather(-1, x.argsort(-1).argsort(-1)),
            "relu(x) - relu(-x)": lambda x: F.relu(x) - F.relu(-x),
            "cat of parts": lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
            "unbind, stack": lambda x: torch.stack(x.unbind(1), 1),
            "flip twice": lambda x: x.flip(1).flip(1),
            "masked parts": lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 0, 0.0, x),
            "x ** 1": lambda x: x**1,
            "log of exp": lambda x: torch.log(torch.exp(x)),
            "sign * abs": lambda x: torch.sign(x) * x.abs(),
            "fft and back": lambda x: torch.fft.irfft(torch.fft.rfft(x), 6),
        },
        undecidable={"identity matrix": _WEIGHTS},
    )


def _preallocated(x: torch.Tensor) -> torch.Tensor:
    both = torch.zeros(2, 4, 12, dtype=x.dtype)
    both[..., :6] = x
    both[..., 6:] = _branch(x)
    return both
