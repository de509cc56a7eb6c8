"""Value, maps and conservation on the device against CPU and float64."""

from __future__ import annotations

import pytest
import torch

from captum_cav import presets
from tests.gpu.networks import FEW, NETWORKS, Found, distance, explain, on, reference

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}


def compare(found: Found, expected: Found, tolerance: float) -> None:
    """The same output, the same maps, the same rest: the last in units of the score."""
    assert distance(found.output, expected.output) < tolerance
    assert len(found.maps) == len(expected.maps)
    for mine, its in zip(found.maps, expected.maps, strict=True):
        assert distance(mine, its) < tolerance
    size = expected.output[:, 0].abs().max()
    for mine, its in zip(found.deltas, expected.deltas, strict=True):
        assert float((mine - its).abs().max() / size) < tolerance


@pytest.mark.parametrize("dtype", _TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_cpu(name: str, dtype: torch.dtype, device: torch.device) -> None:
    here = on(name, device, dtype)
    with torch.no_grad():
        plain = here.model(here.inputs).double().cpu()
    found = explain(here)
    assert distance(found.output, plain) < _TOLERANCES[dtype]
    compare(found, reference(name), _TOLERANCES[dtype])


@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_of_the_inputs_and_constants_add_up(name: str, device: torch.device) -> None:
    here = on(name, device)
    found = explain(here)
    # Words are explained at their embedding, the first layer; all others at the inputs, the last of the maps.
    delta = found.deltas[-1 if here.inputs.is_floating_point() else 0]
    assert float((delta / found.output[:, 0]).abs().max()) < 1e-9


@pytest.mark.parametrize("preset", [name for name in presets.NAMES if name != "paper"])
@pytest.mark.parametrize("name", FEW)
def test_presets_give_the_maps_of_cpu(name: str, preset: str, device: torch.device) -> None:
    compare(explain(on(name, device), preset), reference(name, preset), 1e-8)
