"""Linear layers: products with a weight in all their forms, with and without a bias; embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import OF_ANY_SCALE, SUM_OF_LAYERS, Function, Pair, family

_GROUP = "linear"
_WEIGHT, _BIAS = fixed(5, 6, seed=81), fixed(5, seed=82)
_SECOND, _SECOND_BIAS = fixed(3, 5, seed=83), fixed(3, seed=84)
_WEIGHTED_SUM = (
    "A product with a constant and a sum are also a masked mean and a weighted pooling, which are no layers."
)
_WORDS = torch.tensor([[0, 2, 1, 4], [3, 3, 0, 1]])
_TABLE = fixed(5, 6, seed=85)


def _by_bmm(x: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x, _WEIGHT.T.expand(2, 6, 5))


def _by_columns(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x @ row for row in _WEIGHT], -1)


#: A linear layer without bias.
_PRODUCTS: dict[str, Function] = {
    "matmul": lambda x: torch.matmul(x, _WEIGHT.T),
    "@": lambda x: x @ _WEIGHT.T,
    "mm of rows": lambda x: torch.mm(x.reshape(-1, 6), _WEIGHT.T).reshape(2, 4, 5),
    "transposed matmul": lambda x: (_WEIGHT @ x.mT).mT,
    "einsum": lambda x: torch.einsum("nld,od->nlo", x, _WEIGHT),
    "einsum, weight first": lambda x: torch.einsum("od,nld->nlo", _WEIGHT, x),
    "tensordot": lambda x: torch.tensordot(x, _WEIGHT, ([2], [1])),
    "inner": lambda x: torch.inner(x, _WEIGHT),
    "bmm": _by_bmm,
    "@ with vectors": _by_columns,
    "mv": lambda x: torch.stack([torch.mv(_WEIGHT, row) for row in x.reshape(-1, 6)]).reshape(2, 4, 5),
    "multiply and sum": lambda x: (x[..., None, :] * _WEIGHT).sum(-1),
    "convolution of width 1": lambda x: F.conv1d(x.mT, _WEIGHT[..., None]).mT,
    "convolution in two dimensions": lambda x: (
        F.conv2d(x.permute(0, 2, 1)[..., None], _WEIGHT[..., None, None])[..., 0].mT
    ),
    "convolution over everything": lambda x: F.conv1d(x.reshape(8, 1, 6), _WEIGHT[:, None]).reshape(2, 4, 5),
    "baddbmm": lambda x: torch.baddbmm(torch.zeros(2, 4, 5, dtype=x.dtype), x, _WEIGHT.T.expand(2, 6, 5)),
    "addmm": lambda x: torch.addmm(torch.zeros(5, dtype=x.dtype), x.reshape(8, 6), _WEIGHT.T).reshape(2, 4, 5),
    "sum of two halves": lambda x: x[..., :3] @ _WEIGHT[:, :3].T + x[..., 3:] @ _WEIGHT[:, 3:].T,
    "chain_matmul": lambda x: torch.linalg.multi_dot([x.reshape(8, 6), _WEIGHT.T]).reshape(2, 4, 5),
    "outputs by cat": lambda x: torch.cat([x @ _WEIGHT[:2].T, x @ _WEIGHT[2:].T], -1),
    "negative twice": lambda x: -(x @ -_WEIGHT.T),
}

#: A linear layer with a bias.
_WITH_BIAS: dict[str, Function] = {
    "matmul + bias": lambda x: torch.matmul(x, _WEIGHT.T) + _BIAS,
    "bias + matmul": lambda x: _BIAS + torch.matmul(x, _WEIGHT.T),
    "torch.add": lambda x: torch.add(x @ _WEIGHT.T, _BIAS),
    "add_": lambda x: (x @ _WEIGHT.T).add_(_BIAS),
    "+=": lambda x: _increased(x @ _WEIGHT.T),
    "minus the negative": lambda x: x @ _WEIGHT.T - (-_BIAS),
    "linear + bias": lambda x: F.linear(x, _WEIGHT) + _BIAS,
    "addmm": lambda x: torch.addmm(_BIAS, x.reshape(8, 6), _WEIGHT.T).reshape(2, 4, 5),
    "addmm with beta and alpha": lambda x: torch.addmm(
        _BIAS / 2, x.reshape(8, 6), _WEIGHT.T / 3, beta=2, alpha=3
    ).reshape(2, 4, 5),
    "baddbmm": lambda x: torch.baddbmm(_BIAS.expand(2, 4, 5), x, _WEIGHT.T.expand(2, 6, 5)),
    "addmv": lambda x: torch.stack([torch.addmv(_BIAS, _WEIGHT, row) for row in x.reshape(8, 6)]).reshape(2, 4, 5),
    "einsum + bias": lambda x: torch.einsum("nld,od->nlo", x, _WEIGHT) + _BIAS,
    "tensordot + bias": lambda x: torch.tensordot(x, _WEIGHT, ([2], [1])) + _BIAS,
    "inner + bias": lambda x: torch.inner(x, _WEIGHT) + _BIAS,
    "bmm + bias": lambda x: _by_bmm(x) + _BIAS,
    "@ with vectors + bias": lambda x: _by_columns(x) + _BIAS,
    "multiply, sum, add": lambda x: (x[..., None, :] * _WEIGHT).sum(-1) + _BIAS,
    "convolution of width 1": lambda x: F.conv1d(x.mT, _WEIGHT[..., None], _BIAS).mT,
    "ones in the input": lambda x: F.linear(
        torch.cat([x, torch.ones(2, 4, 1, dtype=x.dtype)], -1), torch.cat([_WEIGHT, _BIAS[:, None]], 1)
    ),
    "aten.linear": lambda x: torch.ops.aten.linear.default(x, _WEIGHT, _BIAS),
    "aten.addmm": lambda x: torch.ops.aten.addmm.default(_BIAS, x.reshape(8, 6), _WEIGHT.T).reshape(2, 4, 5),
    "outputs by cat": lambda x: torch.cat(
        [F.linear(x, _WEIGHT[:2], _BIAS[:2]), F.linear(x, _WEIGHT[2:], _BIAS[2:])], -1
    ),
    "sample by sample": lambda x: torch.stack([F.linear(sample, _WEIGHT, _BIAS) for sample in x]),
}


def _increased(x: torch.Tensor) -> torch.Tensor:
    x += _BIAS
    return x


_UNDECIDABLE = {
    "multiply and sum": _WEIGHTED_SUM,
    "multiply, sum, add": _WEIGHTED_SUM,
    "sum of two halves": SUM_OF_LAYERS,
}
#: Presets that have one rule for linear layers and for convolutions.
_SAME_FOR_ALL = ("paper", "epsilon", "gamma", "attnlrp", "cp_lrp")


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    for name, ways, usual in (
        ("linear", _PRODUCTS, lambda x: F.linear(x, _WEIGHT)),
        ("linear with bias", _WITH_BIAS, lambda x: F.linear(x, _WEIGHT, _BIAS)),
    ):
        convolutions = {key: way for key, way in ways.items() if "convolution" in key}
        others = {key: way for key, way in ways.items() if key not in convolutions}
        yield from family(_GROUP, name, usual, others, undecidable=_UNDECIDABLE)
        yield from family(_GROUP, name, usual, convolutions, presets=_SAME_FOR_ALL)
    yield from _deep()
    yield from _embedded()


def _deep() -> Iterator[Pair]:
    def network(first: Function) -> Function:
        return lambda x: F.linear(F.relu(first(x)), _SECOND, _SECOND_BIAS)

    yield from family(
        _GROUP,
        "linear, relu, linear",
        network(lambda x: F.linear(x, _WEIGHT, _BIAS)),
        {
            "matmul + bias": network(lambda x: x @ _WEIGHT.T + _BIAS),
            "einsum + bias": network(lambda x: torch.einsum("nld,od->nlo", x, _WEIGHT) + _BIAS),
            "addmm": network(lambda x: torch.addmm(_BIAS, x.reshape(8, 6), _WEIGHT.T).reshape(2, 4, 5)),
            "clamp": lambda x: F.linear(F.linear(x, _WEIGHT, _BIAS).clamp(min=0), _SECOND, _SECOND_BIAS),
            "neurons permuted": lambda x: F.linear(
                F.relu(F.linear(x, _WEIGHT.flip(0), _BIAS.flip(0))), _SECOND.flip(1), _SECOND_BIAS
            ),
            "neuron by neuron": lambda x: (
                torch.stack([F.relu(x @ row + bias) for row, bias in zip(_WEIGHT, _BIAS, strict=True)], -1) @ _SECOND.T
                + _SECOND_BIAS
            ),
        },
    )
    yield from family(
        _GROUP,
        "linear, relu, linear",
        network(lambda x: F.linear(x, _WEIGHT, _BIAS)),
        {
            "neurons scaled": lambda x: F.linear(
                F.relu(F.linear(x, _WEIGHT * 4, _BIAS * 4)), _SECOND / 4, _SECOND_BIAS
            ),
        },
        presets=OF_ANY_SCALE,
    )
    yield from family(
        _GROUP,
        "scaled numbers",
        lambda x: x * 2.5,
        {
            "number * x": lambda x: 2.5 * x,
            "x / number": lambda x: x / 0.4,
            "mul_": lambda x: x.mul_(2.5),
            "x + 1.5 x": lambda x: x + 1.5 * x,
            "tensor": lambda x: x * torch.tensor(2.5, dtype=x.dtype),
            "x * x.new_full": lambda x: x * x.new_full((1,), 2.5),
            "torch.mul": lambda x: torch.mul(x, 2.5),
            "div_": lambda x: x.div_(0.4),
            "x * 5 / 2": lambda x: x * 5 / 2,
            "sum of copies": lambda x: x + x + 0.5 * x,
        },
    )
    yield from family(
        _GROUP,
        "scaled channels",
        lambda x: x * _BIAS[:4, None],
        {
            "einsum": lambda x: torch.einsum("ncd,c->ncd", x, _BIAS[:4]),
            "/ reciprocal": lambda x: x / (1 / _BIAS[:4, None]),
            "weight first": lambda x: _BIAS[:4, None] * x,
            "expanded": lambda x: x * _BIAS[:4, None].expand_as(x),
            "addcmul of zeros": lambda x: torch.addcmul(torch.zeros_like(x), x, _BIAS[:4, None]),
            "channel by channel": lambda x: torch.stack([x[:, i] * _BIAS[i] for i in range(4)], 1),
        },
    )
    yield from family(
        _GROUP,
        "shifted",
        lambda x: x + _TABLE[:4],
        {
            "reversed": lambda x: _TABLE[:4] + x,
            "sub": lambda x: x - (-_TABLE[:4]),
            "rsub": lambda x: -(-_TABLE[:4] - x),
            "add_": lambda x: x.add_(_TABLE[:4]),
            "torch.add with alpha": lambda x: torch.add(x, _TABLE[:4] / 2, alpha=2),
            "stack, sum": lambda x: torch.stack([x, _TABLE[:4].expand_as(x)]).sum(0),
            "addcmul": lambda x: torch.addcmul(x, _TABLE[:4], torch.ones((), dtype=x.dtype)),
            "embedding": lambda x: x + F.embedding(torch.arange(4), _TABLE),
            "expanded": lambda x: x + _TABLE[:4].expand(2, 4, 6),
        },
        undecidable={
            "rsub": "The rules share the output of the layer before with the opposite sign. Z-box is not symmetric.",
            "stack, sum": "A sum over a dimension of a stack is a pooling over two positions, not a bias.",
        },
    )


def _embedded() -> Iterator[Pair]:
    one_hot = F.one_hot(_WORDS, 5).double()
    layer = nn.Embedding(5, 6, _weight=_TABLE)
    yield from family(
        _GROUP,
        "embedding",
        lambda x: x + F.embedding(_WORDS, _TABLE),
        {
            "one-hot @ weight": lambda x: x + one_hot @ _TABLE,
            "indexing": lambda x: x + _TABLE[_WORDS],
            "index_select": lambda x: x + _TABLE.index_select(0, _WORDS.flatten()).reshape(2, 4, 6),
            "nn.Embedding": lambda x: x + layer(_WORDS),
            "gather": lambda x: x + _TABLE.gather(0, _WORDS.reshape(8, 1).expand(8, 6)).reshape(2, 4, 6),
        },
    )
    yield from family(
        _GROUP,
        "rows of a computed table",
        lambda x: F.embedding(_WORDS, x.reshape(8, 6)),
        {
            "one-hot @ table": lambda x: F.one_hot(_WORDS, 8).double() @ x.reshape(8, 6),
            "indexing": lambda x: x.reshape(8, 6)[_WORDS],
            "index_select": lambda x: x.reshape(8, 6).index_select(0, _WORDS.flatten()).reshape(2, 4, 6),
        },
        presets=("paper",),
    )
