"""A small network of random weights, in double precision."""

from __future__ import annotations

import torch
from torch import nn


def convolutional(classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Takes two channels of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(2, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(5, 4, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )
        model = nn.Sequential(*layers).double()
        model[1].running_mean.normal_()
        model[1].bias.data.normal_()
        # So that probabilities are far apart.
        model[8].weight.data.mul_(12)
    return model.eval()


def pictures(count: int, height: int = 8, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(count: int, height: int = 8, width: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
