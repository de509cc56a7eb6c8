"""The table of cases of Captum's own tests, and comparisons with Captum's results."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    Attribution,
    InputXGradient,
    LayerGradientXActivation,
    LayerLRP,
    NeuronGradient,
)
from torch import nn


def _load_cases() -> dict[str, dict[str, Any]]:
    """Captum's table of test cases; to load it seeds every generator and sets a flag of cuDNN."""
    states = random.getstate(), np.random.get_state(), torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=[]):
        found = pytest.importorskip(
            "captum.testing.attr.helpers.test_config", reason="Captum brings the cases of its tests from version 0.9 on"
        )
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.backends.cudnn.deterministic = states[2]
    return {case["name"]: case for case in found.config}


CASES = _load_cases()


def names_of(algorithm: type[Attribution], **flags: Any) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if algorithm in case["algorithms"] and all(case.get(key, False) == value for key, value in flags.items())
    ]


AT_LAYERS = names_of(LayerGradientXActivation)


AT_LAYERS_BY_LRP = names_of(LayerLRP)


AT_INPUTS = names_of(InputXGradient, noise_tunnel=False)


AT_NEURONS = names_of(NeuronGradient)


THROUGH_NOISE = names_of(InputXGradient, noise_tunnel=True)


# It ends in a softmax, through which contributions pass (equation 7) and gradients do not.
SOFTMAX = "conv_layer_single_target"


def case_of(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A copy of a case: its model, its layer or layers if it has any, and the arguments of ``attribute``."""
    case = copy.deepcopy({key: CASES[name].get(key) for key in ("model", "layer", "attribute_args")})
    model, layer = case["model"], case["layer"]
    if isinstance(layer, list):
        return model, [model.get_submodule(one) for one in layer], case["attribute_args"]
    return model, model.get_submodule(layer) if layer else None, case["attribute_args"]


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in flat(part)]


def shape_of(value: Any) -> Any:
    """The nesting of a result: its containers' types, and the shapes inside."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else (type(value), [shape_of(part) for part in value])


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """The same nesting and the same numbers, not all of them zero."""
    assert shape_of(ours) == shape_of(theirs)
    assert any(bool(tensor.any()) for tensor in flat(theirs))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def hooks_on(model: nn.Module) -> list[tuple[str, str]]:
    """Hooks that are left on any module, or on all modules of the process."""
    found = [
        (name, kind)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if kind.endswith("_hooks") and "state_dict" not in kind and value
    ]
    everywhere = vars(torch.nn.modules.module)
    return found + [
        ("torch", kind)
        for kind in everywhere
        if kind.startswith("_global_") and kind.endswith("_hooks") and everywhere[kind]
    ]


SMALL = row(3.0, 4.0, 0.0)


SAMPLES = torch.randn(4, 3, generator=torch.Generator().manual_seed(1234))
