"""Maps of several scores from one graph: backward passes that run together, or one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.attribution.options import check_options
from captum_cav.attribution.several import contributions_by_score
from captum_cav.operations import TABLE
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site
from tests.support.networks import fixed
from tests.support.tensors import assert_same

X = fixed(1, 4)


class Deciding(torch.autograd.Function):
    """A backward pass that reads a number, which torch cannot do for several scores at once."""

    batched: list[bool]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> torch.Tensor:
        return coefficients * (2.0 if float(coefficients.sum()) > 0 else 3.0)


def passed(net: nn.Module, rules: Any = None, with_shares: bool = False) -> Forward:
    request = Request(table=TABLE, rules=check_options(net, rules).rules, with_shares=with_shares)
    return run(net, (X,), (), [Site(net[0], False), Site(net[1], False)], request)  # type: ignore[index]


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)).double()


def whole(part: torch.Tensor) -> torch.Tensor:
    return part.flatten(1)


@pytest.mark.parametrize("at_once", [1, 4, 6, 9])
@pytest.mark.parametrize("with_shares", [False, True])
@pytest.mark.parametrize("rules", [None, {torch.tanh: lambda operation: Deciding.apply(operation.args[0])}])
def test_each_score_has_its_own_contributions(rules: Any, with_shares: bool, at_once: int) -> None:
    forward = passed(network(), rules, with_shares)
    scores = forward.output[0]
    chosen = [of_site[0] for of_site in forward.calls]
    found = contributions_by_score(forward, scores, chosen, at_once, [whole, whole])
    for number in range(len(scores)):
        alone = forward.coefficients(scores[number : number + 1], torch.ones(1).double(), chosen, True)
        for place, index in enumerate(chosen):
            (coefficients,), (value,) = alone[place], forward.trace.taps[index].values
            assert coefficients is not None
            assert_same(found[place][0][number], (value * coefficients)[0])
    forward.trace.shares.settle([], scores.device)
    assert forward.trace.shares.is_measured == with_shares, "the account of constants goes on afterwards"


def test_a_layer_that_no_score_depends_on_has_zeros() -> None:
    forward = passed(network())
    (found, none) = contributions_by_score(
        forward, (forward.output[0] * 1)[:2], [forward.calls[0][0], forward.calls[1][0]], 2, [whole, whole]
    )
    assert found[0].any()
    assert none[0].any()
    constant = torch.ones(2, dtype=torch.float64, requires_grad=True) * 1
    (zero, _) = contributions_by_score(forward, constant, [forward.calls[0][0], forward.calls[1][0]], 2, [whole, whole])
    assert_same(zero[0], torch.zeros(2, 5, dtype=torch.float64))
