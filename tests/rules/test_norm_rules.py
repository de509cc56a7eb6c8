"""The rules of norms against their formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, rules
from tests.support.networks import fixed
from tests.support.surrogates import TOLERANCE, conserved, differs, summed
from tests.support.tensors import largest

Function = Callable[..., torch.Tensor]


WEIGHT, SHIFT = fixed(4, seed=11).abs() + 0.5, fixed(4, seed=12)


MEAN, VARIANCE = fixed(4, seed=13), fixed(4, seed=14).abs() + 0.5


WIDE, WIDE_SHIFT = fixed(6, seed=15), fixed(6, seed=16)


def standardised(x: torch.Tensor, dims: Any, eps: float = 1e-5) -> torch.Tensor:
    """The mean is linear, the deviation a constant."""
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()


def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    return standardised(x.reshape(len(x), groups, -1), -1).reshape(x.shape)


NORMS: dict[str, tuple[Any, Function, Function]] = {
    "layer_norm": (
        F.layer_norm,
        lambda x: F.layer_norm(x, (6,), WIDE, WIDE_SHIFT),
        lambda x: standardised(x, -1) * WIDE + WIDE_SHIFT,
    ),
    "rms_norm": (
        F.rms_norm,
        lambda x: F.rms_norm(x, (6,), WIDE, 1e-4),
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt().detach() * WIDE,
    ),
    "group_norm": (
        F.group_norm,
        lambda x: F.group_norm(x, 2, WEIGHT, SHIFT),
        lambda x: grouped(x, 2) * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "instance_norm": (
        F.instance_norm,
        lambda x: F.instance_norm(x, weight=WEIGHT, bias=SHIFT),
        lambda x: grouped(x, 4) * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "batch_norm": (
        F.batch_norm,
        lambda x: F.batch_norm(x, MEAN, VARIANCE, WEIGHT, SHIFT),
        lambda x: (x - MEAN[:, None]) / (VARIANCE[:, None] + 1e-5).sqrt() * WEIGHT[:, None] + SHIFT[:, None],
    ),
    "local_response_norm": (
        F.local_response_norm,
        lambda x: F.local_response_norm(x, 3),
        lambda x: x * (F.local_response_norm(x, 3) / x).detach(),
    ),
    "normalize": (
        F.normalize,
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norms_statistic_is_a_constant(name: str) -> None:
    key, function, surrogate = NORMS[name]
    x = fixed(2, 4, 6)
    conserved(function, surrogate, {key: rules.NormRule("constant")}, x)
    conserved(function, surrogate, {}, x)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_as_the_identity_passes_everything_to_its_input(name: str) -> None:
    """R_i = R_j: the shift goes to the input, too, and nothing is left for constants."""
    key, function, _ = NORMS[name]
    x = fixed(2, 4, 6)
    conserved(function, lambda x: x * (function(x) / x).detach(), {key: rules.NormRule("identity")}, x)
    score = summed(function)
    identity = InputCAV(score, rules={key: rules.NormRule("identity")}, normalize=None).attribute(x)
    torch.testing.assert_close(identity.flatten(1).sum(1), score(x))
    default = InputCAV(score, normalize=None).attribute(x)
    # Proposition 3.4: where only a statistic divides, and nothing is taken off or added, the two are one.
    is_one = name in ("rms_norm", "local_response_norm", "normalize")
    assert (identity - default).abs().max() < TOLERANCE * largest(default) if is_one else differs(identity, default)


def test_a_norm_rule_is_for_norms_inside_a_module_only() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = fixed(2, 6)
    everywhere = InputCAV(net, rules={net: rules.NormRule("identity")}, normalize=None).attribute(x, 1)
    there = InputCAV(net, rules={"1": rules.NormRule("identity")}, normalize=None).attribute(x, 1)
    assert torch.equal(everywhere, there)
    assert differs(there, InputCAV(net, normalize=None).attribute(x, 1))
