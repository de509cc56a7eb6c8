"""Lists of rules, rules for the first layer and for fine maps, and the same rule under any key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.errors import CAVTypeError, OptionError
from tests.support.networks import fixed
from tests.support.rules import LINEAR, Times, assert_near, conv_net, factor, filled, nested
from tests.support.small_networks import Apply
from tests.support.tensors import largest

Function = Callable[[torch.Tensor], torch.Tensor]


# Lists of rules ------------------------------------------------------------------------------------------------------


def test_the_first_rule_of_a_list_that_governs_the_operation_is_used() -> None:
    net = nested()
    several = [Times(2, "tanh"), Times(3, "tanh", "linear"), Times(5)]
    assert factor(net, {net: several}) == 2 * 3 * 3
    assert factor(net, {net: several[::-1]}) == 5**3
    assert factor(net, {F.linear: [Times(2, "linear"), Times(3)], torch.tanh: (Times(5), Times(7))}) == 2 * 5 * 2
    assert factor(net, {nn.Linear: [[Times(2, "tanh")], (Times(3),)]}) == 3 * 3
    assert factor(net, {net: [Times(2, "tanh"), LINEAR[3]], F.linear: LINEAR[5]}) == 2 * 3 * 3


def test_an_empty_list_leaves_everything_as_it_is() -> None:
    net = nested()
    assert factor(net, {net.block: [], F.linear: LINEAR[2]}) == 2 * 2


class Branching(nn.Module):
    """Two first layers, and one that sees the input and what a first layer made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.joint, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(7, 4), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), torch.tanh(self.b(x))
        return self.head(torch.cat([b, self.joint(torch.cat([x, a], 1))], 1))


FIRST_LAYERS: dict[str, tuple[Function, tuple[int, ...], int]] = {
    "layer by layer": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,), 1),
    "function": (lambda x: F.linear(F.linear(x, fixed(4, 4)), fixed(2, 4)), (4,), 1),
    "matrix product": (lambda x: F.linear(x @ fixed(4, 4), fixed(2, 4)), (4,), 0),
    "padding": (lambda x: F.linear(F.linear(F.pad(x, (1, 2), value=0.5), fixed(4, 7)), fixed(2, 4)), (4,), 1),
    "flatten": (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 2)), (2, 2), 1),
    "normalised": (lambda x: F.linear(F.linear((x - 0.3) / 0.5, fixed(4, 4)), fixed(2, 4)), (4,), 1),
    "activation": (lambda x: F.linear(torch.tanh(x), fixed(2, 4)), (4,), 1),
    "attention patches": (lambda x: F.linear(F.linear(x.unfold(1, 2, 2), fixed(4, 2)).mean(1), fixed(2, 4)), (4,), 1),
    "convolution": (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)), (1, 4), 0),
    "written in place": (lambda x: F.linear(F.linear((x * 1).relu_(), fixed(4, 4)), fixed(2, 4)), (4,), 1),
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_a_rule_for_the_first_layer_governs_no_other_layer(name: str) -> None:
    """Behind padding or reshaping the layer is still the first; behind a convolution or a product it is not."""
    net, shape, first = FIRST_LAYERS[name]
    net = filled(net) if isinstance(net, nn.Module) else net
    table = InputCAV(net, rules={F.linear: [rules.AtInput(LINEAR[2]), LINEAR[3]]}).explain_rules(fixed(2, *shape))
    chosen = [row.rule for row in table if row.operation == "linear"]
    assert ["AtInput" in rule for rule in chosen] == [True] * first + [False] * (len(chosen) - first)
    assert len(chosen) >= 1


def test_a_network_may_have_several_first_layers() -> None:
    net, x = filled(Branching()), fixed(2, 4)
    chosen = {nn.Linear: [rules.AtInput(LINEAR[2]), LINEAR[3]]}
    rows = InputCAV(net, rules=chosen).explain_rules(x)
    assert {row.module: "AtInput" in row.rule for row in rows if row.operation == "linear"} == {
        "a": True,
        "b": True,
        "joint": False,
        "head": False,
    }
    h = torch.tanh(net.b(x))
    inner = (h / net.b(x)).detach()
    w = net.head.weight[1].detach()
    of_b = (w[:3] * inner) @ net.b.weight.detach()
    through_joint = w[3:] @ net.joint.weight.detach()
    expected = x * (3 * (2 * of_b + 3 * (through_joint[:4] + 2 * through_joint[4:] @ net.a.weight.detach())))
    assert_near(InputCAV(net, rules=chosen, normalize=None).attribute(x, 1), expected.detach())


def test_the_first_layer_is_the_models_not_the_first_behind_a_requested_layer() -> None:
    net, x = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(2, 4)
    chosen = {nn.Linear: rules.AtInput(LINEAR[2])}
    behind = LayerCAV(net, "0", rules=chosen, normalize=None)
    assert torch.equal(behind.attribute(x, 1), LayerCAV(net, "0", normalize=None).attribute(x, 1))
    of_input = behind.attribute(x, 1, attribute_to_layer_input=True)
    assert_near(of_input, 2 * InputCAV(net, normalize=None).attribute(x, 1))


def test_an_operation_of_several_tensors_is_of_the_first_layer_if_all_of_them_are() -> None:
    weight, x = fixed(4, 4), fixed(2, 4)
    chosen = {torch.mul: [rules.AtInput(Times(2)), Times(3)]}
    for other, number in ((torch.tanh, 2), (lambda x: F.linear(x, weight), 3)):
        score = lambda x, other=other: (x * other(x)).sum(1)  # noqa: E731
        found, plain = (InputCAV(score, rules=given, normalize=None).attribute(x) for given in (chosen, None))
        assert_near(found, number * plain)


WEIGHT = fixed(4, 4)
ATTENTION, LSTM = nn.MultiheadAttention(4, 2, dtype=torch.float64).eval(), nn.LSTM(4, 4, dtype=torch.float64).eval()
LAYERS: dict[str, Function] = {
    "matmul": lambda x: x @ WEIGHT,
    "inner": lambda x: torch.inner(x, WEIGHT),
    "tensordot": lambda x: torch.tensordot(x, WEIGHT, 1),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, WEIGHT]),
    "baddbmm": lambda x: torch.baddbmm(torch.zeros(()).to(x), x[None], WEIGHT[None])[0],
    "addbmm": lambda x: torch.addbmm(torch.zeros(()).to(x), x[None], WEIGHT[None]),
    "bilinear": lambda x: F.bilinear(x, torch.ones_like(x), fixed(4, 4, 4)),
    "conv_tbc": lambda x: torch.conv_tbc(x[None], WEIGHT[None], torch.zeros(4).to(x))[0],
    "multi-head attention": lambda x: ATTENTION(x, x, x)[0],
    "sparse": lambda x: torch.sparse.mm(WEIGHT.to_sparse(), x.T).T,
    "rmatmul": lambda x: x.T.__rmatmul__(WEIGHT).T,
    "lstm": lambda x: LSTM(x)[0],
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_behind_any_layer_with_weights_is_the_first(name: str) -> None:
    net = nn.Sequential()
    net.add_module("layer", Apply(LAYERS[name]))
    net.add_module("head", nn.Linear(4, 2, dtype=torch.float64))
    x, chosen = fixed(2, 4), {"head": [rules.AtInput(Times(2)), Times(3)]}
    found, plain = (InputCAV(net, rules=given, normalize=None).attribute(x, 0) for given in (chosen, None))
    assert_near(found, 3 * plain)


def test_a_rule_for_the_first_layer_leaves_the_default_of_other_layers() -> None:
    net = nested()
    assert factor(net, {F.linear: rules.AtInput(LINEAR[2])}) == 2
    assert factor(net, {net: rules.AtInput(LINEAR[2]), F.linear: LINEAR[5]}) == 2 * 5
    assert factor(net, {"head": rules.AtInput(LINEAR[2])}) == 1


# Rules for fine maps -------------------------------------------------------------------------------------------------


def halving(steps: int, dims: int = 2, padding: int = 1) -> nn.Sequential:
    """Convolutions each of which halves its map."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return filled(nn.Sequential(*(kind(1, 1, 3, 2, padding) for _ in range(steps)), nn.Flatten()))


def fine_layers(net: Function, x: torch.Tensor, *reduction: float) -> list[bool]:
    """Which convolutions take a fine map, in the order in which they run."""
    one = [rules.AtFineMaps(rules.GammaRule(), *reduction), rules.EpsilonRule()]
    chosen = {key: one for key in (F.conv1d, F.conv2d, F.conv3d)}  # noqa: C420 - all get the same list
    table = InputCAV(net, rules=chosen).explain_rules(x)
    return ["AtFineMaps" in row.rule for row in table if "conv" in row.operation]


@pytest.mark.parametrize("reduction", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_fine_map_is_as_many_times_smaller_than_the_input(reduction: int, size: int) -> None:
    taken = [1, 2, 4, 8, 16]
    assert fine_layers(halving(5), fixed(2, 1, size, size), reduction) == [one <= reduction for one in taken]


@pytest.mark.parametrize(("dims", "shape"), [(1, (64,)), (2, (64, 32)), (3, (32, 32, 16))])
def test_maps_may_have_any_number_of_directions(dims: int, shape: tuple[int, ...]) -> None:
    assert fine_layers(halving(4, dims), fixed(1, 1, *shape), 4) == [True, True, True, False]


def test_the_default_is_an_eighth() -> None:
    assert fine_layers(halving(5), fixed(1, 1, 64, 64)) == [True, True, True, True, False]


def test_layers_without_padding_count_by_about_the_same_reduction() -> None:
    """224 pixels become 111, 55, 27 and 13."""
    assert fine_layers(halving(5, padding=0), fixed(1, 1, 224, 224)) == [True, True, True, True, False]


def test_the_largest_of_several_inputs_counts() -> None:
    net = halving(3)
    chosen = {F.conv2d: [rules.AtFineMaps(rules.GammaRule(), 2), rules.EpsilonRule()]}
    both = (fixed(1, 1, 8, 8), fixed(1, 1, 16, 16))
    for inputs in (both, both[::-1]):
        cav = InputCAV(lambda a, b: net(a if a.shape[2] == 8 else b), rules=chosen)
        found = ["AtFineMaps" in row.rule for row in cav.explain_rules(inputs) if row.operation == "conv2d"]
        assert found == [True, False, False]


@pytest.mark.parametrize(
    "rewritten",
    [
        lambda x, weight: F.conv3d(x[:, :, None], weight[:, :, None], stride=2, padding=(0, 1, 1))[:, :, 0],
        lambda x, weight: torch.stack([F.conv2d(one, weight, stride=2, padding=1) for one in x]),
    ],
    ids=["in three directions", "sample by sample"],
)
def test_how_a_convolution_is_written_does_not_matter(rewritten: Callable[..., torch.Tensor]) -> None:
    weight = fixed(2, 2, 3, 3)

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, stride=2, padding=1)

    def found(convolution: Callable[..., torch.Tensor]) -> torch.Tensor:
        def net(x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.tanh(convolution(x, weight))
            return x.flatten(1)

        given = [rules.AtFineMaps(rules.GammaRule(), 2), rules.EpsilonRule(0.5)]
        chosen = {key: given for key in (F.conv2d, F.conv3d)}  # noqa: C420 - all get the same list
        return InputCAV(net, rules=chosen).attribute(fixed(2, 2, 16, 16), 0)

    assert_near(found(rewritten), found(plain))


def test_each_frame_of_a_video_is_a_map() -> None:
    net = nn.Sequential(nn.Flatten(0, 1), filled(nn.Conv2d(3, 1, 3, 2, 1)), halving(4))
    assert fine_layers(net, fixed(1, 2, 3, 64, 64), 8) == [True, True, True, True, False]


def test_what_is_no_map_is_not_fine() -> None:
    chosen = {F.linear: [rules.AtFineMaps(Times(2)), Times(3)]}
    flat = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    assert factor(flat, chosen) == 3 * 3
    for behind, width in ((nn.Flatten(1), 16), (nn.Flatten(2), 16), (nn.Identity(), 4)):
        rows = nn.Sequential(behind, filled(nn.Linear(width, 2)), nn.Flatten())
        table = InputCAV(rows, rules=chosen).explain_rules(fixed(1, 1, 4, 4))
        assert not any("AtFineMaps" in row.rule for row in table)


@pytest.mark.parametrize("reduction", [0, -8, 0.5, float("nan")])
def test_a_map_is_not_finer_than_the_input(reduction: float) -> None:
    with pytest.raises(OptionError, match="expected a number of at least 1"):
        rules.AtFineMaps(rules.GammaRule(), reduction)


@pytest.mark.parametrize("kind", [rules.AtInput, rules.AtFineMaps])
def test_a_rule_for_a_place_needs_a_rule(kind: type[rules.Rule]) -> None:
    with pytest.raises(CAVTypeError, match=f"{kind.__name__} takes a rule"):
        kind(rules.GammaRule)  # type: ignore[call-arg]


# The same rule by any key --------------------------------------------------------------------------------------------


SAME: dict[str, tuple[rules.Rule, str, type[nn.Module], list[Any]]] = {
    "gamma": (rules.GammaRule(0.5), "first", nn.Conv2d, [F.conv2d, torch.conv2d]),
    "epsilon": (rules.EpsilonRule(0.1), "head", nn.Linear, [F.linear, torch.nn.functional.linear]),
    "flat": (rules.FlatRule(), "first", nn.Conv2d, [F.conv2d]),
    "z-box": (rules.ZBoxRule(-5.0, 5.0), "first", nn.Conv2d, [F.conv2d]),
    "gradient": (rules.GradientRule(), "act", nn.GELU, [F.gelu]),
    "proportional": (rules.ProportionalPoolingRule(), "pool", nn.MaxPool2d, [F.max_pool2d, torch.max_pool2d]),
    "captum": (lrp_rules.GammaRule(0.5), "first", nn.Conv2d, [F.conv2d]),
}


@pytest.mark.parametrize("name", SAME)
def test_any_key_for_the_same_operation_gives_the_same_map(name: str) -> None:
    rule, where, kind, functions = SAME[name]
    net, x = conv_net(), fixed(2, 2, 6, 6)
    instance = net.get_submodule(where)
    keys = [instance, where, where[:-1] + "?", f"*{where[1:]}", kind, *functions]
    maps = {key: InputCAV(net, rules={key: rule}, normalize=None).attribute(x, 1) for key in keys}
    for key in (instance, kind, *functions):
        by_function = InputCAV(lambda x: net(x), rules={key: rule}, normalize=None)
        maps["callable", key] = by_function.attribute(x, 1)
        at_first = LayerCAV(lambda x: net(x), net.first, rules={key: rule}, normalize=None)
        assert torch.equal(
            at_first.attribute(x, 1), LayerCAV(net, "first", rules={where: rule}, normalize=None).attribute(x, 1)
        )
    instance.rule = rule
    maps["module.rule"] = InputCAV(net, normalize=None).attribute(x, 1)
    maps["module.rule", "callable"] = InputCAV(lambda x: net(x), normalize=None).attribute(x, 1)
    assert all(torch.equal(found, maps[where]) for found in maps.values())
    assert largest(maps[where] - InputCAV(conv_net(), normalize=None).attribute(x, 1)) > 1e-6 * largest(maps[where])


def test_a_function_written_without_modules_has_the_same_map() -> None:
    net, x = conv_net(), fixed(2, 2, 6, 6)

    def functional(x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(F.conv2d(x, net.first.weight, net.first.bias))
        return F.linear(torch.flatten(F.max_pool2d(x, 2), 1), net.head.weight, net.head.bias)

    chosen = {F.conv2d: rules.GammaRule(0.5), F.linear: rules.EpsilonRule(0.1), F.gelu: rules.GradientRule()}
    found = InputCAV(functional, rules=chosen, normalize=None).attribute(x, 1)
    assert torch.equal(found, InputCAV(net, rules=chosen, normalize=None).attribute(x, 1))
