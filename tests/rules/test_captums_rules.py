"""Captum's rule objects give Captum's numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils import lrp_rules
from torch import nn

from captum_cav import InputCAV, rules
from tests.support.networks import fixed
from tests.support.rules import assert_near, filled
from tests.support.tensors import largest


class Pictures(nn.Module):
    """Layers that Captum's LRP knows: it has no rule for Flatten, and none for functions."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(4) if norm else None
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AvgPool2d(2)
        self.fc1, self.relu3, self.fc2 = nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x) if self.norm is None else self.norm(self.conv1(x))
        x = self.pool1(self.relu1(x))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


CAPTUM: dict[str, Callable[[], lrp_rules.PropagationRule]] = {
    "epsilon": lrp_rules.EpsilonRule,
    "epsilon 0.25": lambda: lrp_rules.EpsilonRule(0.25),
    "gamma": lrp_rules.GammaRule,
    "gamma 1": lambda: lrp_rules.GammaRule(1.0),
    "gamma, no bias": lambda: lrp_rules.GammaRule(0.5, set_bias_to_zero=True),
    "alpha 1 beta 0": lrp_rules.Alpha1_Beta0_Rule,
    "alpha 1 beta 0, no bias": lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}


WHERE = {
    "first": ["conv1"],
    "later": ["conv2", "fc1"],
    "last": ["fc2"],
    "all": ["conv1", "conv2", "fc1", "fc2"],
}


def by_captum(
    net: nn.Module, chosen: Mapping[str, lrp_rules.PropagationRule], x: torch.Tensor, target: Any
) -> torch.Tensor:
    """In units of the score; Captum changes the weights meanwhile and takes the rules away."""
    net = copy.deepcopy(net)
    for name, rule in chosen.items():
        net.get_submodule(name).rule = rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it sets requires_grad on the inputs
        return LRP(net).attribute(x.clone(), target).detach()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", CAPTUM)
def test_captums_rules_give_captums_numbers(name: str, where: str) -> None:
    net, x = filled(Pictures()), fixed(3, 2, 13, 12)
    for target in (1, [2, 0, 1]):
        expected = by_captum(net, {key: CAPTUM[name]() for key in WHERE[where]}, x, target)
        ruled = {key: CAPTUM[name]() for key in WHERE[where]}
        found = InputCAV(net, rules=ruled, normalize=None).attribute(x, target)
        assert_near(found, expected, 1e-6)
        set_on_modules = copy.deepcopy(net)
        for key, rule in ruled.items():
            set_on_modules.get_submodule(key).rule = rule
        for _ in range(2):
            assert torch.equal(InputCAV(set_on_modules, normalize=None).attribute(x, target), found)
        assert all(set_on_modules.get_submodule(key).rule is rule for key, rule in ruled.items())
    if name != "epsilon":
        assert largest(found - InputCAV(net, normalize=None).attribute(x, target)) > 1e-3 * largest(found)


@pytest.mark.parametrize("name", ["epsilon 0.25", "gamma, no bias", "alpha 1 beta 0"])
def test_captums_rules_do_not_fold_a_batch_norm_behind_their_layer(name: str) -> None:
    net, x = filled(Pictures(norm=True)), fixed(3, 2, 13, 12)
    expected = by_captum(net, {"conv1": CAPTUM[name](), "conv2": CAPTUM[name]()}, x, 1)
    assert_near(InputCAV(net, rules={nn.Conv2d: CAPTUM[name]()}, normalize=None).attribute(x, 1), expected, 1e-6)


@pytest.mark.parametrize("key", ["norm", nn.BatchNorm2d])
def test_captums_identity_takes_a_batch_norm_out(key: Any) -> None:
    net, x = filled(Pictures(norm=True)), fixed(3, 2, 13, 12)
    expected = by_captum(net, {"norm": lrp_rules.IdentityRule()}, x, 1)
    found = InputCAV(net, rules={key: lrp_rules.IdentityRule()}, normalize=None).attribute(x, 1)
    assert_near(found, expected, 1e-5)  # Captum stabilises twice where we divide once
    assert largest(found - InputCAV(net, normalize=None).attribute(x, 1)) > 1e-2 * largest(found)


def test_captums_rules_mix_with_ours() -> None:
    net, x = filled(Pictures()), fixed(3, 2, 13, 12)
    mixed = {"conv1": rules.EpsilonRule(1e-9), "conv2": lrp_rules.GammaRule(), nn.Linear: lrp_rules.EpsilonRule(0.1)}
    captums = {"conv1": lrp_rules.EpsilonRule(), "conv2": lrp_rules.GammaRule()}
    captums |= {"fc1": lrp_rules.EpsilonRule(0.1), "fc2": lrp_rules.EpsilonRule(0.1)}
    found = InputCAV(net, rules=mixed, normalize=None).attribute(x, 1)
    assert_near(found, by_captum(net, captums, x, 1), 1e-6)


def test_captums_gamma_is_ours_where_all_inputs_are_positive_and_there_is_no_bias() -> None:
    """Captum raises positive weights, ours what agrees with the output's sign."""
    layer = filled(nn.Linear(4, 2, bias=False))
    layer.weight.data[0] = torch.tensor([1.0, -2.0, 3.0, 1.0])
    x = torch.tensor([[1.0, 1.0, 2.0, 0.5], [-3.0, 1.0, 3.0, -1.0]], dtype=torch.float64)  # scores 5.5 and 3
    captums, ours = (
        InputCAV(layer, rules={nn.Linear: rule}, normalize=None).attribute(x, 0)
        for rule in (lrp_rules.GammaRule(0.5), rules.GammaRule(0.5))
    )
    z = x * layer.weight[0].detach()  # 1 -2 6 0.5, and -3 -2 9 -1
    assert_near(captums[0], (z[0] + 0.5 * torch.tensor([1, 0, 6, 0.5])) * 5.5 / (5.5 + 0.5 * 7.5), 1e-8)
    assert_near(captums[1], (z[1] + 0.5 * torch.tensor([-3, 0, 9, -1])) * 3 / (3 + 0.5 * 5), 1e-8)
    assert_near(ours[0], captums[0], 1e-8)
    assert_near(ours[1], (z[1] + 0.5 * torch.tensor([0, 0, 9, 0])) * 3 / (3 + 0.5 * 9))
