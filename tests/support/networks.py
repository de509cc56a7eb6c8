"""Networks for the tests: random, but with biases and statistics such that no share is trivially zero."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

#: Linear operations, ReLU, ReLU6 below its bound and max pooling: here CAV is activation x gradient / score.
PIECEWISE_LINEAR = (
    "alexnet vgg16 vgg16_bn resnet18 resnet50 densenet121 squeezenet1_1 shufflenet_v2_x0_5 googlenet inception_v3 "
    "mnasnet0_5"
).split()
OTHERS = (
    "mobilenet_v2 mobilenet_v3_small efficientnet_b0 regnet_y_400mf convnext_tiny vit_b_16 swin_t maxvit_t "
    "transformer_encoder lstm vit_small maxvit_small"
).split()
FUNCTIONAL = ["functional", "reused"]
#: They take seconds. A smaller network has the same operations: alexnet, resnet18, googlenet, vit_small, maxvit_small.
HEAVY = "vgg16 vgg16_bn inception_v3 vit_b_16 maxvit_t".split()


class TransformerClassifier(nn.Module):
    """A positional embedding, an encoder, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 9, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x + self.position).mean(1))


class LSTMClassifier(nn.Module):
    """Two bidirectional layers, samples in the second dimension, the last step's state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x.transpose(0, 1))
        return self.head(states[-1])


class FunctionalNet(nn.Module):
    """ReLU in place, max pooling, padding with a number and a residual connection, none of them modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8 * 7 * 7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu_(self.first(x)), 2)
        y = self.second(F.pad(x, (1, 1, 1, 1), value=0.3))
        y += x
        return self.head(torch.flatten(F.relu(y, inplace=True), 1))


class ReusingNet(nn.Module):
    """One convolution and one ReLU, each used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        for _ in range(2):
            x = self.relu(self.again(x))
        return self.head(x.mean((2, 3)))


def _vit_small() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def _maxvit_small() -> nn.Module:
    return torchvision.models.MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 2],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )


_OWN = {
    "vit_small": (_vit_small, (3, 64, 64)),
    "maxvit_small": (_maxvit_small, (3, 64, 64)),
    "transformer_encoder": (TransformerClassifier, (9, 16)),
    "lstm": (LSTMClassifier, (7, 6)),
    "functional": (FunctionalNet, (3, 16, 16)),
    "reused": (ReusingNet, (3, 16, 16)),
}


def heavy_are_slow(names: list[str]) -> list[Any]:
    """Parameters of a test: the heavy networks are slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in names]


def shape_of(name: str) -> tuple[int, ...]:
    """Shape of one sample."""
    if name in _OWN:
        return _OWN[name][1]
    side = {
        "inception_v3": 299,
        "convnext_tiny": 96,
        "swin_t": 96,
        "vgg16": 112,
        "vgg16_bn": 112,
        "densenet121": 128,
        "resnet50": 128,
    }.get(name, 224)
    return (3, side, side)


@functools.lru_cache(maxsize=1)
def network(name: str) -> nn.Module:
    """The network in evaluation mode, float32."""
    torch.manual_seed(0)
    if name in _OWN:
        net: nn.Module = _OWN[name][0]()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another initialisation
            extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            net = torchvision.models.get_model(name, weights=None, **extra)
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, norms):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for key, parameter in net.named_parameters():
        if key.endswith("bias") or "position" in key or "pos_embedding" in key or "class_token" in key:
            nn.init.normal_(parameter, std=0.1)
    _calibrate(net, name)
    return net.eval()


def _calibrate(net: nn.Module, name: str) -> None:
    """Batch-norm statistics of real activations, so that signals neither vanish nor explode."""
    batch_norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if not batch_norms:
        return
    for module in batch_norms:
        module.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(4, *shape_of(name)))


def fixed(*shape: int, seed: int = 1) -> torch.Tensor:
    """The same numbers every time, in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
