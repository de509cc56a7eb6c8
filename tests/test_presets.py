"""The presets: what they choose, how they print and change, and the two for transformers against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from captum_cav import InputCAV, LayerCAV, presets, rules
from captum_cav.errors import CAVError
from tests.support.networks import fixed

Halve = Callable[[torch.Tensor, torch.Tensor, Callable[..., torch.Tensor]], torch.Tensor]
EPSILON = 1e-6


def filled(net: nn.Module) -> nn.Module:
    """In float64, with biases and statistics that matter."""
    generator = torch.Generator().manual_seed(3)
    net = net.double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.3
            parameter.copy_(scale * values + ("norm" in name and name.endswith("weight")))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for statistic in (module.running_mean, module.running_var):
                    statistic.copy_(torch.rand(statistic.shape, generator=generator, dtype=torch.float64) + 0.5)
    return net


# Networks ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        return self.relu(y)


class ConvNet(nn.Module):
    """Convolutions with batch norm, a residual block, a max pooling and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.block(self.stem(x))).flatten(1))


class Encoder(nn.Module):
    """Torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Attention(nn.Module):
    """Self-attention of several heads by torch's function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


class GatedMLP(nn.Module):
    """SiLU(x W) * (x V)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(width, hidden, bias=False),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PreNorm(nn.Module):
    """A block of a transformer, normalised before attention and MLP."""

    def __init__(self, width: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 2)
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Embeddings, a block with GELU and one with a gate, the mean of the tokens, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([PreNorm(8, MLP(8, 12)), PreNorm(8, GatedMLP(8, 10))])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class LSTM(nn.Module):
    """Two layers, the last step's state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


SHAPES = {ConvNet: (3, 10, 10), Encoder: (5, 3), Transformer: (5, 3), LSTM: (4, 3)}
every_network = pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)


# Presets as objects ------------------------------------------------------------------------------------------------


def boxed() -> presets.Preset:
    return presets.epsilon_gamma_box(-4.0, 4.0)


MAKERS: dict[str, Callable[[], presets.Preset]] = {
    **{name: presets.PRESETS[name] for name in presets.NAMES},
    "epsilon_gamma_box": boxed,
}
every_preset = pytest.mark.parametrize("name", MAKERS)


def test_every_preset_is_known() -> None:
    known = "paper epsilon gamma epsilon_plus epsilon_plus_flat epsilon_gamma_box alpha2_beta1 attnlrp cp_lrp".split()
    known += ["alpha2_beta1_flat", "pinpoint", "absolute_epsilon_flat"]
    assert set(known) <= set(presets.PRESETS)
    assert set(presets.NAMES) == set(presets.PRESETS) - {"epsilon_gamma_box"}
    assert all(getattr(presets, name) is preset for name, preset in presets.PRESETS.items())


@every_network
@every_preset
def test_a_preset_by_name_is_the_preset_and_its_mapping(name: str, kind: type[nn.Module]) -> None:
    """And it runs, with the model's own output as what its contributions are of."""
    net, x = filled(kind()), fixed(2, *SHAPES[kind])
    preset = MAKERS[name]()
    found, delta = InputCAV(net, rules=preset, normalize=None).attribute(x, 3, return_convergence_delta=True)
    assert found.isfinite().all()
    assert found.abs().max() > 1e-3
    given = [dict(preset)] if name == "epsilon_gamma_box" else [name, dict(preset)]
    without_delta = InputCAV(net, rules=preset, normalize=None).attribute(x, 3)
    for same in given:
        assert torch.equal(InputCAV(net, rules=same, normalize=None).attribute(x, 3), without_delta)
    if kind is LSTM:  # With shares of constants, an LSTM runs step by step, which rounds in another way.
        torch.testing.assert_close(without_delta, found, rtol=1e-10, atol=1e-12)
    else:
        assert torch.equal(without_delta, found)
    at_head = LayerCAV(net, "head", rules=preset, normalize=None).attribute(x, 3)
    torch.testing.assert_close(at_head[:, 3], net(x)[:, 3].detach(), rtol=1e-12, atol=1e-12)
    if name != "attnlrp":  # which keeps a part to itself in a softmax
        assert delta.abs().max() < 1e-9
    default = InputCAV(net, normalize=None).attribute(x, 3)
    changed = (found - default).abs().max() > 1e-8 * default.abs().max()
    assert changed == (name != "paper" and (name not in ("pinpoint", "absolute_epsilon_flat") or kind is ConvNet))


def test_the_paper_is_the_default() -> None:
    assert dict(presets.paper()) == {}
    net, x = filled(ConvNet()), fixed(2, 3, 10, 10)
    assert torch.equal(InputCAV(net, rules="paper").attribute(x, 1), InputCAV(net).attribute(x, 1))


def test_a_preset_prints_its_rules_and_the_functions_that_each_is_for() -> None:
    convolutions = "conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, batch_norm"
    dense = "linear, matmul, mm, bmm, mv, addmm, addmv, einsum"
    printed = {
        "paper": ["  the defaults"],
        "epsilon": [f"  {convolutions}, {dense}: EpsilonRule()"],
        "gamma": [f"  {convolutions}, {dense}: GammaRule()"],
        "epsilon_plus": [
            f"  {convolutions}: AlphaBetaRule(alpha=1.0, beta=0.0)",
            f"  {dense}: EpsilonRule()",
        ],
        "epsilon_plus_flat": [
            f"  {convolutions}: AtInput(rule=FlatRule()) else AlphaBetaRule(alpha=1.0, beta=0.0)",
            f"  {dense}: AtInput(rule=FlatRule()) else EpsilonRule()",
        ],
        "epsilon_gamma_box": [
            f"  {convolutions}: AtInput(rule=ZBoxRule(low=-4.0, high=4.0)) else GammaRule()",
            f"  {dense}: AtInput(rule=ZBoxRule(low=-4.0, high=4.0)) else EpsilonRule()",
        ],
        "alpha2_beta1": [f"  {convolutions}: AlphaBetaRule()", f"  {dense}: EpsilonRule()"],
        "alpha2_beta1_flat": [
            f"  {convolutions}: AtInput(rule=FlatRule()) else AlphaBetaRule()",
            f"  {dense}: AtInput(rule=FlatRule()) else EpsilonRule()",
        ],
    }
    for name, lines in printed.items():
        assert str(MAKERS[name]()).splitlines() == [f"preset {name}", *lines]
    for name, texts in {
        "attnlrp": ("ProductRule(share='halves') else EpsilonRule()", "AttentionRule(carry='all')", "mul", "softmax"),
        "cp_lrp": (
            "ProductRule(share='activations') else EpsilonRule()",
            "AttentionRule()",
            "layer_norm, rms_norm: NormRule()",
        ),
    }.items():
        assert all(text in str(MAKERS[name]()) for text in texts)


@every_preset
def test_what_a_preset_prints_names_all_its_functions(name: str) -> None:
    preset = MAKERS[name]()
    head, *lines = repr(preset).splitlines()
    assert head == f"preset {name}"
    assert sum(len(line.split(":")[0].split(",")) for line in lines) == max(1, len(preset))


@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("name", presets.NAMES)
def test_an_activation_in_place_has_the_map_of_the_same_out_of_place(
    name: str, activation: type[nn.Module], with_delta: bool
) -> None:
    """Behind a batch norm, where the activation is pooled, taken by a convolution, and by both."""

    class Net(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.act1, self.act2 = activation(inplace=inplace), activation(inplace=inplace)  # type: ignore[call-arg]
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act1(self.norm1(self.conv1(x)))
            z = self.act2(self.norm2(self.conv2(y)))
            return self.head(torch.cat([y.mean((2, 3)), F.adaptive_avg_pool2d(z, 1).flatten(1)], 1))

    x = fixed(2, 3, 8, 8)
    found = [
        InputCAV(filled(Net(inplace)), rules=name, normalize=None).attribute(x, 1, return_convergence_delta=with_delta)
        for inplace in (False, True)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        (presets.epsilon(0.5), "EpsilonRule(epsilon=0.5)"),
        (presets.gamma(2.0), "GammaRule(gamma=2.0)"),
        (presets.epsilon_plus(0.5), "EpsilonRule(epsilon=0.5)"),
        (presets.epsilon_plus_flat(0.5), "EpsilonRule(epsilon=0.5)"),
        (presets.epsilon_gamma_box(0, 1, epsilon=0.5, gamma=3.0), "GammaRule(gamma=3.0)"),
        (presets.epsilon_gamma_box(0, 1, epsilon=0.5, gamma=3.0), "EpsilonRule(epsilon=0.5)"),
        (presets.alpha2_beta1(0.5), "EpsilonRule(epsilon=0.5)"),
        (presets.alpha2_beta1_flat(0.5), "EpsilonRule(epsilon=0.5)"),
        (presets.absolute_epsilon_flat(0.5), "else AbsoluteEpsilonRule(epsilon=0.5)"),
        (presets.absolute_epsilon_flat(gamma=2.0), "else AtFineMaps(rule=GammaRule(gamma=2.0)) else"),
        (presets.attnlrp(0.5), "ProductRule(share='halves') else GammaRule(gamma=0.5)"),
    ],
    ids=lambda value: value.name if isinstance(value, presets.Preset) else "",
)
def test_a_presets_arguments_reach_its_rules(preset: presets.Preset, text: str) -> None:
    assert text in str(preset)


@pytest.mark.parametrize("name", ["absolute_epsilon_flat", "pinpoint"])
def test_the_presets_for_convolutions_cost_about_two_gradients_at_most(name: str) -> None:
    """Counted are the multiplications of a network whose layers take inputs of both signs, and inputs above 0."""
    torch.manual_seed(0)
    body = [
        layer
        for _ in range(6)
        for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
    ]
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    net = net.eval().requires_grad_(False)
    x = torch.randn(1, 3, 12, 12)

    def multiplications(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    gradient = multiplications(lambda: net(x.clone().requires_grad_())[0, 1].backward())
    assert multiplications(lambda: InputCAV(net, rules=name).attribute(x, 1)) <= 2.2 * gradient


def test_a_preset_is_changed_by_a_mapping_whose_keys_win() -> None:
    net, x = filled(ConvNet()), fixed(2, 3, 10, 10)
    epsilon = presets.epsilon()
    changed = epsilon | {"stem.0": rules.FlatRule(), nn.Linear: rules.ContributionRule(), F.conv2d: rules.GammaRule()}
    assert isinstance(changed, presets.Preset)
    lines = str(changed).splitlines()
    assert lines[0] == "preset epsilon, changed"
    assert "  conv2d: GammaRule()" in lines
    assert "  'stem.0': FlatRule()" in lines
    assert "  Linear: ContributionRule()" in lines
    assert "conv2d" not in next(line for line in lines if line.endswith(": EpsilonRule()"))
    assert str(epsilon) == str(presets.epsilon())  # not changed itself

    rows = {(row.module, row.operation): (row.rule, row.why) for row in InputCAV(net, rules=changed).explain_rules(x)}
    assert rows["stem.0", "conv2d"] == ("FlatRule()", "'stem.0'")
    assert rows["block.conv1", "conv2d"] == ("GammaRule()", "function conv2d")
    assert rows["head", "linear"] == ("ContributionRule()", "type Linear")

    by_hand = {net.stem[0]: rules.FlatRule(), F.conv2d: rules.GammaRule(), nn.BatchNorm2d: rules.EpsilonRule()}
    expected = InputCAV(net, rules=by_hand).attribute(x, 1)
    assert torch.equal(InputCAV(net, rules=changed).attribute(x, 1), expected)


def test_two_presets_join_and_the_later_wins() -> None:
    joined = presets.alpha2_beta1() | presets.gamma()
    assert {repr(rule) for rule in joined.values()} == {"GammaRule()"}
    joined = presets.gamma() | presets.paper()
    assert dict(joined) == dict(presets.gamma())


def test_rules_of_the_model_go_before_a_preset() -> None:
    net, x = filled(ConvNet()), fixed(2, 3, 10, 10)
    expected = InputCAV(net, rules=presets.gamma() | {net.head: rules.StopRule()}, normalize=None)
    net.head.rule = rules.ZPlusRule()
    found = InputCAV(net, rules="gamma", normalize=None).attribute(x, 1)
    by_key = InputCAV(net, rules=presets.gamma() | {"head": rules.ZPlusRule()}, normalize=None).attribute(x, 1)
    assert torch.equal(found, by_key)
    with pytest.raises(CAVError, match="the score does not depend on the inputs"):
        expected.attribute(x, 1)


# Conservation ------------------------------------------------------------------------------------------------------


def without_constants() -> nn.Sequential:
    """No bias, and so much of either sign that no output lacks one."""
    layers = (nn.Conv2d(4, 6, 3, bias=False), nn.Tanh(), nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    return filled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 3, bias=False)))


@pytest.mark.parametrize("name", ["paper", "gamma", "epsilon_plus", "epsilon_plus_flat", "epsilon", "alpha2_beta1"])
def test_contributions_are_the_score_where_there_are_no_constants(name: str) -> None:
    net, x = without_constants(), fixed(3, 4, 10, 10)
    preset = presets.PRESETS[name](**({} if name in ("paper", "gamma") else {"epsilon": 1e-12}))
    score = net(x)[:, 1].detach()
    for layer in (None, 0, 1, 2, 4):
        if layer is None:
            found = InputCAV(net, rules=preset, normalize=None).attribute(x, 1)
        else:
            found = LayerCAV(net, net[layer], rules=preset, normalize=None).attribute(x, 1)
        torch.testing.assert_close(found.flatten(1).sum(1), score, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["paper", "gamma", "epsilon_plus", "alpha2_beta1", "epsilon"])
def test_contributions_and_the_shares_of_constants_are_the_score(name: str) -> None:
    net, x = filled(ConvNet()), fixed(3, 3, 10, 10)
    layers = ["stem.0", "stem", "block.conv1", "block", "pool", "head"]
    cav = LayerCAV(net, layers, rules=name, normalize=None)
    found, deltas = cav.attribute(x, 1, return_convergence_delta=True)
    for layer, part, delta in zip(layers, found, deltas, strict=True):
        if layer != "block.conv1":  # the residual connection goes past it
            assert delta.abs().max() < 1e-10, layer
        if layer == "stem.0":  # and that is so with constants that matter
            assert (part.flatten(1).sum(1) - net(x)[:, 1]).abs().min() > 1e-2


def test_what_a_large_epsilon_takes_is_in_the_account() -> None:
    """On one layer: sum_i z_ij / (y + e sign(y)) y falls short of y - b by what epsilon took."""
    net, x = filled(nn.Sequential(nn.Linear(4, 3))), fixed(2, 4)
    cav = InputCAV(net, rules=presets.epsilon(0.5), normalize=None)
    found, delta = cav.attribute(x, 1, return_convergence_delta=True)
    y = net(x)[:, 1].detach()
    expected = x * net[0].weight[1].detach() * (y / (y + 0.5 * y.sign()))[:, None]
    torch.testing.assert_close(found, expected)
    assert delta.abs().max() < 1e-12


# The presets for transformers, by detaching in plain torch -----------------------------------------------------------


def stabilised(z: torch.Tensor) -> torch.Tensor:
    """LRP-epsilon for a sum: the summands over the stabilised sum, while the value stays as it is."""
    carried = z * (z / (z + EPSILON * z.sign())).detach()
    return carried + (z - carried).detach()


def affine(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """The bias is one of the summands."""
    z = x @ layer.weight.detach().T
    return stabilised(z if layer.bias is None else z + layer.bias.detach())


def standardised(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
    deviation = (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / deviation * layer.weight.detach() + layer.bias.detach()


def activated(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return x * (function(x) / x).detach()


def halved(a: torch.Tensor, b: torch.Tensor, times: Callable[..., torch.Tensor] = torch.mul) -> torch.Tensor:
    return (times(a, b.detach()) + times(a.detach(), b)) / 2


def attended(x: torch.Tensor, layer: Attention, *, all_carry: bool) -> torch.Tensor:
    q, k, v = (layer.split(affine(x, part)) for part in (layer.query, layer.key, layer.value))
    if all_carry:
        scores = halved(q, k.transpose(-2, -1), torch.matmul) / math.sqrt(q.shape[-1])
        mixed = halved(torch.softmax(scores, -1), v, torch.matmul)
    else:
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)
        mixed = weights.detach() @ v
    return affine(mixed.transpose(1, 2).flatten(2), layer.out)


def fed_forward(x: torch.Tensor, layer: nn.Module, *, all_carry: bool) -> torch.Tensor:
    if isinstance(layer, MLP):
        return affine(activated(affine(x, layer.up), F.gelu), layer.down)
    gate, up = activated(affine(x, layer.gate), F.silu), affine(x, layer.up)
    return affine(halved(gate, up) if all_carry else gate.detach() * up, layer.down)


def by_hand(net: Transformer, x: torch.Tensor, target: int, *, all_carry: bool) -> list[torch.Tensor]:
    """Contributions at the inputs, the embeddings and the output of each block: value x modified gradient."""
    x = x.clone().requires_grad_()
    found = [x, affine(x, net.embed)]
    for block in net.blocks:
        h = found[-1]
        h = h + attended(standardised(h, block.norm1), block.attention, all_carry=all_carry)
        found.append(h + fed_forward(standardised(h, block.norm2), block.mlp, all_carry=all_carry))
    output = affine(standardised(found[-1], net.norm).mean(1), net.head)
    torch.testing.assert_close(output, net(x), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output[:, target].sum(), found)
    return [(value * gradient).detach() for value, gradient in zip(found, gradients, strict=True)]


@pytest.mark.parametrize("target", [0, 3])
@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp"])
def test_the_presets_for_transformers_equal_a_modified_gradient(name: str, target: int) -> None:
    net, x = filled(Transformer()), fixed(2, 5, 3)
    expected = by_hand(net, x, target, all_carry=name == "attnlrp")
    layers = ["embed", "blocks.0", "blocks.1"]
    found = [
        InputCAV(net, rules=name, normalize=None).attribute(x, target),
        *LayerCAV(net, layers, rules=name, normalize=None).attribute(x, target),
    ]
    for at, one, other in zip(["inputs", *layers], found, expected, strict=True):
        assert (one - other).abs().max() < 1e-9 * other.abs().max(), at
    default = InputCAV(net, normalize=None).attribute(x, target)
    assert (found[0] - default).abs().max() > (1e-3 if name == "attnlrp" else 1e-8) * default.abs().max()


@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp"])
def test_torchs_own_encoder_equals_the_modified_gradient(name: str) -> None:
    """Post-norm, queries, keys and values in one matrix, and a fast path that must not be taken."""
    net, x = filled(Encoder()), fixed(2, 5, 3)
    x_leaf = x.clone().requires_grad_()
    h = affine(x_leaf, net.embed)
    for layer in net.encoder.layers:
        attention = Attention(8, 2).double()
        parts = zip(
            (attention.query, attention.key, attention.value),
            layer.self_attn.in_proj_weight.chunk(3),
            layer.self_attn.in_proj_bias.chunk(3),
            strict=True,
        )
        for part, weight, bias in parts:
            part.weight.data, part.bias.data = weight.data, bias.data
        attention.out = layer.self_attn.out_proj
        mlp = MLP(8, 12)
        mlp.up, mlp.down = layer.linear1, layer.linear2
        h = standardised(h + attended(h, attention, all_carry=name == "attnlrp"), layer.norm1)
        h = standardised(h + fed_forward(h, mlp, all_carry=True), layer.norm2)
    output = affine(h.mean(1), net.head)
    torch.testing.assert_close(output, net(x), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(output[:, 2].sum(), x_leaf)
    expected = x * gradient
    found = InputCAV(net, rules=name, normalize=None).attribute(x, 2)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


def test_attnlrp_with_gamma_has_gamma_in_affine_layers_only() -> None:
    net, x = filled(Transformer()), fixed(2, 5, 3)
    rows = InputCAV(net, rules=presets.attnlrp(0.1)).explain_rules(x)
    chosen: dict[str, set[Any]] = {}
    for row in rows:
        chosen.setdefault(row.operation, set()).add(row.rule)
    assert chosen["linear"] == {"GammaRule(gamma=0.1)"}
    # Attention scores are scaled by a number.
    assert chosen["mul"] == {"ProductRule(share='halves')", "product"}
    assert chosen["layer_norm"] == {"NormRule()"}
    assert {rule.split(",")[0] for rule in chosen["scaled_dot_product_attention"]} == {"AttentionRule(carry='all')"}
