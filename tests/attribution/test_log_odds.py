"""Log odds as the score: against the other classes weighted by their softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import CAVTypeError, OptionError, TargetError
from tests.support.networks import fixed

Function = Callable[..., torch.Tensor]


HEAD, BIAS = fixed(5, 4, seed=21), fixed(5, seed=22)


def linear_head(x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, HEAD, BIAS)


def log_odds(output: torch.Tensor, target: Sequence[int]) -> torch.Tensor:
    found = []
    for z, k in zip(output, target, strict=True):
        others = torch.cat([z[:k], z[k + 1 :]])
        found.append(z[k] - torch.log(others.exp().sum()))
    return torch.stack(found)


@pytest.mark.parametrize("target", [2, -1, (0,), [0, 4, 3], [(1,), (0,), (-2,)], torch.tensor([3, 3, 1])], ids=str)
def test_log_odds_weigh_the_other_classes_by_their_softmax(target: Any) -> None:
    x = fixed(3, 4)
    entries = target.tolist() if isinstance(target, torch.Tensor) else target
    entries = entries if isinstance(entries, list) else [entries] * 3
    indices = [(entry[0] if isinstance(entry, tuple) else entry) % 5 for entry in entries]
    expected = torch.zeros_like(x)
    for n, k in enumerate(indices):
        z = linear_head(x[n])
        others = [j for j in range(5) if j != k]
        for j in others:
            softmax = float(z[j].exp() / z[others].exp().sum())
            expected[n] -= softmax * x[n] * HEAD[j]
        expected[n] += x[n] * HEAD[k]
    cav = InputCAV(linear_head, score="log_odds", normalize=None)
    found, delta = cav.attribute(x, target, return_convergence_delta=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert delta.abs().max() < 1e-12  # the biases' share and the entropy of the others are accounted for
    score = log_odds(linear_head(x), indices)
    ratios, delta = InputCAV(linear_head, score="log_odds").attribute(x, target, return_convergence_delta=True)
    torch.testing.assert_close(ratios, expected / score[:, None], rtol=1e-12, atol=1e-13)
    assert delta.abs().max() < 1e-12
    by_size = InputCAV(linear_head, score="log_odds", normalize="abs").attribute(x, target)
    torch.testing.assert_close(by_size, expected / score[:, None].abs(), rtol=1e-12, atol=1e-13)


def test_log_odds_of_two_classes_are_their_difference() -> None:
    x = fixed(3, 4)
    score = lambda x: F.linear(x, HEAD[:2], BIAS[:2])  # noqa: E731
    found, delta = InputCAV(score, score="log_odds", normalize=None).attribute(x, 1, return_convergence_delta=True)
    torch.testing.assert_close(found, x * (HEAD[1] - HEAD[0]))
    assert delta.abs().max() < 1e-12


def test_log_odds_at_a_layer_of_a_network_and_for_many_targets() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x = fixed(3, 4)
    cav = LayerCAV(net, ["0", "1"], score="log_odds", normalize=None)
    h = net[1](net[0](x)).detach()
    for target, (maps, deltas) in zip(
        (0, [1, 2, 3]), cav.attribute_targets(x, [0, [1, 2, 3]], return_convergence_delta=True), strict=True
    ):
        leaf = h.clone().requires_grad_()
        indices = target if isinstance(target, list) else [target] * 3
        (gradient,) = torch.autograd.grad(log_odds(net[2](leaf), indices).sum(), leaf)
        for found, delta in zip(maps, deltas, strict=True):  # pass-through: the same before and behind the tanh
            torch.testing.assert_close(found, h * gradient)
            assert delta.abs().max() < 1e-12
        alone = cav.attribute(x, target)
        torch.testing.assert_close(alone, maps)


def test_classes_that_are_masked_out_do_not_count() -> None:
    x, mask = fixed(3, 4), torch.tensor([0, 0, -torch.inf, 0, -torch.inf]).double()
    score = lambda x: linear_head(x) + mask  # noqa: E731
    found, delta = InputCAV(score, score="log_odds", normalize=None).attribute(x, 1, return_convergence_delta=True)
    few = lambda x: linear_head(x)[:, [0, 1, 3]]  # noqa: E731
    torch.testing.assert_close(found, InputCAV(few, score="log_odds", normalize=None).attribute(x, 1))
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("score", "target", "shape"),
    [
        (lambda x: x.sum(1, keepdim=True), 0, r"\(3, 1\)"),
        (lambda x: x.sum(1, keepdim=True), None, r"\(3, 1\)"),
        (lambda x: x.sum(1), None, r"\(3,\)"),
        (lambda x: x.unsqueeze(1), (0, 2), r"\(3, 1, 4\)"),
        (lambda x: x.reshape(3, 2, 2), (1, 1), r"\(3, 2, 2\)"),
    ],
    ids=["one class", "one class, no target", "no classes", "tokens", "pixels"],
)
def test_log_odds_need_classes_to_compare(score: Function, target: Any, shape: str) -> None:
    for cav in (InputCAV(score, score="log_odds"), LayerCAV(score, nn.Identity(), score="log_odds")):
        if isinstance(cav, LayerCAV):
            cav = LayerCAV(lambda x, layer=cav.layer: score(layer(x)), cav.layer, score="log_odds")
        said = rf'score="log_odds" compares classes: expected .*\(N, classes\) with several classes, got {shape}; pass'
        with pytest.raises(TargetError, match=said):
            cav.attribute(fixed(3, 4), target)


def test_log_odds_need_a_target_and_a_score_that_is_known() -> None:
    with pytest.raises(TargetError, match="target is missing"):
        InputCAV(linear_head, score="log_odds").attribute(fixed(3, 4))
    for score in ("logits", None, "odds"):
        with pytest.raises(OptionError, match=rf'score is {score!r}; expected "output", "logit" or "log_odds"'):
            InputCAV(linear_head, score=score)
    with pytest.raises(TypeError, match="score"):
        NeuronCAV(nn.Linear(2, 2), "", score="log_odds")
    with pytest.raises(CAVTypeError, match="target is 'x'"):
        InputCAV(linear_head, score="log_odds").attribute(fixed(3, 4), "x")
