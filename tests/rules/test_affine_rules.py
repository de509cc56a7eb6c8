"""The rules of affine operations against their formulas, written out with dense matrices (``matrix_rules``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.rules import changed_weights
from tests.support import matrix_rules

LOW, HIGH = -6.0, 5.0
BIASES = ("share", "absorb")

#: Ours and the oracle's, both of an option for the bias. Epsilons are large enough to show.
RULES: dict[str, Callable[[str], tuple[Any, matrix_rules.Rule]]] = {
    "contribution": lambda _: (rules.ContributionRule(), matrix_rules.contribution()),
    "epsilon": lambda bias: (rules.EpsilonRule(0.1, bias=bias), matrix_rules.epsilon(0.1, bias=bias)),
    "relative epsilon": lambda bias: (
        rules.EpsilonRule(0.25, relative=True, bias=bias),
        matrix_rules.epsilon(0.25, relative=True, bias=bias),
    ),
    "absolute epsilon": lambda bias: (
        rules.AbsoluteEpsilonRule(0.3, bias=bias),
        matrix_rules.absolute_epsilon(0.3, bias=bias),
    ),
    "gamma": lambda bias: (rules.GammaRule(0.25, bias=bias), matrix_rules.gamma(0.25, bias=bias)),
    "alpha-beta": lambda bias: (rules.AlphaBetaRule(2.0, 1.0, bias=bias), matrix_rules.alpha_beta(2.0, 1.0, bias=bias)),
    "alpha-beta 1.5": lambda bias: (
        rules.AlphaBetaRule(1.5, 0.5, bias=bias),
        matrix_rules.alpha_beta(1.5, 0.5, bias=bias),
    ),
    "z+": lambda bias: (rules.ZPlusRule(bias=bias), matrix_rules.z_plus(bias=bias)),
    "z-box": lambda _: (rules.ZBoxRule(LOW, HIGH), matrix_rules.z_box(LOW, HIGH)),
    "w-square": lambda bias: (rules.WSquareRule(bias=bias), matrix_rules.w_square(bias=bias)),
    "flat": lambda bias: (rules.FlatRule(bias=bias), matrix_rules.flat(bias=bias)),
}


Choose = Callable[..., Any]
#: The affine layers of a kind: from an input of a given number of channels, and from 4 channels.
Layers = tuple[nn.Module, nn.Module]


def convolutions(dimensions: int) -> Callable[[Choose], tuple[Layers, tuple[int, ...]]]:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    size = ((9,), (7, 7), (4, 4, 5))[dimensions - 1]

    def make(choose: Choose) -> tuple[Layers, tuple[int, ...]]:
        channels = choose(2, 4)
        first = convolution(
            channels,
            4,
            choose(1, 2, 3),
            stride=choose(1, 2),
            padding=choose(0, 1),
            dilation=1 if dimensions == 3 else choose(1, 2),
            groups=choose(1, 2),
            bias=choose(True, False),
            padding_mode=choose("zeros", "zeros", "reflect", "replicate", "circular"),
        )
        kernel = (1,) * (dimensions - 1) + (2,)
        padding = choose(0, 1) if choose(True, False) else (0,) * (dimensions - 1) + (1,)
        second = convolution(4, 4, kernel, padding=padding, groups=choose(1, 4), bias=choose(True, False))
        return (first, second), (channels, *size)

    return make


def transposed(choose: Choose) -> tuple[Layers, tuple[int, ...]]:
    stride = choose(1, 2)
    first = nn.ConvTranspose2d(
        2,
        4,
        choose(2, 3),
        stride=stride,
        padding=choose(0, 1),
        output_padding=choose(0, stride - 1),
        dilation=choose(1, 2),
        groups=choose(1, 2),
        bias=choose(True, False),
    )
    second = nn.ConvTranspose2d(4, 4, 2, groups=choose(1, 2), bias=choose(True, False))
    return (first, second), (2, 4, 3)


def linear(choose: Choose) -> tuple[Layers, tuple[int, ...]]:
    inputs, length = choose(1, 5), choose(None, 3)
    layers = nn.Linear(inputs, 4, bias=choose(True, False)), nn.Linear(4, 4, bias=choose(True, False))
    return layers, (inputs,) if length is None else (length, inputs)


KINDS = {
    "convolution, 1-d": convolutions(1),
    "convolution, 2-d": convolutions(2),
    "convolution, 3-d": convolutions(3),
    "transposed": transposed,
    "linear": linear,
}


def fill(net: nn.Module, generator: torch.Generator) -> None:
    """Parameters and statistics of both signs; some weights are 0, and some units never fire."""
    with torch.no_grad():
        for parameter in net.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                values *= torch.rand(parameter.shape, generator=generator, dtype=torch.float64) < 0.9
            parameter.copy_(values / 2)
        for module in net.modules():
            if isinstance(module, matrix_rules.BATCH_NORM):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=torch.float64))
                module.running_var.copy_(
                    torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 0.5
                )


def samples(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Two, of both signs, within the boxes, with exact zeros here and there and in one corner."""
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
    x *= torch.rand(x.shape, generator=generator) < 0.8
    x[..., :2] *= torch.rand((), generator=generator) < 0.5
    return x


def agree(network: matrix_rules.Network, x: torch.Tensor, target: int, chosen: Mapping[Any, Any]) -> None:
    """Contributions at the input of every layer, and the conservation of each."""
    net = nn.Sequential(*(layer for layer, _ in network)).double().eval()
    expected = matrix_rules.relevances_by_layer(network, x, target)
    top = {layer for layer, _ in network}
    layers = list(expected)
    found, deltas = LayerCAV(net, layers, rules={**chosen, nn.ReLU: rules.PassThroughRule()}, normalize=None).attribute(
        x, target, attribute_to_layer_input=True, return_convergence_delta=True
    )
    for layer, at_layer, delta in zip(layers, found, deltas, strict=True):
        scale = expected[layer].abs().flatten(1).amax(1) + 1e-6
        difference = (at_layer - expected[layer]).abs().flatten(1).amax(1)
        assert (difference <= 1e-8 * scale).all(), (layer, difference / scale)
        if layer in top:  # a layer inside a block does not cut the network
            assert (delta.abs() <= 1e-8 * (1 + expected[layer].abs().flatten(1).sum(1))).all(), (layer, delta)


def network_of(
    layers: Layers, shape: tuple[int, ...], pool: nn.Module | None, activation: nn.Module
) -> list[nn.Module]:
    """Both layers, one activation off in half of the places, and a dense layer."""
    body = [layers[0], nn.ReLU(), *([pool] if pool else []), layers[1], activation, nn.Flatten()]
    size = nn.Sequential(*body).double()(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    return [*body, nn.Linear(size, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=8)
@given(data=st.data())
def test_one_rule_equals_its_formula_at_every_layer(kind: str, name: str, data: st.DataObject) -> None:
    def choose(*options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    generator = torch.Generator().manual_seed(choose(*range(1000)))
    layers, shape = KINDS[kind](choose)
    body = network_of(layers, shape, None, choose(nn.ReLU, nn.Tanh)())
    fill(nn.Sequential(*body), generator)
    ours, oracles = RULES[name](choose(*BIASES))
    network = [(layer, oracles) for layer in body]
    affine = {layer: ours for layer in body if isinstance(layer, matrix_rules.AFFINE)}
    agree(network, samples(shape, generator), choose(0, 1, 2), affine)


@settings(max_examples=100)
@given(data=st.data())
def test_rules_mixed_by_layer_equal_their_formulas(data: st.DataObject) -> None:
    def choose(*options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    generator = torch.Generator().manual_seed(choose(*range(1000)))
    layers, shape = KINDS[choose("convolution, 2-d", "transposed")](choose)
    pool = choose(None, nn.MaxPool2d(2, 1), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(2, ceil_mode=True))
    if pool is not None and layers[0](torch.zeros(1, *shape)).shape[-1] < 3:
        pool = None
    body = network_of(layers, shape, pool, choose(nn.ReLU, nn.Tanh)())
    fill(nn.Sequential(*body), generator)
    network, chosen = [], {}
    for layer in body:
        ours, oracles = RULES[choose(*RULES)](choose(*BIASES))
        network.append((layer, oracles))
        if isinstance(layer, matrix_rules.AFFINE):
            chosen[layer] = ours
    agree(network, samples(shape, generator), choose(0, 1, 2), chosen)


@pytest.mark.parametrize(
    ("name", "bias", "expected"),
    [
        ("contribution", "share", (3, -2)),
        ("epsilon", "share", (3 / 2, -1)),
        ("epsilon", "absorb", (-3 / 2, 1)),
        ("absolute epsilon", "share", (3 / 8, -2 / 8)),
        ("absolute epsilon", "absorb", (-3 / 6, 2 / 6)),
        ("gamma", "share", (3 / 5, -4 / 5)),
        ("gamma", "absorb", (-6 / 4, 2 / 4)),
        ("alpha-beta", "share", (-2, 1 / 2)),
        ("alpha-beta", "absorb", (-2, 1)),
        ("z+", "share", (-1, 0)),
        ("z-box", "share", (-6 / 7, -1 / 7)),
        ("w-square", "share", (-9 / 14, -1 / 14)),
        ("w-square", "absorb", (-9 / 10, -1 / 10)),
        ("flat", "share", (-1 / 3, -1 / 3)),
        ("flat", "absorb", (-1 / 2, -1 / 2)),
    ],
)
def test_two_inputs_and_a_bias_on_paper(name: str, bias: str, expected: tuple[float, float]) -> None:
    """3 * 1 - 1 * 2 - 2 = -1: the summands 3 and -2, the bias -2, a contribution of -1 to share out."""
    made = {
        "epsilon": lambda: (rules.EpsilonRule(1, bias=bias), matrix_rules.epsilon(1, bias=bias)),
        "absolute epsilon": lambda: (
            rules.AbsoluteEpsilonRule(1, bias=bias),
            matrix_rules.absolute_epsilon(1, bias=bias),
        ),
        "gamma": lambda: (rules.GammaRule(1, bias=bias), matrix_rules.gamma(1, bias=bias)),
        "z-box": lambda: (rules.ZBoxRule(-1, 3), matrix_rules.z_box(-1, 3)),
    }
    layer = nn.Linear(2, 1).double()
    layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    layer.bias.data.fill_(-2)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ours, oracles = made[name]() if name in made else RULES[name](bias)
    (by_oracle,) = matrix_rules.relevances([(layer, oracles)], x, 0)
    torch.testing.assert_close(by_oracle, torch.tensor([expected], dtype=torch.float64))
    by_us = InputCAV(layer, rules={nn.Linear: ours}, normalize=None).attribute(x, 0)
    torch.testing.assert_close(by_us, by_oracle, rtol=1e-9, atol=1e-9)


def normed(kind: str, choose: Choose) -> tuple[list[nn.Module], tuple[int, ...]]:
    """An affine layer, its batch norm, and a second such pair."""
    if kind == "linear":
        return [nn.Linear(5, 4, bias=choose(True, False)), nn.BatchNorm1d(4), nn.ReLU()], (5,)
    if kind == "convolution, 1-d":
        first = nn.Conv1d(2, 4, 3, padding=1, stride=choose(1, 2), bias=choose(True, False))
        return [first, nn.BatchNorm1d(4), nn.ReLU()], (2, 7)
    if kind == "transposed":
        groups = choose(1, 2)
        first = nn.ConvTranspose2d(2, 4, 3, stride=2, groups=groups, bias=choose(True, False))
        return [first, nn.BatchNorm2d(4, affine=choose(True, False)), nn.ReLU()], (2, 3, 3)
    first = nn.Conv2d(2, 4, 3, padding=choose(0, 1), groups=choose(1, 2), bias=choose(True, False))
    second = nn.Conv2d(4, 4, 2, groups=choose(1, 4), bias=choose(True, False))
    norms = nn.BatchNorm2d(4, affine=choose(True, False)), nn.BatchNorm2d(4, eps=0.1)
    return [first, norms[0], nn.Tanh(), second, norms[1], nn.ReLU()], (2, 5, 5)


@pytest.mark.parametrize("kind", ["convolution, 1-d", "convolution, 2-d", "transposed", "linear"])
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=4)
@given(data=st.data())
def test_batch_norm_is_one_operation_with_the_layer_before_it(kind: str, name: str, data: st.DataObject) -> None:
    def choose(*options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    generator = torch.Generator().manual_seed(choose(*range(1000)))
    body, shape = normed(kind, choose)
    body.append(nn.Flatten())
    body.append(nn.Linear(nn.Sequential(*body).eval()(torch.zeros(1, *shape)).numel(), 3))
    fill(nn.Sequential(*body).double().eval(), generator)
    ours, oracles = RULES[name](choose(*BIASES))
    affine = {layer: ours for layer in body if isinstance(layer, matrix_rules.AFFINE)}
    agree([(layer, oracles) for layer in body], samples(shape, generator), choose(0, 1, 2), affine)


@pytest.mark.parametrize("name", ["epsilon", "absolute epsilon", "gamma", "alpha-beta", "z+", "z-box", "w-square"])
def test_without_folding_batch_norm_is_an_operation_of_its_own(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    body = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)]
    fill(nn.Sequential(*body).double().eval(), generator)
    _, oracles = RULES[name]("share")
    unfolded = {
        "epsilon": lambda: rules.EpsilonRule(0.1, fold=False),
        "absolute epsilon": lambda: rules.AbsoluteEpsilonRule(0.3, fold=False),
        "gamma": lambda: rules.GammaRule(0.25, fold=False),
        "alpha-beta": lambda: rules.AlphaBetaRule(2.0, 1.0, fold=False),
        "z+": lambda: rules.ZPlusRule(fold=False),
        "z-box": lambda: rules.ZBoxRule(LOW, HIGH, fold=False),
        "w-square": lambda: rules.WSquareRule(bias="share", fold=False),
    }[name]()
    # In the oracle, what stands between them keeps them apart.
    apart = [(body[0], oracles), (nn.Identity(), None), *((layer, None) for layer in body[1:])]
    agree(apart, samples((2, 5, 5), generator), 1, {body[0]: unfolded})


@settings(max_examples=40)
@given(data=st.data())
def test_residual_blocks_share_in_proportion(data: st.DataObject) -> None:
    def choose(*options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    generator = torch.Generator().manual_seed(choose(*range(1000)))
    chosen: dict[nn.Module, Any] = {}

    def ruled(layer: nn.Module) -> tuple[nn.Module, matrix_rules.Rule]:
        chosen[layer], oracles = RULES[choose(*RULES)](choose(*BIASES))
        return layer, oracles

    def plain(layer: nn.Module) -> tuple[nn.Module, None]:
        return layer, None

    main = [ruled(nn.Conv2d(4, 4, 3, padding=1, bias=False)), plain(nn.BatchNorm2d(4)), plain(nn.ReLU())]
    main += [ruled(nn.Conv2d(4, 4, 3, padding=1)), plain(nn.BatchNorm2d(4))]
    projected = choose(False, True)
    shortcut = [ruled(nn.Conv2d(4, 4, 1, bias=False)), plain(nn.BatchNorm2d(4))] if projected else []
    block = matrix_rules.Sum(main, shortcut)
    network = [ruled(nn.Conv2d(2, 4, 3, stride=2)), plain(nn.Tanh()), plain(block), plain(nn.ReLU())]
    network += [plain(nn.AvgPool2d(2, 1)), plain(nn.Flatten()), ruled(nn.Linear(16, 3))]
    fill(nn.Sequential(*(layer for layer, _ in network)).double().eval(), generator)
    agree(network, samples((2, 7, 7), generator), choose(0, 1, 2), chosen)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", RULES)
def test_functions_without_modules(name: str, bias: str) -> None:
    generator = torch.Generator().manual_seed(6)
    convolution, dense, last = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(36, 5), nn.Linear(5, 3, bias=False)
    body = [convolution, nn.ReLU(), nn.Flatten(), dense, nn.Tanh(), last]
    fill(nn.Sequential(*body).double(), generator)
    matrix = last.weight.detach().T

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(F.conv2d(x, convolution.weight, bias=convolution.bias, stride=2))
        return torch.tanh(F.linear(x.flatten(1), dense.weight, dense.bias)) @ matrix

    ours, oracles = RULES[name](bias)
    x = samples((2, 7, 7), generator)
    expected = matrix_rules.relevances([(layer, oracles) for layer in body], x, 1)[0]
    keys = {F.conv2d: ours, F.linear: ours, torch.matmul: ours, torch.relu: rules.PassThroughRule()}
    found, delta = InputCAV(forward, rules=keys, normalize=None).attribute(x, 1, return_convergence_delta=True)
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()
    assert (delta.abs() < 1e-8 * (1 + expected.abs().flatten(1).sum(1))).all()


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_boxes_may_differ_by_channel(padding_mode: str) -> None:
    generator = torch.Generator().manual_seed(9)
    low = torch.tensor([-3.0, -4.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    high = torch.tensor([3.5, 5.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    body = [nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding_mode), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)]
    fill(nn.Sequential(*body).double(), generator)
    network = [(layer, matrix_rules.z_box(low, high) if layer is body[0] else None) for layer in body]
    agree(network, samples((2, 5, 5), generator), 2, {body[0]: rules.ZBoxRule(low, high)})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", RULES)
def test_inputs_of_zero_leave_all_to_the_constants_or_share_it_themselves(name: str, seed: int) -> None:
    """With a batch norm folded in, the sum of the summands is exactly 0, whatever rounding makes of output - shift."""
    generator = torch.Generator().manual_seed(seed)
    body = [nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)]
    fill(nn.Sequential(*body).double().eval(), generator)
    x = torch.zeros(2, 2, dtype=torch.float64)
    for bias in BIASES:
        ours, oracles = RULES[name](bias)
        agree([(layer, oracles) for layer in body], x, 0, {nn.Linear: ours})


class _Branching(nn.Module):
    """A convolution whose output goes through a ReLU, and in one way or another past it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x)
        if self.way == "norm":
            z = self.norm(z)
        y = F.relu(z)
        if self.way in ("sum", "norm"):
            y = y - 0.5 * z
        if self.way == "view":
            y = y - 0.5 * z.view(z.shape)
        return z if self.way == "output" else self.head(y.mean(2))


@pytest.mark.parametrize("way", ["relu", "sum", "norm", "view", "output"])
def test_gamma_is_the_same_whether_or_not_only_a_relu_takes_the_output(way: str) -> None:
    torch.manual_seed(3)
    net = _Branching(way).double().eval()
    net.norm.running_mean.normal_()
    x = torch.randn(1, 2, 7, dtype=torch.float64)
    target: Any = 1
    if way == "output":  # one that is below 0
        target = tuple((net(x)[0] < 0).nonzero()[0].tolist())

    class Unaware(rules.GammaRule):
        def shares(self, summands: rules.Summands) -> Sequence[rules.Share]:
            summands.rectified = False
            return super().shares(summands)

    found, expected = (
        InputCAV(net, rules={nn.Conv1d: rule}, normalize=None).attribute(x, target, return_convergence_delta=True)
        for rule in (rules.GammaRule(0.7), Unaware(0.7))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first", ["norm", "relu"])
@pytest.mark.parametrize(
    "rule",
    [rules.GammaRule, rules.EpsilonRule, rules.AbsoluteEpsilonRule, rules.AlphaBetaRule],
    ids=lambda rule: rule.__name__,
)
def test_a_batch_norm_is_folded_for_what_goes_through_it(rule: Callable[..., rules.Rule], first: str) -> None:
    """Whatever else takes the layer's output meets the layer's rule alone, as with ``fold=False``."""
    torch.manual_seed(5)
    conv, norms = nn.Conv1d(2, 3, 3).double(), [nn.BatchNorm1d(3).double().eval() for _ in range(2)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.weight.data.normal_()
        norm.bias.data.normal_()

    def score(x: torch.Tensor, *counted: int) -> torch.Tensor:
        y = conv(x)
        if first == "norm":
            normed, other, again = norms[0](y), F.relu(y), norms[1](y)
        else:
            again, other, normed = norms[1](y), F.relu(y), norms[0](y)
        parts = [F.relu(normed), 2 * other, F.relu(again)]
        return sum(parts[index] for index in counted).mean((1, 2))

    x = torch.randn(2, 2, 8, dtype=torch.float64)

    def explain(fold: bool, *counted: int) -> tuple[torch.Tensor, torch.Tensor]:
        cav = InputCAV(score, rules={F.conv1d: rule(fold=fold)}, normalize=None)
        return cav.attribute(x, additional_forward_args=counted, return_convergence_delta=True)

    def alone(norm: nn.Module) -> torch.Tensor:
        cav = InputCAV(lambda x: F.relu(norm(conv(x))).mean((1, 2)), rules={F.conv1d: rule()}, normalize=None)
        return cav.attribute(x)

    found, delta = explain(True, 0, 1, 2)
    torch.testing.assert_close(found, alone(norms[0]) + explain(False, 1)[0] + alone(norms[1]))
    assert delta.abs().max() < 1e-12
    assert not torch.allclose(found, explain(False, 0, 1, 2)[0])


@pytest.mark.parametrize("preset", ["gamma", "epsilon_plus_flat", "pinpoint", "alpha2_beta1"])
def test_a_layer_in_front_of_a_folded_batch_norm_changes_no_other_map(preset: str) -> None:
    """It is asked for alone or among others: the same maps, which leave nothing but the constants' shares."""
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()).double().eval()
    net[3].running_mean.normal_()
    net[3].bias.data.normal_()
    model = nn.Sequential(net, nn.Flatten(), nn.Linear(16, 2)).double()
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    layers = ["0.0", "0.1", "0.2", "0.3", "0.4"]
    together, deltas = LayerCAV(model, layers, rules=preset).attribute(x, 1, return_convergence_delta=True)
    for layer, found, delta in zip(layers, together, deltas, strict=True):
        alone, its_delta = LayerCAV(model, layer, rules=preset).attribute(x, 1, return_convergence_delta=True)
        torch.testing.assert_close(found, alone)
        torch.testing.assert_close(delta, its_delta, rtol=0, atol=1e-12)
        assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("rule", [rules.GammaRule(0.7), rules.ZPlusRule(), rules.AlphaBetaRule()], ids=repr)
@pytest.mark.parametrize("activation", [F.relu, torch.tanh], ids=["relu", "tanh"])
def test_a_large_linear_layer_is_ruled_in_parts(
    rule: rules.Rule, activation: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows at a time, also where the delta needs the backward pass to be differentiable."""
    torch.manual_seed(6)
    first, last = nn.Linear(5, 7).double(), nn.Linear(7, 2).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)

    def explained() -> Any:
        cav = InputCAV(lambda x: last(activation(first(x))).mean(1), rules={F.linear: rule}, normalize=None)
        return cav.attribute(x, 1, return_convergence_delta=True)

    at_once = explained()
    applied = []
    monkeypatch.setattr(changed_weights, "_WEIGHTS_AT_ONCE", 12)
    changed_rows = changed_weights._changed_rows
    monkeypatch.setattr(
        changed_weights, "_changed_rows", lambda *weights: applied.append(weights) or changed_rows(*weights)
    )
    torch.testing.assert_close(explained(), at_once)
    assert len(applied) >= 4, "each layer, forward and backward"


BELOW_ZERO: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number added": lambda x: F.relu(x) + -0.7,
    "a constant added": lambda x: F.relu(x) + torch.full_like(x.detach(), -0.7),
    "alpha": lambda x: torch.add(F.relu(x), F.relu(-x), alpha=-1),
    "a factor": lambda x: F.relu(x) * -2,
    "a constant factor": lambda x: F.relu(x) * torch.full_like(x.detach(), -2),
    "negated": lambda x: -F.relu(x),
    "differences": lambda x: F.relu(x).diff(dim=-1),
    "joined with a constant": lambda x: torch.cat([F.relu(x), torch.full_like(x.detach(), -0.7)], -1),
    "written into": lambda x: F.relu(x).sub_(0.7),
    "resampled": lambda x: F.interpolate(F.relu(x)[:, None, None], (1, 5), mode="bicubic")[:, 0, 0],
}


@pytest.mark.parametrize("made", BELOW_ZERO.values(), ids=BELOW_ZERO)
def test_values_that_may_be_below_zero_are_shared_by_sign(made: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What is known to be nonnegative takes a shorter way, which would be wrong for these."""
    x = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    y = made(x)
    assert bool((y < 0).any()) or made is BELOW_ZERO["resampled"]
    weight = torch.randn(1, y.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    last = nn.Identity()
    cav = LayerCAV(lambda x: F.linear(last(made(x)), weight), last, rules={F.linear: rules.ZPlusRule()}, normalize=None)
    positive = (y * weight).clamp(min=0)
    assert bool((positive.sum(1) > 0).all()), "a sample without positive summands shares nothing"
    expected = positive / positive.sum(1, keepdim=True) * (y @ weight.T)
    torch.testing.assert_close(cav.attribute(x, 0), expected)


@pytest.mark.parametrize(
    "rule", [rules.GammaRule(0.7), rules.EpsilonRule(0.1), rules.AbsoluteEpsilonRule(), rules.ZPlusRule()], ids=repr
)
def test_a_bias_behind_a_product_is_a_bias(rule: rules.Rule) -> None:
    """Whatever the product and the sum are called, and in the memory of the product, too."""
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    x, chosen = torch.randn(4, 4, dtype=torch.float64), dict.fromkeys([F.linear, torch.matmul, torch.einsum], rule)
    rewrites: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x @ weight.T + bias,
        lambda x: bias + F.linear(x, weight),
        lambda x: torch.sub(x @ weight.T, -bias),
        lambda x: torch.add(bias * 3, x @ (weight.T / 2), alpha=2) - bias * 2,
        lambda x: (x @ weight.T).add_(bias),
        lambda x: torch.einsum("ni,oi->no", x, weight) + bias / 2 + bias / 2,
        lambda x: bias - x @ -weight.T,
    ]

    def explained(function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        cav = InputCAV(lambda x: F.relu(function(x)) ** 2, rules=chosen, normalize=None)
        return cav.attribute(x, 1, return_convergence_delta=True)

    expected = explained(lambda x: F.linear(x, weight, bias))
    plain = InputCAV(lambda x: F.relu(F.linear(x, weight, bias)) ** 2, normalize=None).attribute(x, 1)
    assert not torch.allclose(expected[0], plain)
    for rewrite in rewrites:
        torch.testing.assert_close(explained(rewrite), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "rule",
    [rules.GammaRule, rules.EpsilonRule, rules.AbsoluteEpsilonRule, rules.AlphaBetaRule],
    ids=lambda rule: rule.__name__,
)
def test_a_batch_norm_may_be_written_by_hand(rule: Callable[..., rules.Rule]) -> None:
    """Folded in as a scale and a shift, also where a layer between the operations is explained."""
    torch.manual_seed(7)
    conv, norm = nn.Conv1d(2, 3, 3).double(), nn.BatchNorm1d(3).double().eval()
    norm.running_mean.normal_()
    norm.weight.data.normal_()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None]
    shift = norm.bias.detach()[:, None] - norm.running_mean[:, None] * scale

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scaled = conv, nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.scaled(self.conv(x) * scale) + shift).mean(2)

    x, chosen = torch.randn(2, 2, 8, dtype=torch.float64), {F.conv1d: rule()}
    expected = InputCAV(lambda x: F.relu(norm(conv(x))).mean(2), rules=chosen, normalize=None).attribute(x, 1)
    found, delta = InputCAV(Scaled(), rules=chosen, normalize=None).attribute(x, 1, return_convergence_delta=True)
    torch.testing.assert_close(found, expected)
    assert delta.abs().max() < 1e-12
    net = Scaled()
    (at_scale,), (its_delta,) = LayerCAV(net, ["scaled"], rules=chosen, normalize=None).attribute(
        x, 1, return_convergence_delta=True
    )
    torch.testing.assert_close(at_scale, LayerCAV(net, "scaled", normalize=None).attribute(x, 1))
    assert its_delta.abs().max() < 1e-12


@pytest.mark.parametrize(
    "rule", [rules.GammaRule(0.7), rules.EpsilonRule(0.1), rules.AbsoluteEpsilonRule(), rules.AlphaBetaRule()], ids=repr
)
def test_a_mask_behind_a_layer_is_no_bias_of_infinity(rule: rules.Rule) -> None:
    torch.manual_seed(9)
    layer, mask = nn.Linear(3, 4).double(), torch.tensor([0.0, -torch.inf, 1.0, 0.0], dtype=torch.float64)
    score = lambda x: torch.softmax(layer(x) + mask, -1)  # noqa: E731
    chosen = {F.linear: rule, torch.softmax: rules.AttentionRule("all")}
    x = torch.randn(2, 3, dtype=torch.float64)
    found, delta = InputCAV(score, rules=chosen, normalize=None).attribute(x, 2, return_convergence_delta=True)
    assert found.isfinite().all()
    assert delta.isfinite().all()
    assert found.abs().sum() > 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_absolute_epsilon_does_not_depend_on_the_scale(scale: float) -> None:
    """What passes is ``|y| / (|y| + epsilon sum |z|)``: 2 of 3, 1 of 2, and nothing of an output of 0."""
    x = scale * torch.ones(1, 2, dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0], [3.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    epsilon = 0.5
    cav = InputCAV(lambda x: F.linear(x, weight), rules={F.linear: rules.AbsoluteEpsilonRule(epsilon)}, normalize=None)
    for target, passed in ((0, 2 / 3), (1, 1 / 2), (2, 0)):
        found, delta = cav.attribute(x, target, return_convergence_delta=True)
        score = scale * float(weight[target].sum())
        torch.testing.assert_close(float(found.sum()), score * passed)
        assert abs(float(delta)) < 1e-12, "what epsilon takes is the share of the constants"


def test_the_output_of_a_layer_is_kept_only_if_nothing_is_folded_in() -> None:
    """Of a convolution before a batch norm, nothing needs the output. If more takes the output, it is computed anew."""

    class Net(nn.Module):
        def __init__(self, with_second: bool) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.with_second = with_second
            self.is_freed = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            normed = self.norm(y)
            if self.with_second:
                return (normed + 2 * y).flatten(1).sum(1)
            kept = StorageWeakRef(y.untyped_storage())
            del y
            self.is_freed = kept.expired()
            return normed.flatten(1).sum(1)

    torch.manual_seed(0)
    one, two = Net(False).double().eval(), Net(True).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    gamma = {F.conv2d: rules.GammaRule(0.5)}
    InputCAV(one, rules=gamma).attribute(x)
    assert one.is_freed
    found, delta = InputCAV(two, rules=gamma, normalize=None).attribute(x, return_convergence_delta=True)
    assert delta.abs().max() < 1e-9
    torch.testing.assert_close(InputCAV(two, rules=gamma, normalize=None).attribute(x), found, rtol=1e-10, atol=1e-12)
    # The contributions that come through the norm and those that do not are shared out separately.
    pair = InputCAV(lambda x: two.norm(two.conv(x)).flatten(1).sum(1), rules=gamma, normalize=None)
    rest = InputCAV(lambda x: 2 * two.conv(x).flatten(1).sum(1), rules=gamma, normalize=None)
    torch.testing.assert_close(pair.attribute(x) + rest.attribute(x), found, rtol=1e-9, atol=1e-11)


def test_a_share_by_a_ratio_is_the_share_by_its_factor() -> None:
    class ByFactor(rules.AffineRule):
        def shares(self, summands: rules.Summands) -> list[rules.Share]:
            absolute = summands.absolute()
            inverse = rules.inverse_of(absolute.detach() + summands.constant.abs())
            return [rules.Share(absolute, inverse, 0.5), rules.Share(None, inverse)]

    class ByRatio(rules.AffineRule):
        def shares(self, summands: rules.Summands) -> list[rules.Share]:
            absolute = summands.absolute()
            sums = absolute.detach() + summands.constant.abs()
            return [
                rules.Share(absolute, summands.ratio(sums.clone()), 0.5, is_ratio=True),
                rules.Share(None, summands.ratio(sums), is_ratio=True),
            ]

    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(3, 4, dtype=torch.float64)
    x[0] = 0.0  # Without a bias, all sums of this sample are 0.
    for model in (net, lambda x: F.linear(x, net.weight)):
        for bias in ("share", "absorb"):
            cavs = [InputCAV(model, rules={F.linear: kind(bias=bias)}, normalize=None) for kind in (ByFactor, ByRatio)]
            torch.testing.assert_close(*(cav.attribute(x, 1) for cav in cavs))
            by_factor, by_ratio = (cav.attribute(x, 1, return_convergence_delta=True) for cav in cavs)
            torch.testing.assert_close(by_factor, by_ratio)
            assert by_ratio[0].isfinite().all()
