"""Activations: functions of single elements."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import BEHIND_A_FACTOR, Function, Pair, family

_GROUP = "activations"
_CHOICE = (
    "A choice between a tensor and a constant: where the constant is chosen, it carries (equation 8), as an input in "
    "its place would. A clamp is an activation (equation 7), which has no second tensor."
)
#: Why a softmax of a score and 0 is not a sigmoid.
SOFTMAX_OF_TWO = (
    "AttnLRP has two rules for one function: a softmax passes its derivative on (proposition 3.1). A sigmoid is an "
    "activation, which passes contributions through."
)
_ZERO = torch.zeros((), dtype=torch.float64)
_SLOPES = fixed(4, seed=21).abs()


def _written(function: Function) -> Function:
    """A function that writes into its argument, and returns nothing that is needed."""

    def written(x: torch.Tensor) -> torch.Tensor:
        function(x)
        return x

    return written


def pairs() -> Iterator[Pair]:
    """All pairs of this group that are functions of single elements."""
    yield from _rectifiers()
    yield from _smooth()
    yield from _bounded()


def _rectifiers() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "relu",
        F.relu,
        {
            "torch.relu": torch.relu,
            "nn.ReLU": nn.ReLU(),
            "in place": _written(torch.relu_),
            "clamp(min=0)": lambda x: x.clamp(min=0),
            "clamp_min": lambda x: x.clamp_min(0),
            "clamp_ in place": _written(lambda x: x.clamp_(min=0)),
            "maximum of a constant": lambda x: torch.maximum(x, _ZERO),
            "max of a constant": lambda x: torch.max(x, torch.zeros_like(x)),
            "amax of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0),
            "minimum of the negative": lambda x: -torch.minimum(-x, _ZERO),
            "x * (x > 0)": lambda x: x * (x > 0),
            "x * (x > 0).double()": lambda x: x * (x > 0).double(),
            "where": lambda x: torch.where(x > 0, x, 0.0),
            "where zeros": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
            "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
            "x[x < 0] = 0": _written(lambda x: x.__setitem__(x < 0, 0.0)),
            "threshold": lambda x: F.threshold(x, 0.0, 0.0),
            "(x + |x|) / 2": lambda x: (x + x.abs()) / 2,
            "hardtanh(0, inf)": lambda x: F.hardtanh(x, 0.0, math.inf),
            "leaky_relu of slope 0": lambda x: F.leaky_relu(x, 0.0),
            "prelu of slope 0": lambda x: F.prelu(x, _ZERO.reshape(1)),
            "x - clamp(max=0)": lambda x: x - x.clamp(max=0),
            "relu of relu": lambda x: F.relu(F.relu(x)),
            "aten": torch.ops.aten.relu.default,
        },
    )
    yield from family(
        _GROUP,
        "relu6",
        lambda x: F.relu6(8 * x),
        {
            "in place": lambda x: F.relu6(8 * x, inplace=True),
            "clamp(0, 6)": lambda x: (8 * x).clamp(0, 6),
            "clip": lambda x: torch.clip(8 * x, 0, 6),
            "hardtanh": lambda x: F.hardtanh(8 * x, 0.0, 6.0),
            "minimum of relu": lambda x: F.relu(8 * x).clamp(max=6),
            "relu of minimum": lambda x: F.relu((8 * x).clamp(max=6)),
            "clamp_min, clamp_max": lambda x: (8 * x).clamp_min(0).clamp_max(6),
            "torch.minimum": lambda x: torch.minimum(F.relu(8 * x), _ZERO + 6),
        },
        undecidable={"torch.minimum": _CHOICE},
    )
    yield from family(
        _GROUP,
        "leaky_relu",
        lambda x: F.leaky_relu(x, 0.1),
        {
            "in place": lambda x: F.leaky_relu_(x, 0.1),
            "where": lambda x: torch.where(x > 0, x, 0.1 * x),
            "maximum": lambda x: torch.maximum(x, 0.1 * x),
            "relu(x) - 0.1 relu(-x)": lambda x: F.relu(x) - 0.1 * F.relu(-x),
            "clamp(min=0) + 0.1 clamp(max=0)": lambda x: x.clamp(min=0) + 0.1 * x.clamp(max=0),
            "prelu": lambda x: F.prelu(x, _ZERO.reshape(1) + 0.1),
            "x * slopes": lambda x: x * torch.where(x > 0, _ZERO + 1, _ZERO + 0.1),
            "0.55 x + 0.45 |x|": lambda x: 0.55 * x + 0.45 * x.abs(),
        },
    )
    yield from family(
        _GROUP,
        "prelu",
        lambda x: F.prelu(x, _SLOPES),
        {
            "where": lambda x: torch.where(x > 0, x, _SLOPES[:, None] * x),
            "relu(x) - slope relu(-x)": lambda x: F.relu(x) - _SLOPES[:, None] * F.relu(-x),
        },
    )
    yield from family(
        _GROUP,
        "abs",
        torch.abs,
        {
            "relu(x) + relu(-x)": lambda x: F.relu(x) + F.relu(-x),
            "where": lambda x: torch.where(x > 0, x, -x),
            "maximum": lambda x: torch.maximum(x, -x),
            "x * sign(x)": lambda x: x * torch.sign(x),
            "root of the square": lambda x: x.square().sqrt(),
        },
    )
    yield from family(
        _GROUP,
        "hardshrink",
        lambda x: F.hardshrink(x, 0.2),
        {
            "where": lambda x: torch.where(x.abs() > 0.2, x, 0.0),
            "x * mask": lambda x: x * (x.abs() > 0.2),
        },
    )


def _smooth() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "gelu",
        F.gelu,
        {
            "nn.GELU": nn.GELU(),
            "x / 2 * (1 + erf)": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
            "0.5 * x * (1 + erf)": lambda x: 0.5 * x * (torch.erf(x * math.sqrt(0.5)) + 1),
            "x * (1 + erf) / 2": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
            "x * (0.5 + 0.5 * erf)": lambda x: x * (0.5 + 0.5 * torch.erf(x / math.sqrt(2))),
            "x * erfc / 2": lambda x: x * 0.5 * torch.erfc(-x / math.sqrt(2)),
            "x * ndtr": lambda x: x * torch.special.ndtr(x),
            "x / 2 + x / 2 * erf": lambda x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2)),
        },
    )
    root = math.sqrt(2 / math.pi)
    yield from family(
        _GROUP,
        "gelu tanh",
        lambda x: F.gelu(x, approximate="tanh"),
        {
            "with x ** 3": lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x**3))),
            "with pow": lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * torch.pow(x, 3)))),
            "with x * x * x": lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x * x * x))),
            "factored": lambda x: 0.5 * x * (1 + torch.tanh(root * x * (1 + 0.044715 * x * x))),
            "x * sigmoid": lambda x: x * torch.sigmoid(2 * root * (x + 0.044715 * x**3)),
        },
    )
    yield from family(
        _GROUP,
        "quick gelu",
        lambda x: x * torch.sigmoid(1.702 * x),
        {
            "x / (1 + exp)": lambda x: x / (1 + torch.exp(-1.702 * x)),
            "silu": lambda x: F.silu(1.702 * x) / 1.702,
            "tanh": lambda x: x * 0.5 * (1 + torch.tanh(0.851 * x)),
        },
    )
    yield from family(
        _GROUP,
        "silu",
        F.silu,
        {
            "in place": lambda x: F.silu(x, inplace=True),
            "x * sigmoid": lambda x: x * torch.sigmoid(x),
            "sigmoid * x": lambda x: torch.sigmoid(x) * x,
            "mul_ in place": lambda x: x.mul_(torch.sigmoid(x)),
            "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
            "x * (1 / (1 + exp(-x)))": lambda x: x * (1 / (1 + torch.exp(-x))),
            "x * reciprocal": lambda x: x * (1 + torch.exp(-x)).reciprocal(),
            "x * pow(-1)": lambda x: x * (1 + torch.exp(-x)).pow(-1),
            "x * exp(x) / (1 + exp(x))": lambda x: x * torch.exp(x) / (1 + torch.exp(x)),
            "tanh": lambda x: x * 0.5 * (1 + torch.tanh(x / 2)),
            "x * (1 - sigmoid(-x))": lambda x: x * (1 - torch.sigmoid(-x)),
            "x * exp(logsigmoid)": lambda x: x * F.logsigmoid(x).exp(),
            "x * softmax of two": lambda x: x * torch.softmax(torch.stack([x, torch.zeros_like(x)]), 0)[0],
        },
        undecidable={"x * softmax of two": SOFTMAX_OF_TWO},
    )
    yield from family(
        _GROUP,
        "elu",
        F.elu,
        {
            "where expm1": lambda x: torch.where(x > 0, x, torch.expm1(x)),
            "where exp - 1": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
            "relu + expm1 of clamp(max=0)": lambda x: F.relu(x) + torch.expm1(x.clamp(max=0)),
            "celu": F.celu,
            "x * ratio": lambda x: x * torch.where(x > 0, _ZERO + 1, torch.expm1(x) / x),
        },
        undecidable={"x * ratio": _CHOICE},
    )
    yield from family(
        _GROUP,
        "selu",
        F.selu,
        {"scaled elu": lambda x: 1.0507009873554804934193349852946 * F.elu(x, 1.6732632423543772848170429916717)},
    )
    yield from family(
        _GROUP,
        "softplus",
        F.softplus,
        {
            "log1p(exp)": lambda x: torch.log1p(torch.exp(x)),
            "log(1 + exp)": lambda x: torch.log(1 + torch.exp(x)),
            "-logsigmoid(-x)": lambda x: -F.logsigmoid(-x),
            "logaddexp": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
            "-log(sigmoid(-x))": lambda x: -torch.log(torch.sigmoid(-x)),
        },
        undecidable={
            "logaddexp": "The log-sum-exp of two scores, of which one is constant: both share, as two inputs would. "
            "Softplus is an activation, which has no second tensor."
        },
    )
    yield from family(
        _GROUP,
        "mish",
        F.mish,
        {
            "x * tanh(softplus)": lambda x: x * torch.tanh(F.softplus(x)),
            "x * tanh(log1p(exp))": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
            "x * tanh(log(1 + exp))": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        },
    )
    yield from family(
        _GROUP,
        "hardswish",
        lambda x: F.hardswish(4 * x),
        {
            "x * relu6(x + 3) / 6": lambda x: 4 * x * F.relu6(4 * x + 3) / 6,
            "x * (relu6(x + 3) / 6)": lambda x: 4 * x * (F.relu6(4 * x + 3) / 6),
            "x * hardsigmoid": lambda x: 4 * x * F.hardsigmoid(4 * x),
            "x * clamp(x + 3, 0, 6) / 6": lambda x: 4 * x * (4 * x + 3).clamp(0, 6) / 6,
            "x * clamp(x / 6 + 0.5, 0, 1)": lambda x: 4 * x * (4 * x / 6 + 0.5).clamp(0, 1),
            "x * hardtanh(x + 3, 0, 6) / 6": lambda x: 4 * x * F.hardtanh(4 * x + 3, 0.0, 6.0) / 6,
            "in place": lambda x: F.hardswish(4 * x, inplace=True),
        },
    )


def _bounded() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "sigmoid",
        torch.sigmoid,
        {
            "1 / (1 + exp(-x))": lambda x: 1 / (1 + torch.exp(-x)),
            "reciprocal": lambda x: (1 + torch.exp(-x)).reciprocal(),
            "pow(-1)": lambda x: (1 + torch.exp(-x)).pow(-1),
            "exp(x) / (1 + exp(x))": lambda x: torch.exp(x) / (1 + torch.exp(x)),
            "(1 + tanh(x / 2)) / 2": lambda x: (1 + torch.tanh(x / 2)) / 2,
            "exp(logsigmoid)": lambda x: F.logsigmoid(x).exp(),
            "1 - sigmoid(-x)": lambda x: 1 - torch.sigmoid(-x),
            "softmax of two": lambda x: torch.softmax(torch.stack([x, torch.zeros_like(x)]), 0)[0],
            "expit": torch.special.expit,
        },
        undecidable={"softmax of two": SOFTMAX_OF_TWO},
    )
    yield from family(
        _GROUP,
        "tanh",
        torch.tanh,
        {
            "2 sigmoid(2 x) - 1": lambda x: 2 * torch.sigmoid(2 * x) - 1,
            "quotient of exponentials": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
            "(1 - exp(-2 x)) / (1 + exp(-2 x))": lambda x: (1 - torch.exp(-2 * x)) / (1 + torch.exp(-2 * x)),
            "1 - 2 / (exp(2 x) + 1)": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
            "sinh / cosh": lambda x: torch.sinh(x) / torch.cosh(x),
            "in place": _written(torch.tanh_),
        },
    )
    yield from family(
        _GROUP,
        "hardsigmoid",
        lambda x: F.hardsigmoid(4 * x),
        {
            "relu6(x + 3) / 6": lambda x: F.relu6(4 * x + 3) / 6,
            "clamp(x / 6 + 0.5, 0, 1)": lambda x: (4 * x / 6 + 0.5).clamp(0, 1),
        },
    )
    yield from family(
        _GROUP,
        "hardtanh",
        lambda x: F.hardtanh(4 * x),
        {
            "clamp": lambda x: (4 * x).clamp(-1, 1),
            "clamp_min, clamp_max": lambda x: (4 * x).clamp_min(-1).clamp_max(1),
            "maximum, minimum": lambda x: torch.minimum(torch.maximum(4 * x, _ZERO - 1), _ZERO + 1),
        },
        undecidable={"maximum, minimum": _CHOICE},
    )
    yield from family(
        _GROUP,
        "hardtanh + 1",
        lambda x: F.hardtanh(4 * x) + 1,
        {
            "clamp": lambda x: (4 * x).clamp(-1, 1) + 1,
            "clamp_min, clamp_max": lambda x: (4 * x).clamp_min(-1).clamp_max(1) + 1,
            "clip of clip": lambda x: (4 * x).clip(min=-1).clip(max=1) + 1,
        },
    )
    yield from family(
        _GROUP,
        "clamp_max + 1",
        lambda x: (4 * x).clamp_max(1) + 1,
        {"clamp(max=1)": lambda x: (4 * x).clamp(max=1) + 1, "clip": lambda x: 1 + torch.clip(4 * x, max=1)},
    )
    yield from family(
        _GROUP,
        "2 hardsigmoid - 1",
        lambda x: 2 * F.hardsigmoid(4 * x) - 1,
        {
            "relu6(x + 3) / 3 - 1": lambda x: F.relu6(4 * x + 3) / 3 - 1,
            "clamp(x / 6 + 0.5, 0, 1)": lambda x: 2 * (4 * x / 6 + 0.5).clamp(0, 1) - 1,
            "clamp_min, clamp_max": lambda x: 2 * (4 * x / 6 + 0.5).clamp_min(0).clamp_max(1) - 1,
            "relu, clamp_max": lambda x: F.relu(4 * x / 6 + 0.5).clamp_max(1) * 2 - 1,
        },
    )
    yield from family(
        _GROUP,
        "softsign",
        F.softsign,
        {"x / (1 + |x|)": lambda x: x / (1 + x.abs()), "x * reciprocal": lambda x: x * (1 + x.abs()).reciprocal()},
    )
    yield from family(
        _GROUP,
        "logsigmoid",
        F.logsigmoid,
        {
            "-softplus(-x)": lambda x: -F.softplus(-x),
            "log(sigmoid)": lambda x: torch.log(torch.sigmoid(x)),
            "-log1p(exp(-x))": lambda x: -torch.log1p(torch.exp(-x)),
        },
    )
    yield from family(
        _GROUP,
        "square",
        torch.square,
        {
            "x * x": lambda x: x * x,
            "x ** 2": lambda x: x**2,
            "pow": lambda x: torch.pow(x, 2),
            "x ** 2.0": lambda x: x**2.0,
            "pow of a tensor": lambda x: torch.pow(x, _ZERO + 2),
            "einsum": lambda x: torch.einsum("ncd,ncd->ncd", x, x),
            "x * |x| * sign": lambda x: x * x.abs() * torch.sign(x),
            "product of two copies": lambda x: x * x.clone(),
        },
    )
    yield from family(
        _GROUP,
        "root",
        lambda x: x.abs().sqrt(),
        {"** 0.5": lambda x: x.abs() ** 0.5, "pow": lambda x: x.abs().pow(0.5)},
    )
    yield from family(
        _GROUP,
        "root of x / 2 + 3",
        lambda x: (x / 2 + 3).sqrt(),
        {
            "** 0.5": lambda x: (x / 2 + 3) ** 0.5,
            "pow": lambda x: torch.pow(3 + 0.5 * x, 0.5),
            "sqrt_": lambda x: (x / 2 + 3).sqrt_(),
            "factored": lambda x: math.sqrt(0.5) * (x + 6).sqrt(),
        },
        undecidable={"factored": BEHIND_A_FACTOR},
    )
    yield from family(
        _GROUP,
        "cube",
        lambda x: x**3,
        {"x * x * x": lambda x: x * x * x, "x ** 2 * x": lambda x: x**2 * x},
    )
    yield from family(
        _GROUP,
        "exp2",
        torch.exp2,
        {
            "exp": lambda x: torch.exp(x * math.log(2)),
            "2 ** x": lambda x: 2**x,
            "pow": lambda x: torch.pow(2.0, x),
        },
    )
    yield from family(_GROUP, "tanhshrink", F.tanhshrink, {"x - tanh(x)": lambda x: x - torch.tanh(x)})
    yield from family(
        _GROUP,
        "softshrink",
        lambda x: F.softshrink(x, 0.2),
        {"relu(x - 0.2) - relu(-x - 0.2)": lambda x: F.relu(x - 0.2) - F.relu(-x - 0.2)},
    )
