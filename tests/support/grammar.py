"""A grammar of operations from which random networks are drawn.

A network is drawn as a :class:`Network`, which prints as what builds it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

Function = Callable[..., torch.Tensor]
#: Makes a module for feature maps of so many channels.
Maker = Callable[[int], nn.Module]
#: The name of an operation; for an operation around others, its name and theirs.
Operation: TypeAlias = "str | tuple[str, tuple[Operation, ...]]"
TARGET = 1


class Call(nn.Module):
    """A function of a tensor and some modules, as a module."""

    def __init__(self, function: Function, *used: nn.Module) -> None:
        super().__init__()
        self.function, self.used = function, nn.ModuleList(used)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.used)


def calling(function: Function, *makers: Maker) -> Maker:
    """An operation that is a function of the feature maps and of modules made for their number of channels."""
    return lambda c: Call(function, *(make(c) for make in makers))


def always(module: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Maker:
    """A module that is the same for any number of channels."""
    return lambda _: module(*args, **kwargs)


def per_channel(function: Function) -> Function:
    """A function over the last dimension as one over the channels."""
    return lambda x, *used: function(x.movedim(1, -1), *used).movedim(-1, 1)


def of_tokens(function: Function) -> Function:
    """A function of positions as tokens, shape (N, H * W, C), as one of feature maps."""
    return lambda x, *used: function(x.flatten(2).transpose(1, 2), *used).transpose(1, 2).reshape(x.shape)


def convolution(c: int) -> nn.Module:
    return nn.Conv2d(c, c, 3, padding=1)


def depthwise(c: int) -> nn.Module:
    return nn.Conv2d(c, c, 3, padding=1, groups=c)


def strided(c: int) -> nn.Module:
    return nn.Conv2d(c, c, 3, stride=2, padding=1)


def linear(c: int) -> nn.Module:
    return nn.Linear(c, c)


def rms(c: int) -> nn.Module:
    return nn.RMSNorm(c, eps=1e-5)


def groups(c: int) -> nn.Module:
    return nn.GroupNorm(2, c)


def wider(factor: int, layer: Callable[..., nn.Module] = nn.Linear, *args: int) -> Maker:
    return lambda c: layer(c, factor * c, *args)


def narrower(c: int) -> nn.Module:
    return nn.Conv2d(2 * c, c, 1)


def excite(x: torch.Tensor, reduce: nn.Module, expand: nn.Module, gate: Function = torch.sigmoid) -> torch.Tensor:
    return x * gate(expand(F.relu(reduce(x.mean((2, 3), keepdim=True)))))


def attend(x: torch.Tensor, project: nn.Module) -> torch.Tensor:
    q, k, v = project(x).chunk(3, -1)
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1) @ v


def recur(x: torch.Tensor, recurrent: nn.Module) -> torch.Tensor:
    rows = x.permute(0, 2, 3, 1)
    return recurrent(rows.flatten(0, 1))[0].reshape(rows.shape).permute(0, 3, 1, 2)


def interleave(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x[:, 1::2], x[:, ::2]), 2).flatten(1, 2)


def interleave_in_place(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y[:, ::2], y[:, 1::2] = x[:, 1::2], x[:, ::2]
    return y


def set_constant(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1, 0] = 0.3
    return y


def add_into_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 0.5
    y[:, :1] += x[:, 1:2]
    return y


def round_trip(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h * w, c).permute(0, 2, 1).reshape(n, c, h, w)


def swap(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], 1)


def ramp(x: torch.Tensor) -> torch.Tensor:
    """No two positions alike before a maximum: else rounding has to say which of them wins."""
    return x + 0.01 * torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x.shape[2:])


def add_in_place(x: torch.Tensor, inside: nn.Module) -> torch.Tensor:
    y = inside(x)
    y += x
    return y


#: The same as a module and by a function: each is drawn as either, by its name or by the same name with ``F.``.
IN_TWO_FORMS: dict[str, tuple[Maker, Maker]] = {
    "conv": (convolution, calling(lambda x, m: F.conv2d(x, m.weight, m.bias, padding=1), convolution)),
    "depthwise": (
        depthwise,
        calling(lambda x, m: torch.conv2d(x, m.weight, m.bias, padding=1, groups=x.shape[1]), depthwise),
    ),
    "linear": (
        calling(per_channel(lambda x, m: m(x)), linear),
        calling(per_channel(lambda x, m: F.linear(x, m.weight, m.bias)), linear),
    ),
    "batch_norm": (
        nn.BatchNorm2d,
        calling(lambda x, m: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias), nn.BatchNorm2d),
    ),
    "layer_norm": (
        calling(per_channel(lambda x, m: m(x)), nn.LayerNorm),
        calling(per_channel(lambda x, m: F.layer_norm(x, x.shape[-1:], m.weight, m.bias)), nn.LayerNorm),
    ),
    "group_norm": (groups, calling(lambda x, m: F.group_norm(x, 2, m.weight, m.bias), groups)),
    "rms_norm": (
        calling(per_channel(lambda x, m: m(x)), rms),
        calling(per_channel(lambda x, m: F.rms_norm(x, x.shape[-1:], m.weight, 1e-5)), rms),
    ),
    "relu": (always(nn.ReLU), calling(F.relu)),
    "relu_": (always(nn.ReLU, inplace=True), calling(torch.relu_)),
    "relu6": (always(nn.ReLU6), calling(F.relu6)),
    "leaky_relu": (always(nn.LeakyReLU, 0.2), calling(lambda x: F.leaky_relu(x, 0.2))),
    "gelu": (always(nn.GELU), calling(F.gelu)),
    "silu": (always(nn.SiLU), calling(F.silu)),
    "silu_": (always(nn.SiLU, inplace=True), calling(lambda x: F.silu(x, inplace=True))),
    "tanh": (always(nn.Tanh), calling(torch.tanh)),
    "sigmoid": (always(nn.Sigmoid), calling(torch.sigmoid)),
    "hardswish": (always(nn.Hardswish), calling(F.hardswish)),
    "elu": (always(nn.ELU), calling(F.elu)),
    "glu": (
        lambda c: nn.Sequential(nn.Conv2d(c, 2 * c, 1), nn.GLU(1)),
        calling(lambda x, m: F.glu(m(x), 1), wider(2, nn.Conv2d, 1)),
    ),
    "excite": (
        calling(excite, lambda c: nn.Conv2d(c, 2, 1), lambda c: nn.Conv2d(2, c, 1), always(nn.Sigmoid)),
        calling(excite, lambda c: nn.Conv2d(c, 2, 1), lambda c: nn.Conv2d(2, c, 1)),
    ),
    "attention": (
        calling(of_tokens(attend), wider(3)),
        calling(of_tokens(lambda x, m: F.scaled_dot_product_attention(*m(x).chunk(3, -1))), wider(3)),
    ),
    "dropout": (always(nn.Dropout), calling(lambda x: F.dropout(x, training=False))),
    "max_filter": (
        calling(lambda x, m: m(ramp(x)), always(nn.MaxPool2d, 3, 1, 1)),
        calling(lambda x: F.max_pool2d(ramp(x), 3, 1, 1)),
    ),
    "mean_filter": (always(nn.AvgPool2d, 3, 1, 1), calling(lambda x: F.avg_pool2d(x, 3, 1, 1))),
}


RESIZING_IN_TWO_FORMS: dict[str, tuple[Maker, Maker]] = {
    "strided": (strided, calling(lambda x, m: F.conv2d(x, m.weight, m.bias, 2, 1), strided)),
    "max_pool": (
        calling(lambda x, m: m(ramp(x)), always(nn.MaxPool2d, 2, ceil_mode=True)),
        calling(lambda x: F.max_pool2d(ramp(x), 2, ceil_mode=True)),
    ),
    "avg_pool": (
        always(nn.AvgPool2d, 2, ceil_mode=True),
        calling(lambda x: F.avg_pool2d(x, 2, ceil_mode=True)),
    ),
    "pad": (always(nn.ConstantPad2d, (1, 0, 0, 1), 0.3), calling(lambda x: F.pad(x, (1, 0, 0, 1), value=0.3))),
    "nearest": (always(nn.Upsample, 5), calling(lambda x: F.interpolate(x, 5))),
    "bilinear": (
        always(nn.Upsample, 4, mode="bilinear"),
        calling(lambda x: F.interpolate(x, (4, 4), mode="bilinear")),
    ),
}


def _both(forms: dict[str, tuple[Maker, Maker]]) -> dict[str, Maker]:
    names = [(name, f"F.{name}") for name in forms]
    return {
        name: maker
        for pair, makers in zip(names, forms.values(), strict=True)
        for name, maker in zip(pair, makers, strict=True)
    }


#: Operations that keep the size of the feature maps.
KEEPING: dict[str, Maker] = {
    **_both(IN_TWO_FORMS),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1),
    "rms_by_hand": calling(lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)),
    "multihead": calling(
        of_tokens(lambda x, m: m(x, x, x, need_weights=False)[0]),
        lambda c: nn.MultiheadAttention(c, 2, batch_first=True),
    ),
    "encoder": calling(
        of_tokens(lambda x, m: m(x)), lambda c: nn.TransformerEncoderLayer(c, 2, 4, activation="gelu", batch_first=True)
    ),
    "lstm": calling(recur, lambda c: nn.LSTM(c, c, batch_first=True)),
    "gru": calling(recur, lambda c: nn.GRU(c, c, batch_first=True)),
    "add_mean": calling(lambda x: x + x.mean((2, 3), keepdim=True)),
    "swap": calling(swap),
    "interleave": calling(interleave),
    "interleave_in_place": calling(interleave_in_place),
    "set_constant": calling(set_constant),
    "add_into_view": calling(add_into_view),
    "round_trip": calling(round_trip),
}


RESIZING: dict[str, Maker] = _both(RESIZING_IN_TWO_FORMS)


def sigmoid_by_hand(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def gated_by_hand(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    signal, gate = layer(x).chunk(2, 1)
    return signal * sigmoid_by_hand(gate)


def normed_by_hand(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def attend_by_hand(x: torch.Tensor, project: nn.Module) -> torch.Tensor:
    q, k, v = project(x).chunk(3, -1)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


#: The same as some of :data:`KEEPING`, written out as models write them.
BY_HAND: dict[str, Maker] = {
    "conv": calling(lambda x, m: F.conv2d(x, m.weight, None, padding=1) + m.bias[:, None, None], convolution),
    "linear": calling(per_channel(lambda x, m: x @ m.weight.T + m.bias), linear),
    "layer_norm": calling(per_channel(normed_by_hand), nn.LayerNorm),
    "rms_norm": calling(
        per_channel(lambda x, m: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * m.weight), rms
    ),
    "relu": calling(lambda x: x.clamp(min=0)),
    "relu6": calling(lambda x: x.clamp(0, 6)),
    "gelu": calling(lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "silu": calling(lambda x: x * torch.sigmoid(x)),
    "hardswish": calling(lambda x: x * F.relu6(x + 3) / 6),
    "sigmoid": calling(sigmoid_by_hand),
    "glu": calling(gated_by_hand, wider(2, nn.Conv2d, 1)),
    "excite": calling(
        lambda x, reduce, expand: excite(x, reduce, expand, sigmoid_by_hand),
        lambda c: nn.Conv2d(c, 2, 1),
        lambda c: nn.Conv2d(2, c, 1),
    ),
    "attention": calling(of_tokens(attend_by_hand), wider(3)),
    "dropout": calling(lambda x: x),
}


#: Operations around others, which keep the size.
AROUND: dict[str, Callable[[int, nn.Module], nn.Module]] = {
    "residual": lambda _, inside: Call(lambda x, f: x + f(x), inside),
    "add_in_place": lambda _, inside: Call(add_in_place, inside),
    "with_itself": lambda c, inside: Call(lambda x, f, m: m(torch.cat([f(x)] * 2, 1)), inside, narrower(c)),
    "dense": lambda c, inside: Call(lambda x, f, m: m(torch.cat([x, f(x)], 1)), inside, narrower(c)),
    "twice": lambda _, inside: Call(lambda x, f: f(f(x)), inside),
    "gate": lambda _, inside: Call(lambda x, f: x * torch.sigmoid(f(x)), inside),
    "product": lambda c, inside: Call(lambda x, f, m: m(x) * f(x), inside, convolution(c)),
    "matrix_product": lambda _, inside: Call(lambda x, f: x @ f(x).transpose(2, 3) @ x / x.shape[2] ** 2, inside),
    "quotient": lambda _, inside: Call(lambda x, f: x / (f(x).abs() + 1), inside),
    "maximum": lambda _, inside: Call(lambda x, f: torch.maximum(x, f(x)), inside),
}


#: What is done to the last feature maps, and how many numbers of each channel it leaves.
HEADS: dict[str, tuple[Maker, int]] = {
    "mean": (always(nn.AdaptiveAvgPool2d, 1), 1),
    "max": (calling(lambda x, m: m(ramp(x)), always(nn.AdaptiveMaxPool2d, 1)), 1),
    "flat": (always(nn.AdaptiveAvgPool2d, 2), 4),
}


@dataclass(frozen=True)
class Network:
    """What a network is made of, and its input."""

    channels: int
    side: int
    operations: tuple[Operation, ...]
    head: str
    seed: int

    def build(self) -> nn.Sequential:
        """The network, at rest: an operation after the other, a pooling, a layer to three scores."""
        pooling, numbers = HEADS[self.head]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            net = nn.Sequential(
                *(self._make(operation) for operation in self.operations),
                pooling(self.channels),
                nn.Flatten(),
                nn.Linear(self.channels * numbers, 3),
            ).double()
            for parameter in net.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
                else:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
        return net.eval()

    def _make(self, operation: Operation) -> nn.Module:
        if isinstance(operation, str):
            name = operation.removeprefix("hand.")
            return (BY_HAND if name != operation else {**KEEPING, **RESIZING})[name](self.channels)
        name, inside = operation
        return AROUND[name](self.channels, nn.Sequential(*map(self._make, inside)))

    def samples(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(2, self.channels, self.side, self.side, dtype=torch.float64, generator=generator)


def chains(names: list[str], around: list[str]) -> st.SearchStrategy[Operation]:
    """An operation, or one around one or two of them, and so on."""
    return st.recursive(
        st.sampled_from(names),
        lambda inner: st.tuples(st.sampled_from(around), st.lists(inner, min_size=1, max_size=2).map(tuple)),
        max_leaves=3,
    )


#: Operations to which channels are alike.
BY_CHANNEL = """
    depthwise batch_norm F.batch_norm layer_norm F.layer_norm rms_norm relu relu_ gelu silu tanh sigmoid leaky_relu elu
    dropout max_filter mean_filter rms_by_hand add_mean round_trip
""".split()


AROUND_CHANNELS = "residual add_in_place twice gate quotient maximum".split()


#: Operations that the oracle does not see as the package does.
OTHERWISE_IN_THE_ORACLE: frozenset[str] = frozenset()


OPERATIONS = st.sampled_from([*KEEPING, *RESIZING]) | chains(list(KEEPING), list(AROUND))


#: Operations that torch has fused, which the package writes out: attention, gates, norms.
FUSED = "attention multihead encoder glu rms_norm".split()


def weighs_weights(network: Network) -> bool:
    """Whether what a sigmoid made, or may have made, a weight goes on into what is fused.

    A product of two weights is shared, also in attention written by hand and in an RMS norm traced to its parts. There
    the fused operations have their own idea of what is a weight.
    """
    text = str(network.operations)
    return ("sigmoid" in text or "tanh" in text) and any(name in text for name in FUSED)


def is_known_to_the_oracle(operation: Operation) -> bool:
    if isinstance(operation, str):
        return operation not in OTHERWISE_IN_THE_ORACLE
    return all(map(is_known_to_the_oracle, operation[1]))


def has_gradient(network: Network) -> bool:
    """Whether torch itself has the gradient: it has not where something that it needs is written over."""
    try:
        network.build().requires_grad_(False)(network.samples().requires_grad_() * 1).sum().backward()
    except RuntimeError:
        return False
    return True


def networks(
    operations: st.SearchStrategy[Any] = st.lists(OPERATIONS, min_size=1, max_size=6),  # noqa: B008 - as good as a constant
) -> st.SearchStrategy[Network]:
    """Networks of one to six operations, some of them around others."""
    drawn = st.builds(
        Network,
        channels=st.sampled_from([2, 4]),
        side=st.integers(2, 6),
        operations=operations.map(tuple),
        head=st.sampled_from(list(HEADS)),
        seed=st.integers(0, 2**16),
    )
    return drawn.filter(has_gradient)
