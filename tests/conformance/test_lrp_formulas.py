"""The rules of layer-wise relevance propagation, against their formulas in plain Python, one summand after the other.

The oracles of ``tests/rules`` are matrices. Here nothing is a matrix and nothing is differentiated: each output is a
list of summands ``(input, x, w)`` and a bias, and each rule says which part of the relevance of the output each input
gets. The ideas of these cases are those of the tests of zennit: small dense layers and convolutions, each rule alone,
networks of two layers, and batch norm that is merged into the layer before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, rules
from tests.support.networks import fixed

Place = tuple[int, ...]


class Output(NamedTuple):
    """One output of a layer."""

    place: Place
    summands: list[tuple[Place, float, float]]
    bias: float

    @property
    def value(self) -> float:
        return sum(x * w for _, x, w in self.summands) + self.bias


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Iterator[Output]:
    for j, row in enumerate(weight.tolist()):
        summands = [((i,), float(x[i]), float(w)) for i, w in enumerate(row)]
        yield Output((j,), summands, bias[j].item())


def convolution(padding: int, stride: int) -> Callable[..., Iterator[Output]]:
    def outputs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Iterator[Output]:
        channels, height, width = x.shape
        filters, _, rows, columns = weight.shape
        for f, top, left in itertools.product(
            range(filters),
            range(0, height + 2 * padding - rows + 1, stride),
            range(0, width + 2 * padding - columns + 1, stride),
        ):
            summands = []
            for c, dy, dx in itertools.product(range(channels), range(rows), range(columns)):
                row, column = top + dy - padding, left + dx - padding
                if 0 <= row < height and 0 <= column < width:
                    summands.append(((c, row, column), float(x[c, row, column]), float(weight[f, c, dy, dx])))
            yield Output((f, top // stride, left // stride), summands, float(bias[f]))

    return outputs


# The rules: which part of the relevance of an output each of its inputs gets ------------------------------------------

Formula = Callable[[Output], list[float]]


def positive(value: float) -> float:
    return max(value, 0.0)


def negative(value: float) -> float:
    return min(value, 0.0)


def over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def epsilon(epsilon: float, with_bias: bool = True) -> Formula:
    def parts(output: Output) -> list[float]:
        total = output.value - (0.0 if with_bias else output.bias)
        return [x * w / (total + math.copysign(epsilon, total)) for _, x, w in output.summands]

    return parts


def gamma(gamma: float) -> Formula:
    def parts(output: Output) -> list[float]:
        chosen = positive if output.value >= 0 else negative
        total = output.value + gamma * (sum(chosen(x * w) for _, x, w in output.summands) + chosen(output.bias))
        return [(x * w + gamma * chosen(x * w)) / total for _, x, w in output.summands]

    return parts


def alpha_beta(alpha: float, beta: float, with_bias: bool = True) -> Formula:
    def parts(output: Output) -> list[float]:
        bias = output.bias if with_bias else 0.0
        above = sum(positive(x * w) for _, x, w in output.summands) + positive(bias)
        below = sum(negative(x * w) for _, x, w in output.summands) + negative(bias)
        return [
            alpha * over(positive(x * w), above) - beta * over(negative(x * w), below) for _, x, w in output.summands
        ]

    return parts


def flat(with_bias: bool) -> Formula:
    return lambda output: [1 / (len(output.summands) + with_bias)] * len(output.summands)


def w_square(with_bias: bool) -> Formula:
    def parts(output: Output) -> list[float]:
        total = sum(w * w for _, _, w in output.summands) + with_bias * output.bias**2
        return [w * w / total for _, _, w in output.summands]

    return parts


def z_box(low: float, high: float) -> Formula:
    def parts(output: Output) -> list[float]:
        shares = [x * w - low * positive(w) - high * negative(w) for _, x, w in output.summands]
        return [share / sum(shares) for share in shares]

    return parts


RULES: dict[str, tuple[Callable[[], Any], Formula]] = {
    "epsilon": (lambda: rules.EpsilonRule(0.1), epsilon(0.1)),
    "epsilon without bias": (lambda: rules.EpsilonRule(0.1, bias="absorb"), epsilon(0.1, False)),
    "LRP-0": (lambda: rules.ContributionRule(), epsilon(0.0)),
    "gamma": (lambda: rules.GammaRule(0.25), gamma(0.25)),
    "gamma, large": (lambda: rules.GammaRule(100.0), gamma(100.0)),
    "z+": (lambda: rules.ZPlusRule(), alpha_beta(1.0, 0.0)),
    "z+ without bias": (lambda: rules.ZPlusRule(bias="absorb"), alpha_beta(1.0, 0.0, False)),
    "alpha 2 beta 1": (lambda: rules.AlphaBetaRule(2.0, 1.0), alpha_beta(2.0, 1.0)),
    "alpha 1.5 beta 0.5": (lambda: rules.AlphaBetaRule(1.5, 0.5, bias="absorb"), alpha_beta(1.5, 0.5, False)),
    "flat": (lambda: rules.FlatRule(), flat(False)),
    "flat with bias": (lambda: rules.FlatRule(bias="share"), flat(True)),
    "w-square": (lambda: rules.WSquareRule(), w_square(False)),
    "w-square with bias": (lambda: rules.WSquareRule(bias="share"), w_square(True)),
    "z-box": (lambda: rules.ZBoxRule(-3.0, 4.0), z_box(-3.0, 4.0)),
}


def shared_out(
    relevance: torch.Tensor, outputs: Iterator[Output], formula: Formula, like: torch.Tensor
) -> torch.Tensor:
    """The relevance of the inputs of a layer, from the relevance of its outputs."""
    found = torch.zeros_like(like)
    for output in outputs:
        for (place, _, _), part in zip(output.summands, formula(output), strict=True):
            found[place] += part * relevance[output.place]
    return found


Layer = tuple[nn.Module, tuple[int, ...], Callable[..., Iterator[Output]]]
LAYERS: dict[str, Callable[[], Layer]] = {
    "dense": lambda: (nn.Linear(4, 3), (4,), dense),
    "convolution": lambda: (nn.Conv2d(2, 3, 2), (2, 3, 3), convolution(0, 1)),
    "padded convolution": lambda: (nn.Conv2d(2, 2, 3, stride=2, padding=1), (2, 4, 3), convolution(1, 2)),
}


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    layer = layer.double()
    with torch.no_grad():
        layer.weight.copy_(fixed(*layer.weight.shape, seed=seed + 3))
        layer.bias.copy_(fixed(*layer.bias.shape, seed=seed + 4))
    return layer


@pytest.mark.parametrize("with_zeros", [False, True], ids=["", "with zeros"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", RULES)
def test_one_layer(name: str, kind: str, with_zeros: bool) -> None:
    made, shape, outputs = LAYERS[kind]()
    layer, x = filled(made), fixed(*shape, seed=5)
    if with_zeros:
        x.view(-1)[::3] = 0.0
    ours, formula = RULES[name]
    with torch.no_grad():
        values = layer(x[None])[0]
    for target in (0, values.numel() - 1):
        relevance = torch.zeros_like(values)
        relevance.view(-1)[target] = values.view(-1)[target]
        expected = shared_out(relevance, outputs(x, layer.weight.detach(), layer.bias.detach()), formula, x)
        cav = InputCAV(lambda x, layer=layer: layer(x).flatten(1), rules={type(layer): ours()}, normalize=None)
        torch.testing.assert_close(cav.attribute(x[None], target)[0], expected, rtol=1e-9, atol=1e-9)


def test_the_numbers_of_one_neuron() -> None:
    """By hand: x = (1, 2, -1), w = (2, -1, 1) and b = 3, so the summands are 2, -2, -1 and 3, and y = 2."""
    x, weight, bias = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[2.0, -1.0, 1.0]]), torch.tensor([3.0])
    expected = {
        "LRP-0": [2.0, -2.0, -1.0],  # the bias keeps 3
        "z+": [2 * 2 / 5, 0.0, 0.0],  # positive: 2 and the bias 3
        "z+ without bias": [2.0, 0.0, 0.0],
        "alpha 2 beta 1": [2 * 2 * 2 / 5, -2 * 2 / 3, -2 * 1 / 3],
        "flat": [2 / 3, 2 / 3, 2 / 3],
        "flat with bias": [0.5, 0.5, 0.5],
        "w-square": [2 * 4 / 6, 2 * 1 / 6, 2 * 1 / 6],
        "w-square with bias": [2 * 4 / 15, 2 * 1 / 15, 2 * 1 / 15],
    }
    for name, numbers in expected.items():
        chosen = {nn.functional.linear: RULES[name][0]()}
        cav = InputCAV(lambda x: nn.functional.linear(x, weight, bias), rules=chosen, normalize=None)
        torch.testing.assert_close(cav.attribute(x, 0)[0], torch.tensor(numbers), rtol=1e-6, atol=1e-6)


def test_flat_gives_two_inputs_a_half_each_beside_a_bias() -> None:
    layer = nn.Linear(2, 1)
    found = InputCAV(layer, rules={nn.Linear: rules.FlatRule()}).attribute(torch.ones(1, 2), 0)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5]]))
    shared = InputCAV(layer, rules={nn.Linear: rules.FlatRule(bias="share")}).attribute(torch.ones(1, 2), 0)
    torch.testing.assert_close(shared, torch.tensor([[1 / 3, 1 / 3]]))


# Two layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize(
    ("first", "last"), [("z-box", "epsilon"), ("flat", "alpha 2 beta 1"), ("w-square", "gamma"), ("gamma", "z+")]
)
def test_two_layers_with_a_relu_that_passes_on(first: str, last: str, inplace: bool) -> None:
    """A ReLU passes relevance on. Where it gives 0 there is none, because these last rules give none there."""
    convolved, shape, outputs = LAYERS["convolution"]()
    conv, x = filled(convolved), fixed(*shape, seed=6)
    with torch.no_grad():
        before = conv(x[None])[0]
        hidden = before.relu().flatten()
    head = filled(nn.Linear(len(hidden), 2), seed=9)
    with torch.no_grad():
        relevance = head(hidden) * torch.tensor([0.0, 1.0], dtype=x.dtype)
    ours, formula = RULES[last]
    at_hidden = shared_out(relevance, dense(hidden, head.weight.detach(), head.bias.detach()), formula, hidden)
    ours_first, formula_first = RULES[first]
    expected = shared_out(
        at_hidden.reshape(before.shape), outputs(x, conv.weight.detach(), conv.bias.detach()), formula_first, x
    )
    if first == "gamma":
        # Behind a ReLU only outputs above 0 have relevance.
        assert bool((at_hidden.reshape(before.shape)[before < 0] == 0).all())
    net = nn.Sequential(conv, nn.ReLU(inplace), nn.Flatten(), head)
    cav = InputCAV(net, rules={nn.Conv2d: ours_first(), nn.Linear: ours()}, normalize=None)
    torch.testing.assert_close(cav.attribute(x[None], 1)[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_batch_norm_is_merged_into_the_layer_before(kind: str, name: str) -> None:
    """``w' = s w`` and ``b' = s (b - mean) + shift`` with ``s = scale / sqrt(variance + eps)``."""
    made, shape, outputs = LAYERS[kind]()
    layer, x = filled(made), fixed(*shape, seed=7)
    norm = (nn.BatchNorm1d if kind == "dense" else nn.BatchNorm2d)(3).double().eval()
    with torch.no_grad():
        norm.weight.copy_(fixed(3, seed=21))
        norm.bias.copy_(fixed(3, seed=22))
        norm.running_mean.copy_(fixed(3, seed=23))
        norm.running_var.copy_(fixed(3, seed=24).abs() + 0.5)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        bias = scale * (layer.bias - norm.running_mean) + norm.bias
        net = nn.Sequential(layer, norm)
        values = net(x[None])[0]
    relevance = torch.zeros_like(values)
    relevance.view(-1)[1] = values.view(-1)[1]
    ours, formula = RULES[name]
    expected = shared_out(relevance, outputs(x, weight, bias), formula, x)
    cav = InputCAV(lambda x: net(x).flatten(1), rules={type(layer): ours()}, normalize=None)
    torch.testing.assert_close(cav.attribute(x[None], 1)[0], expected, rtol=1e-8, atol=1e-9)


# The rules of other operations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, nn.functional.gelu, nn.functional.elu])
def test_pass_gives_each_input_the_relevance_of_its_output(function: Callable[..., torch.Tensor]) -> None:
    """Zennit's ``Pass``: relevance of inputs is relevance of outputs, whatever the slope is."""
    x, weight = fixed(2, 4, seed=8), fixed(4, seed=9)
    found = InputCAV(
        lambda x: (function(x) * weight).sum(1), rules={function: rules.PassThroughRule()}, normalize=None
    ).attribute(x)
    torch.testing.assert_close(found, function(x) * weight)


def test_norm_shares_in_proportion_to_the_summands() -> None:
    """Zennit's ``Norm`` for sums and average pooling: ``R_i = x_i / sum x R``."""
    x = fixed(1, 2, 4, seed=10)
    with torch.no_grad():
        pooled = nn.functional.avg_pool1d(x, 2)
    expected = x.clone()
    for channel, step in itertools.product(range(2), range(2)):
        window = x[0, channel, 2 * step : 2 * step + 2]
        expected[0, channel, 2 * step : 2 * step + 2] = window / window.sum() * pooled[0, channel, step]
    found = InputCAV(lambda x: nn.functional.avg_pool1d(x, 2).sum((1, 2)), normalize=None).attribute(x)
    torch.testing.assert_close(found, expected)
    first, second = fixed(1, 3, seed=11), fixed(1, 3, seed=12)
    parts = InputCAV(lambda a, b: torch.add(a, b).sum(1), normalize=None).attribute((first, second))
    for part, own in zip(parts, (first, second), strict=True):
        torch.testing.assert_close(part, own)  # own / (first + second) of the score first + second
