"""Models that write in place: the maps are those of a twin that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import (
    ModelError,
)
from tests.support.errors import raising
from tests.support.networks import fixed
from tests.support.small_networks import Apply, net_around, picture, residual_net, samples, seeded
from tests.support.tensors import assert_same, tensors_of
from tests.support.traces import left_as_it_was

Function = Callable[[torch.Tensor], torch.Tensor]


# Networks ------------------------------------------------------------------------------------------------------------


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 10 * 10, 3)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.first(x)).flatten(1))


# Writing in place ----------------------------------------------------------------------------------------------------


SCALES = torch.linspace(0.5, 2, 10, dtype=torch.float64)


FIXED = torch.linspace(-1, 1, 10, dtype=torch.float64)


def set_number(y: torch.Tensor) -> torch.Tensor:
    y[:, 0] = 0.5
    return y


def set_own_part(y: torch.Tensor) -> torch.Tensor:
    y[:, 0] = 2 * y[:, 1]
    return y


def set_under_mask(y: torch.Tensor) -> torch.Tensor:
    y[y < 0] = 0.25
    return y


def write_into_a_view(y: torch.Tensor) -> torch.Tensor:
    y[:, 0].mul_(3)
    return y


def write_into_a_flat_view(y: torch.Tensor) -> torch.Tensor:
    y.view(-1).relu_()
    return y


def iadd_branch(y: torch.Tensor) -> torch.Tensor:
    y += y.sigmoid()
    return y


def imul_gate(y: torch.Tensor) -> torch.Tensor:
    y *= y.sigmoid()
    return y


def first_channel(first: Function) -> Function:
    """The function that replaces the first channel."""
    return lambda y: torch.cat([first(y), y[:, 1:]], 1)


IN_PLACE: dict[str, tuple[Function, Function]] = {
    "relu_": (torch.relu_, torch.relu),
    "relu-inplace": (nn.ReLU(inplace=True), nn.ReLU()),
    "gelu-then-relu_": (lambda y: F.gelu(y).relu_(), lambda y: F.gelu(y).relu()),
    "silu-inplace": (nn.SiLU(inplace=True), nn.SiLU()),
    "relu6-inplace": (nn.ReLU6(inplace=True), nn.ReLU6()),
    "elu-inplace": (nn.ELU(inplace=True), nn.ELU()),
    "hardswish-inplace": (nn.Hardswish(inplace=True), nn.Hardswish()),
    "tanh_": (torch.tanh_, torch.tanh),
    "sigmoid_": (torch.sigmoid_, torch.sigmoid),
    "clamp_": (lambda y: y.clamp_(-0.1, 0.2), lambda y: y.clamp(-0.1, 0.2)),
    "add_-number": (lambda y: y.add_(0.5), lambda y: y + 0.5),
    "add_-tensor": (lambda y: y.add_(FIXED), lambda y: y + FIXED),
    "iadd-branch": (iadd_branch, lambda y: y + y.sigmoid()),
    "mul_-tensor": (lambda y: y.mul_(SCALES), lambda y: y * SCALES),
    "mul_-itself": (lambda y: y.mul_(y), lambda y: y * y),
    "imul-gate": (imul_gate, lambda y: y * y.sigmoid()),
    "div_": (lambda y: y.div_(3), lambda y: y / 3),
    "pow_": (lambda y: y.pow_(2), lambda y: y.pow(2)),
    "copy_": (lambda y: y.copy_(2 * y), lambda y: 2 * y),
    "masked_fill_": (lambda y: y.masked_fill_(y < 0, 0.25), lambda y: y.masked_fill(y < 0, 0.25)),
    "setitem-number": (set_number, first_channel(lambda y: torch.full_like(y[:, :1], 0.5))),
    "setitem-own-part": (set_own_part, first_channel(lambda y: 2 * y[:, 1:2])),
    "setitem-mask": (set_under_mask, lambda y: y.masked_fill(y < 0, 0.25)),
    "view": (write_into_a_view, first_channel(lambda y: 3 * y[:, :1])),
    "flat-view": (write_into_a_flat_view, torch.relu),
}


@pytest.mark.parametrize(("in_place", "twin"), list(IN_PLACE.values()), ids=list(IN_PLACE))
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_writing_over_a_requested_output_gives_the_map_of_the_model_without_writing(
    in_place: Function, twin: Function, delta: bool
) -> None:
    torch.manual_seed(0)
    net = Between(in_place).double().eval()
    other = Between(twin).double().eval()
    other.load_state_dict(net.state_dict())
    x = picture().double()
    untouched = x.clone()
    for attribution in (LayerCAV, InputCAV):
        one, two = (
            attribution(model, *(["first"] if attribution is LayerCAV else []), normalize=None).attribute(
                x, 1, return_convergence_delta=delta
            )
            for model in (net, other)
        )
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, untouched)


@pytest.mark.parametrize(("in_place", "twin"), list(IN_PLACE.values()), ids=list(IN_PLACE))
def test_writing_over_the_input_gives_the_map_of_the_model_without_writing(in_place: Function, twin: Function) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 10, 3)).double()
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    one, two = (
        InputCAV(lambda x, function=function: head(function(x))).attribute(x.clone(), 1, return_convergence_delta=True)
        for function in (in_place, twin)
    )
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_a_layer_that_writes_over_its_own_input_gives_the_map_at_its_input() -> None:
    net = residual_net().double()
    twin = residual_net().double()
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    names = ["stem.2", "block1.relu", "block2.relu"]
    x = picture().double()
    for at_input in (True, False):
        found, expected = (
            LayerCAV(model, names).attribute(x, 1, attribute_to_layer_input=at_input) for model in (net, twin)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert (expected[0] < 0).any() or not at_input


# Layers --------------------------------------------------------------------------------------------------------------


class Writing(nn.Module):
    """Writes over the output of each of its layers, or does not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        with seeded():
            self.stem, self.branch, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.norm, self.act, self.relu = nn.BatchNorm2d(4), nn.SiLU(in_place), nn.ReLU(in_place)
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x))
        y = self.norm(x)
        if self.in_place:
            y += self.branch(x)
            y[:, 1] = 0.5
            y *= 3
        else:
            y = y + self.branch(x)
            y = 3 * torch.cat([y[:, :1], torch.full_like(y[:, :1], 0.5), y[:, 2:]], 1)
        return self.head(self.relu(y).mean((2, 3)))


def test_writing_in_place() -> None:
    net, twin, x = Writing(True).double().eval(), Writing(False).double().eval(), fixed(2, 2, 6, 6)
    layers = ["stem", "act", "norm", "branch", "relu"]
    with left_as_it_was(net, x):
        found = LayerCAV(net, layers).attribute(x, 1, return_convergence_delta=True)
        inputs = InputCAV(net).attribute(x, 1, return_convergence_delta=True)
    assert_same(found, LayerCAV(twin, layers).attribute(x, 1, return_convergence_delta=True))
    assert_same(inputs, InputCAV(twin).attribute(x, 1, return_convergence_delta=True))
    assert inputs[1].abs().max() < 1e-12
    assert net.act.inplace
    assert net.relu.inplace


def test_results_written_into_a_given_tensor() -> None:
    """With ``out=``, which autograd does not record."""

    def written(x: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty_like(x)
        torch.mul(x, 2.0, out=buffer)
        return torch.add(buffer, x, out=buffer) + buffer

    net, twin = net_around(Apply(written)), net_around(Apply(lambda x: (x * 2.0 + x) * 2))
    x = samples().double()
    assert_same(InputCAV(net).attribute(x, 1), InputCAV(twin).attribute(x, 1))
    assert_same(LayerCAV(net, "first").attribute(x, 1), LayerCAV(twin, "first").attribute(x, 1))

    def resized(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2.0, out=torch.empty(0, dtype=x.dtype))

    said = (
        r"^'mul' in module 'middle\.0' \(Apply\) writes a result of shape \(2, \d+\) into out= of shape \(0,\), which"
    )
    with raising(ModelError, RuntimeError, said):
        InputCAV(net_around(Apply(resized))).attribute(x, 1)


# Layers that pass their input on -------------------------------------------------------------------------------------


class Flat(nn.Module):
    """All numbers of the batch in a row, in the same memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1)


class LastFirst(nn.Module):
    """The channels last, in the same memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class Channels(nn.Module):
    """Some channels, in the same memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:3]


PASSING: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "dropout": nn.Dropout,
    "nothing": nn.Sequential,
    "identities": lambda: nn.Sequential(nn.Identity(), nn.Identity()),
    "flatten": nn.Flatten,
    "flat": Flat,
    "permuted": LastFirst,
    "some channels": Channels,
}


def tail_relu(y: torch.Tensor) -> torch.Tensor:
    y[:, 1:].relu_()
    return y


def scale_tail(y: torch.Tensor) -> torch.Tensor:
    y[:, 1:].mul_(3)
    return y


#: What is written, so that the new numbers depend on the old ones.
WRITES: dict[str, Function] = {
    name: IN_PLACE[name][0]
    for name in ("relu_", "silu-inplace", "tanh_", "mul_-tensor", "pow_", "add_-number", "masked_fill_", "view")
}
WRITES |= {
    "a part": tail_relu,
    "all, in another shape": write_into_a_flat_view,
    "twice": lambda y: scale_tail(y).tanh_(),
    "its own gate": lambda y: y.mul_(y.sigmoid()),
    "out": lambda y: torch.mul(y, 2.0, out=y),
}


class Overwriting(nn.Module):
    """A layer passes its input on. Then the model writes into that input, or into a copy of what the layer gave."""

    def __init__(self, layer: nn.Module, write: Function, read: str) -> None:
        super().__init__()
        with seeded():
            self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(3, 5)
        self.layer, self.write, self.read = layer, write, read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.first(x)
        passed = self.layer(before)
        if self.read == "copy":
            start = before.clone().as_strided(passed.shape, passed.stride(), passed.storage_offset())
            start.copy_(passed)
            whole = start if start._base is None else start._base
            self.write(whole)
            output = start
        else:
            self.write(before)
            output = before.as_strided(passed.shape, passed.stride(), passed.storage_offset())
            output = output if self.read == "before" else passed
        return self.head(output.reshape(2, -1)[:, ::7][:, :27].reshape(2, 3, 9).sum(2))


def pairs() -> Iterator[Any]:
    """All layers and writes. Those that differ from another pair in both are slow."""
    for layer in PASSING:
        for write in WRITES:
            is_slow = layer not in ("identity", "permuted") and write not in ("relu_", "a part")
            yield pytest.param(layer, write, marks=pytest.mark.slow if is_slow else ())


@pytest.mark.parametrize(("layer", "write"), list(pairs()))
def test_writing_into_the_input_of_a_layer_that_passes_it_on(layer: str, write: str) -> None:
    """The layer's output is the same tensor, so the layer gets the contributions of the value that it gave."""
    x = picture().double()
    ways = ("copy", "passed") if layer == "some channels" else ("copy", "passed", "before")
    nets = [Overwriting(PASSING[layer](), WRITES[write], read).double().eval() for read in ways]
    for layers in ("layer", ["first", "layer"]):
        if write == "its own gate":  # The model reads the gate beside the layer.
            layers = "first"
        expected, *found = (
            LayerCAV(net, layers, normalize=None).attribute(x, 1, return_convergence_delta=layers != "layer")
            for net in nets
        )
        assert tensors_of(expected)[0].abs().max() > 0
        for maps in found:
            assert_same(maps, expected)


class Parallel(nn.Module):
    """Two layers pass the same tensor on, or two parts of the tensor."""

    def __init__(self, write: bool, parts: bool) -> None:
        super().__init__()
        with seeded():
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.one, self.two, self.write, self.parts = nn.Identity(), nn.Identity(), write, parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.first(x)
        if self.parts:
            one, two = self.one(before[:, :2]), self.two(before[:, 2:])
        else:
            one, two = self.one(before), self.two(before)
        if self.write:
            before.relu_()
        else:
            one, two = one.relu(), two.relu()
        return self.head(torch.cat([one, two], 1) if self.parts else one * 2 + two)


def test_two_layers_that_pass_parts_of_one_tensor_on() -> None:
    net, twin = Parallel(True, True).double(), Parallel(False, True).double()
    for layers in ("one", "two", ["one", "two"], ["first", "two", "one"]):
        x = samples().double()
        assert_same(
            LayerCAV(net, layers).attribute(x, 1, return_convergence_delta=True),
            LayerCAV(twin, layers).attribute(x, 1, return_convergence_delta=True),
        )


def test_two_layers_that_pass_one_tensor_on_are_refused_if_it_is_written_into() -> None:
    net, twin, x = Parallel(True, False).double(), Parallel(False, False).double(), samples().double()
    said = r"^'relu' in the module \w+ writes into a tensor that several .* passed on.*one of these layers at a"
    with raising(ModelError, RuntimeError, said, net):
        LayerCAV(net, ["one", "two"]).attribute(x, 1)
    assert_same(LayerCAV(net, "first").attribute(x, 1), LayerCAV(twin, "first").attribute(x, 1))
    for layer in ("one", "two"):  # One at a time, the layer has all that comes from the tensor.
        assert_same(LayerCAV(net, layer).attribute(x, 1), LayerCAV(net, "first").attribute(x, 1))
    net.write = False
    assert_same(LayerCAV(net, ["one", "two"]).attribute(x, 1), LayerCAV(twin, ["one", "two"]).attribute(x, 1))


@pytest.mark.parametrize("layer", ["identity", "permuted"])
def test_the_neuron_of_a_layer_that_passes_its_input_on_is_what_the_layer_gave(layer: str) -> None:
    x, neuron = picture().double(), (1, 2, 3)
    net = Overwriting(PASSING[layer](), torch.relu_, "passed").double().eval()
    at = neuron if layer == "identity" else (2, 3, 1)
    found = NeuronCAV(net, "layer").attribute(x, at, return_convergence_delta=True)
    assert_same(found, NeuronCAV(net, "first").attribute(x, neuron, return_convergence_delta=True))
    assert_same(found, InputCAV(net.first).attribute(x, neuron, return_convergence_delta=True))


def test_the_input_of_a_layer_that_is_written_into_behind_the_layer() -> None:
    net = Overwriting(nn.Identity(), torch.relu_, "passed").double().eval()
    x = picture().double()
    at_input = LayerCAV(net, "layer").attribute(x, 1, attribute_to_layer_input=True)
    assert_same(at_input, LayerCAV(net, "layer").attribute(x, 1))
    assert_same(
        InputCAV(net).attribute(x, 1),
        InputCAV(Overwriting(nn.Identity(), torch.relu_, "copy").double()).attribute(x, 1),
    )
