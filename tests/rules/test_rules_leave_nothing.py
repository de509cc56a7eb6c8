"""Calls, attributions and threads do not see each other's rules, and rules leave nothing on the model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from tests.support.networks import fixed
from tests.support.rules import LINEAR, assert_near, conv_net, filled, nested
from tests.support.tensors import largest
from tests.support.traces import left_as_it_was

# Several attributions, several calls ---------------------------------------------------------------------------------


def other_rules(net: nn.Sequential) -> list[dict[Any, Any]]:
    return [
        {"first": rules.GammaRule(0.5), nn.Linear: rules.EpsilonRule(0.1)},
        {net.first: rules.FlatRule(), F.max_pool2d: rules.UniformPoolingRule(), nn.GELU: rules.PassThroughRule()},
    ]


def test_a_second_call_equals_the_first() -> None:
    net, x, other = conv_net(), fixed(2, 2, 6, 6), fixed(3, 2, 6, 6, seed=5)
    for chosen in other_rules(net):
        cav = LayerCAV(net, ["first", "act"], rules=chosen, normalize=None)
        first, deltas = cav.attribute(x, 1, return_convergence_delta=True)
        cav.attribute(other, 2)
        for _ in range(2):
            again, its_deltas = cav.attribute(x, 1, return_convergence_delta=True)
            assert all(map(torch.equal, [*again, *its_deltas], [*first, *deltas]))


def test_two_attributions_of_one_model_do_not_see_each_others_rules() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    cavs = [InputCAV(net, rules=chosen, normalize=None) for chosen in [*other_rules(net), None]]
    expected = [
        InputCAV(fresh, rules=chosen, normalize=None).attribute(x, 1)
        for fresh, chosen in [(n, c) for n in [conv_net()] for c in [*other_rules(n), None]]
    ]
    assert largest(expected[0] - expected[1]) > 1e-3
    for turn in range(6):
        assert torch.equal(cavs[turn % 3].attribute(x, 1), expected[turn % 3])


def test_a_mapping_that_is_changed_afterwards_changes_nothing() -> None:
    net = nested()
    chosen = {F.linear: LINEAR[2]}
    cav, x = InputCAV(net, rules=chosen, normalize=None), fixed(2, 4)
    before = cav.attribute(x, 1)
    chosen[F.linear] = LINEAR[7]
    chosen[net] = LINEAR[5]
    assert torch.equal(cav.attribute(x, 1), before)


def test_two_threads_on_one_model_have_their_own_rules() -> None:
    net = conv_net()
    chosen = other_rules(net)
    chosen[0]["act"] = rules.pass_through  # a module as one operation: it is hooked while it runs
    pictures = [fixed(2, 2, 6, 6, seed=seed) for seed in range(20)]
    cavs = [LayerCAV(net, ["first", "act"], rules=one, normalize=None) for one in chosen]
    expected = [[cav.attribute(x, 1) for x in pictures] for cav in cavs]
    assert largest(expected[0][0][0] - expected[1][0][0]) > 1e-3
    barrier = threading.Barrier(2)

    def work(cav: LayerCAV) -> list[Any]:
        found = []
        for x in pictures:
            barrier.wait(30)
            found.append(cav.attribute(x, 1))
        return found

    with left_as_it_was(net), ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, cavs))
    for found, right in zip(results, expected, strict=True):
        assert len(found) == 20
        for maps, right_maps in zip(found, right, strict=True):
            assert all(map(torch.equal, maps, right_maps))


class Meeting(nn.Module):
    """A tanh that returns when another thread is in it, too."""

    barrier = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.barrier is not None:
            self.barrier.wait(10)
        y = torch.tanh(x)
        if self.barrier is not None:
            self.barrier.wait(10)
        return y


def test_two_threads_meet_in_a_module_that_each_rules_as_one() -> None:
    net = filled(nn.Sequential(nn.Linear(4, 4), Meeting(), nn.Linear(4, 2)))
    pictures = [fixed(2, 4, seed=seed) for seed in (1, 2)]
    cavs = [InputCAV(net, rules={Meeting: rule}, normalize=None) for rule in (rules.pass_through, rules.linear)]
    expected = [cav.attribute(x, 1) for cav, x in zip(cavs, pictures, strict=True)]
    assert largest(expected[0] - cavs[1].attribute(pictures[0], 1)) > 1e-3
    net[1].barrier = threading.Barrier(2)
    with left_as_it_was(net), ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            found = threads.map(lambda cav, x: cav.attribute(x, 1), cavs, pictures)
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("of_input", [False, True])
def test_another_thread_inside_a_module_finishes_after_the_attribution_ends(of_input: bool) -> None:
    """It entered with the attribution's hooks on the module, and leaves when they are gone."""
    net, x, other = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(2, 4), fixed(3, 4)
    inside, ended = threading.Event(), threading.Event()
    main, expected = threading.current_thread(), net(other)
    futures: list[Any] = []

    def stay(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not main:
            inside.set()
            assert ended.wait(30)

    def start(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is main:
            futures.append(threads.submit(net, other))
            assert inside.wait(30)

    with ThreadPoolExecutor(1) as threads:
        # In the first module the attribution's hooks on the second are there already.
        handles = [net[1].register_forward_pre_hook(stay), net[0].register_forward_pre_hook(start)]
        cav = LayerCAV(net, "1", rules={nn.Tanh: rules.PassThroughRule()}, normalize=None)
        found = cav.attribute(x, 1, attribute_to_layer_input=of_input)
        ended.set()
        assert torch.equal(futures[0].result(30), expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(cav.attribute(x, 1, attribute_to_layer_input=of_input), found)


# Nothing is left on the model ----------------------------------------------------------------------------------------


class Raises(rules.Rule):
    """Raises in the forward or in the backward pass."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, operation: rules.Operation, /) -> torch.Tensor:
        if self.where == "forward":
            raise KeyError("in the forward pass")
        return _Raising.apply(operation.value())


class RaisesAsOne(Raises):
    as_one = True


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> torch.Tensor:
        raise KeyError("in the backward pass")


class RaisingShares(rules.AffineRule):
    """Raises where it shares out."""

    def shares(self, summands: rules.Summands) -> list[rules.Share]:
        raise KeyError("in the backward pass")


@pytest.mark.parametrize("keys", [0, 1])
@pytest.mark.parametrize("make", [LayerCAV, InputCAV, NeuronCAV], ids=lambda make: make.__name__)
def test_rules_leave_nothing_on_the_model(make: Any, keys: int) -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    net.head.rule = lrp_rules.GammaRule()
    net.act.rule = rules.PassThroughRule()
    net.first.weight.requires_grad_(False)
    handle = net.pool.register_forward_hook(lambda *_: None)
    chosen = other_rules(net)[keys]
    with left_as_it_was(net, x):
        cav = make(net, rules=chosen) if make is InputCAV else make(net, "act", rules=chosen)
        assert largest(cav.attribute(x, (0, 1, 1) if make is NeuronCAV else 1)) > 0
        cav.attribute(x, (0, 1, 1) if make is NeuronCAV else 1, return_convergence_delta=True)
        if make is not NeuronCAV:
            cav.explain_rules(x)
    handle.remove()
    assert isinstance(net.head.rule, lrp_rules.GammaRule)


@pytest.mark.parametrize(
    ("key", "rule", "where"),
    [
        (nn.GELU, Raises("forward"), "forward"),
        (F.linear, Raises("forward"), "forward"),
        (nn.GELU, RaisesAsOne("forward"), "forward"),
        (nn.GELU, Raises("backward"), "backward"),
        (nn.GELU, RaisesAsOne("backward"), "backward"),
        (nn.Conv2d, RaisingShares(), "backward"),
        (F.linear, [rules.AtInput(rules.GammaRule()), Raises("backward")], "backward"),
    ],
    ids=["type", "function", "as one", "type, backward", "as one, backward", "affine", "list"],
)
def test_a_rule_that_raises_leaves_nothing_on_the_model(key: Any, rule: Any, where: str) -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)
    net.head.rule = rules.AtInput(rules.EpsilonRule())
    right = InputCAV(net, rules="gamma").attribute(x, 1)
    for with_delta in (False, True):
        with left_as_it_was(net, x), pytest.raises(KeyError, match=f"in the {where} pass"):
            InputCAV(net, rules={key: rule}).attribute(x, 1, return_convergence_delta=with_delta)
    assert torch.equal(InputCAV(net, rules="gamma").attribute(x, 1), right)


def test_a_module_that_raises_while_it_is_ruled_as_one_leaves_nothing() -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), Fragile(), nn.Linear(4, 2))), fixed(2, 4)
    cav = InputCAV(net, rules={Fragile: rules.PassThroughRule()}, normalize=None)
    right = cav.attribute(x, 1)
    net[1].broken = True
    with left_as_it_was(net, x), pytest.raises(ZeroDivisionError):
        cav.attribute(x, 1)
    with left_as_it_was(net, x), pytest.raises(ZeroDivisionError):
        InputCAV(net, rules={"": rules.linear}).attribute(x, 1)
    net[1].broken = False
    assert torch.equal(cav.attribute(x, 1), right)


class Fragile(nn.Module):
    broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) if not self.broken else x / (0 // 0)


def test_a_model_that_catches_the_error_of_a_module_is_explained() -> None:
    class Cautious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fragile, self.head = nn.Linear(4, 4), Fragile(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            try:
                return self.head(self.fragile(h))
            except ZeroDivisionError:
                return self.head(torch.tanh(h))

    net, x = filled(Cautious()), fixed(2, 4)
    expected = InputCAV(net, normalize=None).attribute(x, 1)
    net.fragile.broken = True
    with left_as_it_was(net, x):
        found = InputCAV(net, rules={Fragile: rules.PassThroughRule()}, normalize=None).attribute(x, 1)
    assert_near(found, expected)
