"""Layers of many shapes against dense matrices, windows of max pooling, and ties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV
from tests.support.networks import fixed
from tests.support.reference import matrix
from tests.support.small_networks import Apply, samples, seeded
from tests.support.tensors import assert_same

Function = Callable[[torch.Tensor], Any]


LINEAR: dict[str, nn.Module] = {
    "1x1": nn.Conv2d(2, 3, 1),
    "odd strides": nn.Conv2d(2, 3, 3, stride=(2, 3)),
    "stride beyond the kernel": nn.Conv2d(2, 3, 2, stride=3),
    "dilation": nn.Conv2d(2, 3, 3, dilation=(1, 2)),
    "groups": nn.Conv2d(2, 4, 3, groups=2),
    "padding same, even kernel": nn.Conv2d(2, 3, 4, padding="same"),
    "padding zeros": nn.Conv2d(2, 3, 3, padding=(2, 1)),
    "padding circular": nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
    "padding reflect": nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"),
    "padding replicate": nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="replicate"),
    "kernel of the whole map": nn.Conv2d(2, 3, (7, 6)),
    "transposed": nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
    "average, ceil": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "average, divisor": nn.AvgPool2d(3, 2, divisor_override=2),
    "adaptive average": nn.AdaptiveAvgPool2d((3, 4)),
    "bilinear": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "padding by a layer": nn.ZeroPad2d((1, 0, 2, 1)),
    "cropping": nn.ZeroPad2d((-1, 0, -2, 0)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("layer", LINEAR.values(), ids=LINEAR)
def test_shapes_of_layers_against_matrices(layer: nn.Module) -> None:
    """The layer, tanh and a fully connected layer, as dense matrices without any gradient."""
    shape, x = (2, 7, 6), fixed(1, 2, 7, 6)
    with seeded():
        layer = copy.deepcopy(layer).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        size = layer(x).numel()
        net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(size, 3).double())
    weights, bias = matrix(layer, shape)
    y = x.numpy().ravel() @ weights + bias
    head = net[3].weight.detach().numpy()[1]
    score = np.tanh(y) @ head + net[3].bias[1].item()
    behind = np.tanh(y) * head / score
    # Where an output is 0, as in a padded border, nothing comes from the inputs.
    before = x.numpy().ravel() * (weights @ np.divide(behind, y, out=np.zeros_like(y), where=y != 0))
    found, delta = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    np.testing.assert_allclose(found.numpy().ravel(), behind, rtol=1e-9, atol=1e-11)
    assert delta.abs().max() < 1e-11
    found, delta = InputCAV(net).attribute(x, 1, return_convergence_delta=True)
    np.testing.assert_allclose(found.numpy().ravel(), before, rtol=1e-8, atol=1e-10)
    assert delta.abs().max() < 1e-11


WINDOWS: dict[str, nn.MaxPool2d] = {
    "overlapping": nn.MaxPool2d(3, 2),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "padding, dilation": nn.MaxPool2d(3, 2, padding=1, dilation=2),
    "of one": nn.MaxPool2d(1),
}


@pytest.mark.parametrize("layer", WINDOWS.values(), ids=WINDOWS)
def test_windows_of_max_pooling(layer: nn.MaxPool2d) -> None:
    """What wins a window is what torch says won it; equations 7' and 8 with no gradient."""
    x = fixed(1, 2, 7, 6)
    values, winners = F.max_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, return_indices=True
    )
    head = nn.Linear(values.numel(), 3).double()
    net = nn.Sequential(nn.Identity(), layer, nn.Flatten(), head)
    shares = (values.flatten(1) * head.weight[1] / net(x)[:, 1:2]).detach().reshape(1, 2, -1)
    expected = torch.zeros(1, 2, 42, dtype=torch.float64).scatter_add_(2, winners.flatten(2), shares)
    assert_same(LayerCAV(net, "0").attribute(x, 1), expected.reshape(x.shape))


def test_a_part_of_size_zero() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing, self.head = Apply(lambda x: x[:, :0]), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            empty = self.nothing(x)
            return self.head(torch.cat([empty, x], 1) + empty.sum(1, keepdim=True))

    net = nn.Sequential(nn.Identity(), Around()).double()
    x = samples().double()
    found, delta = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    assert_same(found, (x * net[1].head.weight[1] / net(x)[:, 1:2]).detach())
    assert delta.abs().max() < 1e-12
    assert LayerCAV(net, "1.nothing").attribute(x, 1).shape == (2, 0)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        InputCAV(nn.Conv2d(1, 1, 5)).attribute(torch.ones(1, 1, 3, 3), (0, 0, 0))


TIES: dict[str, tuple[Function, list[float]]] = {
    "max_pool1d": (lambda x: F.max_pool1d(x[:, None], 3)[:, 0, 0], [1, 0, 0]),
    "max over a dimension": (lambda x: x.max(1).values, [1, 0, 0]),
    "maximum": (lambda x: torch.maximum(torch.maximum(x[:, 0], x[:, 1]), x[:, 2]), [1, 0, 0]),
    "amax": (lambda x: x.amax(1), [1 / 3] * 3),
}


@pytest.mark.parametrize(("function", "expected"), TIES.values(), ids=TIES)
def test_ties(function: Function, expected: list[float]) -> None:
    """The first of equal values takes all; ``amax`` shares alike, as its gradient does. The sum is kept either way."""
    x = torch.full((2, 3), 2.0, dtype=torch.float64)
    ratios, delta = InputCAV(function).attribute(x, return_convergence_delta=True)
    assert_same(ratios, torch.tensor([expected] * 2, dtype=torch.float64), 1e-15)
    assert delta.abs().max() < 1e-15


def test_ties_of_a_pooled_map() -> None:
    net = nn.Sequential(nn.Identity(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1)).double()
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    ratios = LayerCAV(net, "0").attribute(x)
    shares = (net[3].weight / net(x)).detach().reshape(2, 2)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[::2, ::2] = shares
    assert_same(ratios[0, 0], expected)
