"""Between the inputs' check and the results' check the host waits for nothing: it only hands out work."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from captum_cav import presets
from captum_cav.attribution.options import check_options
from captum_cav.operations import TABLE
from captum_cav.propagation import forward
from captum_cav.propagation.hooks import Site
from tests.gpu.conftest import CUDA
from tests.gpu.networks import FEW, NETWORKS, case
from tests.gpu.synchronisation import none_allowed

_LARGE = ("resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t")
_KINDS = [name for name in FEW if name not in _LARGE]


@pytest.fixture(params=[CUDA, "meta"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def propagate(name: str, device: torch.device, rules: Any, with_shares: bool) -> None:
    """A forward and two backward passes, as ``attribute_targets`` makes them."""
    model, inputs, layers = case(name)
    model, inputs = copy.deepcopy(model).to(device), inputs.to(device)
    sites = [Site(model.get_submodule(layer), False) for layer in layers]
    request = forward.Request(
        table=TABLE,
        rules=check_options(model, rules).rules,
        tap_inputs=inputs.is_floating_point(),
        with_shares=with_shares,
    )
    if device.type == "cuda":
        model(inputs)  # libraries are loaded and kernels chosen, which waits
    with none_allowed(device):
        passed = forward.run(model, (inputs,), (), sites, request)
        for target in (0, 1):
            with torch.enable_grad():
                scores = passed.output[:, target]
            taps = range(len(passed.trace.taps))
            found = passed.coefficients(scores, torch.ones_like(scores), taps, target == 0)
            assert any(part is not None for parts in found for part in parts)


# What packs a sequence copies its lengths to the device, and waits, without us.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in _LARGE else ()) for name in NETWORKS if name != "packed"],
)
def test_propagation_waits_for_nothing(name: str, device: torch.device) -> None:
    propagate(name, device, "paper", False)


@pytest.mark.parametrize("name", _KINDS)
def test_measuring_constants_waits_for_nothing(name: str, device: torch.device) -> None:
    propagate(name, device, "paper", True)


@pytest.mark.parametrize(
    ("name", "preset"),
    [(name, preset) for name, preset in itertools.product(_KINDS, presets.NAMES) if preset != "paper"],
)
def test_presets_wait_for_nothing(name: str, preset: str, device: torch.device) -> None:
    propagate(name, device, preset, False)


@pytest.mark.parametrize("read", [float, bool, torch.nonzero, lambda x: x.new_tensor(1.0), torch.Tensor.cpu])
def test_waiting_is_found(read: Any, device: torch.device) -> None:
    x = torch.ones((), device=device)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)), none_allowed(device):
        read(x)
