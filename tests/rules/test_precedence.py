"""Which rule an operation meets: the most specific key wins, and a module may have a rule of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, rules
from tests.support.networks import fixed
from tests.support.rules import LINEAR, Block, Special, Times, assert_near, factor, filled, nested
from tests.support.traces import left_as_it_was

# The most specific wins ----------------------------------------------------------------------------------------------


# Keys and numbers of rules for linear operations; and the product of those of block.inner and of head.
PRECEDENCE: dict[str, tuple[Callable[[Any], dict[Any, int]], int]] = {
    "none": (lambda net: {}, 1 * 1),
    "instance before all": (
        lambda net: {F.linear: 2, nn.Linear: 3, "block.inner": 5, net.block.inner: 7},
        7 * 3,
    ),
    "pattern before type": (lambda net: {"block.inner": 5, F.linear: 2, nn.Linear: 3}, 5 * 3),
    "type before function": (lambda net: {Special: 3, F.linear: 2}, 3 * 2),
    "function": (lambda net: {F.linear: 2}, 2 * 2),
    "the order of the mapping does not matter": (
        lambda net: {net.block.inner: 7, "block.inner": 5, nn.Linear: 3, F.linear: 2},
        7 * 3,
    ),
    "an outer instance before an inner pattern": (lambda net: {net.block: 2, "block.inner": 3, Special: 5}, 2 * 1),
    "the whole model's instance before a pattern": (lambda net: {net: 2, "head": 3}, 2 * 2),
    "an outer pattern before an inner type": (lambda net: {"block": 2, Special: 3}, 2 * 1),
    "an outer type before a function": (lambda net: {Block: 2, F.linear: 3}, 2 * 3),
    "of instances the innermost": (lambda net: {net.block.inner: 2, net.block: 3, net: 5}, 2 * 5),
    "of patterns the innermost": (lambda net: {"block.inner": 2, "block": 3}, 2 * 1),
    "a glob for the innermost before a name": (lambda net: {"block": 2, "b*r": 3}, 3 * 1),
    "of types the innermost": (lambda net: {nn.Linear: 2, Block: 3}, 2 * 2),
    "the innermost of any type": (lambda net: {nn.Module: 2, Block: 3}, 2 * 2),
    "a subclass": (lambda net: {nn.Linear: 2}, 2 * 2),
    "the nearest of a lineage": (lambda net: {Special: 3, nn.Linear: 2, nn.Module: 5}, 3 * 2),
    "the nearest of a lineage, the other way round": (lambda net: {nn.Module: 5, nn.Linear: 2, Special: 3}, 3 * 2),
    "a name before a glob": (lambda net: {"block.inner": 2, "block.inne?": 3, "*block.inner*": 5}, 2 * 1),
    "a longer glob before a shorter": (lambda net: {"block.*": 2, "b*": 3}, 2 * 1),
    "a longer glob before a shorter, the other way round": (lambda net: {"*": 3, "block.*": 2}, 2 * 3),
    "of globs as long the later": (lambda net: {"blo*": 2, "*ner": 3}, 3 * 1),
    "of globs as long the later, the other way round": (lambda net: {"*ner": 3, "blo*": 2}, 2 * 1),
    "a question mark counts as little as a star": (lambda net: {"?lock.inner": 2, "block.inne*": 3}, 3 * 1),
    "a set of letters": (lambda net: {"[bh]*": 2}, 2 * 2),
    "the empty name is the model": (lambda net: {"": 2, "head": 3}, 2 * 3),
}


@pytest.mark.parametrize("name", PRECEDENCE)
def test_the_most_specific_rule_wins(name: str) -> None:
    net = nested()
    keys, expected = PRECEDENCE[name]
    assert factor(net, {key: LINEAR[number] for key, number in keys(net).items()}) == expected


def test_a_rule_governs_the_functions_inside_its_module() -> None:
    net = nested()
    assert factor(net, {net.block: Times(3)}) == 3 * 3  # its linear operation and its tanh
    assert factor(net, {"block": Times(3, "tanh")}) == 3
    assert factor(net, {Block: Times(3, "tanh"), F.linear: Times(5)}) == 3 * 5 * 5
    assert factor(net, {net: Times(2)}) == 2**3
    assert factor(net, {nn.Module: Times(2), Block: Times(3, "tanh")}) == 2 * 2 * 3


def test_where_the_most_specific_rule_does_not_govern_the_next_one_does() -> None:
    net = nested()
    for_tanh = Times(3, "tanh")
    assert factor(net, {net.block.inner: for_tanh, nn.Linear: LINEAR[2]}) == 2 * 2
    assert factor(net, {net: for_tanh, "block": LINEAR[5], F.linear: LINEAR[7]}) == 3 * 5 * 7


def test_a_layer_is_taken_out_of_a_wider_rule_by_the_rule_of_the_paper() -> None:
    net = nested()
    assert factor(net, {nn.Linear: LINEAR[2], "head": rules.ContributionRule()}) == 2
    assert factor(net, {F.linear: LINEAR[2], "block": rules.ContributionRule()}) == 2


def test_a_module_has_a_rule_under_each_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    net = filled(nn.Sequential(OrderedDict(a=shared, b=nn.Tanh(), c=shared, d=nn.Linear(4, 2))))
    for key in ("a", "c", shared, "[ac]"):
        assert factor(net, {key: LINEAR[3]}) == 3 * 3
    assert factor(net, {"c": LINEAR[3], "[ac]": LINEAR[2]}) == 3 * 3


def test_every_form_of_a_torch_function_is_one_key() -> None:
    def score(x: torch.Tensor) -> torch.Tensor:
        return torch.add(x.tanh(), F.tanh(x)) + torch.tanh(x).tanh_()

    for key in (torch.tanh, torch.Tensor.tanh, torch.Tensor.tanh_, F.tanh, torch.ops.aten.tanh.default):
        x = fixed(2, 3)
        found = InputCAV(score, rules={key: Times(2)}, normalize=None).attribute(x, 0)
        t = torch.tanh(x)
        assert_near(found[:, 0], (2 * t + 2 * t + 2 * 2 * torch.tanh(t))[:, 0])


# module.rule ---------------------------------------------------------------------------------------------------------


def test_a_modules_rule_attribute_is_used_and_stays() -> None:
    net = nested()
    rule = net.block.inner.rule = LINEAR[3]
    x = fixed(2, 4)
    plain = InputCAV(nested(), normalize=None).attribute(x, 1)
    cav = InputCAV(net, normalize=None)
    with left_as_it_was(net, x):
        for _ in range(2):
            assert_near(cav.attribute(x, 1), 3 * plain)
    assert net.block.inner.rule is rule
    del net.block.inner.rule  # the user's to take away, and read at each call
    assert torch.equal(cav.attribute(x, 1), plain)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (lambda net: {net.block.inner: 2}, 2),
        (lambda net: {net.block: 2}, 3),
        (lambda net: {net: 2}, 3 * 2),
        (lambda net: {"block.inner": 2, Special: 5, nn.Linear: 7}, 3 * 7),
        (lambda net: {F.linear: 2}, 3 * 2),
    ],
    ids=["this module", "an outer module", "the model", "name and type", "function"],
)
def test_a_modules_rule_attribute_is_as_specific_as_an_instance(keys: Any, expected: int) -> None:
    net = nested()
    net.block.inner.rule = LINEAR[3]
    assert factor_of(net, {key: LINEAR[number] for key, number in keys(net).items()}) == expected
    assert isinstance(net.block.inner.rule, Times)


def factor_of(net: nn.Module, chosen: Mapping[Any, Any]) -> int:
    """As :func:`factor`, for a net whose modules have rules of their own."""
    x = fixed(2, 4)
    products = InputCAV(net, rules=chosen, normalize=None).attribute(x, 1) / InputCAV(
        nested(), normalize=None
    ).attribute(x, 1)
    torch.testing.assert_close(products, products[:1, :1].expand_as(products))
    return round(products[0, 0].item())


def test_the_rule_of_a_module_governs_what_is_inside_it() -> None:
    net = nested()
    net.block.rule = Times(3)
    assert factor_of(net, {}) == 3 * 3
    net.block.inner.rule = LINEAR[2]
    assert factor_of(net, {}) == 2 * 3
    net.rule = Times(5)
    assert factor_of(net, {}) == 2 * 3 * 5


def test_a_modules_attribute_named_rule_that_is_no_rule_is_ignored() -> None:
    net = nested()
    net.rule, net.head.rule, net.block.rule = "majority", None, nn.Linear(1, 1)
    assert factor(net, {}) == 1
