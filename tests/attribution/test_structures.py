"""Models and layers that give tuples, dictionaries and other structures of tensors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, verify
from captum_cav.errors import (
    CAVTypeError,
)
from tests.support.errors import raising
from tests.support.networks import fixed
from tests.support.small_networks import Apply, net_around, samples, seeded, small_net
from tests.support.tensors import assert_same

Function = Callable[[torch.Tensor], Any]


class PairOf(NamedTuple):
    logits: torch.Tensor
    states: torch.Tensor


@dataclasses.dataclass
class DataOf:
    logits: torch.Tensor
    states: torch.Tensor


def huggingface(logits: torch.Tensor, states: torch.Tensor) -> Any:
    made = pytest.importorskip("transformers.modeling_outputs")
    return made.BaseModelOutputWithPooling(pooler_output=logits, last_hidden_state=states)


STRUCTURES: dict[str, tuple[Callable[..., Any], Function, str, str | int]] = {
    "tuple": (lambda a, b: (a, b), lambda o: o[0], "tuple", 0),
    "list": (lambda a, b: [a, b], lambda o: o[0], "list", 0),
    "dict": (lambda a, b: {"logits": a, "states": b}, lambda o: o["logits"], "dict", "logits"),
    "namedtuple": (PairOf, lambda o: o.logits, "PairOf", "logits"),
    "dataclass": (DataOf, lambda o: o.logits, "DataOf", "logits"),
    "ModelOutput": (huggingface, lambda o: o.pooler_output, "BaseModelOutputWithPooling", "pooler_output"),
}


@pytest.mark.parametrize(("make", "pick", "kind", "name"), STRUCTURES.values(), ids=STRUCTURES)
def test_models_that_return_a_structure(make: Callable[..., Any], pick: Function, kind: str, name: str | int) -> None:
    plain, x = small_net(), samples()
    net = nn.Sequential(*plain, Apply(lambda y: make(y, y * 2)))
    said = rf"^the model returned a {kind} .*; expected a tensor of scores\. Name the part .* as output="
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(CAVTypeError, TypeError, said, net):
            attribution.attribute(x, 1)
    expected = LayerCAV(plain, "0").attribute(x, 1)
    for output in (name, pick):
        assert torch.equal(LayerCAV(net, "0", output=output).attribute(x, 1), expected)
        assert torch.equal(InputCAV(net, output=output).attribute(x, 1), InputCAV(plain).attribute(x, 1))
        assert verify(net, x, 1, output=output).ok
    picking = LayerCAV(lambda *x: pick(net(*x)), net[0])
    assert torch.equal(picking.attribute(x, 1), expected)


def splitting(make: Callable[..., Any], read: Callable[[Any], Any]) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A net whose layer "split" gives two tensors that are added; and what each of them should contribute."""
    net, x = net_around(), samples().double()
    net.middle = nn.Sequential(
        collections.OrderedDict(split=Apply(lambda h: make(3 * h, h.tanh())), join=Apply(lambda o: sum(read(o))))
    )
    hidden = net.first(x)
    parts = torch.stack([3 * hidden, hidden.tanh()]) * net.last.weight[1] / net(x)[:, 1:2]
    return net, x, parts.detach()


LAYER_OUTPUTS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "tuple": (lambda a, b: (a, b), lambda o: o),
    "list": (lambda a, b: [a, b], lambda o: o),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda o: (o["a"], o["b"])),
    "nested": (lambda a, b: {"a": [a, None, (b, "text", 3)]}, lambda o: (o["a"][0], o["a"][2][0])),
    "namedtuple": (PairOf, lambda o: o),
    "ModelOutput": (huggingface, lambda o: (o.pooler_output, o.last_hidden_state)),
}


@pytest.mark.parametrize(("make", "read"), LAYER_OUTPUTS.values(), ids=LAYER_OUTPUTS)
def test_layers_that_give_a_structure(make: Callable[..., Any], read: Callable[[Any], Any]) -> None:
    net, x, expected = splitting(make, read)
    for layer, at_input in (("middle.split", False), ("middle.join", True)):
        found, delta = LayerCAV(net, layer).attribute(
            x, 1, attribute_to_layer_input=at_input, return_convergence_delta=True
        )
        assert type(found) is tuple
        by_size = sorted(found, key=lambda part: -float(part.abs().sum()))
        wanted = sorted(expected, key=lambda part: -float(part.abs().sum()))
        assert_same(by_size, wanted)
        assert delta.abs().max() < 1e-12
    assert LayerCAV(net, "first").attribute(x, 1, return_convergence_delta=True)[1].abs().max() < 1e-12


def test_a_dataclass_is_named_unless_torch_knows_it() -> None:
    net, x, expected = splitting(DataOf, lambda o: (o.logits, o.states))
    with raising(CAVTypeError, TypeError, r"layer 'middle\.split' .*\bDataOf\b", net):
        LayerCAV(net, "middle.split").attribute(x, 1)
    before, delta = LayerCAV(net, "first").attribute(x, 1, return_convergence_delta=True)
    assert_same(before, expected.sum(0))
    assert delta.abs().max() < 1e-12

    @dataclasses.dataclass
    class Registered(DataOf):
        pass

    torch.export.register_dataclass(Registered)
    net, x, expected = splitting(Registered, lambda o: (o.logits, o.states))
    assert_same(LayerCAV(net, "middle.split").attribute(x, 1), tuple(expected))


def test_recurrent_and_attention_layers() -> None:
    with seeded():
        lstm, attention = nn.LSTM(3, 4, batch_first=True).double(), nn.MultiheadAttention(4, 2).double()
    x = fixed(2, 5, 3)

    def model(x: torch.Tensor) -> torch.Tensor:
        states, (last, _) = lstm(x)
        return attention(states, states, states)[0].mean(1) + last[0]

    states, last, cell = LayerCAV(model, lstm).attribute(x, 1)
    assert [part.shape for part in (states, last, cell)] == [(2, 5, 4), (1, 2, 4), (1, 2, 4)]
    assert torch.equal(cell, torch.zeros_like(cell))
    score = model(x)[:, 1].detach()
    assert_same(last[0], (lstm(x)[1][0][0] * torch.tensor([0.0, 1.0, 0.0, 0.0]) / score.unsqueeze(1)).detach())
    values, weights = LayerCAV(model, attention).attribute(x, 1)
    assert values.shape == (2, 5, 4)
    assert torch.equal(weights, torch.zeros_like(weights)), "they go nowhere"
    _, delta = InputCAV(model).attribute(x, 1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12
