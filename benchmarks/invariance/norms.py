"""Norms: layer norm, RMS norm, group norm, instance norm, batch norm, and division by a norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import RULES, Function, Pair, family, made

_GROUP = "norms"
_EPSILON = 1e-5
_WEIGHT, _BIAS = fixed(6, seed=31), fixed(6, seed=32)
_CHANNEL_WEIGHT, _CHANNEL_BIAS = fixed(4, seed=33), fixed(4, seed=34)
_MEAN, _VARIANCE = fixed(4, seed=35), fixed(4, seed=36).square() + 0.2
_KERNEL, _KERNEL_BIAS = fixed(4, 4, 3, 3, seed=37), fixed(4, seed=38)
_MATRIX, _MATRIX_BIAS = fixed(4, 24, seed=39), fixed(4, seed=40)
_PICTURES = (2, 4, 5, 6)
_NO_LAYER = (
    "Behind no other layer, a product with a constant and a sum are also the end of a layer norm, or a change of "
    "units. Only the name of batch norm says that the rules of convolutions are for it."
)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(-1, keepdim=True)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - _mean(x)


def _variance(x: torch.Tensor) -> torch.Tensor:
    return x.var(-1, correction=0, keepdim=True)


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def _affine(standard: Function) -> Function:
    return lambda x: standard(x) * _WEIGHT + _BIAS


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from _layer_norms()
    yield from _rms_norms()
    yield from _carrying_statistics()
    yield from _directions()
    yield from _grouped()
    yield from _batch_norms()


#: Ways to divide the centred numbers by a deviation.
_STANDARDISED: dict[str, Function] = {
    "* rsqrt(var)": lambda x: _centred(x) * torch.rsqrt(_variance(x) + _EPSILON),
    "/ sqrt(var)": lambda x: _centred(x) / torch.sqrt(_variance(x) + _EPSILON),
    "/ sqrt(var) in place": lambda x: _centred(x).div_(torch.sqrt(_variance(x).add_(_EPSILON))),
    "* pow(-0.5)": lambda x: _centred(x) * (_variance(x) + _EPSILON).pow(-0.5),
    "* (...) ** -0.5": lambda x: _centred(x) * (_variance(x) + _EPSILON) ** -0.5,
    "/ (...) ** 0.5": lambda x: _centred(x) / (_variance(x) + _EPSILON) ** 0.5,
    "* (1 / sqrt)": lambda x: _centred(x) * (1 / (_variance(x) + _EPSILON).sqrt()),
    "* sqrt.reciprocal()": lambda x: _centred(x) * (_variance(x) + _EPSILON).sqrt().reciprocal(),
    "rsqrt * centred": lambda x: torch.rsqrt(_variance(x) + _EPSILON) * _centred(x),
    "* exp(-log / 2)": lambda x: _centred(x) * torch.exp(-0.5 * torch.log(_variance(x) + _EPSILON)),
    "x * rsqrt - mean * rsqrt": lambda x: (
        x * torch.rsqrt(_variance(x) + _EPSILON) - _mean(x) * torch.rsqrt(_variance(x) + _EPSILON)
    ),
    "/ sqrt of mean of squares of centred": lambda x: _centred(x) / (_mean_square(_centred(x)) + _EPSILON).sqrt(),
    "* rsqrt of mean of centred * centred": lambda x: (
        _centred(x) * torch.rsqrt((_centred(x) * _centred(x)).mean(-1, keepdim=True) + _EPSILON)
    ),
    "* rsqrt of sum of squares / n": lambda x: (
        _centred(x) * torch.rsqrt(_centred(x).square().sum(-1, keepdim=True) / x.shape[-1] + _EPSILON)
    ),
    "mean of squares minus square of mean": lambda x: (
        _centred(x) * torch.rsqrt(_mean_square(x) - _mean(x).square() + _EPSILON)
    ),
    "rms_norm of centred": lambda x: F.rms_norm(_centred(x), (6,), eps=_EPSILON),
    "einsum": lambda x: torch.einsum("ncd,nc->ncd", _centred(x), torch.rsqrt(_variance(x) + _EPSILON)[..., 0]),
    "mean and variance by sums": lambda x: (
        (x - x.sum(-1, keepdim=True) / 6)
        / ((x - x.sum(-1, keepdim=True) / 6).square().sum(-1, keepdim=True) / 6 + _EPSILON).sqrt()
    ),
    "detached statistics": lambda x: _centred(x) * torch.rsqrt(_variance(x.detach()) + _EPSILON),
}


def _by_var_mean(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + _EPSILON)


def _by_var_mean_by_dim(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x, dim=[2], unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + _EPSILON)


def _by_std_mean(x: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(deviation.square() + _EPSILON)


def _by_group(x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x.reshape(-1, 6), 1, eps=_EPSILON).reshape(x.shape)


def _by_instance(x: torch.Tensor) -> torch.Tensor:
    return F.instance_norm(x, eps=_EPSILON)


def _by_native(x: torch.Tensor) -> torch.Tensor:
    return torch.layer_norm(x, (6,), None, None, _EPSILON)


#: Why an exponential is not taken for a reciprocal.
_EXPONENTIAL = (
    "An exponential is a gate, which AttnLRP lets carry. That this one is a reciprocal follows from the logarithm and "
    "the factor inside, and so from their numbers."
)


def _layer_norms() -> Iterator[Pair]:
    ways: dict[str, Function] = {
        **_STANDARDISED,
        "var_mean": _by_var_mean,
        "var_mean with dim": _by_var_mean_by_dim,
        "std_mean": _by_std_mean,
        "group_norm of rows": _by_group,
        "instance_norm": _by_instance,
        "torch.layer_norm": _by_native,
        "nn.LayerNorm": made(lambda: nn.LayerNorm(6, _EPSILON, elementwise_affine=False)),
    }
    yield from family(
        _GROUP,
        "layer_norm",
        lambda x: F.layer_norm(x, (6,), eps=_EPSILON),
        ways,
        undecidable={"* exp(-log / 2)": _EXPONENTIAL},
    )
    yield from family(
        _GROUP,
        "layer_norm with weight and bias",
        lambda x: F.layer_norm(x, (6,), _WEIGHT, _BIAS, _EPSILON),
        {
            **{name: _affine(way) for name, way in ways.items() if name in ("* rsqrt(var)", "/ sqrt(var)", "var_mean")},
            "weight, bias behind": _affine(lambda x: F.layer_norm(x, (6,), eps=_EPSILON)),
            "weight * standardised + bias": lambda x: (
                _WEIGHT * ((x - _mean(x)) / torch.sqrt(_variance(x) + _EPSILON)) + _BIAS
            ),
            "addcmul": lambda x: torch.addcmul(_BIAS, _WEIGHT, _by_var_mean(x)),
            "weight in the scale": lambda x: _centred(x) * (torch.rsqrt(_variance(x) + _EPSILON) * _WEIGHT) + _BIAS,
            "weight before the division": lambda x: _WEIGHT * _centred(x) / torch.sqrt(_variance(x) + _EPSILON) + _BIAS,
            "scale and shift": lambda x: (
                x * (torch.rsqrt(_variance(x) + _EPSILON) * _WEIGHT)
                + (_BIAS - _mean(x) * torch.rsqrt(_variance(x) + _EPSILON) * _WEIGHT)
            ),
        },
    )
    yield from family(
        _GROUP,
        "layer_norm over two dimensions",
        lambda x: F.layer_norm(x, (4, 6), eps=_EPSILON),
        {
            "by hand": lambda x: (
                (x - x.mean((-2, -1), keepdim=True))
                / torch.sqrt(x.var((-2, -1), correction=0, keepdim=True) + _EPSILON)
            ),
            "of rows": lambda x: F.layer_norm(x.flatten(1), (24,), eps=_EPSILON).reshape(x.shape),
            "group_norm": lambda x: F.group_norm(x, 1, eps=_EPSILON),
        },
    )
    yield from family(
        _GROUP,
        "annotated layer norm",
        lambda x: _WEIGHT * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + _BIAS,
        {
            "* reciprocal": lambda x: _WEIGHT * (_centred(x) * (x.std(-1, keepdim=True) + 1e-6).reciprocal()) + _BIAS,
            "sqrt of var": lambda x: _WEIGHT * (_centred(x) / (x.var(-1, keepdim=True).sqrt() + 1e-6)) + _BIAS,
        },
    )


def _rms_norms() -> Iterator[Pair]:
    ways: dict[str, Function] = {
        "* rsqrt(mean(x ** 2))": lambda x: x * torch.rsqrt(_mean_square(x) + _EPSILON),
        "rsqrt * x": lambda x: torch.rsqrt(_mean_square(x) + _EPSILON) * x,
        "mean(x * x)": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + _EPSILON),
        "mean of square": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPSILON),
        "x ** 2": lambda x: x * torch.rsqrt((x**2).mean(-1, keepdim=True) + _EPSILON),
        "sum of squares / n": lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) / 6 + _EPSILON),
        "/ sqrt": lambda x: x / torch.sqrt(_mean_square(x) + _EPSILON),
        "* pow(-0.5)": lambda x: x * (_mean_square(x) + _EPSILON).pow(-0.5),
        "* (...) ** -0.5": lambda x: x * (_mean_square(x) + _EPSILON) ** -0.5,
        "/ (...) ** 0.5": lambda x: x / (_mean_square(x) + _EPSILON) ** 0.5,
        "* (1 / sqrt)": lambda x: x * (1.0 / torch.sqrt(_mean_square(x) + _EPSILON)),
        "* sqrt.reciprocal()": lambda x: x * torch.sqrt(_mean_square(x) + _EPSILON).reciprocal(),
        "einsum": lambda x: x * torch.rsqrt(torch.einsum("ncd,ncd->nc", x, x)[..., None] / 6 + _EPSILON),
        "matmul": lambda x: x * torch.rsqrt(x[..., None, :] @ x[..., :, None] / 6 + _EPSILON)[..., 0],
        "square of the vector norm": lambda x: x / torch.sqrt(x.norm(dim=-1, keepdim=True) ** 2 / 6 + _EPSILON),
        "through float": lambda x: (x.double() * torch.rsqrt(_mean_square(x.double()) + _EPSILON)).type_as(x),
        "nn.RMSNorm": made(lambda: nn.RMSNorm(6, _EPSILON, elementwise_affine=False)),
    }
    yield from family(_GROUP, "rms_norm", lambda x: F.rms_norm(x, (6,), eps=_EPSILON), ways)
    yield from family(
        _GROUP,
        "rms_norm with weight",
        lambda x: F.rms_norm(x, (6,), _WEIGHT, _EPSILON),
        {
            "weight * by hand": lambda x: _WEIGHT * (x * torch.rsqrt(_mean_square(x) + _EPSILON)),
            "by hand * weight": lambda x: x / torch.sqrt(_mean_square(x) + _EPSILON) * _WEIGHT,
            "weight in the scale": lambda x: x * (torch.rsqrt(_mean_square(x) + _EPSILON) * _WEIGHT),
            "weight * x first": lambda x: _WEIGHT * x * torch.rsqrt(_mean_square(x) + _EPSILON),
            "1 + weight": lambda x: x * torch.rsqrt(_mean_square(x) + _EPSILON) * (1 + (_WEIGHT - 1)),
        },
    )
    tiny = torch.finfo(torch.float64).tiny
    yield from family(
        _GROUP,
        "rms_norm without epsilon",
        lambda x: F.rms_norm(x, (6,), eps=tiny),
        {
            "x / norm": lambda x: x / (x.norm(dim=-1, keepdim=True) * 6**-0.5),
            "x * norm.reciprocal()": lambda x: x * x.norm(dim=-1, keepdim=True).reciprocal() * math.sqrt(6),
            "x * norm ** -1": lambda x: math.sqrt(6) * x * x.norm(dim=-1, keepdim=True) ** -1,
            "normalize": lambda x: F.normalize(x, dim=-1) * math.sqrt(6),
            "x * rsqrt of sum of squares": lambda x: x * x.square().sum(-1, keepdim=True).rsqrt() * math.sqrt(6),
        },
    )


def _carrying_statistics() -> Iterator[Pair]:
    """Statistics that carry contributions, as where a model undoes a norm at its end."""
    yield from family(
        _GROUP,
        "x * deviation",
        lambda x: x * torch.sqrt(_variance(x) + 0.5),
        {
            "** 0.5": lambda x: x * (0.5 + _variance(x)) ** 0.5,
            "mean of squares of centred": lambda x: x * torch.sqrt(_mean_square(_centred(x)) + 0.5),
            "sum of squares / n": lambda x: x * torch.sqrt(_centred(x).square().sum(-1, keepdim=True) / 6 + 0.5),
            "scaled inside": lambda x: x * torch.sqrt(2 * _variance(x) + 1) * math.sqrt(0.5),
            "einsum": lambda x: (
                x * torch.sqrt(torch.einsum("ncd,ncd->nc", _centred(x), _centred(x))[..., None] / 6 + 0.5)
            ),
            "tensor as n": lambda x: (
                x * torch.sqrt(_centred(x).square().sum(-1, keepdim=True) / torch.full((1, 1), 6.0).double() + 0.5)
            ),
        },
    )
    yield from family(
        _GROUP,
        "x * size",
        lambda x: x * torch.sqrt(_mean_square(x) + 0.5),
        {
            "squares of |x|": lambda x: x * torch.sqrt((x.abs() ** 2).mean(-1, keepdim=True) + 0.5),
            "sqrt_": lambda x: x * (_mean_square(x) + 0.5).sqrt_(),
            "add_": lambda x: x * _mean_square(x).add_(0.5).sqrt(),
        },
    )


def _directions() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "normalize",
        lambda x: F.normalize(x, dim=-1),
        {
            "x / norm": lambda x: x / x.norm(dim=-1, keepdim=True),
            "x / clamped norm": lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12),
            "x / clamp(min) of norm": lambda x: x / x.norm(2, -1, True).clamp(min=1e-12).expand_as(x),
            "x / maximum of norm": lambda x: (
                x / torch.maximum(x.norm(dim=-1, keepdim=True), torch.tensor(1e-12, dtype=x.dtype))
            ),
            "x / vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
            "x * norm.reciprocal()": lambda x: x * x.norm(dim=-1, keepdim=True).reciprocal(),
            "x * (1 / norm)": lambda x: x * (1 / x.norm(dim=-1, keepdim=True)),
            "x * norm ** -1": lambda x: x * x.norm(dim=-1, keepdim=True) ** -1,
            "x / sqrt of sum of squares": lambda x: x / x.pow(2).sum(-1, keepdim=True).sqrt(),
            "x * rsqrt of sum of x * x": lambda x: x * (x * x).sum(-1, keepdim=True).rsqrt(),
            "x / (...) ** 0.5": lambda x: x / (x**2).sum(-1, keepdim=True) ** 0.5,
            "in place": lambda x: x.div_(x.norm(dim=-1, keepdim=True)),
            "einsum": lambda x: torch.einsum("ncd,nc->ncd", x, 1 / x.norm(dim=-1)),
        },
    )
    yield from family(
        _GROUP,
        "normalize of p = 1",
        lambda x: F.normalize(x, p=1.0, dim=-1),
        {
            "x / sum of abs": lambda x: x / x.abs().sum(-1, keepdim=True),
            "x / norm of 1": lambda x: x / x.norm(1, -1, keepdim=True),
            "x * reciprocal": lambda x: x * x.abs().sum(-1, keepdim=True).reciprocal(),
        },
    )
    yield from family(
        _GROUP,
        "cosine_similarity",
        lambda x: F.cosine_similarity(x, x.flip(-1), -1),
        {
            "product of directions": lambda x: (F.normalize(x, dim=-1) * F.normalize(x.flip(-1), dim=-1)).sum(-1),
            "quotient": lambda x: (x * x.flip(-1)).sum(-1) / (x.norm(dim=-1) * x.flip(-1).norm(dim=-1)),
            "two quotients": lambda x: (x * x.flip(-1)).sum(-1) / x.norm(dim=-1) / x.flip(-1).norm(dim=-1),
        },
    )


def _grouped() -> Iterator[Pair]:
    def by_hand(x: torch.Tensor, groups: int) -> torch.Tensor:
        rows = x.reshape(len(x), groups, -1)
        rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + _EPSILON).sqrt()
        return rows.reshape(x.shape) * _CHANNEL_WEIGHT.reshape(-1, 1, 1) + _CHANNEL_BIAS.reshape(-1, 1, 1)

    def by_var_mean(x: torch.Tensor, groups: int) -> torch.Tensor:
        grouped = x.reshape(len(x), groups, 4 // groups, *x.shape[2:])
        variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        standard = ((grouped - mean) * torch.rsqrt(variance + _EPSILON)).reshape(x.shape)
        return standard * _CHANNEL_WEIGHT.reshape(-1, 1, 1) + _CHANNEL_BIAS.reshape(-1, 1, 1)

    def by_layer_norm(x: torch.Tensor, groups: int) -> torch.Tensor:
        rows = x.reshape(len(x), groups, -1)
        standard = F.layer_norm(rows, rows.shape[2:], eps=_EPSILON).reshape(x.shape)
        return standard * _CHANNEL_WEIGHT.reshape(-1, 1, 1) + _CHANNEL_BIAS.reshape(-1, 1, 1)

    yield from family(
        _GROUP,
        "group_norm",
        lambda x: F.group_norm(x, 2, _CHANNEL_WEIGHT, _CHANNEL_BIAS, _EPSILON),
        {
            "by hand": lambda x: by_hand(x, 2),
            "var_mean": lambda x: by_var_mean(x, 2),
            "layer_norm of groups": lambda x: by_layer_norm(x, 2),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "instance_norm",
        lambda x: F.instance_norm(x, weight=_CHANNEL_WEIGHT, bias=_CHANNEL_BIAS, eps=_EPSILON),
        {
            "group_norm": lambda x: F.group_norm(x, 4, _CHANNEL_WEIGHT, _CHANNEL_BIAS, _EPSILON),
            "by hand": lambda x: by_hand(x, 4),
            "var_mean": lambda x: by_var_mean(x, 4),
            "layer_norm of channels": lambda x: by_layer_norm(x, 4),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "layer norm of channels",
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), _CHANNEL_WEIGHT, _CHANNEL_BIAS, _EPSILON).permute(
            0, 3, 1, 2
        ),
        {
            "by hand": lambda x: (
                _CHANNEL_WEIGHT[:, None, None]
                * (
                    (x - x.mean(1, keepdim=True))
                    / torch.sqrt((x - x.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True) + _EPSILON)
                )
                + _CHANNEL_BIAS[:, None, None]
            ),
        },
        shape=_PICTURES,
    )


def _batch_norms() -> Iterator[Pair]:
    scale = _CHANNEL_WEIGHT * torch.rsqrt(_VARIANCE + _EPSILON)
    shift = _CHANNEL_BIAS - _MEAN * scale

    def fused(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, _MEAN, _VARIANCE, _CHANNEL_WEIGHT, _CHANNEL_BIAS, eps=_EPSILON)

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, 1, 1)

    def module() -> nn.Module:
        norm = nn.BatchNorm2d(4, _EPSILON)
        norm.running_mean, norm.running_var = _MEAN.clone(), _VARIANCE.clone()
        norm.weight.data, norm.bias.data = _CHANNEL_WEIGHT.clone(), _CHANNEL_BIAS.clone()
        return norm

    yield from family(
        _GROUP,
        "batch_norm",
        fused,
        {
            "scale and shift": lambda x: x * column(scale) + column(shift),
            "addcmul": lambda x: torch.addcmul(column(shift), x, column(scale)),
            "(x - mean) / sqrt(var) * weight + bias": lambda x: (
                (x - column(_MEAN)) / torch.sqrt(column(_VARIANCE) + _EPSILON) * column(_CHANNEL_WEIGHT)
                + column(_CHANNEL_BIAS)
            ),
            "convolution of width 1 by groups": lambda x: F.conv2d(x, scale.reshape(-1, 1, 1, 1), shift, groups=4),
            "nn.BatchNorm2d": made(module),
        },
        undecidable=dict.fromkeys(("scale and shift", "addcmul", "(x - mean) / sqrt(var) * weight + bias"), _NO_LAYER),
        shape=_PICTURES,
    )
    kernel = _KERNEL * scale.reshape(-1, 1, 1, 1)
    yield from family(
        _GROUP,
        "convolution and batch_norm",
        lambda x: fused(F.conv2d(x, _KERNEL, _KERNEL_BIAS, padding=1)),
        {
            "folded": lambda x: F.conv2d(x, kernel, _KERNEL_BIAS * scale + shift, padding=1),
            "scale and shift": lambda x: F.conv2d(x, _KERNEL, _KERNEL_BIAS, padding=1) * column(scale) + column(shift),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "linear and batch_norm",
        lambda x: fused(F.linear(x.flatten(1), _MATRIX, _MATRIX_BIAS)),
        {
            "folded": lambda x: F.linear(x.flatten(1), _MATRIX * scale[:, None], _MATRIX_BIAS * scale + shift),
            "scale and shift": lambda x: F.linear(x.flatten(1), _MATRIX, _MATRIX_BIAS) * scale + shift,
        },
        # In these presets batch norms have the rule of convolutions, and linear layers have another.
        presets=tuple(name for name in RULES if name not in ("pinpoint", "absolute_epsilon_flat")),
    )
