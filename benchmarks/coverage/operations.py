"""A function for every kind of operation, and the same with its rule written out by hand in plain torch.

By hand means: what the rule holds constant is detached, an activation ``f(x)`` is ``x * (f(x) / x).detach()``, what is
linear, or chooses, is a matrix found by differences, and the map is input x gradient / score. All take a tensor of
shape (2, 4, 6) in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torchvision import ops

from captum_cav import InputCAV

Function = Callable[[torch.Tensor], torch.Tensor]
X = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def fixed(*shape: int, seed: int = 11) -> torch.Tensor:
    """The same numbers every time."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, B, W, C = fixed(4, 6), fixed(6, seed=12), fixed(6, 6, seed=13), fixed(2, 4, 6, seed=14)
PICTURE = fixed(4, 2, 3, 3, seed=15)
MASK = fixed(2, 4, 6, seed=16) > 0
SLOPE = torch.tensor([0.3], dtype=torch.float64)
FIRST, THIRD = torch.tensor([0]), torch.tensor([2])


def ratio(f: Function) -> Function:
    """Equation 7: the output over the input as a constant slope."""
    return lambda x: x * (f(x) / x).detach()


def degree(y: torch.Tensor, k: float) -> torch.Tensor:
    """A homogeneous function of degree ``k``: by Euler, its gradient over ``k`` conserves."""
    return y / k + (y - y / k).detach()


def by_differences(function: Function) -> Function:
    """What is linear around ``X``, as a matrix: central differences are exact there, and know no gradient."""

    def matrix_product(x: torch.Tensor) -> torch.Tensor:
        y, step = function(X.clone()), 2.0**-12
        units = torch.eye(X.numel(), dtype=X.dtype).reshape(-1, *X.shape) * step
        rows = torch.stack([function(X + unit) - function(X - unit) for unit in units]) / (2 * step)
        matrix = rows.reshape(X.numel(), -1)
        linear = (x.flatten() @ matrix).reshape(y.shape)
        return linear + (y - linear).detach()

    return matrix_product


def share(a: torch.Tensor, b: torch.Tensor, times: Callable[..., torch.Tensor] = torch.mul) -> torch.Tensor:
    """A product of which both factors carry half."""
    return (times(a, b.detach()) + times(a.detach(), b)) / 2


def standardised(x: torch.Tensor, dims: Any, eps: float = 1e-5) -> torch.Tensor:
    """Less the mean, over a deviation that is a constant."""
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()


def weights(x: torch.Tensor) -> torch.Tensor:
    """Attention weights, which are constants."""
    return torch.softmax(x @ x.transpose(-1, -2), -1).detach()


def written(x: torch.Tensor, write: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    """Something written in place into a copy of the input."""
    y = x * 1.5
    write(y)
    return y


ELEMENTWISE: dict[str, Function] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "relu6": lambda x: F.relu6(4 * x),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "hardshrink": lambda x: F.hardshrink(x, 0.2),
    "logsigmoid": F.logsigmoid,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "prelu": lambda x: F.prelu(x, SLOPE),
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "erf": torch.erf,
    "square": torch.square,
    "pow 3": lambda x: x**3,
    "clamp": lambda x: x.clamp(-0.5, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmax": lambda x: F.softmax(x, -1),
    "softmin": lambda x: F.softmin(x, -1),
    "rrelu": F.rrelu,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "exp2": torch.exp2,
    "erfc": torch.erfc,
    "scaled erfc": torch.special.erfcx,
    "sinc": torch.sinc,
    "normal distribution": torch.special.ndtr,
    "its logarithm": torch.special.log_ndtr,
    "floor": lambda x: torch.floor(3 * x),
    "ceil": lambda x: torch.ceil(3 * x),
    "round": lambda x: torch.round(3 * x),
    "trunc": lambda x: torch.trunc(3 * x),
    "frac": torch.frac,
    "sign": torch.sign,
    "nan_to_num": torch.nan_to_num,
    "remainder": lambda x: x % 0.7,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "floor_divide": lambda x: x // 0.3,
    "copysign": lambda x: torch.copysign(x, C),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype)),
    "atan2": lambda x: torch.atan2(x, C),
    "float_power": lambda x: torch.float_power(x, 2),
    "number to the power": lambda x: 1.7**x,
    "pow of a number": lambda x: torch.pow(1.7, x),
    "clamp_min": lambda x: x.clamp_min(-0.3),
    "clamp_max": lambda x: x.clamp_max(0.3),
    "reciprocal": torch.reciprocal,
    "negative power": lambda x: x**-2,
    "aten tanh": torch.ops.aten.tanh.default,
    "aten softmax": lambda x: torch.ops.aten._softmax.default(x, -1, False),
}

#: Defined for numbers from 0.5 on.
OF_POSITIVE: dict[str, Function] = {
    "multivariate gamma": lambda x: torch.mvlgamma(x, 2),
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "entropy": torch.special.entr,
    "pow 0.3": lambda x: x**0.3,
}

#: Defined for numbers between -1 and 1.
OF_SMALL: dict[str, Function] = {
    "asin": torch.arcsin,
    "acos": torch.arccos,
    "atanh": torch.atanh,
    "erfinv": torch.erfinv,
    "logit": lambda x: torch.logit(x.abs()),
}

# Function, and the same with its rules written out.
OTHERS: dict[str, tuple[Function, Function]] = {
    "add constant": (lambda x: x + A, lambda x: x + A),
    "number minus": (lambda x: 2 - x, lambda x: 2 - x),
    "subtract in place": (lambda x: written(x, lambda y: y.sub_(A)), lambda x: x * 1.5 - A),
    "add with alpha": (lambda x: torch.add(x, A, alpha=3), lambda x: x + 3 * A),
    "cat": (lambda x: torch.cat([x, C, 2 * x]), lambda x: torch.cat([x, C, 2 * x])),
    "stack": (lambda x: torch.stack([x, C], 1), lambda x: torch.stack([x, C], 1)),
    "where": (lambda x: torch.where(MASK, x, C), lambda x: torch.where(MASK, x, C)),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.7), lambda x: torch.where(MASK, 0.7, x)),
    "pad": (lambda x: F.pad(x, (1, 2), value=0.4), lambda x: F.pad(x, (1, 2), value=0.4)),
    "setitem": (lambda x: written(x, lambda y: y.__setitem__((0, 1), B)), lambda x: _replaced(x * 1.5, (0, 1), B)),
    "zero in place": (
        lambda x: written(x, lambda y: y[:, 0].zero_()),
        lambda x: _replaced(x * 1.5, (slice(None), 0), 0 * B),
    ),
    "fill in place": (
        lambda x: written(x, lambda y: y[:, 0].fill_(0.3)),
        lambda x: _replaced(x * 1.5, (slice(None), 0), 0 * B + 0.3),
    ),
    "into a constant": (
        lambda x: _replaced(C, (slice(None), 1), x[:, 0]),
        lambda x: torch.cat([C[:, :1], x[:, :1], C[:, 2:]], 1),
    ),
    "index_put": (
        lambda x: x.index_put((FIRST, THIRD), B),
        lambda x: _replaced(x, (0, 2), B),
    ),
    "index_add": (
        lambda x: x.index_add(1, FIRST.expand(2), C[:, :2]),
        lambda x: torch.cat([x[:, :1] + C[:, :2].sum(1, keepdim=True), x[:, 1:]], 1),
    ),
    "scatter_add": (
        lambda x: x.scatter_add(2, torch.zeros(2, 4, 1, dtype=torch.long, device=x.device), C[..., :1]),
        lambda x: torch.cat([x[..., :1] + C[..., :1], x[..., 1:]], 2),
    ),
    "lerp": (lambda x: torch.lerp(x, C, 0.3), lambda x: 0.7 * x + 0.3 * C),
    "lerp in place": (lambda x: written(x, lambda y: y.lerp_(C, 0.3)), lambda x: 0.7 * 1.5 * x + 0.3 * C),
    "addcmul in place": (lambda x: written(x, lambda y: y.addcmul_(C, x)), lambda x: 1.5 * x + C * x),
    "addmm in place": (lambda x: written(x[0], lambda y: y.addmm_(x[1] @ W, W)), lambda x: 1.5 * x[0] + x[1] @ W @ W),
    "number divided in place": (
        lambda x: written(0.1 * x + C, lambda y: y.div_(x.exp())),
        lambda x: (0.1 * x + C) * 1.5 / x.exp().detach(),
    ),
    "constant divided in place": (lambda x: C.clone().div_(x), lambda x: ratio(lambda y: C / y)(x)),
    "linear": (lambda x: F.linear(x, W, B), lambda x: x @ W.T + B),
    "addmm": (lambda x: torch.addmm(B, x[0], W, beta=2, alpha=3), lambda x: 2 * B + 3 * x[0] @ W),
    "baddbmm": (
        lambda x: torch.baddbmm(C[..., :4], x, x.transpose(1, 2)),
        lambda x: C[..., :4] + share(x, x.transpose(1, 2), torch.matmul),
    ),
    "addcmul": (lambda x: torch.addcmul(C, x, x, value=2), lambda x: C + 2 * share(x, x)),
    "addcdiv": (lambda x: torch.addcdiv(C, x, x.exp()), lambda x: C + x / x.exp().detach()),
    "convolution": (
        lambda x: F.conv2d(x.reshape(2, 2, 3, 4), PICTURE, A[:, 0], padding=1),
        lambda x: F.conv2d(x.reshape(2, 2, 3, 4), PICTURE, padding=1) + A[:, 0].reshape(-1, 1, 1),
    ),
    "transposed convolution": (
        lambda x: F.conv_transpose1d(x, fixed(4, 3, 2), B[:3], stride=2),
        lambda x: F.conv_transpose1d(x, fixed(4, 3, 2), stride=2) + B[:3, None],
    ),
    "computed kernel": (
        lambda x: F.conv1d(x[:1], x[1:, :, :3], B[:1]),
        lambda x: share(x[:1], x[1:, :, :3], F.conv1d) + B[0],
    ),
    "bilinear": (
        lambda x: F.bilinear(x[0], x[1], fixed(3, 6, 6), B[:3]),
        lambda x: share(x[0], x[1], lambda a, b: torch.einsum("ni,oij,nj->no", a, fixed(3, 6, 6), b)) + B[:3],
    ),
    "product": (lambda x: x * x.tanh(), lambda x: share(x, ratio(torch.tanh)(x))),
    "product in place": (lambda x: written(x, lambda y: y.mul_(x)), lambda x: share(x * 1.5, x)),
    "three factors": (
        lambda x: torch.einsum("ni,ni,ni->n", x[0], x[1], 2 * x[0]),
        lambda x: (2 * x[0] ** 2 * x[1]).sum(1).detach() + _zero_valued(x, (2 * x[0] ** 2 * x[1]).sum(1) / 3),
    ),
    "gate": (lambda x: x * torch.sigmoid(2 * x), lambda x: x * torch.sigmoid(2 * x).detach()),
    "gate in place": (
        lambda x: written(x, lambda y: y.mul_(torch.sigmoid(x))),
        lambda x: 1.5 * x * torch.sigmoid(x).detach(),
    ),
    "gate written into": (
        lambda x: torch.sigmoid(x).mul_(x),
        lambda x: x * torch.sigmoid(x).detach(),
    ),
    "one minus a gate": (
        lambda x: (1 - torch.sigmoid(x)) * x.tanh(),
        lambda x: (1 - torch.sigmoid(x)).detach() * ratio(torch.tanh)(x),
    ),
    "glu": (lambda x: F.glu(x), lambda x: x[..., :3] * torch.sigmoid(x[..., 3:]).detach()),
    "weighted sum": (
        lambda x: F.dropout(torch.softmax(x @ x.transpose(1, 2), -1), 0.1, training=False) @ x,
        lambda x: weights(x) @ x,
    ),
    "quotient": (lambda x: x / (x.exp() + 1), lambda x: x / (x.exp() + 1).detach()),
    "rsqrt": (lambda x: torch.rsqrt(x.exp()), lambda x: ratio(torch.rsqrt)(ratio(torch.exp)(x))),
    "number over": (lambda x: 3 / x, lambda x: ratio(lambda y: 3 / y)(x)),
    "divide in place": (lambda x: written(x, lambda y: y.div_(x.exp())), lambda x: 1.5 * x / x.exp().detach()),
    "norm": (lambda x: x.norm(dim=-1), lambda x: x.norm(dim=-1)),
    "variance": (lambda x: x.var(-1), lambda x: degree(x.var(-1), 2)),
    "normalize": (lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
    "layer_norm": (lambda x: F.layer_norm(x, (6,), B, A[0]), lambda x: standardised(x, -1) * B + A[0]),
    "layer_norm over two": (lambda x: F.layer_norm(x, (4, 6), A), lambda x: standardised(x, (1, 2)) * A),
    "rms_norm": (
        lambda x: F.rms_norm(x, (6,), B, 1e-6),
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt().detach() * B,
    ),
    "hand-written RMS norm": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt().detach(),
    ),
    "group_norm": (
        lambda x: F.group_norm(x, 2, A[:, 0], A[:, 1]),
        lambda x: standardised(x.reshape(2, 2, -1), -1).reshape(2, 4, 6) * A[:, :1] + A[:, 1:2],
    ),
    "instance_norm": (
        lambda x: F.instance_norm(x, weight=A[:, 0], bias=A[:, 1]),
        lambda x: standardised(x, -1) * A[:, :1] + A[:, 1:2],
    ),
    "batch_norm": (
        lambda x: F.batch_norm(x, A[:, 0], A[:, 1].exp(), A[:, 2], A[:, 3], eps=1e-3),
        lambda x: (x - A[:, :1]) / (A[:, 1:2].exp() + 1e-3).sqrt() * A[:, 2:3] + A[:, 3:4],
    ),
    "batch_norm of the batch": (
        lambda x: F.batch_norm(x, None, None, A[:, 0], A[:, 1], training=True),
        lambda x: standardised(x, (0, 2)) * A[:, :1] + A[:, 1:2],
    ),
    "local_response_norm": (
        lambda x: F.local_response_norm(x, 3, alpha=0.1),
        lambda x: x * (F.local_response_norm(x, 3, alpha=0.1) / x).detach(),
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), lambda x: x.reshape(2, 4, 3, 2).amax(-1)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), lambda x: x.reshape(2, 4, 3, 2).amax(-1)),
    "max with indices": (lambda x: x.max(1)[0], lambda x: x.amax(1)),
    "maximum of a constant": (lambda x: torch.maximum(x, C), lambda x: torch.where(x >= C, x, C)),
    "tensordot with a weight": (lambda x: torch.tensordot(x, W, ([2], [1])), lambda x: x @ W.T),
    "tensordot over two dimensions": (
        lambda x: torch.tensordot(C.transpose(0, 2), x.transpose(0, 1), 2),
        lambda x: torch.einsum("lcn,cnk->lk", C.transpose(0, 2), x.transpose(0, 1)),
    ),
    "inner with a weight": (lambda x: torch.inner(W[0], x), lambda x: x @ W[0]),
    "dot with a weight": (lambda x: torch.dot(x[0, 0], B), lambda x: (x[0, 0] * B).sum()),
    "chain of matrices": (lambda x: torch.linalg.multi_dot([A, W, x[0].T]), lambda x: A @ W @ x[0].T),
    "minimum": (lambda x: torch.minimum(x, 2 * x), lambda x: torch.where(x <= 2 * x, x, 2 * x)),
    "topk": (lambda x: x.topk(2, -1).values, lambda x: x.sort(-1, descending=True)[0][..., :2]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), lambda x: x.reshape(2, 4, 3, 2).mean(-1)),
    "interpolate": (
        lambda x: F.interpolate(x, 9, mode="linear"),
        lambda x: torch.einsum("nci,io->nco", x, F.interpolate(torch.eye(6)[None].double(), 9, mode="linear")[0]),
    ),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, 2 * x, 3 * x),
        lambda x: torch.softmax(2 * x @ x.transpose(1, 2) / math.sqrt(6), -1).detach() @ (3 * x),
    ),
    "causal attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5),
        lambda x: (
            torch.softmax((x @ x.mT / 2).masked_fill(~torch.ones(4, 4).tril().bool(), -math.inf), -1).detach() @ x
        ),
    ),
    "masked attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, C[..., :4]),
        lambda x: torch.softmax(x @ x.mT / math.sqrt(6) + C[..., :4], -1).detach() @ x,
    ),
    "grouped queries": (
        lambda x: F.scaled_dot_product_attention(*_heads(x), enable_gqa=True),
        lambda x: _attention(*(h.repeat_interleave(r, 0) for h, r in _grouped(x))),
    ),
}


def _replaced(x: torch.Tensor, index: Any, value: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[index] = value
    return x


def _zero_valued(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y - y.detach()


def _heads(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.cat([x, 2 * x]), x, 3 * x


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _grouped(x: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    query, key, value = _heads(x)
    return [(query.detach(), 1), (key.detach(), 2), (value, 2)]


def grid(x: torch.Tensor) -> torch.Tensor:
    """Places that depend on the input, one for each of four samples of a row."""
    return x[:, :4, :2].tanh().unsqueeze(1)


def maps(x: torch.Tensor) -> torch.Tensor:
    """The input as feature maps: (2, 2, 3, 4)."""
    return x.reshape(2, 2, 3, 4)


def square(x: torch.Tensor) -> torch.Tensor:
    """A well-conditioned matrix that depends on the input."""
    return x[0, :, :4] * 0.3 + 3 * torch.eye(4, dtype=x.dtype, device=x.device)


PLACES = torch.tensor([2, 0, 3])
BOXES = [torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.5, 3.0, 2.0]], dtype=torch.float64) for _ in range(2)]
PAIRS = torch.tensor([[0, 3, 2, 1, 0, 2], [1, 2, 0, 3, 2, 1], [2, 1, 3, 0, 1, 3], [3, 0, 1, 2, 3, 0]]).expand(2, 4, 6)

#: What is linear, or linear for all inputs near this one since it chooses among them.
PIECEWISE_LINEAR: dict[str, Function] = {
    "gather": lambda x: x.gather(1, PAIRS),
    "take": lambda x: x.take(PLACES),
    "take_along_dim": lambda x: x.take_along_dim(PAIRS, 1),
    "index_select": lambda x: x.index_select(1, PLACES),
    "aten index": lambda x: torch.ops.aten.index.Tensor(x, [None, PLACES]),
    "masked_select": lambda x: x.masked_select(MASK),
    "unfold": lambda x: F.unfold(maps(x), 2),
    "Tensor.unfold": lambda x: x.unfold(2, 3, 2),
    "fold": lambda x: F.fold(x.transpose(1, 2)[:, :4], (2, 3), (1, 2), padding=(0, 0), stride=(1, 1)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(2, 4, 3, 2), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x.reshape(2, 1, 4, 6), 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x.reshape(2, 4, 3, 2), 2),
    "roll": lambda x: x.roll(1, 2),
    "flip": lambda x: x.flip(1),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "diag_embed": torch.diag_embed,
    "cumsum": lambda x: x.cumsum(1),
    "diff": lambda x: x.diff(),
    "trace": lambda x: x[0].trace(),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "tile": lambda x: x.tile(2),
    "expand": lambda x: x[:, :1].expand(2, 5, 6),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "chunk": lambda x: x.chunk(3, 2)[1],
    "split": lambda x: x.split_with_sizes([1, 3], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")[0],
    "block_diag": lambda x: torch.block_diag(x[0], A),  # type: ignore[no-untyped-call]
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0, 0], B),
    "index_copy": lambda x: x.index_copy(1, PLACES, C[:, :3]),
    "index_fill": lambda x: x.index_fill(1, PLACES, 0.4),
    "masked_scatter": lambda x: C.masked_scatter(MASK, x),
    "select_scatter": lambda x: x.select_scatter(B.expand(2, 6), 1, 2),
    "slice_scatter": lambda x: C.slice_scatter(x[:, :2], 1, 1, 3),
    "diagonal_scatter": lambda x: x.diagonal_scatter(C[..., 0], dim1=1, dim2=2),
    "scatter": lambda x: x.scatter(2, PAIRS[..., :1], C[..., :1]),
    "put": lambda x: x.put(PLACES, B[:3]),
    "fill_diagonal": lambda x: written(x[0], lambda y: y.fill_diagonal_(0.3)),
    "trapezoid": lambda x: torch.trapezoid(x),
    "torch.gradient": lambda x: torch.gradient(x, dim=2)[0],
    "nanmean": lambda x: x.nanmean(1),
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean((1, 2)),
    "avg_pool2d": lambda x: F.avg_pool2d(maps(x), 2, 1, padding=1, count_include_pad=False),
    "avg_pool3d": lambda x: F.avg_pool3d(maps(x), 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(maps(x), (2, 3)),
    "conv1d": lambda x: F.conv1d(x, fixed(3, 4, 2), B[:3], stride=2, padding=1),
    "conv3d": lambda x: F.conv3d(x.reshape(1, 2, 2, 3, 4), fixed(3, 2, 2, 2, 2), B[:3]),
    "conv_transpose2d": lambda x: F.conv_transpose2d(maps(x), fixed(2, 3, 2, 2), B[:3], stride=2, output_padding=1),
    "conv_transpose3d": lambda x: F.conv_transpose3d(maps(x)[None], fixed(2, 3, 2, 2, 2), B[:3]),
    "conv_tbc": lambda x: torch.conv_tbc(x, fixed(2, 6, 3), B[:3]),
    "dilated groups": lambda x: F.conv1d(x, fixed(4, 2, 2), B[:4], dilation=2, groups=2),
    "pad reflect": lambda x: F.pad(x, (2, 1), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (2, 1), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (2, 1), mode="circular"),
    "interpolate nearest": lambda x: F.interpolate(maps(x), scale_factor=2),
    "interpolate bilinear": lambda x: F.interpolate(maps(x), (5, 7), mode="bilinear", antialias=True),
    "interpolate bicubic": lambda x: F.interpolate(maps(x), (5, 7), mode="bicubic"),
    "interpolate trilinear": lambda x: F.interpolate(maps(x)[None], (3, 4, 5), mode="trilinear"),
    "grid_sample": lambda x: F.grid_sample(maps(x), fixed(2, 3, 3, 2).tanh(), align_corners=False),
    "affine_grid": lambda x: F.affine_grid(x[:, :2, :3], [2, 1, 3, 2], align_corners=False),
    "roi_align": lambda x: ops.roi_align(maps(x), BOXES, 2),
    "roi_pool": lambda x: ops.roi_pool(maps(x), BOXES, 2),
    "fft": lambda x: torch.fft.fft(x).real,
    "fft2": lambda x: torch.fft.fftn(x, dim=(1, 2)).imag,
    "rfft, filter, irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.complex(C, A)[..., :4], n=6),
    "fft of a sum": lambda x: torch.view_as_real(torch.fft.fftshift(torch.fft.fft(x + C))),
    "stft": lambda x: torch.view_as_real(
        torch.stft(x.flatten(1), 8, window=torch.hann_window(8, dtype=x.dtype, device=x.device), return_complex=True)
    ),
    "rotary by complex numbers": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(2, 4, 3, 2)) * torch.polar(A[:, :3].abs(), A[:, 3:])
    ),
    "complex and conj": lambda x: torch.complex(x, C).conj().imag + torch.complex(x, C).real,
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "max_pool2d": lambda x: F.max_pool2d(maps(x), 2, 1, padding=1),
    "max_pool3d": lambda x: F.max_pool3d(maps(x), 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(maps(x), (2, 2)),
    "max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), (2,)),
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(1),
    "aminmax": lambda x: torch.aminmax(x, dim=1)[1],
    "sort": lambda x: x.sort(1)[0],
    "msort": torch.msort,
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "median": lambda x: x.median(1)[0],
    "nanmedian": lambda x: x.nanmedian(1)[0],
    "mode": lambda x: x.mode(1)[0],
    "quantile": lambda x: x.quantile(0.3, 1),
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "fmax": lambda x: torch.fmax(x, C),
    "scatter_reduce amax": lambda x: x.scatter_reduce(1, PAIRS[:, :, :1].expand(2, 4, 6), C, "amax"),
    "scatter_reduce mean": lambda x: x.scatter_reduce(1, PAIRS[:, :, :1].expand(2, 4, 6), C, "mean"),
    "threshold": lambda x: F.relu(x) + F.leaky_relu(-x, 0.2),
    "embedding_bag": lambda x: F.embedding_bag(PAIRS[0], A, per_sample_weights=x[0], mode="sum"),
    "sparse product": lambda x: torch.sparse.mm((W * (W > 0)).to_sparse(), x[0].T),
    "aten convolution": lambda x: torch.ops.aten.convolution.default(
        maps(x), PICTURE, B[:4], [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    ),
    "aten batch norm": lambda x: torch.ops.aten._native_batch_norm_legit_no_training.default(
        x, A[:, 0], A[:, 1], A[:, 2], A[:, 3].exp(), 0.1, 1e-5
    )[0],
}

OTHERS |= {
    "gelu written with tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))).detach(),
    ),
    "gelu written with erf": (
        lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2))),
        lambda x: ratio(F.gelu)(x),
    ),
    "mish written out": (lambda x: x * torch.tanh(F.softplus(x)), lambda x: ratio(F.mish)(x)),
    "hard swish written out": (lambda x: x * F.relu6(x + 3) / 6, lambda x: ratio(F.hardswish)(x)),
    "sigmoid written out": (
        lambda x: x * (1 / (1 + torch.exp(-x))),
        lambda x: ratio(F.silu)(x),
    ),
    "softmax written out": (
        lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)) @ C.mT[:, :, :1] * x,
        lambda x: (x.softmax(-1) @ C.mT[:, :, :1]).detach() * x,
    ),
    "talking heads": (
        lambda x: F.linear((x @ x.mT).softmax(-1), A[:, :4], B[:4]) @ x,
        lambda x: F.linear((x @ x.mT).softmax(-1), A[:, :4], B[:4]).detach() @ x,
    ),
    "sign times size": (lambda x: x.sign() * x.abs(), lambda x: x),
    "decay": (
        lambda x: torch.exp(-F.softplus(x)) * x.roll(1, 0),
        lambda x: (-F.softplus(x)).exp().detach() * x.roll(1, 0),
    ),
    "matmul": (lambda x: x @ x.mT, lambda x: share(x, x.mT, torch.matmul)),
    "bmm": (lambda x: torch.bmm(x, x.mT), lambda x: share(x, x.mT, torch.matmul)),
    "mm": (lambda x: torch.mm(x[0], x[1].T), lambda x: share(x[0], x[1].T, torch.matmul)),
    "mv": (lambda x: torch.mv(x[0], x[1, 0]), lambda x: share(x[0], x[1, 0], torch.matmul)),
    "dot": (lambda x: torch.dot(x[0, 0], x[1, 0]), lambda x: share(x[0, 0], x[1, 0], torch.matmul)),
    "outer": (lambda x: torch.outer(x[0, 0], x[1, 0]), lambda x: share(x[0, 0][:, None], x[1, 0][None])),
    "kron": (
        lambda x: torch.kron(x[0], x[1, :2]),
        lambda x: share(x[0][:, None, :, None], x[1, :2][None, :, None]).reshape(8, 36),
    ),
    "cross": (
        lambda x: torch.linalg.cross(x[..., :3], x[..., 3:]),
        lambda x: (
            share(x[..., :3].roll(-1, -1), x[..., 3:].roll(-2, -1))
            - share(x[..., :3].roll(-2, -1), x[..., 3:].roll(-1, -1))
        ),
    ),
    "vecdot": (lambda x: torch.linalg.vecdot(x, x.flip(1)), lambda x: share(x, x.flip(1)).sum(-1)),
    "tensordot": (
        lambda x: torch.tensordot(x[0], x[1], dims=([1], [1])),
        lambda x: share(x[0], x[1].T, torch.matmul),
    ),
    "einsum": (
        lambda x: torch.einsum("bij,bkj->bik", x, x.flip(2)),
        lambda x: share(x, x.flip(2).mT, torch.matmul),
    ),
    "matrix_power": (
        lambda x: torch.linalg.matrix_power(square(x), 3),
        lambda x: degree(square(x) @ square(x) @ square(x), 3),
    ),
    "inverse": (lambda x: torch.linalg.inv(square(x)), lambda x: degree(torch.linalg.inv(square(x)), -1)),
    "det": (lambda x: torch.linalg.det(square(x)), lambda x: degree(torch.linalg.det(square(x)), 4)),
    "solve": (
        lambda x: torch.linalg.solve(square(x), x[1]),
        lambda x: torch.linalg.inv(square(x)).detach() @ x[1],
    ),
    "solve_triangular": (
        lambda x: torch.linalg.solve_triangular(square(x), x[1], upper=False),
        lambda x: torch.linalg.inv(square(x).tril()).detach() @ x[1],
    ),
    "addbmm": (
        lambda x: torch.addbmm(A[:, :4], x, x.mT, beta=2, alpha=3),
        lambda x: 2 * A[:, :4] + 3 * share(x, x.mT, torch.matmul).sum(0),
    ),
    "addr": (
        lambda x: torch.addr(W, x[0, 0], x[1, 0]),
        lambda x: W + share(x[0, 0][:, None], x[1, 0][None]),
    ),
    "addmv": (lambda x: torch.addmv(B[:4], x[0], x[1, 0]), lambda x: B[:4] + share(x[0], x[1, 0], torch.matmul)),
    "prod": (lambda x: x.prod(1), lambda x: degree(x[:, 0] * x[:, 1] * x[:, 2] * x[:, 3], 4)),
    "cumprod": (
        lambda x: x.cumprod(1),
        lambda x: torch.stack([degree(x[:, : k + 1].prod(1), k + 1) for k in range(4)], 1),
    ),
    "x times itself": (lambda x: x * x, lambda x: degree(x**2, 2)),
    "covariance": (lambda x: torch.cov(x[0]), lambda x: degree(torch.cov(x[0]), 2)),
    "std": (lambda x: x.std(1), lambda x: (x - x.mean(1, keepdim=True)).square().sum(1).div(3).sqrt()),
    "std_mean": (lambda x: torch.cat(torch.std_mean(x, 1)), lambda x: torch.cat([x.std(1), x.mean(1)])),
    "var_mean": (
        lambda x: torch.cat(torch.var_mean(x, 1)),
        lambda x: torch.cat([degree((x - x.mean(1, keepdim=True)).square().sum(1) / 3, 2), x.mean(1)]),
    ),
    "vector_norm 3": (
        lambda x: torch.linalg.vector_norm(x, 3, dim=-1),
        lambda x: x.abs().pow(3).sum(-1).pow(1 / 3),
    ),
    "matrix_norm": (lambda x: torch.linalg.matrix_norm(x), lambda x: x.square().sum((1, 2)).sqrt()),
    "cosine_similarity": (
        lambda x: F.cosine_similarity(x, x.flip(1), dim=-1),
        lambda x: share(
            x / x.norm(dim=-1, keepdim=True).detach(), (x / x.norm(dim=-1, keepdim=True).detach()).flip(1)
        ).sum(-1),
    ),
    "distance to prototypes": (
        lambda x: torch.cdist(x, A[None]),
        lambda x: torch.linalg.vector_norm(x[:, :, None] - A[None, None], dim=-1),
    ),
    "pairwise_distance": (lambda x: F.pairwise_distance(x, C), lambda x: (x - C + 1e-6).square().sum(-1).sqrt()),
    "dist": (lambda x: torch.dist(x, C), lambda x: (x - C).square().sum().sqrt()),
    "hypot": (lambda x: torch.hypot(x, C), lambda x: (x.square() + C.square()).sqrt()),
    "matrix_exp": (
        lambda x: torch.linalg.matrix_exp(0.3 * x[:, :, :4]),
        lambda x: sum(torch.linalg.matrix_power(0.3 * x[:, :, :4], k) / math.factorial(k) for k in range(20)),
    ),
    "logsumexp": (
        lambda x: x.logsumexp(1),
        lambda x: (x.softmax(1).detach() * (x - x.log_softmax(1).detach())).sum(1),
    ),
    "logaddexp": (
        lambda x: torch.logaddexp(x, C),
        lambda x: (lambda s: s * x + (torch.log(x.exp() + C.exp()) - s * x).detach())((x - C).sigmoid().detach()),
    ),
    "logcumsumexp": (
        lambda x: x.logcumsumexp(1),
        lambda x: torch.stack([x[:, : k + 1].logsumexp(1) for k in range(4)], 1),
    ),
    "xlogy": (
        lambda x: torch.xlogy(x, positive(x)),
        lambda x: share(x, ratio(torch.log)(positive(x))),
    ),
    "lp_pool1d": (
        lambda x: F.lp_pool1d(x, 2, 3),
        lambda x: x.abs().reshape(2, 4, 2, 3).square().sum(-1).sqrt(),
    ),
    "renorm": (
        lambda x: torch.renorm(x, 2, 1, 1.5),
        lambda x: x * (1.5 / (x.norm(dim=(0, 2), keepdim=True) + 1e-7)).clamp(max=1).detach(),
    ),
    "grid_sample at computed places": (
        lambda x: F.grid_sample(maps(x), grid(x), align_corners=False),
        lambda x: F.grid_sample(maps(x), grid(x).detach(), align_corners=False),
    ),
    "polar": (
        lambda x: torch.polar(x.abs(), x.flip(1)).real,
        lambda x: x.abs() * x.flip(1).cos().detach(),
    ),
    "complex product": (
        lambda x: torch.view_as_real(torch.complex(x, C) * torch.complex(x.flip(1), x)),
        lambda x: torch.stack(
            [
                share(x, x.flip(1)) - C * x / 2 - (C * x / 2).detach(),
                share(x, x) + C * x.flip(1) / 2 + (C * x.flip(1) / 2).detach(),
            ],
            -1,
        ),
    ),
    "absolute value of complex numbers": (
        lambda x: torch.complex(x, x.flip(1)).abs(),
        lambda x: (x.square() + x.flip(1).square()).sqrt(),
    ),
    "deformable convolution": (
        lambda x: ops.deform_conv2d(
            maps(x), x[:, :, :1].reshape(2, -1)[:, :1, None, None].expand(2, 18, 1, 2), fixed(3, 2, 3, 3), B[:3]
        ),
        lambda x: ops.deform_conv2d(
            maps(x),
            x[:, :, :1].reshape(2, -1)[:, :1, None, None].expand(2, 18, 1, 2).detach(),
            fixed(3, 2, 3, 3),
            B[:3],
        ),
    ),
    "aten layer norm": (
        lambda x: torch.ops.aten.native_layer_norm.default(x, [6], B, A[0], 1e-5)[0],
        lambda x: standardised(x, -1) * B + A[0],
    ),
    "aten group norm": (
        # Until version 2.13, torch reads wrong numbers from weights that do not lie side by side.
        lambda x: torch.ops.aten.native_group_norm.default(
            x, A[:, 0].contiguous(), A[:, 1].contiguous(), 2, 4, 6, 2, 1e-5
        )[0],
        lambda x: standardised(x.reshape(2, 2, -1), -1).reshape(2, 4, 6) * A[:, :1] + A[:, 1:2],
    ),
    "aten attention": (
        lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(x[None], 2 * x[None], 3 * x[None])[
            0
        ],
        lambda x: torch.softmax(2 * x @ x.mT / math.sqrt(6), -1).detach() @ (3 * x)[None],
    ),
}


def positive(x: torch.Tensor) -> torch.Tensor:
    """Numbers from 0.5 on that depend on the input."""
    return x.abs() + 0.5


def small(x: torch.Tensor) -> torch.Tensor:
    """Numbers between -1 and 1 that depend on the input."""
    return 0.3 * x


def _behind(before: Function, function: Function) -> tuple[Function, Function]:
    return lambda x: function(before(x)), lambda x: ratio(function)(before(x))


def _squared(d: torch.Tensor) -> torch.Tensor:
    """A square whose contribution goes to what is squared."""
    return d * d.detach()


def _of_classes(x: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Cross entropy of classes in dimension 1, with weights, written out."""
    logarithms, classes = ratio(lambda x: x.log_softmax(1))(x), PIXELS[:, None]
    hit = torch.zeros_like(x).scatter(1, classes, 1.0) * (classes >= 0)
    uniform = smoothing / 4 * torch.ones_like(x)
    weighted = (hit * (1 - smoothing) + uniform) * CLASS_WEIGHTS[:, None]
    return -(weighted * logarithms).sum() / (hit * CLASS_WEIGHTS[:, None]).sum()


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(8, 6)


def _times(x: torch.Tensor) -> torch.Tensor:
    """Scores of 4 symbols at 6 times, of 2 samples."""
    return x.permute(2, 0, 1)


def _spelled(path: tuple[int, ...]) -> list[int]:
    """What a path of symbols spells: repeated symbols once, and no blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


def _paths(scores: torch.Tensor, word: list[int]) -> torch.Tensor:
    """The log-sum-exp of the scores of all paths that spell a word."""
    paths = torch.tensor([path for path in itertools.product(range(4), repeat=6) if _spelled(path) == word])
    return scores.gather(1, paths.T).sum(0).logsumexp(0)


PIXELS = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 2]])
CLASS_WEIGHTS = torch.tensor([0.5, 1.5, 1.0, 2.0], dtype=torch.float64)
SIGNS = torch.where(MASK, 1.0, -1.0).double()
BITS = MASK.double()
ROW_SIGNS, ROW_CLASSES = torch.tensor([1.0, -1.0] * 4), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
SETS = torch.tensor([[1, 0, -1, 2, 3, 4]] * 8)

# Losses as scores. The target is a constant unless the case says something else.
LOSSES: dict[str, tuple[Function, Function]] = {
    "mse_loss": (lambda x: F.mse_loss(x, C), lambda x: _squared(x - C).mean()),
    "mse_loss of two carriers": (
        lambda x: F.mse_loss(x, x.flip(1).tanh(), reduction="sum"),
        lambda x: _squared(x - ratio(torch.tanh)(x.flip(1))).sum(),
    ),
    "mse_loss of the target": (lambda x: F.mse_loss(C, x, reduction="none"), lambda x: _squared(C - x)),
    "l1_loss": (lambda x: F.l1_loss(x, C, reduction="none"), lambda x: (x - C) * (x - C).sign().detach()),
    "smooth_l1_loss": (
        lambda x: F.smooth_l1_loss(x, C, beta=0.7, reduction="sum"),
        lambda x: ratio(lambda d: torch.where(d.abs() < 0.7, d**2 / 1.4, d.abs() - 0.35))(x - C).sum(),
    ),
    "huber_loss": (
        lambda x: F.huber_loss(x, C, delta=0.7),
        lambda x: ratio(lambda d: torch.where(d.abs() < 0.7, d**2 / 2, 0.7 * (d.abs() - 0.35)))(x - C).mean(),
    ),
    "nll_loss": (
        lambda x: F.nll_loss(x, PIXELS, CLASS_WEIGHTS, reduction="sum"),
        lambda x: -(x.gather(1, PIXELS[:, None]) * CLASS_WEIGHTS[PIXELS][:, None]).sum(),
    ),
    "cross_entropy": (lambda x: F.cross_entropy(x, PIXELS, CLASS_WEIGHTS), _of_classes),
    "cross_entropy, smoothed": (
        lambda x: F.cross_entropy(x, PIXELS, CLASS_WEIGHTS, label_smoothing=0.3),
        lambda x: _of_classes(x, 0.3),
    ),
    "cross_entropy of probabilities": (
        lambda x: F.cross_entropy(x, C.softmax(1), label_smoothing=0.2, reduction="none"),
        lambda x: -(ratio(lambda x: x.log_softmax(1))(x) * (0.8 * C.softmax(1) + 0.05)).sum(1),
    ),
    "binary_cross_entropy": (
        lambda x: F.binary_cross_entropy(x.sigmoid(), BITS, C.abs()),
        lambda x: (
            -(
                (
                    BITS * ratio(torch.log)(ratio(torch.sigmoid)(x))
                    + (1 - BITS) * ratio(torch.log1p)(-ratio(torch.sigmoid)(x))
                )
                * C.abs()
            ).mean()
        ),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, BITS, pos_weight=B.abs(), reduction="none"),
        lambda x: (1 - BITS) * x - ratio(F.logsigmoid)(x) * (1 + (B.abs() - 1) * BITS),
    ),
    "kl_div": (
        lambda x: F.kl_div(x, C.softmax(1), reduction="batchmean"),
        lambda x: (C.softmax(1) * (C.log_softmax(1) - x)).sum() / 2,
    ),
    "kl_div of logarithms": (
        lambda x: F.kl_div(x, C.log_softmax(1), log_target=True, reduction="sum"),
        lambda x: (C.softmax(1) * (C.log_softmax(1) - x)).sum(),
    ),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, SIGNS), lambda x: ratio(F.softplus)(-SIGNS * x).mean()),
    "multilabel_soft_margin_loss": (
        lambda x: F.multilabel_soft_margin_loss(x, BITS),
        lambda x: -(BITS * ratio(F.logsigmoid)(x) + (1 - BITS) * ratio(F.logsigmoid)(-x)).mean(),
    ),
    "multi_margin_loss": (
        lambda x: F.multi_margin_loss(_rows(x), ROW_CLASSES, p=2, margin=0.5, reduction="none"),
        lambda x: (_squared((0.5 - _rows(x).gather(1, ROW_CLASSES[:, None]) + _rows(x)).relu()).sum(1) - 0.25) / 6,
    ),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(_rows(x), SETS, reduction="none"),
        lambda x: (
            torch.stack([(1 - _rows(x)[:, [one]] + _rows(x)[:, [2, 3, 4, 5]]).relu().sum(1) for one in (0, 1)]).sum(0)
            / 6
        ),
    ),
    "cosine_embedding_loss": (
        lambda x: F.cosine_embedding_loss(_rows(x), _rows(C), ROW_SIGNS, 0.1, reduction="none"),
        lambda x: (lambda cosines: torch.where(ROW_SIGNS > 0, 1 - cosines, (cosines - 0.1).relu()))(
            (_rows(x) / _rows(x).norm(dim=1, keepdim=True).detach() * F.normalize(_rows(C))).sum(1)
        ),
    ),
    "hinge_embedding_loss": (
        lambda x: F.hinge_embedding_loss(x, SIGNS, 0.5),
        lambda x: torch.where(MASK, x, (0.5 - x).relu()).mean(),
    ),
    "margin_ranking_loss": (
        lambda x: F.margin_ranking_loss(x, C, SIGNS, 0.5),
        lambda x: (-SIGNS * (x - C) + 0.5).relu().mean(),
    ),
    "triplet_margin_loss": (
        lambda x: F.triplet_margin_loss(_rows(x), _rows(C), _rows(x.flip(1)), 4.0),
        lambda x: (
            ((_rows(x) - _rows(C) + 1e-6).norm(dim=1) - (_rows(x) - _rows(x.flip(1)) + 1e-6).norm(dim=1) + 4.0)
            .relu()
            .mean()
        ),
    ),
    "triplet_margin_with_distance_loss": (
        lambda x: F.triplet_margin_with_distance_loss(
            _rows(x), _rows(C), _rows(2 * C), distance_function=lambda a, b: (a - b).abs().sum(1), margin=9.0
        ),
        lambda x: ((_rows(x) - _rows(C)).abs().sum(1) - (_rows(x) - _rows(2 * C)).abs().sum(1) + 9).relu().mean(),
    ),
    "poisson_nll_loss": (
        lambda x: F.poisson_nll_loss(x, 3 * C.abs(), reduction="none"),
        lambda x: ratio(torch.exp)(x) - 3 * C.abs() * x,
    ),
    "gaussian_nll_loss": (
        lambda x: F.gaussian_nll_loss(x, C, positive(x), full=True),
        lambda x: (
            0.5
            * (ratio(torch.log)(positive(x)) + _squared(x - C) / positive(x).detach() + math.log(2 * math.pi)).mean()
        ),
    ),
    "ctc_loss": (
        lambda x: F.ctc_loss(
            _times(x), torch.tensor([[1, 2], [3, 1]]), torch.tensor([6, 6]), torch.tensor([2, 1]), reduction="sum"
        ),
        lambda x: -torch.stack([_paths(_times(x)[:, 0], [1, 2]), _paths(_times(x)[:, 1], [3])]).sum(),
    ),
}


#: Every operation, with its rule written out.
CASES: dict[str, tuple[Function, Function]] = {
    **{name: (function, ratio(function)) for name, function in ELEMENTWISE.items()},
    **{name: _behind(positive, function) for name, function in OF_POSITIVE.items()},
    **{name: _behind(small, function) for name, function in OF_SMALL.items()},
    **{name: (function, by_differences(function)) for name, function in PIECEWISE_LINEAR.items()},
    **OTHERS,
    **LOSSES,
}


def score(y: torch.Tensor) -> torch.Tensor:
    """A sum in which no two outputs have the same weight, and a constant.

    This is a linear layer. In an elementwise product with a constant of its shape, an output that is a gate would be a
    constant.
    """
    positions = torch.arange(1.0, y.numel() + 1, dtype=torch.float64, device=y.device)
    return F.linear(y.reshape(1, -1), positions.sin()) + 3


def compare(function: Function, by_hand: Function, x: torch.Tensor = X) -> tuple[float, float, float, float]:
    """Explain a function's score and hold it against the one written out.

    Returns:
        Distance of the two maps over the norm of the map; what contributions and constants leave of the score; the
        difference of the two scores over the score; the sum of the absolute ratios.
    """
    leaf = x.clone().requires_grad_()
    expected_score = score(by_hand(leaf))
    expected = leaf.detach() * torch.autograd.grad(expected_score.sum(), leaf)[0] / expected_score.detach()
    found, delta = InputCAV(lambda x: score(function(x))).attribute(x, return_convergence_delta=True)
    map_, value = (found - expected).norm() / expected.norm(), score(function(x.clone())) / expected_score.detach() - 1
    return float(map_), float(delta.abs().max()), float(value.abs().max()), float(found.abs().sum())
