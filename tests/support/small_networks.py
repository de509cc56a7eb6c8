"""Small networks whose layers are easy to name, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV

Attribution = Callable[..., Any]
Function = Callable[[torch.Tensor], Any]


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers every time, and none taken from the process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small_net(outputs: int = 3) -> nn.Sequential:
    """Layers "0" to "2": linear, ReLU, linear."""
    with seeded():
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()


def samples(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


class Apply(nn.Module):
    """A function as a module, with modules that it uses."""

    def __init__(self, function: Function, *used: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.used = nn.ModuleList(used)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def net_around(*middle: nn.Module) -> nn.Sequential:
    """Layer "first", the given modules as "middle", layer "last"; in float64."""
    net = nn.Sequential()
    with seeded():
        net.add_module("first", nn.Linear(4, 4))
        net.add_module("middle", nn.Sequential(*middle))
        net.add_module("last", nn.Linear(4, 3))
    return net.double()


WAYS: dict[str, Attribution] = {
    "layer": lambda net, x: LayerCAV(net, "0").attribute(x, 0),
    "inputs": lambda net, x: InputCAV(net).attribute(x, 0),
    "neuron": lambda net, x: NeuronCAV(net, "0").attribute(x, 0),
}


every_way = pytest.mark.parametrize("attribute", list(WAYS.values()), ids=list(WAYS))


MAKERS: dict[str, Attribution] = {"layer": LayerCAV, "neuron": NeuronCAV}


every_layer_maker = pytest.mark.parametrize("make", list(MAKERS.values()), ids=list(MAKERS))


class WithUnused(nn.Module):
    """One layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


class Repeating(nn.Module):
    """The same middle layer three times, or three copies of it."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        with seeded():
            self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.copies = nn.ModuleList([self.middle] * 3 if shared else [nn.Linear(4, 4) for _ in range(3)])
        for copy in self.copies:
            copy.load_state_dict(self.middle.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for copy in self.copies:
            x = torch.tanh(copy(x))
        return self.head(x)


@torch.jit.script
def scripted_function(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2


SHAPE = (2, 3, 12, 12)


class Block(nn.Module):
    """A residual block whose ReLUs and addition write in place."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        y += self.shortcut(x)
        return self.relu(y)


class ResidualNet(nn.Module):
    """A small ResNet, some of whose (harmless) modules are in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.block1 = Block(4, 1)
        self.block2 = Block(8, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.pool(self.block2(self.block1(self.stem(x))))))


def residual_net() -> ResidualNet:
    """The net in a state that is worth restoring: mixed modes and flags, gradients, statistics of its own."""
    torch.manual_seed(0)
    net = ResidualNet()
    with torch.no_grad():
        net(torch.randn(8, *SHAPE[1:]))
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    net.stem[0].weight.requires_grad_(False)
    net.head.weight.grad = torch.randn_like(net.head.weight)
    return net


def picture(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
