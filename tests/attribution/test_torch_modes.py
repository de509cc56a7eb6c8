"""Inference mode, gradient mode, frozen parameters: what torch is told about gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    InputError,
    ModelError,
    TargetError,
)
from tests.support.attributions import every_attribution
from tests.support.errors import raising, refused
from tests.support.small_networks import Apply, every_way, picture, residual_net, samples, small_net
from tests.support.tensors import tensors_of
from tests.support.traces import left_as_it_was

Attribution = Callable[..., Any]


# Inputs --------------------------------------------------------------------------------------------------------------


@every_way
def test_inference_mode_is_refused(attribute: Attribution) -> None:
    net, x = small_net(), samples()
    said = ("under torch.inference_mode()", "leave it", "torch.no_grad() instead")
    with torch.inference_mode(), refused(RuntimeError, *said, model=net):
        attribute(net, x)


@every_way
def test_parameters_made_under_inference_mode_are_refused(attribute: Attribution) -> None:
    with torch.inference_mode():
        net = small_net()
    said = ("parameters were created under torch.inference_mode()", "build or load it outside")
    with refused(RuntimeError, *said):
        attribute(net, samples())


@every_way
def test_inputs_made_under_inference_mode_are_refused_and_their_clone_is_not(attribute: Attribution) -> None:
    net = small_net()
    with torch.inference_mode():
        x = samples() + 0
    said = ("inputs was created under torch.inference_mode()", "pass inputs.clone()")
    with refused(ValueError, *said, model=net):
        attribute(net, x)
    torch.testing.assert_close(attribute(net, x.clone()), attribute(net, samples()))


# Random numbers, grad mode -------------------------------------------------------------------------------------------


@every_attribution
@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "enable_grad"])
def test_grad_mode_does_not_matter_and_is_restored(attribution: Attribution, enabled: bool) -> None:
    net, x = residual_net(), picture()
    expected = tensors_of(attribution(net, x))
    with torch.set_grad_enabled(enabled), left_as_it_was(net, x):
        found = tensors_of(attribution(net, x))
        assert torch.is_grad_enabled() is enabled
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("output", ["(N,)", "(N, 1)"])
def test_a_model_of_one_score_works_without_grad_mode(output: str) -> None:
    def score(x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if output == "(N,)" else x.sum(1, keepdim=True)

    with torch.no_grad():
        ratios = InputCAV(score).attribute(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]]))


# Modes of the model and of torch -------------------------------------------------------------------------------------


def test_frozen_parameters_or_none() -> None:
    net, x = small_net(), samples()
    expected = LayerCAV(net, "0").attribute(x, 0)
    net.requires_grad_(False)
    with left_as_it_was(net, x):
        assert torch.equal(LayerCAV(net, "0").attribute(x, 0), expected)
    bare = nn.Sequential(nn.Identity(), nn.ReLU(), Apply(lambda x: x.sum(1)))
    ratios = LayerCAV(bare, "0").attribute(torch.tensor([[1.0, -2.0, 3.0]]))
    assert torch.equal(ratios, torch.tensor([[0.25, 0.0, 0.75]]))


def test_under_no_grad() -> None:
    net, x = small_net(), samples()
    expected = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
    with torch.no_grad():
        found = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
        assert not torch.is_grad_enabled()
        with pytest.raises(TargetError):
            InputCAV(net).attribute(x)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert all(map(torch.equal, found, expected))


def test_inference_mode() -> None:
    net, x = small_net(), samples()
    said = r"attribute\(\) was called under torch\.inference_mode\(\).*leave it, or use torch\.no_grad\(\) instead"
    with torch.inference_mode():
        with raising(ModelError, RuntimeError, said, net):
            InputCAV(net).attribute(x, 0)
        made_there, model_made_there = samples() + 0, small_net()
    with raising(
        InputError, ValueError, r"inputs was created under torch\.inference_mode\(\); pass inputs\.clone\(\)", net
    ):
        InputCAV(net).attribute(made_there, 0)
    assert torch.equal(InputCAV(net).attribute(made_there.clone(), 0), InputCAV(net).attribute(x, 0))
    with raising(ModelError, RuntimeError, r"the model's parameters were created under.*; build or load it outside\."):
        InputCAV(model_made_there).attribute(x, 0)
