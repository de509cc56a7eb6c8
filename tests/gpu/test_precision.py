"""Half precision and autocast on the device, against CPU and float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from captum_cav import InputCAV
from captum_cav.errors import CAVTypeError
from tests.gpu.networks import FEW, Found, case, distance, explain, on, reference

_HALVES = {torch.float16: (0.01, 0.98), torch.bfloat16: (0.05, 0.9)}


def check(found: Found, expected: Found, dtype: torch.dtype) -> None:
    """Near outputs and rests, in units of the score, and maps of nearly the same direction."""
    near, alike = _HALVES[dtype]
    assert distance(found.output, expected.output) < near
    size = expected.output[:, 0].abs().max()
    for mine, its in zip(found.deltas, expected.deltas, strict=True):
        assert float((mine - its).abs().max() / size) < 2 * near
    for mine, its in zip(found.maps, expected.maps, strict=True):
        assert float((mine * its).sum()) >= alike * float(mine.norm() * its.norm())


@pytest.mark.parametrize("dtype", _HALVES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_models_in_half_precision(name: str, dtype: torch.dtype, device: torch.device) -> None:
    found = explain(on(name, device, dtype))
    check(found, reference(name), dtype)
    assert found.dtypes == {dtype}


@pytest.mark.parametrize("dtype", _HALVES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_autocast(name: str, dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cpu" and name == "lstm" and dtype == torch.float16:
        pytest.skip("torch has no LSTM in float16 on CPU")
    check(explain(on(name, device, torch.float32), autocast=torch.autocast(device.type, dtype)), reference(name), dtype)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *itertools.product(("functional", "transformer_encoder", "gates"), ("gamma", "epsilon_plus")),
        ("transformer_encoder", "attnlrp"),
    ],
)
def test_presets_in_autocast(name: str, preset: str, device: torch.device) -> None:
    autocast = torch.autocast(device.type, torch.bfloat16)
    found = explain(on(name, device, torch.float32), preset, autocast)
    check(found, reference(name, preset), torch.bfloat16)


@pytest.mark.parametrize("dtype", _HALVES, ids=str)
def test_ratios_to_scores_far_from_one(dtype: torch.dtype, device: torch.device) -> None:
    def small(x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True) * 1e-5

    inputs = torch.full((2, 4), 2.0, device=device, dtype=dtype)
    ratios = InputCAV(small).attribute(inputs, 0)
    torch.testing.assert_close(ratios.float().cpu(), torch.full((2, 4), 0.25), rtol=0.02, atol=0)


def test_rules_that_give_to_zeros_refuse_float16(device: torch.device) -> None:
    with pytest.raises(CAVTypeError, match="float16 has too small a range"):
        explain(on("functional", device, torch.float16), "epsilon_plus_flat")


def test_channels_last(device: torch.device) -> None:
    here = on("resnet18", device)
    model = here.model.to(memory_format=torch.channels_last)
    inputs = here.inputs.contiguous(memory_format=torch.channels_last)
    found = explain(here._replace(model=model, inputs=inputs))
    for mine, its in zip(found.maps, reference("resnet18").maps, strict=True):
        assert distance(mine, its) < 1e-9


def test_a_wide_linear_layer_with_changed_weights(device: torch.device) -> None:
    """On CPU such a layer is worked on in parts; on CUDA as a whole."""
    weight = case("functional").inputs.flatten()[:1200].repeat(1000, 1) + torch.eye(1000, 1200, dtype=torch.float64)
    inputs = torch.linspace(-1, 1, 1200, dtype=torch.float64)[None]

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight.to(x.device)).clamp(min=0)[:, :5]

    expected = InputCAV(scores, rules="gamma", normalize=None).attribute(inputs, 0)
    found = InputCAV(scores, rules="gamma", normalize=None).attribute(inputs.to(device), 0)
    torch.testing.assert_close(found.cpu(), expected)
