"""LayerCAV against the paper's equations, written out without gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_cav import InputCAV, LayerCAV
from tests.support.reference import ratios

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU]


def random_net(activation: type[nn.Module], seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    """Convolutions of random geometry, max pooling, linear layers; biases everywhere; and two samples."""
    generator = torch.Generator().manual_seed(seed)

    def choose(*options: int) -> int:
        return options[int(torch.randint(len(options), (), generator=generator))]

    channels, size = choose(1, 2, 3), choose(8, 9, 10)
    hidden, groups = choose(4, 6), choose(1, 2)
    layers = [
        nn.Conv2d(channels, hidden, choose(2, 3), padding=choose(0, 1)),
        activation(),
        nn.MaxPool2d(2, choose(1, 2)),
        nn.Conv2d(hidden, 4, choose(1, 2), stride=choose(1, 2), groups=groups),
        activation(),
        nn.Flatten(),
    ]
    features = nn.Sequential(*layers).double()(torch.zeros(1, channels, size, size, dtype=torch.float64)).shape[1]
    net = nn.Sequential(*layers, nn.Linear(features, 7), activation(), nn.Linear(7, 3)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return net, torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), target=st.integers(0, 2))
def test_equals_the_papers_equations_at_every_layer(activation: type[nn.Module], seed: int, target: int) -> None:
    net, x = random_net(activation, seed)
    names = [str(index) for index in range(len(net))]
    found, deltas = LayerCAV(net, names).attribute(
        x, target, attribute_to_layer_input=True, return_convergence_delta=True
    )
    at_input = InputCAV(net).attribute(x, target)
    for sample in range(len(x)):
        expected, constants = ratios(net, x[sample], target)
        for index, layer in enumerate(expected):
            scale = np.abs(layer).max()
            assert np.abs(found[index][sample].numpy() - layer).max() < 1e-9 * scale, net[index]
            assert abs(deltas[index][sample]) < 1e-9 * max(1, np.abs(layer).sum())
            assert abs(1 - layer.sum() - constants[index]) < 1e-9 * max(1, np.abs(layer).sum())
        assert np.abs(at_input[sample].numpy() - expected[0]).max() < 1e-9 * np.abs(expected[0]).max()


def test_the_reference_gives_the_papers_example_by_hand() -> None:
    """Two inputs, two hidden units, one score; every ratio on paper."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    values = ([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[1.0, 2.0]], [1.0])
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(value))
    found, constants = ratios(net, torch.tensor([3.0, 1.0], dtype=torch.float64), 0)
    np.testing.assert_allclose(found[2], [4 / 9, 4 / 9])
    np.testing.assert_allclose(found[0], [3 / 4 * 4 / 9 + 3 / 2 * 4 / 9, 1 / 4 * 4 / 9 - 1 / 2 * 4 / 9])
    np.testing.assert_allclose(constants, [1 / 9, 1 / 9, 1 / 9])
