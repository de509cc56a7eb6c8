"""Captum's own numbers, where the theory makes them equal to ours."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr import LRP, LayerLRP
from torch import nn

from captum_cav import InputCAV, LayerCAV
from tests.support.captum_networks import basic_models
from tests.support.networks import heavy_are_slow, network, shape_of


@pytest.mark.parametrize("name", heavy_are_slow(["alexnet", "vgg16", "squeezenet1_1"]))
def test_captums_lrp_agrees_where_it_is_right(name: str) -> None:
    net = copy.deepcopy(network(name))
    x = torch.randn(1, *shape_of(name), generator=torch.Generator().manual_seed(8))
    target = int(net(x).argmax(1))
    ours = InputCAV(net, normalize=None).attribute(x, target)
    # Captum's default rule is epsilon with 1e-9, and it puts in-place activations out of place for good.
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    captums = LRP(net).attribute(x, target).detach()
    assert (ours - captums).norm() < 1e-4 * captums.norm()


def test_captums_layer_lrp_agrees_inside_a_network() -> None:
    net = copy.deepcopy(network("alexnet")).double()
    x = torch.randn(2, *shape_of("alexnet"), dtype=torch.float64)
    ours = LayerCAV(net, "features.3", normalize=None).attribute(x, 5)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    captums = LayerLRP(net, net.features[3]).attribute(x, 5).detach()
    assert (ours - captums).norm() < 1e-6 * captums.norm()


def test_captums_example_with_one_convolution() -> None:
    """The expected arrays of Captum's LRP tests for this model, in units of the score 54."""
    model = basic_models.BasicModel_ConvNet_One_Conv()
    x = torch.arange(16, dtype=torch.float32).view(1, 1, 4, 4)
    at_input, delta = InputCAV(model, normalize=None).attribute(x, 0, return_convergence_delta=True)
    rows = [[0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 6.0, 7.0], [0.0, 9.0, 10.0, 11.0], [0.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(at_input, torch.tensor([[rows]]))
    assert delta.abs().item() < 1e-4
    at_convolution = LayerCAV(model, model.conv1).attribute(x, 0)
    expected = torch.tensor([[[[0.0, 4.0], [31.0, 40.0]], [[0.0, 0.0], [-6.0, -15.0]]]]) / 54
    torch.testing.assert_close(at_convolution, expected)


def test_captums_tanh_example_which_gradient_x_input_does_not_give() -> None:
    model = basic_models.SimpleLRPModel(inplace=False).eval()
    with torch.no_grad():
        model.linear.weight.fill_(0.1)
        model.linear2.weight.fill_(0.1)
    model.relu = nn.Tanh()
    x = torch.tensor([[1.0, 2.0, 3.0]])
    at_input = InputCAV(model, normalize=None).attribute(x, 0)
    torch.testing.assert_close(at_input, torch.tensor([[0.0269, 0.0537, 0.0806]]), rtol=0, atol=1e-4)
    at_layer = LayerCAV(model, "linear", normalize=None).attribute(x, 0)
    torch.testing.assert_close(at_layer, torch.full((1, 3), 0.0537), rtol=0, atol=1e-4)


def test_private_helpers_have_the_signatures_that_are_wrapped() -> None:
    assert list(inspect.signature(_select_targets).parameters) == ["output", "target"]
    assert len(inspect.signature(_verify_select_neuron).parameters) == 2
