"""Selectors of neurons in all forms that Captum takes; in piecewise linear networks the map is input x gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NeuronGradient
from torch import nn

from captum_cav import NeuronCAV
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same, largest


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x, x.mean((2, 3))


class Net(nn.Module):
    """A convolution, a pooling that gives its indices, and a layer of two tensors; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.two = nn.Conv2d(1, 3, 2), nn.MaxPool2d(2, return_indices=True), Two()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled, _ = self.pool(self.conv(x).relu())
        a, b = self.two(pooled)
        return self.head(a.sum((2, 3)) + b)


Select = Callable[[Any], torch.Tensor]
SELECTORS: list[tuple[str, Any]] = [
    ("head", 2),
    ("head", -1),
    ("head", (1,)),
    ("head", (slice(0, 2),)),
    ("head", (slice(None, None, 2),)),
    ("head", lambda h: h[:, 0]),
    ("head", lambda h: h.sum()),
    ("head", lambda h: h[1, 2]),
    ("head", lambda h: h.sum(1)),
    ("head", lambda h: h.mean(0)),
    ("conv", (0, 1, 2)),
    ("conv", (slice(None), 0, 0)),
    ("conv", (slice(0, 2), slice(1, 3), -1)),
    ("conv", lambda h: h.sum()),
    ("conv", lambda h: h[:, 1].sum((1, 2))),
    ("two", lambda pair: pair[0].sum()),
    ("two", lambda pair: pair[0][:, 1, 0, 0] + pair[1][:, 2]),
    ("pool", lambda pair: pair[0].sum()),
    ("pool", lambda pair: pair[0][:, 0, 0, 0]),
]


@pytest.mark.parametrize(("layer", "selector"), SELECTORS)
def test_a_selector_selects_what_it_selects_for_captum(layer: str, selector: Any) -> None:
    net, x = filled(Net()), fixed(2, 1, 6, 6)
    expected = x * NeuronGradient(net, net.get_submodule(layer)).attribute(x, selector)
    cav = NeuronCAV(net, layer, normalize=None)
    found, delta = cav.attribute(x, selector, return_convergence_delta=True)
    assert_same(found, expected)
    assert largest(delta) < 1e-12
    assert len(delta) in (1, 2, 4)


def test_the_ratios_of_one_number_for_all_samples_sum_to_one() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), fixed(2, 3)
    found = NeuronCAV(filled(net), "1").attribute(x, lambda h: h.sum())
    torch.testing.assert_close(found.sum(), torch.ones((), dtype=x.dtype))


@pytest.mark.parametrize(
    ("selector", "same"), [(slice(0, 2), (slice(0, 2),)), (np.int64(1), 1), (torch.tensor(1), 1), ((np.int32(1),), 1)]
)
def test_what_captum_does_not_take_selects_what_one_would_think(selector: Any, same: Any) -> None:
    cav, x = NeuronCAV(filled(Net()), "head"), fixed(2, 1, 6, 6)
    assert_same(cav.attribute(x, selector), cav.attribute(x, same))


@pytest.mark.parametrize(
    ("selector", "kind", "text"),
    [
        (lambda h: 3, TypeError, "returned a int; expected a tensor with one number for each sample"),
        (lambda h: None, TypeError, "returned a NoneType"),
        (lambda h: (h[:, 0],), TypeError, "returned a tuple"),
        (lambda h: h.argmax(1), TypeError, "returned a tensor of torch.int64"),
        (lambda h: h[:, :0], ValueError, "selects nothing: its tensor has shape (2, 0)"),
        (lambda h: h.detach()[:, 0], RuntimeError, "does not depend on the inputs"),
        ((slice(4, 9),), ValueError, "out of range for a layer of shape (2, 4)"),
        (slice(2, 2), ValueError, "out of range for a layer of shape (2, 4)"),
        ([0, 1], TypeError, "expected one integer or slice for each of the sizes (4,)"),
        ((0, 1), ValueError, "expected one integer or slice for each of the sizes (4,)"),
    ],
)
def test_a_selector_that_selects_no_neuron_is_refused(selector: Any, kind: type[Exception], text: str) -> None:
    with cav_error(kind, text):
        NeuronCAV(filled(Net()), "head").attribute(fixed(2, 1, 6, 6), selector)
