"""Copies of attributions and models: deep copies, pickles and other processes."""

from __future__ import annotations

import copy
import operator
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from tests.support.small_networks import picture, residual_net, samples, small_net
from tests.support.tensors import tensors_of
from tests.support.traces import left_as_it_was


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
def test_copies(copied: Callable[[Any], Any]) -> None:
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


def test_a_copy_of_the_model_made_during_the_forward_pass() -> None:
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
def test_other_processes(start: str) -> None:
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    net, x = small_net(), samples()
    attribution = own_rules(net)[0]
    work = operator.methodcaller("attribute", x, 1)
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        found = pool.submit(work, attribution).result(120)
        assert all(map(torch.equal, found, attribution.attribute(x, 1)))
