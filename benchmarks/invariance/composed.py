"""Compositions: activations behind a number that is added, behind a gate, and as a factor of a product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance import activations
from benchmarks.invariance.pair import BEHIND_A_FACTOR, Function, Pair, Spelling, family

_GROUP = "compositions"
_WEIGHT = fixed(6, 6, seed=141)
_NUMBER = 0.75
_VECTOR = torch.full((6,), _NUMBER, dtype=torch.float64)
_MASKED = (
    "A mask of floating-point numbers is a constant like any other, and a gate that weighs a constant is a constant, "
    "too (docs/gates.md)."
)
_OF_GATES = (
    "A difference, a product or a quotient of gates is a gate. Behind a gate, the parts of the rewrite are gates. The "
    "function has one input and is no gate."
)
_HARD_SIGMOID = "Clipped from both sides, a number that is added makes a hard sigmoid. A tensor is a bias."
_BELONGS = (
    "A number behind a function of single elements belongs to the function, as in 2 sigmoid(2 x) - 1, which is "
    "tanh(x). A tensor is a constant."
)
#: Rewrites that multiply with a mask.
_MASKS = ("relu: x * (x > 0).double()", "leaky_relu: x * slopes")
#: Rewrites by a difference, a product or a quotient of what are gates behind a gate.
_PARTS = (
    "abs: x * sign(x)",
    "silu: mul_ in place",
    "elu: where exp - 1",
    "softplus: -logsigmoid(-x)",
    "softplus: -log(sigmoid(-x))",
    "tanh: sinh / cosh",
    "logsigmoid: -softplus(-x)",
    "logsigmoid: -log1p(exp(-x))",
    "square: x * |x| * sign",
    "tanhshrink: x - tanh(x)",
    "softshrink: relu(x - 0.2) - relu(-x - 0.2)",
)
_HELD = (
    "CP-LRP holds the output of an activation, and so it must know an activation from a sum. With other numbers, the "
    "sums and products of the rewrite are no activation."
)
#: Rewrites that are made of sums and of products that are no gates.
_SUMS = (
    "gelu: x * erfc / 2",
    "gelu: x / 2 + x / 2 * erf",
    "silu: x * exp(x) / (1 + exp(x))",
    "elu: where expm1",
    "elu: relu + expm1 of clamp(max=0)",
    "softsign: x / (1 + |x|)",
    "softsign: x * reciprocal",
)
#: Functions of single elements that take a number before them.
_OF_ELEMENTS: dict[str, Function] = {
    **{
        name: getattr(F, name)
        for name in "relu leaky_relu relu6 elu selu gelu silu hardswish mish softplus hardtanh".split()
    },
    **{name: getattr(torch, name) for name in "sigmoid tanh abs square".split()},
    "clamp_max": lambda x: x.clamp(max=0.5),
}
#: Activations between layers. A number behind one of them is a constant.
_BETWEEN_LAYERS = ("relu", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh", "abs")
_SUMS_WITH_A_NUMBER: dict[str, Function] = {
    "x - -0.75": lambda x: x - -_NUMBER,
    "torch.add": lambda x: torch.add(_NUMBER, x),
    "tensor": lambda x: x + torch.tensor(_NUMBER, dtype=x.dtype),
    "vector": lambda x: x + _VECTOR,
    "full_like": lambda x: x + torch.full_like(x, _NUMBER),
}


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    for name, function in _OF_ELEMENTS.items():
        yield from _before(name, function)
    for name in (*_BETWEEN_LAYERS, "tanh", "sigmoid", "square"):
        yield from _after(name, _OF_ELEMENTS[name])
    yield from _behind(
        "of x + 0.75", lambda x: x + _NUMBER, undecidable={"root of x / 2 + 3: factored": BEHIND_A_FACTOR}
    )
    yield from _behind("of a gate", torch.sigmoid, undecidable=dict.fromkeys(_MASKS, _MASKED))
    yield from _behind(
        "of a gate, times a layer",
        torch.sigmoid,
        lambda y, x: y * F.linear(x, _WEIGHT),
        undecidable={**dict.fromkeys(_PARTS, _OF_GATES), **dict.fromkeys(_SUMS, _HELD)},
    )


def _before(name: str, function: Function) -> Iterator[Pair]:
    """A function behind a sum, in which one number is written in several ways."""
    ways: dict[str, Function] = {
        **{way: lambda x, add=add: function(add(x)) for way, add in _SUMS_WITH_A_NUMBER.items()},
        "where": lambda x: function(torch.where(x.isfinite(), x + _NUMBER, 0.0)),
    }
    tensors = ("tensor", "vector", "full_like", "where") if name == "relu6" else ()
    undecidable = dict.fromkeys(tensors, _HARD_SIGMOID)
    yield from family(_GROUP, f"{name}(x + 0.75)", lambda x: function(x + _NUMBER), ways, undecidable=undecidable)


def _after(name: str, function: Function) -> Iterator[Pair]:
    """A function before a sum, in which one number is written in several ways."""
    ways = {way: lambda x, add=add: add(function(x)) for way, add in _SUMS_WITH_A_NUMBER.items()}
    tensors = () if name in _BETWEEN_LAYERS else ("tensor", "vector", "full_like")
    undecidable = dict.fromkeys(tensors, _BELONGS)
    yield from family(_GROUP, f"{name}(x) + 0.75", lambda x: function(x) + _NUMBER, ways, undecidable=undecidable)


def _behind(
    name: str, before: Function, after: Function = lambda y, x: y, *, undecidable: Mapping[str, str]
) -> Iterator[Pair]:
    """The pairs of single activations behind a function, and perhaps before another function of their input, too."""
    composed: dict[Spelling, Spelling] = {}  # The usual way is explained once for all its rewrites.

    def of(spelling: Spelling) -> Spelling:
        if spelling not in composed:
            composed[spelling] = Spelling(lambda x: after(spelling.function(before(x)), x))
        return composed[spelling]

    for pair in activations.pairs():
        if pair.undecidable:
            continue
        yield replace(
            pair,
            group=_GROUP,
            function_name=f"{pair.function_name} {name}",
            function=of(pair.function),
            rewrite=of(pair.rewrite),
            undecidable=undecidable.get(pair.name, ""),
        )
