"""Lazy, sparse and nested tensors, tensors on the meta device, and memory in other orders."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from captum_cav.errors import (
    CAVTypeError,
    InputError,
    ModelError,
)
from tests.support.errors import raising
from tests.support.networks import fixed, network, shape_of
from tests.support.precision import LAYERS
from tests.support.small_networks import Apply, picture, residual_net, samples, small_net
from tests.support.tensors import assert_same, tensors_of
from tests.support.traces import left_as_it_was

# Tensors of other kinds ----------------------------------------------------------------------------------------------


def test_lazy_modules() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with pytest.raises(
            RuntimeError, match=r"^parameter '0\.weight' is lazy and not initialized; run the model once"
        ):
            attribution.attribute(samples(), 1)
    assert isinstance(net[0], nn.LazyLinear)
    net(samples())
    assert LayerCAV(net, "0").attribute(samples(), 1).isfinite().all()


def test_the_meta_device() -> None:
    nowhere = nn.Linear(4, 3, device="meta")
    said = r"^parameter '{}weight' is on the meta device, which holds no numbers; load the model\.$"
    for net, name in ((nowhere, ""), (nn.Sequential(nn.Linear(4, 4), nowhere), "1.")):
        for x in (samples(), samples().to("meta")):
            with pytest.raises(RuntimeError, match=said.format(re.escape(name))) as caught:
                InputCAV(net).attribute(x, 1)
            assert type(caught.value) is ModelError
    with pytest.raises(ValueError, match=r"^inputs is on the meta device, which holds no numbers\.$") as caught:
        InputCAV(lambda x: x.sum(1)).attribute(samples().to("meta"))
    assert type(caught.value) is InputError


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_tensors() -> None:
    net, x = small_net(), samples()
    for given, layout in ((x.to_sparse(), "coo"), (x.to_sparse_csr(), "csr")):
        said = rf"^inputs is sparse \(torch\.sparse_{layout}\); pass inputs\.to_dense\(\)\.$"
        for attribution in (LayerCAV(net, "0"), InputCAV(net)):
            with raising(CAVTypeError, TypeError, said, net):
                attribution.attribute(given, 1)
    making = nn.Sequential(nn.Linear(4, 4), Apply(torch.Tensor.to_sparse), Apply(torch.Tensor.to_dense))
    with raising(
        CAVTypeError, TypeError, r"the layer gives a sparse tensor .*; pick a layer before or behind it", making
    ):
        LayerCAV(making, "1").attribute(x, 1)
    # As a constant it may come: the adjacency of a graph network.
    adjacency = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    found = InputCAV(lambda x, a: torch.sparse.mm(a, x)).attribute(x, 1, adjacency.to_sparse())
    assert_same(found, InputCAV(lambda x, a: a @ x).attribute(x, 1, adjacency), 1e-6)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(layout: torch.layout) -> None:
    net = small_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(CAVTypeError, TypeError, r"^inputs is a nested tensor; pad it, or pass one sample at a time", net):
            attribution.attribute(nested, 1)


# Batches and shapes --------------------------------------------------------------------------------------------------


def test_a_batch_equals_its_samples() -> None:
    net, x = network("functional"), fixed(33, 3, 16, 16).float()
    targets = [sample % 5 for sample in range(33)]
    batch, deltas = LayerCAV(net, "first").attribute(x, targets, return_convergence_delta=True)
    parts = [LayerCAV(net, "first").attribute(x[k : k + 1], targets[k]) for k in range(33)]
    torch.testing.assert_close(batch, torch.cat(parts), rtol=1e-4, atol=1e-6)
    halves = [LayerCAV(net, "first").attribute(x[part], targets[part]) for part in (slice(0, 20), slice(20, 33))]
    torch.testing.assert_close(batch, torch.cat(halves), rtol=1e-4, atol=1e-6)
    assert deltas.shape == (33,)
    assert deltas.abs().max() < 1e-3


def test_memory_in_other_orders() -> None:
    net, x = residual_net().double(), picture().double()
    layers = ["stem.0", "block1", "head"]

    def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        with left_as_it_was(model, x):
            return tensors_of([LayerCAV(model, layers).attribute(x, 1), InputCAV(model).attribute(x, 1)])

    expected = maps(net, x)
    views = {
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "channels last": x.to(memory_format=torch.channels_last),
        "part": torch.cat([x, x], 3)[..., 12:],
        "every second": torch.stack([x, x], -1)[..., 0],
    }
    for name, view in views.items():
        assert not view.is_contiguous(), name
        assert_same(maps(net, view), expected)
    assert_same(maps(copy.deepcopy(net).to(memory_format=torch.channels_last), views["channels last"]), expected)
    constant = torch.full((2, 3, 1, 1), 0.5, dtype=torch.float64)
    assert_same(maps(net, constant.expand_as(x)), maps(net, constant.expand_as(x).contiguous()))
    assert_same(maps(net, x[:1].expand(2, -1, -1, -1)), maps(net, torch.cat([x[:1], x[:1]])))


# Structures ----------------------------------------------------------------------------------------------------------


def test_another_device() -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        said = r"^inputs is on meta and the model on cpu; move one with \.to\(device\)\.$"
        with raising(InputError, ValueError, said, net):
            attribution.attribute(samples().to("meta"), 0)


@pytest.mark.parametrize("name", ["functional", "transformer_encoder", "lstm"])
def test_another_default_device(name: str) -> None:
    """The meta device holds no numbers, so that whatever is made on it by mistake is found."""
    net, x = copy.deepcopy(network(name)), fixed(2, *shape_of(name)).float()
    ways: list[Callable[[], Any]] = [
        *(
            lambda chosen=chosen: InputCAV(net, rules=chosen).attribute(x, 1, return_convergence_delta=True)
            for chosen in (None, "gamma", "epsilon_plus_flat", "alpha2_beta1", "attnlrp")
        ),
        lambda: LayerCAV(net, LAYERS[name], score="log_odds").attribute(x, [1, 2], return_convergence_delta=True),
        lambda: LayerCAV(net, LAYERS[name]).attribute_targets(x, [0, torch.tensor([1, 2], device="cpu")]),
        lambda: NeuronCAV(net, "head").attribute(x, 1, return_convergence_delta=True),
    ]
    expected = [way() for way in ways]
    with torch.device("meta"):
        found = [way() for way in ways]
        assert verify(net, x, 1).ok
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
