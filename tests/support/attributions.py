"""Every way to ask for an attribution of the residual network, and whether two models have the same maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV

Attribution = Callable[[nn.Module, torch.Tensor], Any]


ATTRIBUTIONS: dict[str, Attribution] = {
    "layer": lambda net, x: LayerCAV(net, "block1").attribute(x, 1),
    "layer-input": lambda net, x: LayerCAV(net, "block2.norm").attribute(x, 1, attribute_to_layer_input=True),
    "layers-with-delta": lambda net, x: LayerCAV(net, ["stem.0", "block1.relu", "flatten"]).attribute(
        x, [1, 2], return_convergence_delta=True
    ),
    "targets": lambda net, x: LayerCAV(net, ["block1", "block2"]).attribute_targets(x, [0, 3]),
    "inputs": lambda net, x: InputCAV(net).attribute(x, 1),
    "inputs-with-delta": lambda net, x: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
    "neuron": lambda net, x: NeuronCAV(net, "head").attribute(x, 1),
    "neuron-input": lambda net, x: NeuronCAV(net, "head").attribute(
        x, 1, attribute_to_neuron_input=True, return_convergence_delta=True
    ),
}


every_attribution = pytest.mark.parametrize("attribution", list(ATTRIBUTIONS.values()), ids=list(ATTRIBUTIONS))


def check_same_as(net: nn.Module, wrapped: Callable[..., Any], x: torch.Tensor, prefix: str = "") -> None:
    """A wrapped model has the maps of the model, bit by bit; its layers have their names, with a prefix too."""
    found = LayerCAV(wrapped, f"{prefix}0").attribute(x, 1, return_convergence_delta=True)
    expected = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(InputCAV(wrapped).attribute(x, 1), InputCAV(net).attribute(x, 1))
