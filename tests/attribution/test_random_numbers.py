"""Random numbers are not consumed, and two calls give the same map."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from tests.support.small_networks import picture, residual_net, samples
from tests.support.tensors import tensors_of
from tests.support.traces import InjectedError, inject, left_as_it_was, state_of

# Networks ------------------------------------------------------------------------------------------------------------


class NoisyTorch(nn.Module):
    """Consumes random numbers in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x + torch.rand_like(x)))
        return self.head(h + torch.rand(6, dtype=h.dtype))


# Random numbers, grad mode -------------------------------------------------------------------------------------------


def test_a_model_that_draws_random_numbers_does_not_advance_them() -> None:
    torch.manual_seed(0)
    net, x = NoisyTorch().eval(), torch.randn(3, 4)
    before = state_of(net)["random"]
    net(x)
    assert state_of(net)["random"] != before
    attributions: list[Callable[[], Any]] = [
        lambda: LayerCAV(net, "first").attribute(x, 1, return_convergence_delta=True),
        lambda: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
        lambda: NeuronCAV(net, "first").attribute(x, 1, return_convergence_delta=True),
    ]
    for attribution in attributions:
        with left_as_it_was(net, x):
            first = tensors_of(attribution())
        for one, other in zip(first, tensors_of(attribution()), strict=True):
            assert torch.equal(one, other)


def test_a_model_that_draws_random_numbers_and_raises_does_not_advance_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = NoisyTorch().eval(), torch.randn(3, 4)
    inject(monkeypatch, net.head, InjectedError())
    with left_as_it_was(net, x), pytest.raises(InjectedError):
        LayerCAV(net, "first").attribute(x, 1)


# Threads, processes, random numbers ----------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws random numbers, also when it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + torch.rand(4) + random.random() * 0 + float(np.random.rand()) * 0)  # noqa: S311


def test_random_numbers_and_repeats() -> None:
    net, x = residual_net(), picture()
    ways = [LayerCAV(net, ["stem.0", "block1"]), InputCAV(net, rules="gamma"), NeuronCAV(net, "head")]
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    first = [way.attribute(x, 1) for way in ways]
    try:
        torch.use_deterministic_algorithms(True)
        second = [way.attribute(x, 1) for way in ways]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, tensors_of(first), tensors_of(second)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert [random.getstate(), np.random.get_state()[1].tolist()] == states[1:]


def test_a_model_that_draws_random_numbers() -> None:
    net, x = Noisy().eval(), samples()
    before = torch.get_rng_state()
    first, second = (LayerCAV(net, "first").attribute(x, 1) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    net(x)
    assert not torch.equal(torch.get_rng_state(), before)
