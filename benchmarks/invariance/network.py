"""The network around a function: a linear layer before the function, and a linear layer after the function."""

from __future__ import annotations

import functools

import torch
from torch import nn

from benchmarks.invariance.pair import Spelling, made

#: The number of scores.
SCORES = 3


class Network(nn.Module):
    """A linear layer, a function, a linear layer.

    Args:
        spelling: the function.
        width: size of the last dimension of the inputs.
        features: number of values that the function gives for each sample.
        is_last: whether the function comes after the last linear layer.
    """

    def __init__(self, spelling: Spelling, width: int, features: int, is_last: bool) -> None:
        super().__init__()
        self.first = _linear(width, width, 1)
        self.last = _linear(features, SCORES, 2)
        self.function = spelling.function
        self.is_last = is_last

    def forward(self, x: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        """Scores, (N, 3), of inputs, (N, ..., width)."""
        x = self.first(x)
        if self.is_last:
            return self.function(self.last(x.flatten(1)), *arguments)
        scores: torch.Tensor = self.last(self.function(x, *arguments).flatten(1))
        return scores


@functools.cache
def _linear(inputs: int, outputs: int, seed: int) -> nn.Module:
    return made(lambda: nn.Linear(inputs, outputs), seed)


@functools.cache
def inputs_of(shape: tuple[int, ...]) -> torch.Tensor:
    """The inputs of a network."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def network_of(spelling: Spelling, shape: tuple[int, ...], is_last: bool) -> Network:
    """The network around one spelling of a function.

    Args:
        spelling: the function.
        shape: shape of the inputs.
        is_last: whether the function comes after the last linear layer.
    """
    x = inputs_of(shape)
    features = x[0].numel()
    if not is_last:
        with torch.no_grad():
            features = spelling.function(x.clone(), *spelling.arguments)[0].numel()
    return Network(spelling, shape[-1], features, is_last).eval()
