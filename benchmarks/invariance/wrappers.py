"""Wrappers: compiled, exported, traced and checkpointed modules, transformed functions, modules in other orders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call, vmap
from torch.nn.utils import fusion, parametrizations
from torch.utils.checkpoint import checkpoint

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import Function, Pair, family, made

_GROUP = "wrappers"


class _Block(nn.Module):
    """A residual block of a convolutional network, or of a transformer's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 8)
        self.activation = nn.GELU()
        self.down = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the input and of two layers."""
        y: torch.Tensor = x + self.down(self.activation(self.up(self.norm(x))))
        return y


class _Convolutions(nn.Module):
    """Two convolutions with a batch norm and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 3, 3)
        self.norm.running_mean, self.norm.running_var = fixed(6, seed=121), fixed(6, seed=122).square() + 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Means of three channels."""
        y: torch.Tensor = self.second(self.act(self.norm(self.first(x)))).relu().mean((2, 3))
        return y


def _late(make: Callable[[], Function]) -> Function:
    """A function that is built at its first call."""
    built: list[Function] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        if not built:
            built.append(make())
        return built[0](x)

    return call


def _functional(module: nn.Module) -> Function:
    parameters = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    return lambda x: functional_call(module, parameters, (x,))


def _wrapped(module: nn.Module, example: torch.Tensor) -> dict[str, Function]:
    return {
        "torch.compile, eager": _late(lambda: torch.compile(copy.deepcopy(module), backend="eager")),
        "torch.export": _late(lambda: torch.export.export(copy.deepcopy(module), (example,)).module()),
        "torch.export, decomposed": _late(
            lambda: torch.export.export(copy.deepcopy(module), (example,)).run_decompositions().module()
        ),
        "fx": _late(lambda: fx.symbolic_trace(copy.deepcopy(module))),
        "checkpoint": lambda x: checkpoint(module, x, use_reentrant=False),
        "functional_call": _functional(module),
        "Sequential of one": nn.Sequential(copy.deepcopy(module)),
        "copy": copy.deepcopy(module),
        "copied twice, DataParallel": nn.DataParallel(copy.deepcopy(module)),
        "frozen": _frozen(copy.deepcopy(module)),
    }


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    block, pictures = made(_Block), made(_Convolutions)
    yield from family(
        _GROUP,
        "block",
        block,
        {
            **_wrapped(block, fixed(2, 4, 6)),
            "vmap": lambda x: vmap(block)(x),
            "inlined": _inlined(block),
            "row by row": lambda x: torch.stack([block(row) for row in x.unbind(1)], 1),
            "weight_norm": _weight_normed(block),
        },
        undecidable={"vmap": "Torch hides the tensors inside vmap, so the network is refused."},
    )
    yield from family(
        _GROUP,
        "convolutions",
        pictures,
        {
            **_wrapped(pictures, fixed(2, 4, 5, 6)),
            "Sequential": nn.Sequential(
                *copy.deepcopy(pictures).children(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            ),
            "channels last": lambda x: pictures(x.contiguous(memory_format=torch.channels_last)),
            "fused convolution and norm": _fused(pictures),
        },
        shape=(2, 4, 5, 6),
    )


def _inlined(block: Any) -> Function:
    def inlined(x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.layer_norm(x, (6,), block.norm.weight, block.norm.bias)
        y = nn.functional.gelu(nn.functional.linear(y, block.up.weight, block.up.bias))
        return x + nn.functional.linear(y, block.down.weight, block.down.bias)

    return inlined


def _weight_normed(block: nn.Module) -> nn.Module:
    changed: Any = copy.deepcopy(block)
    parametrizations.weight_norm(changed.up)
    parametrizations.weight_norm(changed.down)
    return changed  # type: ignore[no-any-return]


def _fused(pictures: nn.Module) -> nn.Module:
    changed: Any = copy.deepcopy(pictures)
    changed.first = fusion.fuse_conv_bn_eval(changed.first, changed.norm)
    changed.norm = nn.Identity()
    return changed  # type: ignore[no-any-return]
