"""Each operation's map against the same function with its rule written out by hand in plain torch.

By hand means: what the rule holds constant is detached, an activation ``f(x)`` is ``x * (f(x) / x).detach()``, and the
map is input x gradient / score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import OptionError, UnsupportedOperationError
from captum_cav.rules import pass_through

Function = Callable[[torch.Tensor], torch.Tensor]
X = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def fixed(*shape: int, seed: int = 11) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, B, W, C = fixed(4, 6), fixed(6, seed=12), fixed(6, 6, seed=13), fixed(2, 4, 6, seed=14)
PICTURE = fixed(4, 2, 3, 3, seed=15)
MASK = fixed(2, 4, 6, seed=16) > 0


def ratio(f: Function) -> Function:
    return lambda x: x * (f(x) / x).detach()


def half(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + (x / 2).detach()


def share(a: torch.Tensor, b: torch.Tensor, times: Callable[..., torch.Tensor] = torch.mul) -> torch.Tensor:
    return (times(a, b.detach()) + times(a.detach(), b)) / 2


def standardised(x: torch.Tensor, dims: Any, eps: float = 1e-5) -> torch.Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()


def weights(x: torch.Tensor) -> torch.Tensor:
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
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
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
        lambda x: x.index_put((torch.tensor([0]), torch.tensor([2])), B),
        lambda x: _replaced(x, (0, 2), B),
    ),
    "index_add": (
        lambda x: x.index_add(1, torch.tensor([0, 0]), C[:, :2]),
        lambda x: torch.cat([x[:, :1] + C[:, :2].sum(1, keepdim=True), x[:, 1:]], 1),
    ),
    "scatter_add": (
        lambda x: x.scatter_add(2, torch.zeros(2, 4, 1, dtype=torch.long), C[..., :1]),
        lambda x: torch.cat([x[..., :1] + C[..., :1], x[..., 1:]], 2),
    ),
    "lerp": (lambda x: torch.lerp(x, C, 0.3), lambda x: 0.7 * x + 0.3 * C),
    "lerp in place": (lambda x: written(x, lambda y: y.lerp_(C, 0.3)), lambda x: 0.7 * 1.5 * x + 0.3 * C),
    "addcmul in place": (lambda x: written(x, lambda y: y.addcmul_(C, x)), lambda x: 1.5 * x + C * x),
    "addmm in place": (lambda x: written(x[0], lambda y: y.addmm_(x[1] @ W, W)), lambda x: 1.5 * x[0] + x[1] @ W @ W),
    "number divided in place": (
        lambda x: written(0 * x + C, lambda y: y.div_(x.exp())),
        lambda x: (0 * x + C) * 1.5 / x.exp().detach(),
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
    "variance": (lambda x: x.var(-1), lambda x: half(x.var(-1))),
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
        lambda x: F.scaled_dot_product_attention(*(h.repeat_interleave(r, 0) for h, r in _grouped(x))),
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


def _grouped(x: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    query, key, value = _heads(x)
    return [(query.detach(), 1), (key.detach(), 2), (value, 2)]


def check(function: Function, by_hand: Function, x: torch.Tensor = X) -> None:
    def score(y: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(1.0, y.numel() + 1, dtype=torch.float64).reshape(y.shape)
        return (y * positions.sin()).sum() + 3

    def model(value: torch.Tensor) -> torch.Tensor:
        return score(function(value)).reshape(1)

    leaf = x.clone().requires_grad_()
    expected_score = score(by_hand(leaf))
    torch.testing.assert_close(model(x.clone()).sum(), expected_score.detach(), rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected_score, leaf)
    contributions, delta = InputCAV(model, normalize=None).attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(contributions, (leaf * gradient).detach(), rtol=1e-9, atol=1e-11)
    assert delta.abs().max() < 1e-8


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_activation_passes_shares_on(name: str) -> None:
    """Equation 7, for each activation as a function and followed by a linear map."""
    function = ELEMENTWISE[name]
    check(function, ratio(function))
    check(lambda x: function(x) @ W + B, lambda x: ratio(function)(x) @ W + B)


@pytest.mark.parametrize("name", OTHERS)
def test_an_operation_follows_its_rule(name: str) -> None:
    check(*OTHERS[name])


def test_batch_norm_is_right_in_any_memory_layout() -> None:
    """One sample's coefficients arrive transposed, as from tokens of a feature map: torch's own gradient is wrong."""
    mean, log_variance, weight, bias = fixed(4, 4, seed=22).reshape(4, 4, 1, 1)

    def tokens(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2)

    def by_torch(x: torch.Tensor) -> torch.Tensor:
        statistics = (mean.flatten(), log_variance.exp().flatten(), weight.flatten(), bias.flatten())
        return tokens(F.batch_norm(x.reshape(1, 4, 3, 4), *statistics))

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        deviation = (log_variance.exp() + 1e-5).sqrt()
        return tokens((x.reshape(1, 4, 3, 4) - mean) / deviation * weight + bias)

    check(by_torch, by_hand)


IN_PLACE = [
    "relu",
    "relu6",
    "silu",
    "elu",
    "celu",
    "selu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "hardtanh",
]


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_activations_equal_their_out_of_place_form(name: str) -> None:
    function = getattr(F, name)
    for change in (lambda y: function(y, inplace=True), lambda y: function(y, *_bounds(name), True)):
        check(lambda x, change=change: written(x, change), lambda x: ratio(function)(x * 1.5))
    check(lambda x: function(x * 1.5, inplace=True), lambda x: ratio(function)(x * 1.5))


def _bounds(name: str) -> tuple[float, ...]:
    """Arguments between the input and ``inplace``, at their defaults."""
    return {"elu": (1.0,), "celu": (1.0,), "leaky_relu": (0.01,), "hardtanh": (-1.0, 1.0)}.get(name, ())


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "mish", "elu", "selu", "hardswish", "softsign", "erf", "sin"])
def test_the_slope_at_zero_is_the_limit(name: str) -> None:
    function = ELEMENTWISE[name]
    near = torch.tensor(-1e-9, dtype=torch.float64)
    slope = float(function(near) / near)

    def cancelling(u: torch.Tensor) -> torch.Tensor:
        # The two cancel before the activation, so each contributes its coefficient, up to its sign.
        return function(u[:, 0] - u[:, 1]) + 1

    contributions = InputCAV(cancelling, normalize=None).attribute(torch.ones(1, 2, dtype=torch.float64))
    expected = torch.tensor([[slope, -slope]], dtype=torch.float64)
    torch.testing.assert_close(contributions, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "exp", "cos", "hardsigmoid"])
def test_without_a_limit_at_zero_the_value_there_is_a_constants(name: str) -> None:
    function = ELEMENTWISE[name]
    x = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    contributions, delta = InputCAV(lambda x: function(x).sum(1), normalize=None).attribute(
        x, return_convergence_delta=True
    )
    expected = torch.stack([torch.zeros(1, dtype=torch.float64), function(x[:, 1])], 1)
    torch.testing.assert_close(contributions, expected)
    assert delta.abs().item() < 1e-12


def test_arguments_by_name_are_found() -> None:
    check(lambda x: torch.tanh(input=x), ratio(torch.tanh))
    check(lambda x: torch.softmax(input=x, dim=-1), ratio(lambda x: x.softmax(-1)))
    check(lambda x: F.silu(input=x) @ W, lambda x: ratio(F.silu)(x) @ W)
    check(lambda x: torch.mul(input=x, other=x.sigmoid()), lambda x: x * x.sigmoid().detach())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clamp(x, min=0.1 * x.flip(-1)),
        lambda x: F.prelu(x, x[0, 0, :4]),
    ],
    ids=["clamp", "prelu"],
)
def test_an_activation_whose_parameters_depend_on_the_inputs_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperationError, match="has no rule"):
        InputCAV(lambda x: function(x).sum((1, 2))).attribute(X)


@pytest.mark.parametrize("bounds", [(0.2, 1.0), (-1.0, -0.2)], ids=str)
def test_a_hardtanh_that_is_not_zero_at_zero_stays_finite(bounds: tuple[float, float]) -> None:
    x = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    found, delta = InputCAV(lambda x: F.hardtanh(x, *bounds).sum(1), normalize=None).attribute(
        x - 0 * x, return_convergence_delta=True
    )
    torch.testing.assert_close(found[0, 1], F.hardtanh(x, *bounds)[0, 1])
    assert found[0, 0] == 0
    assert delta.abs().item() < 1e-12


def test_integer_inputs_stay_indices_in_the_account() -> None:
    embedding = nn.Embedding(4, 6).double()

    def model(ids: torch.Tensor) -> torch.Tensor:
        return embedding(ids).sum(-1).scatter_add(1, ids, C[..., 0]) @ torch.arange(4.0).double()

    ids = torch.tensor([[3, 1, 0, 2], [1, 1, 2, 3]])
    _, delta = LayerCAV(model, embedding, normalize=None).attribute(ids, return_convergence_delta=True)
    assert delta.abs().max() < 1e-9


def test_pass_through_of_what_is_not_elementwise_is_refused() -> None:
    with pytest.raises(OptionError, match="pass_through is for elementwise operations; 'sum' made"):
        InputCAV(lambda x: x.sum((1, 2)), rules={torch.sum: pass_through}).attribute(X)


def test_packed_sequences_are_refused_by_name() -> None:
    lstm = nn.LSTM(6, 3, batch_first=True).double().eval()

    def model(x: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
        return lstm(packed)[1][0][0].sum(1)

    with pytest.raises(UnsupportedOperationError, match=r"'lstm' in the module LSTM has no rule"):
        InputCAV(model).attribute(X)
