"""Models that give logits: the same modules and gradients without the last squashing function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.attribution.logits import logit_model, probabilities, squashed_by
from captum_cav.errors import ModelError
from tests.attribution.test_squashed_scores import FUNCTIONS, INPUTS, network
from tests.support.traces import left_as_it_was

Function = Callable[[torch.Tensor], torch.Tensor]

every_function = pytest.mark.parametrize("squash", list(FUNCTIONS.values()), ids=list(FUNCTIONS))


@every_function
def test_values_and_gradients_are_those_of_the_logits(squash: Function) -> None:
    net, plain = network(squash), network()
    with left_as_it_was(net):
        found = logit_model(net, INPUTS[:1])
    assert found is not net
    for copied in (found, copy.deepcopy(found)):
        x = INPUTS.clone().requires_grad_()
        torch.testing.assert_close(copied(x), plain(x), rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(copied(x)[:, 1].sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(plain(x)[:, 1].sum(), x)[0], rtol=0, atol=0)
    with torch.no_grad():
        logits = found(INPUTS)
    assert not logits.requires_grad
    assert torch.equal(logits, plain(INPUTS))
    assert torch.equal(net(INPUTS), squash(plain(INPUTS)))


@every_function
def test_probabilities_are_squashed_once(squash: Function) -> None:
    net = network(squash)
    output = net(INPUTS)
    expected = output if bool((output > 0).all()) else output.exp()
    torch.testing.assert_close(probabilities(logit_model(net, INPUTS), INPUTS), expected)
    plain = network()
    torch.testing.assert_close(probabilities(plain, INPUTS), plain(INPUTS).softmax(1))


@every_function
def test_attributions_of_the_copy_explain_the_logits(squash: Function) -> None:
    net = network(squash)
    found = logit_model(net, INPUTS)
    for make in (InputCAV, lambda model, **options: LayerCAV(model, ["0", "1"], **options)):
        maps = make(found, normalize="abs").attribute(INPUTS, 1)
        torch.testing.assert_close(maps, make(net, normalize="abs", score="logit").attribute(INPUTS, 1))


def test_names_and_modules_are_shared() -> None:
    net = network(torch.sigmoid)
    found = logit_model(net, INPUTS)
    assert isinstance(found, nn.Sequential)
    assert list(found.named_modules())[1:] == list(net.named_modules())[1:]
    assert [id(one) for one in found.parameters()] == [id(one) for one in net.parameters()]
    assert squashed_by(found) == "sigmoid"
    assert squashed_by(net) is None
    assert logit_model(found, INPUTS) is found


@pytest.mark.parametrize("model", [network(), network(torch.tanh), lambda x: x], ids=["linear", "tanh", "function"])
def test_a_model_that_squashes_nothing_is_itself(model: Function) -> None:
    assert logit_model(model, INPUTS) is model
    assert squashed_by(model) is None


def test_a_function_and_a_replaced_forward() -> None:
    net = network()
    found = logit_model(lambda x: torch.softmax(net(x), 1), INPUTS)
    assert torch.equal(found(INPUTS), net(INPUTS))
    net = network()
    forward = net.forward
    net.forward = lambda x: torch.sigmoid(forward(x))  # type: ignore[method-assign]
    assert torch.equal(logit_model(net, INPUTS)(INPUTS), forward(INPUTS))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 2


def test_behind_a_custom_autograd_function() -> None:
    found = logit_model(lambda x: torch.softmax(Doubled.apply(x), 1), INPUTS)
    assert torch.equal(found(INPUTS), 2 * INPUTS)


def test_what_cannot_be_seen_through_is_refused() -> None:
    with pytest.raises(ModelError, match="needs what the last squashing function takes"):
        logit_model(network(lambda z: 2 * torch.sigmoid(z) - 1), INPUTS)
