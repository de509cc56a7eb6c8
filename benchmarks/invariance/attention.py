"""Attention: fused, by modules and by hand; masks; grouped queries; remembered keys and values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import OF_ANY_SCALE, Function, Pair, Spelling, family, made
from benchmarks.invariance.softmax import BY_HAND

_GROUP = "attention"
_QUERY, _KEY, _VALUE, _OUT = (fixed(6, 6, seed=seed) for seed in (51, 52, 53, 54))
_QUERY_BIAS, _KEY_BIAS, _VALUE_BIAS = (fixed(6, seed=seed) for seed in (55, 56, 57))
_SMALL_KEY, _SMALL_VALUE = fixed(3, 6, seed=58), fixed(3, 6, seed=59)
_SCALE = 1 / math.sqrt(6)
_CAUSAL = torch.ones(4, 4, dtype=torch.bool).tril()
_MASK = (fixed(2, 4, 4, seed=60) > -0.5) | torch.eye(4, dtype=torch.bool)
_ADDED = torch.zeros(2, 4, 4, dtype=torch.float64).masked_fill(~_MASK, -math.inf)
_POSITIONS = fixed(4, 4, seed=61)
_MEMORY_KEYS, _MEMORY_VALUES = fixed(2, 3, 6, seed=62), fixed(2, 3, 6, seed=63)

Attention = Function


def _of(attention: Attention) -> Function:
    """Attention with queries, keys and values that linear layers make."""
    return lambda x: attention(
        F.linear(x, _QUERY, _QUERY_BIAS), F.linear(x, _KEY, _KEY_BIAS), F.linear(x, _VALUE, _VALUE_BIAS)
    )


def _all(ways: dict[str, Attention]) -> dict[str, Function]:
    return {name: _of(way) for name, way in ways.items()}


def _attended(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    q, k, v = parts
    return F.scaled_dot_product_attention(q, k, v)


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-2, -1) * _SCALE


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from _plain()
    yield from _masked()
    yield from _headed()
    yield from _remembered()
    yield from _modules()


def _plain() -> Iterator[Pair]:
    def weighted(weigh: Attention) -> Attention:
        return lambda q, k, v: weigh(torch.softmax(_scores(q, k), -1), v)

    yield from family(
        _GROUP,
        "attention",
        _of(F.scaled_dot_product_attention),
        _all(
            {
                "by hand": lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(6), -1) @ v,
                "scores * scale": lambda q, k, v: torch.softmax(_scores(q, k), -1) @ v,
                "queries / sqrt": lambda q, k, v: torch.softmax(q / math.sqrt(6) @ k.mT, -1) @ v,
                "both scaled": lambda q, k, v: torch.softmax((q * 6**-0.25) @ (k * 6**-0.25).mT, -1) @ v,
                "scale=": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=_SCALE),
                "scaled queries, scale=1": lambda q, k, v: F.scaled_dot_product_attention(q * _SCALE, k, v, scale=1.0),
                "bmm": lambda q, k, v: torch.bmm(torch.softmax(torch.bmm(q, k.mT) * _SCALE, -1), v),
                "einsum": lambda q, k, v: torch.einsum(
                    "nqk,nkd->nqd", torch.softmax(torch.einsum("nqd,nkd->nqk", q, k) * _SCALE, -1), v
                ),
                "baddbmm": lambda q, k, v: (
                    torch.softmax(torch.baddbmm(torch.zeros(2, 4, 4, dtype=q.dtype), q, k.mT, beta=0, alpha=_SCALE), -1)
                    @ v
                ),
                "scores in place": lambda q, k, v: torch.softmax((q @ k.mT).mul_(_SCALE), -1) @ v,
                "elementwise": lambda q, k, v: torch.softmax((q[:, :, None] * k[:, None]).sum(-1) * _SCALE, -1) @ v,
                "values elementwise": weighted(lambda w, v: (w[..., None] * v[:, None]).sum(2)),
                "values by einsum": weighted(lambda w, v: torch.einsum("nqk,nkd->nqd", w, v)),
                "values by transposed matmul": weighted(lambda w, v: (v.mT @ w.mT).mT),
                "keys first": lambda q, k, v: torch.softmax((k @ q.mT).mT * _SCALE, -1) @ v,
                "softmax over dimension 1": lambda q, k, v: (torch.softmax((k @ q.mT) * _SCALE, 1)).mT @ v,
                "divided behind the values": lambda q, k, v: (
                    torch.exp(_scores(q, k)) @ v / torch.exp(_scores(q, k)).sum(-1, keepdim=True)
                ),
                "maximum subtracted": lambda q, k, v: BY_HAND["exp / sum, maximum subtracted"](_scores(q, k)) @ v,
                "dropout in evaluation": weighted(lambda w, v: F.dropout(w, 0.1, training=False) @ v),
                "heads of 1": lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0],
                "query by query": lambda q, k, v: torch.stack(
                    [(torch.softmax(_scores(q[:, i : i + 1], k), -1) @ v)[:, 0] for i in range(4)], 1
                ),
            }
        ),
    )
    whole, whole_bias = torch.cat([_QUERY, _KEY, _VALUE]), torch.cat([_QUERY_BIAS, _KEY_BIAS, _VALUE_BIAS])
    yield from family(
        _GROUP,
        "projections",
        _of(F.scaled_dot_product_attention),
        {
            "one layer, chunk": lambda x: _attended(F.linear(x, whole, whole_bias).chunk(3, -1)),
            "one layer, reshape and unbind": lambda x: _attended(
                F.linear(x, whole, whole_bias).reshape(2, 4, 3, 6).permute(2, 0, 1, 3).unbind(0)
            ),
        },
    )
    yield from family(
        _GROUP,
        "projections",
        _of(F.scaled_dot_product_attention),
        {
            "scale in the query weights": lambda x: F.scaled_dot_product_attention(
                F.linear(x, _QUERY * _SCALE, _QUERY_BIAS * _SCALE),
                F.linear(x, _KEY, _KEY_BIAS),
                F.linear(x, _VALUE, _VALUE_BIAS),
                scale=1.0,
            )
        },
        presets=OF_ANY_SCALE,
    )


def _masked() -> Iterator[Pair]:
    def weighed(mask: Function) -> Attention:
        return lambda q, k, v: torch.softmax(mask(_scores(q, k)), -1) @ v

    def written(s: torch.Tensor) -> torch.Tensor:
        s[~_MASK] = -math.inf
        return s

    yield from family(
        _GROUP,
        "masked attention",
        _of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=_MASK)),
        _all(
            {
                "additive mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=_ADDED),
                "masked_fill": weighed(lambda s: s.masked_fill(~_MASK, -math.inf)),
                "masked_fill_ in place": weighed(lambda s: s.masked_fill_(~_MASK, -math.inf)),
                "masked_fill of the least number": weighed(lambda s: s.masked_fill(~_MASK, torch.finfo(s.dtype).min)),
                "where": weighed(lambda s: torch.where(_MASK, s, -math.inf)),
                "where of a tensor": weighed(lambda s: torch.where(_MASK, s, torch.full_like(s, -math.inf))),
                "plus -inf": weighed(lambda s: s + _ADDED),
                "plus the least number": weighed(lambda s: s + (~_MASK).double() * -1e30),
                "add_ in place": weighed(lambda s: s.add_(_ADDED)),
                "setitem": weighed(written),
                "baddbmm of the mask": lambda q, k, v: (
                    torch.softmax(torch.baddbmm(_ADDED, q, k.mT, alpha=_SCALE), -1) @ v
                ),
                "exp * mask / sum": lambda q, k, v: (
                    ((torch.exp(_scores(q, k)) * _MASK) / (torch.exp(_scores(q, k)) * _MASK).sum(-1, keepdim=True)) @ v
                ),
            }
        ),
    )
    yield from family(
        _GROUP,
        "causal attention",
        _of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        _all(
            {
                "boolean mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=_CAUSAL),
                "masked_fill": weighed(lambda s: s.masked_fill(~_CAUSAL, -math.inf)),
                "plus triu of -inf": weighed(lambda s: s + torch.full((4, 4), -math.inf, dtype=s.dtype).triu(1)),
                "prefix by prefix": lambda q, k, v: torch.stack(
                    [
                        F.scaled_dot_product_attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])[:, 0]
                        for i in range(4)
                    ],
                    1,
                ),
            }
        ),
    )
    yield from family(
        _GROUP,
        "attention with position bias",
        _of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=_POSITIONS)),
        _all(
            {
                "scores + bias": weighed(lambda s: s + _POSITIONS),
                "baddbmm": lambda q, k, v: (
                    torch.softmax(torch.baddbmm(_POSITIONS.expand(2, 4, 4), q, k.mT, alpha=_SCALE), -1) @ v
                ),
                "bias in the keys": lambda q, k, v: (
                    torch.softmax(
                        torch.cat([q * _SCALE, torch.eye(4, dtype=q.dtype).expand(2, 4, 4)], -1)
                        @ torch.cat([k, _POSITIONS.T.expand(2, 4, 4)], -1).mT,
                        -1,
                    )
                    @ v
                ),
            }
        ),
    )


def _headed() -> Iterator[Pair]:
    def heads(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.reshape(2, 4, count, -1).transpose(1, 2)

    def merged(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).reshape(2, 4, -1)

    def by_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
        return torch.cat([torch.softmax(a @ b.mT / math.sqrt(3), -1) @ c for a, b, c in parts], -1)

    def by_batch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(x, 2).reshape(4, 4, 3) for x in (q, k, v))
        return merged(torch.bmm(torch.softmax(torch.bmm(q, k.mT) / math.sqrt(3), -1), v).reshape(2, 2, 4, 3))

    def by_einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.reshape(2, 4, 2, 3) for x in (q, k, v))
        weights = torch.softmax(torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(3), -1)
        return torch.einsum("nhqk,nkhd->nqhd", weights, v).reshape(2, 4, 6)

    yield from family(
        _GROUP,
        "two heads",
        _of(lambda q, k, v: merged(F.scaled_dot_product_attention(heads(q, 2), heads(k, 2), heads(v, 2)))),
        _all(
            {
                "by hand": lambda q, k, v: merged(
                    torch.softmax(heads(q, 2) @ heads(k, 2).mT / math.sqrt(3), -1) @ heads(v, 2)
                ),
                "head by head": by_loop,
                "heads in the batch": by_batch,
                "einsum": by_einsum,
            }
        ),
    )

    def grouped(attention: Attention) -> Function:
        return lambda x: merged(
            attention(
                heads(F.linear(x, _QUERY), 2), F.linear(x, _SMALL_KEY)[:, None], F.linear(x, _SMALL_VALUE)[:, None]
            )
        )

    yield from family(
        _GROUP,
        "grouped queries",
        grouped(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        {
            "repeat_interleave": grouped(
                lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
            ),
            "expand": grouped(
                lambda q, k, v: F.scaled_dot_product_attention(q, k.expand(2, 2, 4, 3), v.expand(2, 2, 4, 3))
            ),
            "repeat, by hand": grouped(
                lambda q, k, v: torch.softmax(q @ k.repeat(1, 2, 1, 1).mT / math.sqrt(3), -1) @ v.repeat(1, 2, 1, 1)
            ),
            "broadcast, by hand": grouped(lambda q, k, v: torch.softmax(q @ k.mT / math.sqrt(3), -1) @ v),
            "einsum": grouped(
                lambda q, k, v: torch.einsum(
                    "nhqk,nkd->nhqd",
                    torch.softmax(torch.einsum("nhqd,nkd->nhqk", q, k[:, 0]) / math.sqrt(3), -1),
                    v[:, 0],
                )
            ),
            "repeated weights": lambda x: merged(
                F.scaled_dot_product_attention(
                    heads(F.linear(x, _QUERY), 2),
                    heads(F.linear(x, _SMALL_KEY.repeat(2, 1)), 2),
                    heads(F.linear(x, _SMALL_VALUE.repeat(2, 1)), 2),
                )
            ),
        },
    )


def _remembered() -> Iterator[Pair]:
    def with_memory(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, torch.cat([_MEMORY_KEYS, k], 1), torch.cat([_MEMORY_VALUES, v], 1))

    def preallocated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = (torch.zeros(2, 7, 6, dtype=q.dtype) for _ in range(2))
        keys[:, :3], values[:, :3] = _MEMORY_KEYS, _MEMORY_VALUES
        keys[:, 3:], values[:, 3:] = k, v
        return F.scaled_dot_product_attention(q, keys, values)

    def by_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(torch.cat([_scores(q, _MEMORY_KEYS), _scores(q, k)], -1), -1)
        return weights[..., :3] @ _MEMORY_VALUES + weights[..., 3:] @ v

    yield from family(
        _GROUP,
        "remembered keys and values",
        _of(with_memory),
        {
            **_all(
                {
                    "by hand": lambda q, k, v: (
                        torch.softmax(_scores(q, torch.cat([_MEMORY_KEYS, k], 1)), -1)
                        @ torch.cat([_MEMORY_VALUES, v], 1)
                    ),
                    "preallocated": preallocated,
                    "by parts": by_parts,
                }
            ),
            "additional arguments": Spelling(
                lambda x, keys, values: F.scaled_dot_product_attention(
                    F.linear(x, _QUERY, _QUERY_BIAS),
                    torch.cat([keys, F.linear(x, _KEY, _KEY_BIAS)], 1),
                    torch.cat([values, F.linear(x, _VALUE, _VALUE_BIAS)], 1),
                ),
                (_MEMORY_KEYS, _MEMORY_VALUES),
            ),
        },
    )

    def crossed(attention: Attention) -> Function:
        return lambda x: attention(F.linear(x, _QUERY), _MEMORY_KEYS, _MEMORY_VALUES) + x

    yield from family(
        _GROUP,
        "constant memory",
        crossed(F.scaled_dot_product_attention),
        {
            "by hand": crossed(lambda q, k, v: torch.softmax(_scores(q, k), -1) @ v),
            "einsum": crossed(
                lambda q, k, v: torch.einsum(
                    "nqk,nkd->nqd", torch.softmax(torch.einsum("nqd,nkd->nqk", q, k) * _SCALE, -1), v
                )
            ),
            "softmax by hand": crossed(lambda q, k, v: BY_HAND["exp / sum"](_scores(q, k)) @ v),
            "exp(x - logsumexp)": crossed(lambda q, k, v: BY_HAND["exp(x - logsumexp)"](_scores(q, k)) @ v),
            "linear with computed weight": crossed(
                lambda q, k, v: torch.stack(
                    [F.linear(w, m.T) for w, m in zip(torch.softmax(_scores(q, k), -1), v, strict=True)]
                )
            ),
            "additional arguments": Spelling(
                lambda x, keys, values: F.scaled_dot_product_attention(F.linear(x, _QUERY), keys, values) + x,
                (_MEMORY_KEYS, _MEMORY_VALUES),
            ),
        },
    )


def _modules() -> Iterator[Pair]:
    module = made(lambda: nn.MultiheadAttention(6, 2, batch_first=True))
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    weight, bias = parameters["in_proj_weight"], parameters["in_proj_bias"]

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.reshape(2, 4, 2, 3).transpose(1, 2) for part in F.linear(x, weight, bias).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 4, 6)
        return F.linear(attended, parameters["out_proj.weight"], parameters["out_proj.bias"])

    def functional(x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(0, 1)
        out = parameters["out_proj.weight"], parameters["out_proj.bias"]
        output, _ = F.multi_head_attention_forward(
            y, y, y, 6, 2, weight, bias, None, None, False, 0.0, *out, training=False, need_weights=False
        )
        return output.transpose(0, 1)

    yield from family(
        _GROUP,
        "nn.MultiheadAttention",
        lambda x: module(x, x, x)[0],
        {
            "need_weights=False": lambda x: module(x, x, x, need_weights=False)[0],
            "weights of each head": lambda x: module(x, x, x, average_attn_weights=False)[0],
            "copies of the inputs": lambda x: module(x, x.clone(), x.clone(), need_weights=False)[0],
            "functional": functional,
            "by hand": by_hand,
        },
    )
    layer = made(lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True))
    assert isinstance(layer, nn.TransformerEncoderLayer)

    def of_parts(x: torch.Tensor) -> torch.Tensor:
        x = layer.norm1(x + layer.self_attn(x, x, x)[0])
        y: torch.Tensor = layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
        return y

    yield from family(_GROUP, "nn.TransformerEncoderLayer", layer, {"by its parts": of_parts})
