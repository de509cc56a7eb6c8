"""What hangs on parameters and buffers alone: a frozen recording computes it once, and gives the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import captum_cav
from captum_cav import InputCAV
from captum_cav.compilation.graphs import RecordedGraph
from captum_cav.compilation.known import known_values
from captum_cav.compilation.program import as_function
from captum_cav.torch_graphs import below_autograd, recorded_graph
from tests.compilation.test_equality import assert_equal_bits, convolutional
from tests.support.small_networks import picture

WEIGHT = torch.tensor([2.0, -3.0])


def in_place_of_its_own(x: torch.Tensor) -> list[torch.Tensor]:
    return [(WEIGHT.abs() + 1).rsqrt_() * x]


def returned(x: torch.Tensor) -> list[torch.Tensor]:
    return [WEIGHT * 2, x + 1]


def written_after_it_was_read(x: torch.Tensor) -> list[torch.Tensor]:
    y = WEIGHT.abs()
    z = x + y
    y.add_(1)
    return [z, x * y]


def written_by_an_input(x: torch.Tensor) -> list[torch.Tensor]:
    y = WEIGHT.abs()
    z = y.neg()
    y.add_(x)
    return [y * 1, z * x]


def view_written_by_an_input(x: torch.Tensor) -> list[torch.Tensor]:
    y = torch.zeros(3)
    y[1:].copy_(x)
    return [y * 2, WEIGHT.abs() + x]


def last_use(x: torch.Tensor) -> list[torch.Tensor]:
    """What is known is never overwritten, although nothing uses it afterwards."""
    return [(WEIGHT * 2).mul(x).add(1)]


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (in_place_of_its_own, 3),
        (returned, 0),
        (written_after_it_was_read, 0),
        (written_by_an_input, 0),
        (view_written_by_an_input, 1),
        (last_use, 1),
    ],
)
def test_what_hangs_on_no_input_is_computed_once(
    function: Callable[[torch.Tensor], list[torch.Tensor]], count: int
) -> None:
    inputs = [torch.ones(2)]
    recorded = RecordedGraph(recorded_graph(function, inputs), inputs)
    known = known_values(recorded)
    assert len(known) == count
    run, before = as_function(recorded, known), WEIGHT.clone()
    for x in (torch.tensor([1.0, 5.0]), torch.tensor([-2.0, 0.5])):
        with below_autograd():
            found = recorded.in_order(run([x, *recorded.constants]))
        for one, expected in zip(found, function(x), strict=True):
            assert torch.equal(one, expected)
            one.fill_(7.0)
    assert torch.equal(WEIGHT, before)


@pytest.mark.parametrize("rules", ["paper", "gamma", "pinpoint"])
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_frozen_replays_have_the_same_bits(rules: str, dynamic_batch: bool) -> None:
    net = convolutional()
    cav = InputCAV(net, rules=rules)
    compiled = captum_cav.compile(cav, freeze=True, dynamic_batch=dynamic_batch)
    sizes = [2, 3, 5] if dynamic_batch else [2, 2]
    for seed, size in enumerate(sizes):
        x = torch.cat([picture(seed)] * size)[:size] * torch.linspace(0.5, 1, size).reshape(-1, 1, 1, 1)
        assert_equal_bits(compiled.attribute(x, seed), cav.attribute(x, seed))
    (made,) = compiled._made.values()
    targets = {str(node.target) for node in known_values(made.recording.graph)}
    assert ("aten.abs.default" in targets) is (rules != "paper")
    with torch.no_grad():
        next(iter(net.parameters())).mul_(-2)
    x = torch.cat([picture(9)] * 2)[:2]
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))


def test_weights_that_are_trained_further_are_not_known() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    cav = InputCAV(net, rules="gamma")
    compiled = captum_cav.compile(cav)
    x = torch.ones(1, 4)
    compiled.attribute(x, 1)
    with torch.no_grad():
        net[0].weight.neg_()  # type: ignore[operator]
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
