"""Models that cannot be followed or called, or that return no tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from tests.support.errors import refused
from tests.support.small_networks import MAKERS, Apply, samples, scripted_function, small_net

Function = Callable[[torch.Tensor], Any]


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, samples())


compiled = pytest.mark.parametrize("compile_model", [scripted, traced])


@compiled
def test_a_scripted_model_is_refused(compile_model: Callable[[nn.Module], nn.Module]) -> None:
    net = small_net()
    model = compile_model(net)
    said = ("the model is a scripted or traced module", "pass the eager model it was made from")
    with refused(RuntimeError, *said):
        InputCAV(model)
    for make in MAKERS.values():
        for layer in ("0", net[0], next(model.children())):
            with refused(RuntimeError, *said):
                make(model, layer)


@compiled
def test_a_scripted_submodule_is_refused_by_name(compile_model: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Identity(), compile_model(small_net())))
    with refused(RuntimeError, "module '1.1' is a scripted or traced module", "pass the eager model"):
        LayerCAV(net, "0")
    with refused(RuntimeError, "module '1.1' is a scripted or traced module"):
        InputCAV(net)


def test_a_scripted_function_as_model_is_refused() -> None:
    with refused(RuntimeError, "forward_func is a scripted function", "pass its Python original"):
        InputCAV(scripted_function)


@pytest.mark.parametrize("model", [3, None, "resnet18", torch.ones(2)], ids=["int", "None", "str", "tensor"])
def test_a_model_that_cannot_be_called_is_refused(model: Any) -> None:
    said = (f"forward_func is a {type(model).__name__}", "expected a torch.nn.Module or another callable")
    with refused(TypeError, *said):
        InputCAV(model)
    for make in MAKERS.values():
        for layer in (small_net()[0], "0"):
            with refused(TypeError, *said):
                make(model, layer)


OUTPUTS: dict[str, tuple[Function, str, str]] = {
    "tuple": (lambda x: (x, x), "tuple of length 2", "as output=0"),
    "dict": (lambda x: {"states": x, "logits": x}, "dict with 'states', 'logits'", "as output='logits'"),
    "None": (lambda x: None, "NoneType", "as lambda *x: model(*x).logits"),
    "number": (lambda x: float(x.detach().sum()), "float", "as lambda *x: model(*x).logits"),
}


@pytest.mark.parametrize(("function", "kind", "advice"), list(OUTPUTS.values()), ids=list(OUTPUTS))
def test_a_model_that_returns_no_tensor_is_refused(function: Function, kind: str, advice: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), Apply(function))
    said = (f"the model returned a {kind}", "expected a tensor of scores", advice)
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(TypeError, *said, model=net):
            attribution.attribute(samples(), 0)


def test_a_function_that_picks_the_scores_is_followed() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), Apply(lambda x: {"logits": x})), samples()
    found = LayerCAV(lambda *x: net(*x)["logits"], net[0]).attribute(x, 1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0]]).repeat(2, 1))
