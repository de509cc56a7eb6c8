"""Half precision, autocast, float64 and other default types."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from captum_cav import InputCAV, LayerCAV, verify
from tests.support.networks import fixed, network, shape_of
from tests.support.precision import LAYERS
from tests.support.small_networks import samples, small_net
from tests.support.tensors import assert_same, tensors_of
from tests.support.traces import left_as_it_was

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def distance(found: Any, expected: Any) -> float:
    """Of the first tensors, relative to the size of the expected one."""
    one, other = tensors_of(found)[0].double(), tensors_of(expected)[0].double()
    assert one.isfinite().all()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_model_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """Maps are of the layer's type, and differ from those in float64 by a few roundings."""
    net, x = network(name), fixed(2, *shape_of(name))
    double, half = copy.deepcopy(net).double(), copy.deepcopy(net).to(dtype)
    roundings = 4 * torch.finfo(dtype).eps
    expected = LayerCAV(double, LAYERS[name], normalize=None).attribute(x, 1)
    found, delta = LayerCAV(half, LAYERS[name], normalize=None).attribute(x.to(dtype), 1, return_convergence_delta=True)
    assert {tensor.dtype for tensor in [*tensors_of(found), delta]} == {dtype}
    assert distance(found, expected) < roundings
    scores = double(x)[:, 1].detach().abs()
    assert (delta.double().abs() / scores).max() < 8 * roundings
    assert distance(found, expected) > torch.finfo(torch.float32).eps, "it was not computed in half precision"


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("name", ["functional", "transformer_encoder"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Around the attribution or within the model, it is the same; the model stays float32."""
    net, x = copy.deepcopy(network(name)), fixed(2, *shape_of(name))
    expected = LayerCAV(copy.deepcopy(net).double(), LAYERS[name], normalize=None).attribute(x, 1)

    def cast_within(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return net(x)

    layer = net.get_submodule(LAYERS[name])
    with left_as_it_was(net):
        with torch.autocast("cpu", dtype=dtype):
            around = LayerCAV(net, layer, normalize=None).attribute(x.float(), 1)
        within = LayerCAV(cast_within, layer, normalize=None).attribute(x.float(), 1)
        assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(around, within)
    assert torch.finfo(torch.float32).eps < distance(within, expected) < 4 * torch.finfo(dtype).eps


def test_the_delta_tells_where_half_precision_underflows() -> None:
    """Coefficients of 4e-9 are below the smallest float16; bfloat16 has them. Right, or named by the delta."""
    x = torch.full((1, 4096), 60000.0)
    for dtype in (torch.bfloat16, torch.float16):
        ratios, delta = InputCAV(lambda x: x.mean(1)).attribute(x.to(dtype), return_convergence_delta=True)
        right = bool(((ratios.double() - 1 / 4096).abs() < 0.01 / 4096).all())
        assert right or float(delta) > 0.5
        assert right or dtype == torch.float16


def test_a_model_in_float64() -> None:
    net = small_net().double()
    x = samples().double()
    hidden = net[1](net[0](x)).detach()
    found, delta = LayerCAV(net, "1").attribute(x, 1, return_convergence_delta=True)
    assert found.dtype == delta.dtype == torch.float64
    assert_same(found, (hidden * net[2].weight[1] / net(x)[:, 1:2]).detach(), 1e-15)
    assert delta.abs().max() < 1e-15


def test_another_default_type() -> None:
    net, x = copy.deepcopy(network("functional")), fixed(2, 3, 16, 16).float()
    explain = LayerCAV(net, "first")
    expected = explain.attribute(x, 1, return_convergence_delta=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = explain.attribute(x, 1, return_convergence_delta=True)
        assert verify(net, x, 1).ok
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))
    assert {tensor.dtype for tensor in found} == {torch.float32}
