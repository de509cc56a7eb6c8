"""One delta for several inputs, and for several layers that together cut the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from tests.support.errors import refused
from tests.support.small_networks import samples, seeded


class TwoTowers(nn.Module):
    """Two towers of two layers each, the second with a bias, and a head. A skip goes around the towers if asked."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        with seeded():
            self.left = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
            self.right = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
            self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        self.skips = skips

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        y = x if y is None else y
        scores: torch.Tensor = self.head(torch.cat([self.left(x), self.right(y)], 1))
        return scores + x[:, :2] if self.skips else scores


def towers(skips: bool = False) -> TwoTowers:
    return TwoTowers(skips).double().eval()


PARALLEL = (["left", "right"], ["left.0", "right.1"], ["left.2", "right.0"], ["right.1", "left.1"])


@pytest.mark.parametrize("layers", PARALLEL, ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_parallel_layers_that_cut_the_network_leave_nothing_unexplained(layers: list[str], count: int) -> None:
    x = samples(count).double()
    cav = LayerCAV(towers(), layers)
    maps, delta = cav.attribute(x, 0, return_convergence_delta="joint")
    assert delta.shape == (count,)
    assert delta.abs().max() < 1e-12
    alone, deltas = cav.attribute(x, 0, return_convergence_delta=True)
    assert all(torch.equal(one, other) for one, other in zip(maps, alone, strict=True))
    assert min(float(one.abs().max()) for one in deltas) > 1e-3


def test_what_goes_around_all_layers_is_the_joint_delta() -> None:
    x = samples(3).double()
    net = towers(skips=True)
    _, delta = LayerCAV(net, ["left.0", "right.0"], normalize=None).attribute(x, 1, return_convergence_delta="joint")
    torch.testing.assert_close(delta, x[:, 1], rtol=1e-12, atol=1e-12)


def test_a_joint_delta_of_one_layer_is_its_delta() -> None:
    x = samples(3).double()
    net = towers(skips=True)
    (_, delta), (_, joint) = (
        LayerCAV(net, "head.0").attribute(x, 1, None, return_convergence_delta=way) for way in (True, "joint")
    )
    assert torch.equal(delta, joint)
    _, joint = LayerCAV(net, ["head.0"]).attribute(x, 1, return_convergence_delta="joint")
    assert torch.equal(delta, joint)


def test_a_joint_delta_in_parts_and_for_several_targets() -> None:
    x = samples(3).double()
    cav = LayerCAV(towers(skips=True), ["left", "right"], normalize=None)
    whole = cav.attribute_targets(x, [0, 1], return_convergence_delta="joint")
    parts = cav.attribute_targets(x, [0, 1], return_convergence_delta="joint", internal_batch_size=2)
    for (_, one), (_, other), target in zip(whole, parts, (0, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one, x[:, target], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["left.0", "right", "left.2"], ("'left.2'", "'left.0'")),
        (["head", "left"], ("'head'", "'left'")),
        (["left", "left"], ("'left'", "'left'")),
    ],
    ids=str,
)
def test_layers_behind_each_other_are_refused(layers: list[str], names: tuple[str, str]) -> None:
    net = towers()
    said = f"layer {names[0]} lies behind layer {names[1]}"
    with refused(ValueError, said, "return_convergence_delta=True", model=net):
        LayerCAV(net, layers).attribute(samples().double(), 0, return_convergence_delta="joint")
    LayerCAV(net, layers).attribute(samples().double(), 0, return_convergence_delta=True)


@pytest.mark.parametrize("word", ["Joint", "all", ""])
def test_another_word_is_refused(word: Any) -> None:
    net = towers()
    with refused(ValueError, f"return_convergence_delta is {word!r}", 'expected True, False or "joint"', model=net):
        LayerCAV(net, "left").attribute(samples().double(), 0, return_convergence_delta=word)


def test_several_inputs_have_one_delta_for_each_sample() -> None:
    x, y = samples(3).double(), samples(6)[3:].double()
    maps, delta = InputCAV(towers()).attribute((x, y), 0, return_convergence_delta=True)
    assert delta.shape == (3,)
    assert delta.abs().max() < 1e-12
    assert min(float(part.sum(1).abs().max()) for part in maps) > 1e-3
    _, delta = NeuronCAV(towers(), "head.1").attribute((x, y), slice(0, 5), return_convergence_delta=True)
    assert delta.shape == (3,)
    assert delta.abs().max() < 1e-12
