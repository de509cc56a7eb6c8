"""Quantized models: a right map, or a refusal that says why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same

X = fixed(2, 3).float()
WORD = ("quantized numbers", "float model")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def prepared() -> nn.Module:
    """With observers, which pass numbers on."""
    torch.manual_seed(0)
    net = nn.Sequential(
        quantization.QuantStub(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), quantization.DeQuantStub()
    ).eval()
    net.qconfig = quantization.get_default_qconfig("x86")
    ready = quantization.prepare(net)
    ready(X)
    return ready


ATTRIBUTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "inputs": lambda net: InputCAV(net).attribute(X, 0),
    "delta": lambda net: InputCAV(net).attribute(X, 0, return_convergence_delta=True),
    "gradient": lambda net: InputCAV(net, on_unknown="gradient").attribute(X, 0),
    "layer": lambda net: LayerCAV(net, "1").attribute(X, 0),
    "input of a layer": lambda net: LayerCAV(net, "1").attribute(X, 0, attribute_to_layer_input=True),
    "neuron": lambda net: NeuronCAV(net, "4").attribute(X, 0),
    "verify": lambda net: verify(net, X, 0),
}


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_a_static_int8_model_is_refused_as_quantized(attribution: str) -> None:
    with cav_error((NotImplementedError, TypeError), *WORD):  # type: ignore[arg-type]
        ATTRIBUTIONS[attribution](quantization.convert(prepared()))


def test_the_float_model_that_it_was_made_from_is_explained() -> None:
    net = prepared()
    with torch.no_grad():
        score = net(X)[:, 0]
    found, delta = InputCAV(net, normalize=None).attribute(X, 0, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-6
    assert found.abs().sum() > 0
    assert score.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_dynamic_layers_are_refused_as_quantized(dtype: torch.dtype) -> None:
    net = quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, dtype=dtype)
    for on_unknown in ("error", "gradient"):
        with cav_error(NotImplementedError, "'linear_dynamic", "in module '0' (Linear)", *WORD):
            InputCAV(net, on_unknown=on_unknown).attribute(X, 0)  # type: ignore[arg-type]


class Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        output = self.layer(x)
        return output[0][:, -1] if isinstance(output, tuple) else output


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.LSTMCell(3, 4), nn.GRUCell(3, 4)], ids=str)
def test_dynamic_recurrent_layers_are_refused_as_quantized(layer: nn.Module) -> None:
    net = quantization.quantize_dynamic(Last(layer), {type(layer)})
    with cav_error(NotImplementedError, *WORD):
        InputCAV(net).attribute(X if "Cell" in type(layer).__name__ else X[None], 0)


KERNELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quantize and back": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize(),
    "by channel": lambda x: torch.quantize_per_channel(
        x, torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int), 1, torch.qint8
    ).dequantize(),
    "weight only": lambda x: torch._weight_int8pack_mm(
        x.repeat(1, 16).bfloat16(), torch.ones(4, 48, dtype=torch.int8), torch.ones(4).bfloat16()
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_quantized_numbers_are_refused_as_such(kernel: str) -> None:
    with cav_error(NotImplementedError, *WORD):
        InputCAV(KERNELS[kernel]).attribute(X, 0)


def test_quantized_inputs_are_refused_as_such() -> None:
    with cav_error(TypeError, "inputs holds quantized numbers (torch.quint8)", "inputs.dequantize()"):
        InputCAV(lambda x: x.dequantize()).attribute(torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), 0)


def test_quantized_weights_that_are_made_float_again_are_explained() -> None:
    weight = torch.quantize_per_tensor(fixed(4, 3).float(), 0.1, 0, torch.qint8)
    found = InputCAV(lambda x: F.linear(x, weight.dequantize()), normalize=None).attribute(X, 1)
    assert_same(found, X * weight.dequantize()[1], 1e-6)


def test_a_number_that_is_rounded_as_in_quantization_gets_the_contribution_of_what_it_becomes() -> None:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127) @ weight

    weight, x = fixed(3, 2), fixed(2, 3)
    found, delta = InputCAV(rounded, normalize=None).attribute(x, 1, return_convergence_delta=True)
    assert_same(found, torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127) * weight[:, 1])
    assert float(delta.abs().max()) < 1e-12


def test_an_operation_that_torch_cannot_differentiate_is_named() -> None:
    x = filled(nn.Linear(1, 3)).weight.T.abs() + 0.5
    with cav_error(NotImplementedError, "torch cannot differentiate", "igamma", "rules.pass_through"):
        InputCAV(lambda x: torch.igamma(x, x + 1), on_unknown="gradient").attribute(x.detach(), 0)
    other = torch.full_like(x, 2.0).detach()
    from captum_cav import rules

    found = InputCAV(lambda x: torch.igamma(x, other), rules={torch.igamma: rules.pass_through}).attribute(
        x.detach(), 0
    )
    assert_same(found, torch.eye(3, dtype=x.dtype)[:1])
