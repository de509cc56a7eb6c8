"""Inputs: their types, their devices, several of them, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import (
    CAVTypeError,
    InputError,
)
from tests.support.errors import raising, refused
from tests.support.networks import fixed
from tests.support.small_networks import Apply, every_way, samples, seeded, small_net
from tests.support.tensors import assert_same
from tests.support.traces import left_as_it_was

Attribution = Callable[..., Any]


# Inputs --------------------------------------------------------------------------------------------------------------


@every_way
def test_an_empty_batch_is_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "inputs is empty (shape (0, 4))", "expected at least one sample", model=net):
        attribute(net, torch.ones(0, 4))


def test_an_empty_tuple_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "inputs is an empty tuple", "at least one tensor", model=net):
        InputCAV(net).attribute(())


@every_way
def test_devices_that_differ_are_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "inputs is on meta and the model on cpu", "move one with .to(device)", model=net):
        attribute(net, torch.ones(2, 4, device="meta"))


@every_way
@pytest.mark.parametrize("given", [np.ones((2, 4)), [1.0, 2.0], None, "x"], ids=["array", "list", "None", "str"])
def test_inputs_that_are_no_tensors_are_refused(attribute: Attribution, given: Any) -> None:
    net = small_net()
    name = type(given[0] if isinstance(given, list) else given).__name__
    with refused(TypeError, f"is a {name}", "expected a tensor or a tuple of tensors", model=net):
        attribute(net, given)


@every_way
def test_complex_inputs_are_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(TypeError, "inputs is complex (torch.complex64)", "real numbers", model=net):
        attribute(net, samples() + 0j)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16])
def test_numbers_that_no_embedding_takes_are_refused(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    x = torch.ones(2, 3).to(dtype)
    said = (f"inputs are {dtype}", "use LayerCAV at the layer that takes them", "floating-point inputs")
    for attribution in (InputCAV(net), NeuronCAV(net, "2")):
        with refused(TypeError, *said, model=net):
            attribution.attribute(x, 0)


# Numbers and devices -------------------------------------------------------------------------------------------------


def test_complex_numbers() -> None:
    net = small_net()
    said = r"^inputs is complex \(torch\.complex64\); contributions are defined for real numbers\.$"
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        with raising(CAVTypeError, TypeError, said, net):
            attribution.attribute(samples() + 0j, 0)
    spectral = nn.Sequential(nn.Linear(4, 4), Apply(torch.fft.fft), Apply(lambda x: x.real))
    with raising(
        CAVTypeError, TypeError, r"the layer gives complex numbers \(torch\.complex64\).*layer before or", spectral
    ):
        LayerCAV(spectral, "1").attribute(samples(), 0)


class Scaling(nn.Module):
    """Takes pictures of bytes."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(x.float() / 255).relu().mean((2, 3)))


def test_integer_inputs() -> None:
    net = Scaling()
    x = torch.randint(256, (2, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = LayerCAV(net, "convolution").attribute(x, 1)
    scaled = lambda x: net.head(net.convolution(x).relu().mean((2, 3)))  # noqa: E731
    assert torch.equal(found, LayerCAV(scaled, net.convolution).attribute(x.float() / 255, 1))
    said = r"inputs are torch\.uint8, which carry no contributions, and no embedding layer takes them as they are; use "
    for attribution in (InputCAV(net), NeuronCAV(net, "head")):
        with raising(CAVTypeError, TypeError, said, net):
            attribution.attribute(x, 1)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    ids = torch.tensor([[1, 2, 3], [4, 4, 6]])
    ratios, delta = LayerCAV(words, "0").attribute(ids, 1, return_convergence_delta=True)
    weights = words[2].weight[1].reshape(3, 4)
    assert_same(ratios, (words[0](ids) * weights / words(ids)[:, 1].reshape(2, 1, 1)).detach())
    assert delta.abs().max() < 1e-12


# Batches and shapes --------------------------------------------------------------------------------------------------


def test_an_empty_batch() -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        with raising(
            InputError, ValueError, r"^inputs is empty \(shape \(0, 4\)\); expected at least one sample\.$", net
        ):
            attribution.attribute(torch.ones(0, 4), 0)


# Structures ----------------------------------------------------------------------------------------------------------


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.layer = nn.Linear(4, 3)

    def forward(self, *, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(x) * scale


def test_arguments_by_keyword_and_beside_the_inputs() -> None:
    net, x = ByKeyword().double(), samples().double()
    with left_as_it_was(net, x), pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        InputCAV(net).attribute(x, 1)  # as Captum
    score = net(x=x)[:, 1:2].detach()
    expected = (x * net.layer.weight[1]).detach() / score
    assert_same(InputCAV(lambda x, scale: net(x=x, scale=scale)).attribute(x, 1, 2.0), expected)
    outer = nn.Sequential(Apply(lambda x: net(x=x), net))
    assert_same(LayerCAV(outer, net).attribute(x, 1, attribute_to_layer_input=True), expected)


def test_several_inputs() -> None:
    a, b = fixed(2, 3), fixed(2, 3, seed=2)
    found = InputCAV(lambda a, b, c: 2 * a + b * c).attribute((a, b), 1, torch.full((1, 3), 3.0))
    assert type(found) is tuple
    for part, value, factor in zip(found, (a, b), (2, 3), strict=True):
        expected = torch.zeros_like(value)
        expected[:, 1] = factor * value[:, 1] / (2 * a + 3 * b)[:, 1]
        assert_same(part, expected)
