"""Small networks in double precision, with biases, for which every method has its answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

SHAPE = (2, 14, 14)


class Classifier(nn.Module):
    """Convolutions, a global average, a linear layer.

    Args:
        activation: makes the activations.
        pool: the max pooling between the convolutions.
    """

    def __init__(self, activation: Callable[[], nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                first=nn.Conv2d(2, 4, 3, padding=1),
                relu=activation(),
                pool=pool,
                second=nn.Conv2d(4, 5, 3),
                last=activation(),
            )
        )
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.average(self.body(x)), 1))


class Skipping(nn.Module):
    """A residual connection around an activation, whose input goes on elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.ReLU()
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.last(x + self.second(self.relu(x)))
        return self.head(torch.flatten(self.average(x), 1))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose weights are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def classifier(
    activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True), pool: nn.Module | None = None
) -> nn.Module:
    """Without arguments, one that all methods can explain, though its ReLUs write in place and its windows overlap."""
    return seeded(lambda: Classifier(activation, pool or nn.MaxPool2d(3, 2, ceil_mode=True)))


def pictures(count: int = 2) -> torch.Tensor:
    """The same every time, shape (count, 2, 14, 14)."""
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
