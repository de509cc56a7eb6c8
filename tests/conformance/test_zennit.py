"""zennit's numbers, where its rules are ours: contributions at the input, in float64.

Which of our options is which of zennit's was found by numbers, and holds to 1e-11 in the oracle, too:

- ``Epsilon``, ``Gamma``, ``AlphaBeta``, ``ZPlus`` and ``WSquare`` take the bias for one more input: ``bias="share"``.
  (In ``AlphaBeta`` and ``ZPlus`` a positive bias is in the positive sum, a negative one in the negative sum.) With
  ``zero_params=["bias"]`` they are ``bias="absorb"``, except that ``Gamma`` then still goes by the sign of the output
  *with* its bias, and ours by the sign of the sum that it divides by.
- ``ZBox`` gives the bias no share, with or without ``zero_params``. ``Flat`` never does: ``bias="absorb"``.
- ``Epsilon`` with ``Stabilizer(epsilon, norm_scale=True)`` is ``relative=True``.
- Its ``SequentialMergeBatchNorm`` leaves ``eps`` in the batch norm that it empties, which changes the network by
  ``eps / 2`` of its values; so ``eps`` is next to nothing here.

Its stabilizers are passed so small that they do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, presets, rules
from tests.support import matrix_rules

pytest.importorskip("zennit", reason="zennit is not installed (pip install zennit); its numbers are compared with ours")
from zennit import canonizers, composites
from zennit import layer as zennit_layers
from zennit import rules as zennit_rules
from zennit.core import Stabilizer

TINY = 1e-15
TARGET = 1
NO_BIAS = {"zero_params": ["bias"]}

#: zennit's rule, ours, and the oracle's.
ALIKE: dict[str, tuple[Callable[[], Any], Callable[[], Any], matrix_rules.Rule]] = {
    "epsilon": (
        lambda: zennit_rules.Epsilon(0.1),
        lambda: rules.EpsilonRule(0.1),
        matrix_rules.epsilon(0.1),
    ),
    "epsilon, absorb": (
        lambda: zennit_rules.Epsilon(0.1, **NO_BIAS),
        lambda: rules.EpsilonRule(0.1, bias="absorb"),
        matrix_rules.epsilon(0.1, bias="absorb"),
    ),
    "relative epsilon": (
        lambda: zennit_rules.Epsilon(Stabilizer(0.25, norm_scale=True)),
        lambda: rules.EpsilonRule(0.25, relative=True),
        matrix_rules.epsilon(0.25, relative=True),
    ),
    "relative epsilon, absorb": (
        lambda: zennit_rules.Epsilon(Stabilizer(0.25, norm_scale=True), **NO_BIAS),
        lambda: rules.EpsilonRule(0.25, relative=True, bias="absorb"),
        matrix_rules.epsilon(0.25, relative=True, bias="absorb"),
    ),
    "gamma": (
        lambda: zennit_rules.Gamma(0.25, TINY),
        lambda: rules.GammaRule(0.25),
        matrix_rules.gamma(0.25),
    ),
    "z+": (
        lambda: zennit_rules.ZPlus(TINY),
        lambda: rules.ZPlusRule(),
        matrix_rules.z_plus(),
    ),
    "z+, absorb": (
        lambda: zennit_rules.ZPlus(TINY, **NO_BIAS),
        lambda: rules.ZPlusRule(bias="absorb"),
        matrix_rules.z_plus(bias="absorb"),
    ),
    "alpha-beta": (
        lambda: zennit_rules.AlphaBeta(2, 1, TINY),
        lambda: rules.AlphaBetaRule(2.0, 1.0),
        matrix_rules.alpha_beta(2.0, 1.0),
    ),
    "alpha-beta, absorb": (
        lambda: zennit_rules.AlphaBeta(2, 1, TINY, **NO_BIAS),
        lambda: rules.AlphaBetaRule(2.0, 1.0, bias="absorb"),
        matrix_rules.alpha_beta(2.0, 1.0, bias="absorb"),
    ),
    "z-box": (
        lambda: zennit_rules.ZBox(-4.0, 5.0, TINY),
        lambda: rules.ZBoxRule(-4.0, 5.0),
        matrix_rules.z_box(-4.0, 5.0),
    ),
    "w-square": (
        lambda: zennit_rules.WSquare(TINY),
        lambda: rules.WSquareRule(bias="share"),
        matrix_rules.w_square(),
    ),
    "w-square, absorb": (
        lambda: zennit_rules.WSquare(TINY, **NO_BIAS),
        lambda: rules.WSquareRule(),
        matrix_rules.w_square(bias="absorb"),
    ),
    "flat": (
        lambda: zennit_rules.Flat(TINY),
        lambda: rules.FlatRule(),
        matrix_rules.flat(bias="absorb"),
    ),
}

MIXED = {
    "box, gamma, epsilon": ["z-box", "gamma", "epsilon", "epsilon"],
    "flat, z+, epsilon": ["flat", "z+", "epsilon", "epsilon"],
    "flat, alpha-beta, relative epsilon": [
        "flat",
        "alpha-beta, absorb",
        "relative epsilon",
        "relative epsilon, absorb",
    ],
    "w-square, z+, gamma": ["w-square", "z+, absorb", "gamma", "epsilon, absorb"],
    "w-square, flat, box": ["w-square, absorb", "flat", "z-box", "alpha-beta"],
}


def made(net: nn.Sequential, seed: int = 3) -> nn.Sequential:
    """In float64, with biases and statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-14
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=torch.float64))
                module.running_var.copy_(
                    torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 0.5
                )
    return net


def convolutional(padding_mode: str = "zeros") -> nn.Sequential:
    return made(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, padding_mode=padding_mode),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2, padding_mode=padding_mode),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )
    )


AFFINE = ["0", "3", "6", "8"]


def pictures() -> torch.Tensor:
    """Of both signs, within the boxes."""
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).clamp(-3, 3)


def by_zennit(composite: Any, net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Contributions at the input to the score of the target, in its units."""
    x = x.clone().requires_grad_()
    with composite.context(net) as modified:
        y = modified(x)
        (found,) = torch.autograd.grad(y, x, torch.where(torch.arange(y.shape[1]) == TARGET, y.detach(), 0))
    return found


def by_us(net: nn.Module, x: torch.Tensor, chosen: Mapping[Any, Any]) -> torch.Tensor:
    found = InputCAV(net, rules={**chosen, nn.ReLU: rules.PassThroughRule()}, normalize=None).attribute(x, TARGET)
    assert isinstance(found, torch.Tensor)
    return found


def by_name(net: nn.Sequential, named: Mapping[str, Any]) -> Any:
    relus = {name: zennit_rules.Pass() for name, layer in net.named_children() if isinstance(layer, nn.ReLU)}
    return composites.NameMapComposite([([name], rule) for name, rule in {**relus, **named}.items()])


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the sample that deviates most."""
    difference, scale = ((t.abs().flatten(1).amax(1)) for t in (found - expected, expected))
    return float((difference / scale).max())


@pytest.mark.parametrize("name", ALIKE)
def test_one_rule_on_all_layers(name: str) -> None:
    net, x = convolutional(), pictures()
    zennits, ours, oracles = ALIKE[name]
    expected = by_zennit(by_name(net, {layer: zennits() for layer in AFFINE}), net, x)
    # The oracle of the other tests first: that it is right does not depend on us.
    assert deviation(matrix_rules.relevances([(layer, oracles) for layer in net], x, TARGET)[0], expected) < 1e-9
    assert deviation(by_us(net, x, {nn.Conv2d: ours(), nn.Linear: ours()}), expected) < 1e-6


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("names", MIXED.values(), ids=MIXED)
def test_rules_mixed_by_layer(names: list[str], padding_mode: str) -> None:
    net, x = convolutional(padding_mode), pictures()
    mixed = dict(zip(AFFINE, names, strict=True))
    expected = by_zennit(by_name(net, {layer: ALIKE[name][0]() for layer, name in mixed.items()}), net, x)
    oracles = {layer: ALIKE[name][2] for layer, name in mixed.items()}
    network = [(layer, oracles.get(name)) for name, layer in net.named_children()]
    assert deviation(matrix_rules.relevances(network, x, TARGET)[0], expected) < 1e-9
    assert deviation(by_us(net, x, {layer: ALIKE[name][1]() for layer, name in mixed.items()}), expected) < 1e-6


@pytest.mark.parametrize(
    ("theirs", "first", "convolutions"),
    [
        (composites.EpsilonPlusFlat, lambda: rules.FlatRule(), lambda: rules.ZPlusRule()),
        (composites.EpsilonAlpha2Beta1Flat, lambda: rules.FlatRule(), lambda: rules.AlphaBetaRule(2, 1)),
        (composites.EpsilonGammaBox, lambda: rules.ZBoxRule(-4.0, 5.0), lambda: rules.GammaRule(0.25)),
    ],
)
def test_zennits_composites(
    theirs: Callable[..., Any], first: Callable[[], Any], convolutions: Callable[[], Any]
) -> None:
    net, x = convolutional(), pictures()
    box = {"low": torch.tensor(-4.0), "high": torch.tensor(5.0)} if theirs is composites.EpsilonGammaBox else {}
    expected = by_zennit(theirs(epsilon=2**-10, stabilizer=TINY, **box), net, x)
    ours = {"0": first(), nn.Conv2d: convolutions(), nn.Linear: rules.EpsilonRule(2**-10)}
    assert deviation(by_us(net, x, ours), expected) < 1e-6
    preset = {
        composites.EpsilonPlusFlat: presets.epsilon_plus_flat(2**-10),
        composites.EpsilonAlpha2Beta1Flat: presets.alpha2_beta1_flat(2**-10),
        composites.EpsilonGammaBox: presets.epsilon_gamma_box(-4.0, 5.0, epsilon=2**-10),
    }[theirs]
    assert deviation(by_us(net, x, preset), expected) < 1e-6


def test_gamma_without_bias_where_the_bias_leaves_the_sign_of_the_output() -> None:
    net, x = convolutional(), pictures()
    with torch.no_grad():
        score = net(x)[:, TARGET]
        net[8].bias[TARGET] = score.abs().min() / 2  # type: ignore[index]
        assert ((net(x)[:, TARGET] - net[8].bias[TARGET]) * net(x)[:, TARGET] > 0).all()  # type: ignore[index]
    last = zennit_rules.Gamma(0.25, TINY, **NO_BIAS)
    expected = by_zennit(by_name(net, {**{name: zennit_rules.Epsilon(2**-10) for name in AFFINE}, "8": last}), net, x)
    ours = {"8": rules.GammaRule(0.25, bias="absorb"), nn.Conv2d: rules.EpsilonRule(2**-10)}
    assert deviation(by_us(net, x, {**ours, nn.Linear: rules.EpsilonRule(2**-10)}), expected) < 1e-6


@pytest.mark.parametrize("name", ALIKE)
def test_batch_norm_is_merged_into_the_convolution_before_it(name: str) -> None:
    net = made(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 3),
        )
    )
    x = pictures()
    zennits, ours, _ = ALIKE[name]
    layer_map = [(nn.ReLU, zennit_rules.Pass()), ((nn.Conv2d, nn.Linear), zennits())]
    merging = composites.LayerMapComposite(layer_map, canonizers=[canonizers.SequentialMergeBatchNorm()])
    expected = by_zennit(merging, net, x)
    assert deviation(by_us(net, x, {nn.Conv2d: ours(), nn.Linear: ours()}), expected) < 1e-6


class Block(nn.Module):
    """A residual block whose addition is a module for zennit to find."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.sum = zennit_layers.Sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(torch.stack([x, self.second(self.relu(self.first(x)))], dim=-1))


def test_residual_block_and_average_pooling_share_in_proportion() -> None:
    net = made(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Tanh(), Block(), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
        )
    )
    x = pictures()
    layer_map = [
        ((nn.ReLU, nn.Tanh), zennit_rules.Pass()),
        ((zennit_layers.Sum, nn.AdaptiveAvgPool2d), zennit_rules.Norm(TINY)),
        (nn.Conv2d, zennit_rules.Gamma(0.25, TINY)),
        (nn.Linear, zennit_rules.Epsilon(0.1)),
    ]
    expected = by_zennit(composites.LayerMapComposite(layer_map), net, x)
    ours = {nn.Conv2d: rules.GammaRule(0.25), nn.Linear: rules.EpsilonRule(0.1)}
    assert deviation(by_us(net, x, ours), expected) < 1e-6
