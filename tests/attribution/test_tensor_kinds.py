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
from torch.utils._pytree import tree_map

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


# Subclasses of tensors -----------------------------------------------------------------------------------------------


class Bare(torch.Tensor):
    """A subclass that adds nothing."""


class WithNotes(torch.Tensor):
    """A subclass as those of image libraries: every result is of the class and has the notes of the first argument."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, torch.Tensor):
            result = result.as_subclass(cls)
            result.notes = getattr(args[0], "notes", None) if args else None
        return result


class Refusing(torch.Tensor):
    """A subclass that no function of torch computes with."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("conv2d", "mul", "add", "linear"):
            return NotImplemented
        return super().__torch_function__(func, types, args, kwargs or {})


every_subclass = pytest.mark.parametrize("kind", [Bare, WithNotes, Refusing])


class Wrapping(torch.Tensor):
    """A subclass that has no numbers of its own: every operation is run on the tensor inside."""

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(leaf: Any) -> Any:
            return leaf.inside if isinstance(leaf, cls) else leaf

        found = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        return tree_map(lambda leaf: cls(leaf) if isinstance(leaf, torch.Tensor) else leaf, found)


def masked(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype of torch
        return torch.masked.masked_tensor(x, x > 0)


@pytest.mark.parametrize("wrap", [Wrapping, masked], ids=["Wrapping", "MaskedTensor"])
def test_a_subclass_that_keeps_its_numbers_elsewhere_is_refused(wrap: Callable[[torch.Tensor], torch.Tensor]) -> None:
    net, x = writing_net(), picture().double()
    given = wrap(x)
    said = rf"^inputs is a {type(given).__name__}, which keeps its numbers in another way; expected a plain tensor"
    for attribute in (
        lambda: InputCAV(net).attribute(given, 1),
        lambda: LayerCAV(net, "1").attribute(given, 1, return_convergence_delta=True),
        lambda: NeuronCAV(net, "1").attribute(given, (0, 1, 1)),
        lambda: verify(net, given, 1),
    ):
        with raising(CAVTypeError, TypeError, said, net):
            attribute()


def writing_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(400, 3)
        return nn.Sequential(*layers).double().eval()


WAYS_OF_INPUTS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "inputs": lambda net, x: InputCAV(net).attribute(x, 1),
    "inputs, delta": lambda net, x: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
    "layers": lambda net, x: LayerCAV(net, ["0", "1", "2"]).attribute(x, 1),
    "layer, delta": lambda net, x: LayerCAV(net, "1").attribute(x, 1, return_convergence_delta=True),
    "input of a layer": lambda net, x: LayerCAV(net, "2").attribute(x, 1, attribute_to_layer_input=True),
    "targets": lambda net, x: LayerCAV(net, "2").attribute_targets(x, [0, torch.tensor([1, 2]).as_subclass(type(x))]),
    "neuron": lambda net, x: NeuronCAV(net, "2").attribute(x, (1, 2, 3), return_convergence_delta=True),
    "rules": lambda net, x: InputCAV(net, rules="gamma").attribute(x, 1),
    "with a graph": lambda net, x: InputCAV(net).attribute(x, 1, grad_kwargs={"create_graph": True}).detach(),
}


@every_subclass
@pytest.mark.parametrize("way", WAYS_OF_INPUTS)
def test_a_subclass_as_input_has_the_map_of_the_plain_tensor(kind: type[torch.Tensor], way: str) -> None:
    net, x = writing_net(), picture().double()
    given = x.as_subclass(kind)
    found, expected = tensors_of(WAYS_OF_INPUTS[way](net, given)), tensors_of(WAYS_OF_INPUTS[way](net, x))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is torch.Tensor
        assert torch.equal(one, other)
    assert type(given) is kind


@every_subclass
def test_a_model_with_a_subclass_as_input_is_verified(kind: type[torch.Tensor]) -> None:
    report = verify(writing_net(), picture().double().as_subclass(kind), 1)
    assert report.ok
    assert report.value == 0


@pytest.mark.parametrize("kind", [Bare, WithNotes])
def test_a_subclass_as_an_additional_argument_and_on_the_model(kind: type[torch.Tensor]) -> None:
    x, scale, shift = samples().double(), fixed(4), fixed(3, seed=2)

    class Shifted(nn.Module):
        def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.first, self.last = net[0], nn.Linear(5, 3).double()
            self.last.weight = nn.Parameter(net[2].weight.detach())
            self.scale = nn.Parameter(change(torch.ones(3).double()) if kind is Bare else torch.ones(3).double())
            self.register_buffer("shift", change(shift))
            self.attribute = change(torch.ones(5).double())

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            y = self.first(x * scale) + self.attribute
            return torch.add(self.last(y.relu_()) * self.scale, self.shift)

    net = small_net().double()
    plain, given = Shifted(lambda value: value), Shifted(lambda value: value.as_subclass(kind))
    given.last.bias = plain.last.bias
    assert type(given.shift) is kind
    for way in (InputCAV, lambda model: LayerCAV(model, "first"), lambda model: NeuronCAV(model, "last")):
        found, expected = (
            way(model).attribute(x, 1, argument, return_convergence_delta=True)
            for model, argument in ((given, scale.as_subclass(kind)), (plain, scale))
        )
        assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
    assert verify(given, x, 1, scale.as_subclass(kind)).value == verify(plain, x, 1, scale).value


def test_the_model_writes_into_a_subclass() -> None:
    def model(x: torch.Tensor, kind: type[torch.Tensor]) -> torch.Tensor:
        buffer = torch.ones(2, 4).as_subclass(kind)
        buffer[:, :2] = x[:, :2]
        return (buffer * buffer.sigmoid()).sum(1)

    x = samples()
    found, expected = (InputCAV(lambda x, k=k: model(x, k)).attribute(x) for k in (Bare, torch.Tensor))
    assert torch.equal(found, expected)
    assert (found != 0).sum() == 4


@pytest.mark.parametrize("kind", [Bare, WithNotes])
@pytest.mark.parametrize(
    "before",
    [lambda x: x, lambda x: x * 3, lambda x: x.relu()[:, 1:], lambda x: x.view(4, 2)],
    ids=["the input", "a product", "a view", "all of a view"],
)
def test_the_model_turns_a_tensor_into_a_subclass(kind: type[torch.Tensor], before: Callable[..., Any]) -> None:
    def model(x: torch.Tensor, kind: type[torch.Tensor] | None) -> torch.Tensor:
        y = before(x)
        return ((y if kind is None else y.as_subclass(kind)) * 2).tanh().reshape(2, -1).sum(1)

    x = samples()
    found, expected = (
        InputCAV(lambda x, k=k: model(x, k)).attribute(x, return_convergence_delta=True) for k in (kind, None)
    )
    assert_same(found, expected, 1e-6)
