"""Which layer is explained: names, modules, lists and calls, and those that are refused."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import LayerCAV, NeuronCAV
from captum_cav.errors import (
    CAVError,
    CAVTypeError,
    LayerError,
)
from tests.support.errors import raising, refused
from tests.support.networks import ReusingNet, fixed
from tests.support.small_networks import Apply, Repeating, WithUnused, every_layer_maker, samples, small_net
from tests.support.tensors import assert_same
from tests.support.traces import InjectedError, inject

Attribution = Callable[..., Any]


@every_layer_maker
def test_an_unknown_layer_name_is_refused_with_near_matches(make: Attribution) -> None:
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "head": nn.Linear(4, 2)})
    with refused(ValueError, "unknown layer 'encodr.1'", "'encoder.1'", "model.named_modules()", model=net):
        make(net, "encodr.1")
    with refused(ValueError, "unknown layer 'haed' (did you mean 'head'?)", model=net):
        make(net, "haed")
    with pytest.raises(ValueError, match="unknown layer 'xyz'; see") as caught:
        make(net, "xyz")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_name_within_a_list_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "unknown layer '3'", "model.named_modules()", model=net):
        LayerCAV(net, ["0", "3"])


@every_layer_maker
def test_a_name_is_refused_where_the_model_is_a_plain_function(make: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "layer '0' is a name", "not a module", "pass the layer module", model=net):
        make(lambda x: net(x), "0")
    make(lambda x: net(x), net[0])


@every_layer_maker
def test_a_layer_of_another_model_is_refused(make: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "(Linear) does not belong to this model (Sequential)", "same model object", model=net):
        make(net, small_net()[0])


@every_layer_maker
@pytest.mark.parametrize("layer", [3, None, torch.ones(2), nn.Linear], ids=["int", "None", "tensor", "class"])
def test_a_layer_that_is_no_module_is_refused(make: Attribution, layer: Any) -> None:
    net = small_net()
    said = (f"layer is a {type(layer).__name__}", "expected a torch.nn.Module", "qualified name")
    with refused(TypeError, *said, model=net):
        make(net, layer)


def test_a_list_of_layers_is_refused_for_a_neuron_without_being_asked_for() -> None:
    with pytest.raises(TypeError, match="layer is a list") as caught:
        NeuronCAV(small_net(), ["0", "1"])
    assert isinstance(caught.value, CAVError)
    assert "or a list of either" not in str(caught.value)


@pytest.mark.parametrize("layers", [[], ()], ids=["list", "tuple"])
def test_an_empty_list_of_layers_is_refused(layers: Any) -> None:
    with refused(ValueError, "layer is an empty list", "expected at least one layer"):
        LayerCAV(small_net(), layers)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_layer_that_the_forward_pass_never_reaches_is_refused(at_input: bool) -> None:
    net = WithUnused()
    said = ("layer 'unused' was not reached by the forward pass",)
    with refused(ValueError, *said, "pick one that this input runs through", model=net):
        LayerCAV(net, ["used", "unused"]).attribute(samples(), 0, attribute_to_layer_input=at_input)
    with refused(ValueError, *said, model=net):
        NeuronCAV(net, "unused").attribute(samples(), 0, attribute_to_neuron_input=at_input)


def test_a_layer_that_a_plain_function_never_reaches_is_refused() -> None:
    net, other = small_net(), nn.Linear(4, 3)
    with refused(ValueError, "layer Linear was not reached", model=net):
        LayerCAV(lambda x: net(x), other).attribute(samples(), 0)


def test_a_layer_that_gives_no_numbers_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Apply(lambda x: (x, x.argmax(1))), Apply(lambda pair: pair[0]))
    assert LayerCAV(net, "1").attribute(samples(), 0).shape == (2, 4)
    indices = nn.Sequential(Apply(lambda x: x.argmax(1)), nn.Embedding(4, 3))
    with refused(
        TypeError, "layer '0' gave a Tensor, in which no floating-point tensor was found", "pick a layer", model=indices
    ):
        LayerCAV(indices, "0").attribute(samples(), 0)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_layer_that_is_reached_several_times_needs_call(at_input: bool) -> None:
    net = Repeating(shared=True)
    with refused(ValueError, "layer 'middle' was reached 3 times", "call=0 ... 2", "-1 for the last", model=net):
        LayerCAV(net, "middle").attribute(samples(), 0, attribute_to_layer_input=at_input)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("call", [0, 1, 2, -1, -3])
def test_call_gives_the_map_of_that_call(call: int, at_input: bool) -> None:
    shared, twin = Repeating(shared=True), Repeating(shared=False)
    ways = {"attribute_to_layer_input": at_input, "return_convergence_delta": True}
    found, delta = LayerCAV(shared, "middle", call=call).attribute(samples(), 1, **ways)
    expected, _ = LayerCAV(twin, twin.copies[call]).attribute(samples(), 1, **ways)
    torch.testing.assert_close(found, expected)
    assert delta.abs().max() < 1e-5
    others = [LayerCAV(twin, copy).attribute(samples(), 1, **ways)[0] for copy in twin.copies]
    assert sum(torch.allclose(found, other) for other in others) == 1


@pytest.mark.parametrize("call", [3, -4])
def test_a_call_out_of_range_is_refused(call: int) -> None:
    net = Repeating(shared=True)
    with refused(ValueError, "layer 'middle' was reached 3 times", f"call={call} is out of range", model=net):
        LayerCAV(net, "middle", call=call).attribute(samples(), 0)


def test_a_layer_that_is_not_reached() -> None:
    net = WithUnused()
    said = r"^layer 'unused' was not reached by the forward pass; pick one that this input runs through\.$"
    with raising(LayerError, ValueError, said, net):
        LayerCAV(net, ["used", "unused"]).attribute(samples(), 0)
    with raising(LayerError, ValueError, said, net):
        NeuronCAV(net, "unused").attribute(samples(), 0)


def test_a_layer_of_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()
    inject(monkeypatch, net, InjectedError("it was run"))
    for make in (LayerCAV, NeuronCAV):
        with raising(
            LayerError, ValueError, r"the given layer \(Linear\) does not belong to this model \(Sequential\)"
        ):
            make(net, small_net()[0])
        with raising(
            CAVTypeError, TypeError, r"layer is a NoneType; expected a torch\.nn\.Module or its qualified name"
        ):
            make(net, None)
    big = nn.Sequential(collections.OrderedDict(encoder=nn.Sequential(nn.Linear(4, 4)), head=nn.Linear(4, 3)))
    with raising(LayerError, ValueError, r"unknown layer 'encodr\.0' \(did you mean 'encoder\.0'.*named_modules\(\)"):
        LayerCAV(big, "encodr.0")


def test_a_layer_that_is_called_more_than_once() -> None:
    net, twin, x = Repeating(shared=True), Repeating(shared=False), samples()
    said = r"^layer 'middle' was reached 3 times; choose one with call=0 \.\.\. 2 \(-1 for the last\)\.$"
    with raising(LayerError, ValueError, said, net):
        LayerCAV(net, "middle").attribute(x, 0)
    calls = [LayerCAV(net, "middle", call=call).attribute(x, 0) for call in range(3)]
    assert_same(calls, [LayerCAV(twin, layer).attribute(x, 0) for layer in twin.copies], 1e-6)
    assert (calls[0] - calls[1]).abs().max() > 1e-3
    assert torch.equal(LayerCAV(net, "middle", call=-1).attribute(x, 0), calls[2])
    for call in ("last", "sum", True):
        with raising(CAVTypeError, TypeError, rf"call is {call!r} \(\w+\); expected 0 for the first call, -1 for the"):
            LayerCAV(net, "middle", call=call)


class Unshared(ReusingNet):
    """The twin of ``ReusingNet`` with a module for each call."""

    def __init__(self, shared: ReusingNet) -> None:
        super().__init__()
        self.load_state_dict(shared.state_dict())
        self.convolutions = nn.ModuleList(copy.deepcopy(shared.again) for _ in range(2))
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activations[0](self.first(x))
        for convolution, activation in zip(self.convolutions, self.activations[1:], strict=True):
            x = activation(convolution(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("chosen", [None, "gamma", "epsilon_plus_flat"])
def test_other_modules_that_are_reused(chosen: str | None) -> None:
    torch.manual_seed(0)
    net = ReusingNet().double()
    twin, x = Unshared(net).double(), fixed(2, 3, 16, 16)
    for layer in ("first", "head"):
        found, expected = (
            LayerCAV(model, layer, rules=chosen).attribute(x, 1, return_convergence_delta=True) for model in (net, twin)
        )
        assert_same(found, expected, 1e-10)
