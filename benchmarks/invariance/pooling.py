"""Pooling: windows, adaptive sizes and whole pictures; the greatest value, the mean and the sum."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import Function, Pair, family

_GROUP = "pooling"
_PICTURES = (2, 3, 4, 6)
_NO_ACTIVATION = (
    "The slopes of an activation are averaged. Choices, masks and sums are no activations: with other numbers the same "
    "operations pad, drop or join, and there each position has a share of its own."
)
_KERNEL, _MIXING, _SHIFT = fixed(4, 3, 3, 3, seed=71), fixed(4, 4, seed=72), fixed(4, seed=73)


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from _greatest()
    yield from _means()
    yield from _global_means()


def _windows(x: torch.Tensor) -> torch.Tensor:
    """The windows of 2 x 2, (N, channels, 4, positions)."""
    return F.unfold(x, 2, stride=2).reshape(2, 3, 4, -1)


def _greatest() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "max_pool2d",
        lambda x: F.max_pool2d(x, 2),
        {
            "amax of unfold": lambda x: _windows(x).amax(2).reshape(2, 3, 2, 3),
            "amax of reshape": lambda x: x.reshape(2, 3, 2, 2, 3, 2).amax((3, 5)),
            "max twice": lambda x: x.reshape(2, 3, 2, 2, 3, 2).max(5)[0].max(3)[0],
            "Tensor.unfold": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).amax(-1),
            "maximum of slices": lambda x: torch.maximum(
                torch.maximum(x[..., ::2, ::2], x[..., ::2, 1::2]),
                torch.maximum(x[..., 1::2, ::2], x[..., 1::2, 1::2]),
            ),
            "max_pool1d twice": lambda x: (
                F.max_pool1d(F.max_pool1d(x.flatten(0, 2), 2).reshape(6, 4, 3).transpose(1, 2).flatten(0, 1), 2)
                .reshape(2, 3, 3, 2)
                .transpose(2, 3)
            ),
            "max_pool3d": lambda x: F.max_pool3d(x[:, None], (1, 2, 2))[:, 0],
            "with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
            "adaptive": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
            "nn.MaxPool2d": nn.MaxPool2d(2),
            "topk": lambda x: _windows(x).topk(1, 2)[0][:, :, 0].reshape(2, 3, 2, 3),
            "gather of argmax": lambda x: (
                _windows(x).gather(2, _windows(x).argmax(2, keepdim=True)).reshape(2, 3, 2, 3)
            ),
            "sorted": lambda x: _windows(x).sort(2)[0][:, :, -1].reshape(2, 3, 2, 3),
            "-min of -x": lambda x: -(-_windows(x)).amin(2).reshape(2, 3, 2, 3),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "padded max_pool2d",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        {
            "pad of -inf": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2),
            "of rows, then columns": lambda x: F.max_pool2d(
                F.max_pool2d(x, (3, 1), (2, 1), (1, 0)), (1, 3), (1, 2), (0, 1)
            ),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "relu and max_pool2d",
        lambda x: F.max_pool2d(F.relu(x), 2),
        {
            "max_pool2d, relu": lambda x: F.relu(F.max_pool2d(x, 2)),
            "amax, clamp": lambda x: x.reshape(2, 3, 2, 2, 3, 2).amax((3, 5)).clamp(min=0),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "global max pooling",
        lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
        {
            "amax": lambda x: x.amax((2, 3)),
            "max of flatten": lambda x: x.flatten(2).max(-1)[0],
            "max_pool2d": lambda x: F.max_pool2d(x, x.shape[2:])[..., 0, 0],
            "max twice": lambda x: x.max(3)[0].max(2)[0],
        },
        shape=_PICTURES,
    )


def _means() -> Iterator[Pair]:
    weight = torch.full((3, 1, 2, 2), 0.25, dtype=torch.float64)
    yield from family(
        _GROUP,
        "avg_pool2d",
        lambda x: F.avg_pool2d(x, 2),
        {
            "mean of unfold": lambda x: _windows(x).mean(2).reshape(2, 3, 2, 3),
            "mean of reshape": lambda x: x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5)),
            "sum of slices / 4": lambda x: (
                (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
            ),
            "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
            "interpolate": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
            "nn.AvgPool2d": nn.AvgPool2d(2),
            "sum pooling / 4": lambda x: F.avg_pool2d(x, 2, divisor_override=1) / 4,
            "lp_pool2d of p = 1 / 4": lambda x: F.avg_pool2d(F.avg_pool2d(x, (2, 1)), (1, 2)),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "avg_pool2d against a convolution",
        lambda x: F.avg_pool2d(x, 2),
        {"by groups": lambda x: F.conv2d(x, weight, stride=2, groups=3)},
        shape=_PICTURES,
        presets=("paper",),
    )
    yield from family(
        _GROUP,
        "lp_pool2d",
        lambda x: F.lp_pool2d(x.abs(), 2, 2),
        {"root of the sum of squares": lambda x: (F.avg_pool2d(x.abs() ** 2, 2) * 4).sqrt()},
        shape=_PICTURES,
    )


def _global_means() -> Iterator[Pair]:
    ways: dict[str, Function] = {
        "mean": lambda x: x.mean((2, 3)),
        "mean with keepdim": lambda x: x.mean(dim=[-2, -1], keepdim=True).flatten(1),
        "mean twice": lambda x: x.mean(3).mean(2),
        "mean of flatten": lambda x: x.flatten(2).mean(-1),
        "mean of view": lambda x: x.reshape(2, x.shape[1], -1).mean(2),
        "avg_pool2d": lambda x: F.avg_pool2d(x, x.shape[2:])[..., 0, 0],
        "sum / n": lambda x: x.sum((2, 3)) / 24,
        "sum * (1 / n)": lambda x: x.sum((2, 3)) * (1 / 24),
        "einsum": lambda x: torch.einsum("nchw->nc", x) / 24,
        "nn.AdaptiveAvgPool2d": lambda x: nn.AdaptiveAvgPool2d((1, 1))(x).squeeze(-1).squeeze(-1),
        "torch.mean": lambda x: torch.mean(x, (2, 3)),
        "mean of channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
        "clone": lambda x: x.clone().mean((2, 3)),
        "contiguous": lambda x: x.contiguous().mean((2, 3)),
        "dropout": lambda x: F.dropout(x, training=False).mean((2, 3)),
    }

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    yield from family(_GROUP, "global average pooling", pooled, ways, shape=_PICTURES)

    def behind(before: Function) -> Function:
        return lambda x: pooled(before(F.conv2d(x, _KERNEL, padding=1)))

    def after_relu(pooling: Function) -> Function:
        return lambda x: pooling(F.relu(F.conv2d(x, _KERNEL, padding=1)))

    yield from family(
        _GROUP,
        "relu and global average pooling",
        behind(F.relu),
        {
            **{name: after_relu(way) for name, way in ways.items()},
            "clamp": behind(lambda x: x.clamp(min=0)),
            "clamp_min": behind(lambda x: x.clamp_min(0)),
            "maximum": behind(lambda x: torch.maximum(x, torch.zeros_like(x))),
            "where": behind(lambda x: torch.where(x > 0, x, 0.0)),
            "x * (x > 0)": behind(lambda x: x * (x > 0)),
            "in place": behind(lambda x: F.relu(x, inplace=True)),
            "threshold": behind(lambda x: F.threshold(x, 0.0, 0.0)),
            "hardtanh": behind(lambda x: F.hardtanh(x, 0.0, torch.inf)),
            "(x + |x|) / 2": behind(lambda x: (x + x.abs()) / 2),
        },
        undecidable=dict.fromkeys(("maximum", "where", "x * (x > 0)", "(x + |x|) / 2"), _NO_ACTIVATION),
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "silu and global average pooling",
        behind(F.silu),
        {
            "x * sigmoid": behind(lambda x: x * torch.sigmoid(x)),
            "x / (1 + exp(-x))": behind(lambda x: x / (1 + torch.exp(-x))),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "hardswish and global average pooling",
        behind(F.hardswish),
        {"x * relu6(x + 3) / 6": behind(lambda x: x * F.relu6(x + 3) / 6)},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "relu6 and global average pooling",
        behind(F.relu6),
        {"clamp": behind(lambda x: x.clamp(0, 6)), "hardtanh": behind(lambda x: F.hardtanh(x, 0.0, 6.0))},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "silu, gelu and global average pooling",
        behind(lambda x: F.gelu(F.silu(x))),
        {"gelu by hand": behind(lambda x: _gelu(F.silu(x))), "both by hand": behind(lambda x: _gelu(x * x.sigmoid()))},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "relu, hardswish and global average pooling",
        behind(lambda x: F.hardswish(F.relu(x))),
        {
            "x * relu6(x + 3) / 6": behind(lambda x: _hard_swish(F.relu(x))),
            "clamp": behind(lambda x: _hard_swish(x.clamp(min=0))),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "activation at the input and global average pooling",
        lambda x: pooled(F.hardswish(x)),
        {"x * relu6(x + 3) / 6": lambda x: pooled(_hard_swish(x))},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "activation, layer and global average pooling",
        behind(lambda x: F.linear(F.gelu(x).movedim(1, 3), _MIXING, _SHIFT).movedim(3, 1)),
        {
            "matmul": behind(lambda x: (F.gelu(x).movedim(1, 3) @ _MIXING.T + _SHIFT).movedim(3, 1)),
            "layer without bias, sum": behind(
                lambda x: (F.linear(F.gelu(x).movedim(1, 3), _MIXING) + _SHIFT).movedim(3, 1)
            ),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "activation, global average pooling, layer",
        lambda x: F.linear(pooled(F.gelu(F.conv2d(x, _KERNEL, padding=1))), _MIXING, _SHIFT),
        {"layer, pooling": behind(lambda x: F.linear(F.gelu(x).movedim(1, 3), _MIXING, _SHIFT).movedim(3, 1))},
        presets=("paper", "pinpoint"),
        shape=_PICTURES,
    )


def _hard_swish(x: torch.Tensor) -> torch.Tensor:
    return x * F.relu6(x + 3) / 6


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
