"""Scores that are negative, at zero or near zero, and the options for the unit of contributions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import ScoreWarning, SignWarning
from tests.support.errors import no_warnings, refused
from tests.support.small_networks import samples, small_net
from tests.support.tensors import assert_same, tensors_of

Attribution = Callable[..., Any]


# Options -------------------------------------------------------------------------------------------------------------


OPTIONS: dict[str, Attribution] = {
    "layer": lambda net, **options: LayerCAV(net, "0", **options),
    "inputs": InputCAV,
    "neuron": lambda net, **options: NeuronCAV(net, "0", **options),
}


every_option = pytest.mark.parametrize("make", list(OPTIONS.values()), ids=list(OPTIONS))


@every_option
@pytest.mark.parametrize("normalize", ["Score", "sum", False, 0, []], ids=repr)
def test_an_unknown_normalization_is_refused(make: Attribution, normalize: Any) -> None:
    with refused(ValueError, f"normalize is {normalize!r}", 'expected "score", "abs" or None'):
        make(small_net(), normalize=normalize)


@every_option
@pytest.mark.parametrize("on_unknown", ["raise", None, True], ids=repr)
def test_an_unknown_choice_for_unknown_operations_is_refused(make: Attribution, on_unknown: Any) -> None:
    with refused(ValueError, f"on_unknown is {on_unknown!r}", 'expected "error" or "gradient"'):
        make(small_net(), on_unknown=on_unknown)


# Scores --------------------------------------------------------------------------------------------------------------


def score_net() -> nn.Sequential:
    """Scores ``x0 + x1`` and ``x0 - x1``, behind a layer "0" that hands its input on."""
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return net


NEAR_ZERO = torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0 + 2**-22]])


SCORED: dict[str, Attribution] = {
    "layer": lambda **options: LayerCAV(score_net(), "0", **options).attribute(NEAR_ZERO, 1),
    "inputs": lambda **options: InputCAV(score_net(), **options).attribute(NEAR_ZERO, 1),
    "neuron": lambda **options: NeuronCAV(score_net(), "1", **options).attribute(NEAR_ZERO, 1),
}


every_score = pytest.mark.parametrize("attribute", list(SCORED.values()), ids=list(SCORED))


@every_score
@pytest.mark.parametrize("normalize", ["score", "abs"])
def test_a_score_at_or_near_zero_warns_and_names_the_samples(attribute: Attribution, normalize: str) -> None:
    said = r"the score of samples 1, 2 is at or near zero.*normalize=None gives"
    with pytest.warns(ScoreWarning, match=said) as caught:
        ratios = attribute(normalize=normalize)
    # The score of sample 0 is negative.
    assert [one.category for one in caught] == [ScoreWarning, *[SignWarning] * (normalize == "score")]
    sign = -1 if normalize == "score" else 1
    torch.testing.assert_close(ratios[0], sign * torch.tensor([0.5, -1.5]))
    assert not ratios[1].isfinite().any()


@every_score
def test_contributions_in_units_of_the_score_are_finite_without_warning(attribute: Attribution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contributions = attribute(normalize=None)
    torch.testing.assert_close(contributions, NEAR_ZERO * torch.tensor([1.0, -1.0]))


def test_one_score_at_zero_is_named_by_its_sample() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    with pytest.warns(ScoreWarning, match="the score of sample 0 is at or near zero"):
        InputCAV(lambda x: x.sum(1)).attribute(x)


def test_a_small_score_among_small_scores_does_not_warn() -> None:
    x = NEAR_ZERO[:1] * 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratios = InputCAV(score_net()).attribute(x, 0)
    torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]]))


# Numbers that are not finite, scores near zero -----------------------------------------------------------------------


def balance() -> nn.Sequential:
    """Scores ``x0 + x1`` and ``x0 - x1`` of what layer "0" hands on."""
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return net


def test_score_at_or_near_zero() -> None:
    net, x = balance(), torch.tensor([[2.0, 2.0], [1.0, 3.0], [5.0, 5.0 + 2**-20]])
    said = r"^the score of samples 0, 2 is at or near zero.*; normalize=None gives contributions in units of the score"
    with pytest.warns(ScoreWarning, match=said) as caught:
        ratios = LayerCAV(net, "0").attribute(x, 1)
    assert [one.category for one in caught] == [ScoreWarning, SignWarning]
    assert torch.equal(ratios[1], torch.tensor([-0.5, 1.5]))
    with no_warnings():
        units, delta = LayerCAV(net, "0", normalize=None).attribute(x, 1, return_convergence_delta=True)
    assert torch.equal(units, x * torch.tensor([1.0, -1.0]))
    assert torch.equal(delta, torch.zeros(3))


@pytest.mark.parametrize("normalize", ["score", "abs"])
@pytest.mark.parametrize(("dtype", "logit"), [(torch.float16, 12.25), (torch.float64, 709.0)], ids=["half", "double"])
def test_a_score_whose_reciprocal_overflows(dtype: torch.dtype, logit: float, normalize: Any) -> None:
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


def test_negative_score() -> None:
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
        is_turned = model is net and normalize == "score"
        said = r'^the score is negative in some samples\. .* positive .* lowered it; normalize="abs" keeps'
        with pytest.warns(SignWarning, match=said) if is_turned else no_warnings():
            return LayerCAV(model, layers, normalize=normalize).attribute(x, 0, return_convergence_delta=True)

    assert_same(maps(net, "score"), maps(twin, "score"))
    for one, other in zip(*(tensors_of(maps(model, "abs")[0]) for model in (net, twin)), strict=True):
        assert_same(one, -other)
    for one, other in zip(*(tensors_of(maps(net, normalize)[0]) for normalize in ("abs", None)), strict=True):
        assert_same(one * scores.abs().unsqueeze(1), other)
    assert all(delta.abs().max() < 1e-12 for normalize in ("score", "abs", None) for delta in maps(net, normalize)[1])
