"""Weights that a module computes: quantized, scaled and parametrized weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    ModelError,
    UnsupportedOperationError,
)
from tests.support.attributions import check_same_as
from tests.support.networks import fixed
from tests.support.small_networks import samples, seeded, small_net
from tests.support.tensors import assert_same


def quantized(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and said so
        made: nn.Module = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    return made


def test_quantized_modules() -> None:
    net, x = quantized(small_net()), samples()
    said = (
        r"'linear_dynamic' in module '{}' \(Linear\) runs on quantized numbers.*pass the float model that it was made"
    )
    # Neither the state of their packed weights nor what they compute can be looked at bit by bit.
    for attribution, first in ((InputCAV(net), "0"), (LayerCAV(net, "0"), "2"), (LayerCAV(net, "1"), "2")):
        with pytest.raises(NotImplementedError, match=said.format(first)) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is UnsupportedOperationError
    assert_same(LayerCAV(net, "2").attribute(x, 1), torch.tensor([[0.0, 1.0, 0.0]] * 2))


def test_weights_of_integers_that_the_model_scales() -> None:
    class Dequantizing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.stored * self.scale, self.bias)

    plain, x = small_net(), samples()
    net = copy.deepcopy(plain)
    for index in (0, 2):
        net[index].__class__ = Dequantizing
        net[index].scale = 0.01
        net[index].stored = (plain[index].weight.detach() / 0.01).round().to(torch.int8)
        plain[index].weight.data = net[index].stored * 0.01
    check_same_as(plain, net, x)


class LowRank(nn.Module):
    """A parametrization as LoRA's: a small update of a weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(fixed(2, inputs, seed=2))
        self.up = nn.Parameter(fixed(outputs, 2, seed=3))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def old_spectral_norm(layer: nn.Linear) -> None:
    nn.utils.spectral_norm(layer)


PARAMETRIZATIONS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, old": old_spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "low rank": lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape)),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


def changed_by(change: Callable[[nn.Linear], Any]) -> nn.Sequential:
    net = small_net().double()
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old functions are deprecated
        change(net[0])
        change(net[2])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3)
    net.train()(samples().double())  # some change their weight when they are run
    return net.eval()


@pytest.mark.parametrize("chosen", [None, "gamma"])
@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_parametrized_layers(change: Callable[[nn.Linear], Any], chosen: str | None) -> None:
    net, plain, x = changed_by(change), small_net().double(), samples().double()
    net(x)
    before = plain[0].weight.detach().clone()
    for index in (0, 2):
        plain[index].weight.data = net[index].weight.detach().clone()
        plain[index].bias.data = net[index].bias.detach().clone()
    assert (plain[0].weight - before).abs().max() > 1e-3
    state = {key: value.clone() for key, value in net.state_dict().items()}
    found, expected = (
        [LayerCAV(model, "0", rules=chosen).attribute(x, 1), *InputCAV(model, rules=chosen).attribute(x, 1)]
        for model in (net, plain)
    )
    assert_same(found, expected)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_norm, old"])
def test_the_power_iteration_of_spectral_norm_is_not_continued(kind: str) -> None:
    net, x = changed_by(PARAMETRIZATIONS[kind]).train(), samples().double()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    said = (
        r"^module '0.*' \(\w+\) is in training mode, where it .* changes its statistics; call model\.eval\(\) first\.$"
    )
    for attribution in (LayerCAV(net, "0"), LayerCAV(net, "2"), InputCAV(net)):
        with pytest.raises(RuntimeError, match=said) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is ModelError
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net(x)
    assert not all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
