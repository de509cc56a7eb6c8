"""benchmarks.invariance: networks that compute the same function get the same map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.invariance import __main__ as command
from benchmarks.invariance.measure import INPUTS, Explained, deviation, deviations
from benchmarks.invariance.pair import RULES, Pair, Spelling, family
from benchmarks.invariance.report import shown, written
from benchmarks.invariance.table import pairs

PAIRS = {pair.name: pair for pair in pairs()}
ALL = set(RULES)
ATTNLRP, PINPOINT = {"attnlrp"}, {"pinpoint"}
OTHER_RULES = ALL - {"paper"}

#: Rewrites that the package does not recognise yet, with the presets under which their maps deviate.
KNOWN_DEVIATIONS: dict[str, set[str]] = {
    # Attention
    "attention: by hand": OTHER_RULES,
    "attention: scores * scale": OTHER_RULES,
    "attention: queries / sqrt": OTHER_RULES,
    "attention: both scaled": OTHER_RULES,
    "attention: bmm": OTHER_RULES,
    "attention: einsum": OTHER_RULES,
    "attention: baddbmm": OTHER_RULES,
    "attention: scores in place": OTHER_RULES,
    "attention: elementwise": OTHER_RULES,
    "attention: values elementwise": OTHER_RULES,
    "attention: values by einsum": OTHER_RULES,
    "attention: values by transposed matmul": OTHER_RULES,
    "attention: keys first": OTHER_RULES,
    "attention: softmax over dimension 1": OTHER_RULES,
    "attention: divided behind the values": OTHER_RULES,
    "attention: maximum subtracted": OTHER_RULES,
    "attention: dropout in evaluation": OTHER_RULES,
    "attention: query by query": OTHER_RULES,
    "projections: scale in the query weights": ATTNLRP,
    "masked attention: masked_fill": OTHER_RULES,
    "masked attention: masked_fill_ in place": OTHER_RULES,
    "masked attention: masked_fill of the least number": OTHER_RULES,
    "masked attention: where": OTHER_RULES,
    "masked attention: where of a tensor": OTHER_RULES,
    "masked attention: plus -inf": OTHER_RULES,
    "masked attention: plus the least number": OTHER_RULES,
    "masked attention: add_ in place": OTHER_RULES,
    "masked attention: setitem": OTHER_RULES,
    "masked attention: baddbmm of the mask": OTHER_RULES,
    "masked attention: exp * mask / sum": OTHER_RULES,
    "causal attention: masked_fill": OTHER_RULES,
    "causal attention: plus triu of -inf": OTHER_RULES,
    "attention with position bias: scores + bias": OTHER_RULES,
    "attention with position bias: baddbmm": OTHER_RULES,
    "attention with position bias: bias in the keys": OTHER_RULES,
    "two heads: by hand": OTHER_RULES,
    "two heads: head by head": OTHER_RULES,
    "two heads: heads in the batch": OTHER_RULES,
    "two heads: einsum": OTHER_RULES,
    "grouped queries: repeat, by hand": OTHER_RULES,
    "grouped queries: broadcast, by hand": OTHER_RULES,
    "grouped queries: einsum": OTHER_RULES,
    "remembered keys and values: by hand": OTHER_RULES,
    "remembered keys and values: by parts": ALL,
    "constant memory: by hand": ALL,
    "constant memory: einsum": ALL,
    "constant memory: softmax by hand": ALL,
    "constant memory: exp(x - logsumexp)": ALL,
    "constant memory: linear with computed weight": ALL,
    "nn.MultiheadAttention: need_weights=False": OTHER_RULES,
    "nn.MultiheadAttention: copies of the inputs": OTHER_RULES,
    "nn.MultiheadAttention: functional": OTHER_RULES,
    "nn.MultiheadAttention: by hand": OTHER_RULES,
    "nn.TransformerEncoderLayer: by its parts": OTHER_RULES,
    # Norms
    "layer_norm: * rsqrt(var)": ATTNLRP,
    "layer_norm: * pow(-0.5)": ATTNLRP,
    "layer_norm: * (...) ** -0.5": ATTNLRP,
    "layer_norm: * (1 / sqrt)": ATTNLRP,
    "layer_norm: * sqrt.reciprocal()": ATTNLRP,
    "layer_norm: rsqrt * centred": ATTNLRP,
    "layer_norm: * exp(-log / 2)": ATTNLRP,
    "layer_norm: x * rsqrt - mean * rsqrt": ATTNLRP,
    "layer_norm: * rsqrt of mean of centred * centred": ATTNLRP,
    "layer_norm: * rsqrt of sum of squares / n": ATTNLRP,
    "layer_norm: mean of squares minus square of mean": ATTNLRP,
    "layer_norm: einsum": ATTNLRP,
    "layer_norm: var_mean": ATTNLRP,
    "layer_norm with weight and bias: * rsqrt(var)": ATTNLRP,
    "layer_norm with weight and bias: var_mean": ATTNLRP,
    "layer_norm with weight and bias: addcmul": ATTNLRP,
    "layer_norm with weight and bias: weight in the scale": ATTNLRP,
    "layer_norm with weight and bias: scale and shift": ATTNLRP,
    "annotated layer norm: * reciprocal": ATTNLRP,
    "rms_norm: * rsqrt(mean(x ** 2))": ATTNLRP,
    "rms_norm: rsqrt * x": ATTNLRP,
    "rms_norm: mean(x * x)": ATTNLRP,
    "rms_norm: mean of square": ATTNLRP,
    "rms_norm: x ** 2": ATTNLRP,
    "rms_norm: sum of squares / n": ATTNLRP,
    "rms_norm: * pow(-0.5)": ATTNLRP,
    "rms_norm: * (...) ** -0.5": ATTNLRP,
    "rms_norm: * (1 / sqrt)": ATTNLRP,
    "rms_norm: * sqrt.reciprocal()": ATTNLRP,
    "rms_norm: einsum": ATTNLRP,
    "rms_norm: matmul": ATTNLRP,
    "rms_norm: through float": ATTNLRP,
    "rms_norm with weight: weight * by hand": ATTNLRP,
    "rms_norm with weight: weight in the scale": ATTNLRP,
    "rms_norm with weight: weight * x first": ATTNLRP,
    "rms_norm with weight: 1 + weight": ATTNLRP,
    "rms_norm without epsilon: x * norm.reciprocal()": ATTNLRP,
    "rms_norm without epsilon: x * norm ** -1": ATTNLRP,
    "rms_norm without epsilon: x * rsqrt of sum of squares": ATTNLRP,
    "normalize: x * norm.reciprocal()": ATTNLRP,
    "normalize: x * (1 / norm)": ATTNLRP,
    "normalize: x * norm ** -1": ATTNLRP,
    "normalize: x * rsqrt of sum of x * x": ATTNLRP,
    "normalize: einsum": ATTNLRP,
    "normalize of p = 1: x * reciprocal": ATTNLRP,
    "group_norm: var_mean": ATTNLRP,
    "instance_norm: var_mean": ATTNLRP,
    "batch_norm: scale and shift": OTHER_RULES,
    "batch_norm: addcmul": OTHER_RULES,
    "batch_norm: (x - mean) / sqrt(var) * weight + bias": OTHER_RULES,
    "convolution and batch_norm: scale and shift": OTHER_RULES,
    "linear and batch_norm: folded": PINPOINT,
    "linear and batch_norm: scale and shift": OTHER_RULES,
    # Softmax
    "softmax: exp / sum": ATTNLRP,
    "softmax: exp / sum, maximum subtracted": ALL,
    "softmax: exp / sum, detached maximum": ALL,
    "softmax: exp / sum, max with indices": ALL,
    "softmax: exp * sum.reciprocal()": ALL,
    "softmax: exp * (1 / sum)": ALL,
    "softmax: normalize of p = 1": ATTNLRP,
    "softmax: log_softmax, exp": ATTNLRP,
    "softmax: exp(x - logsumexp)": ALL,
    "softmax: exp(x - log of sum of exp)": ALL,
    "softmax: softmin of the negative": ATTNLRP,
    "softmax: shifted by a number": ALL,
    "softmax: shifted by the mean": ALL,
    "softmax: 2 ** x": ATTNLRP,
    "softmax gate: exp / sum": ATTNLRP,
    "softmax gate: exp / sum, maximum subtracted": ATTNLRP,
    "softmax gate: exp / sum, detached maximum": ATTNLRP,
    "softmax gate: exp / sum, max with indices": ATTNLRP,
    "softmax gate: exp * sum.reciprocal()": ATTNLRP,
    "softmax gate: exp * (1 / sum)": ATTNLRP,
    "softmax gate: normalize of p = 1": ATTNLRP,
    "softmax gate: log_softmax, exp": ATTNLRP,
    "softmax gate: exp(x - logsumexp)": ATTNLRP,
    "softmax gate: exp(x - log of sum of exp)": ATTNLRP,
    "softmax gate: softmin of the negative": ATTNLRP,
    "softmax gate: 2 ** x": ATTNLRP,
    "softmax in attention: exp / sum": ATTNLRP,
    "softmax in attention: exp / sum, maximum subtracted": ATTNLRP,
    "softmax in attention: exp / sum, detached maximum": ATTNLRP,
    "softmax in attention: exp / sum, max with indices": ATTNLRP,
    "softmax in attention: exp * sum.reciprocal()": ATTNLRP,
    "softmax in attention: exp * (1 / sum)": ATTNLRP,
    "softmax in attention: normalize of p = 1": ATTNLRP,
    "softmax in attention: log_softmax, exp": ATTNLRP,
    "softmax in attention: exp(x - logsumexp)": ATTNLRP,
    "softmax in attention: exp(x - log of sum of exp)": ATTNLRP,
    "softmax in attention: softmin of the negative": ATTNLRP,
    "softmax in attention: 2 ** x": ATTNLRP,
    "attention pooling: exp / sum": ATTNLRP,
    "attention pooling: divided at the end": ATTNLRP,
    "log_softmax: x - logsumexp": ALL,
    "log_softmax: log of softmax": ATTNLRP,
    "log_softmax: x - log of sum of exp": ALL,
    "logsumexp: log of sum of exp": ALL,
    "logsumexp: maximum subtracted": ALL,
    "logsumexp: x - log_softmax": ALL,
    # Activations
    "relu6: torch.minimum": ALL,
    "gelu: x / 2 * (1 + erf)": ATTNLRP,
    "gelu: 0.5 * x * (1 + erf)": ATTNLRP,
    "gelu: x * (1 + erf) / 2": ATTNLRP,
    "gelu: x * (0.5 + 0.5 * erf)": ALL,
    "gelu tanh: with x ** 3": ATTNLRP,
    "gelu tanh: with pow": ATTNLRP,
    "gelu tanh: with x * x * x": ATTNLRP,
    "gelu tanh: factored": ATTNLRP,
    "quick gelu: tanh": ATTNLRP,
    "silu: x * (1 / (1 + exp(-x)))": ATTNLRP,
    "silu: x * reciprocal": ATTNLRP,
    "silu: x * pow(-1)": ATTNLRP,
    "silu: tanh": ATTNLRP,
    "silu: x * (1 - sigmoid(-x))": ATTNLRP,
    "silu: x * softmax of two": ATTNLRP,
    "elu: where exp - 1": ALL,
    "elu: x * ratio": ALL,
    "softplus: log(1 + exp)": ALL,
    "softplus: logaddexp": ALL,
    "mish: x * tanh(log(1 + exp))": ALL,
    "hardswish: x * relu6(x + 3) / 6": ATTNLRP,
    "hardswish: x * (relu6(x + 3) / 6)": ATTNLRP,
    "hardswish: x * clamp(x + 3, 0, 6) / 6": ATTNLRP,
    "hardswish: x * clamp(x / 6 + 0.5, 0, 1)": ATTNLRP,
    "hardswish: x * hardtanh(x + 3, 0, 6) / 6": ATTNLRP,
    "sigmoid: 1 / (1 + exp(-x))": ALL,
    "sigmoid: reciprocal": ALL,
    "sigmoid: pow(-1)": ALL,
    "sigmoid: (1 + tanh(x / 2)) / 2": ALL,
    "sigmoid: 1 - sigmoid(-x)": ALL,
    "sigmoid: softmax of two": ATTNLRP,
    "tanh: 2 sigmoid(2 x) - 1": ALL,
    "tanh: (1 - exp(-2 x)) / (1 + exp(-2 x))": ALL,
    "tanh: 1 - 2 / (exp(2 x) + 1)": ALL,
    "hardsigmoid: relu6(x + 3) / 6": ALL,
    "hardsigmoid: clamp(x / 6 + 0.5, 0, 1)": ALL,
    "hardtanh: maximum, minimum": ALL,
    "softsign: x * reciprocal": ATTNLRP,
    "softshrink: relu(x - 0.2) - relu(-x - 0.2)": ALL,
    "glu: chunk, sigmoid by hand": ATTNLRP,
    "glu: two layers, sigmoid by hand": ATTNLRP,
    "glu: two layers, tanh": ATTNLRP,
    "swiglu: x * sigmoid by hand": ATTNLRP,
    "geglu: gelu by hand": ATTNLRP,
    "gate of one channel: sigmoid by hand": ATTNLRP,
    "gate of one channel: quotient": ATTNLRP,
    "gate of one channel: tanh": ALL,
    "hard gate: relu6(x + 3) / 6": ATTNLRP,
    "hard gate: clamp": ATTNLRP,
    "mixture by a gate: lerp": ATTNLRP,
    "mixture by a gate: x + gate * (y - x)": ATTNLRP,
    "mixture by a gate: y + (1 - gate) * (x - y)": ATTNLRP,
    "mixture by a gate: sigmoid of the negative": ATTNLRP,
    # Pooling
    "relu and global average pooling: mean twice": PINPOINT,
    "relu and global average pooling: mean of flatten": PINPOINT,
    "relu and global average pooling: mean of view": PINPOINT,
    "relu and global average pooling: einsum": PINPOINT,
    "relu and global average pooling: mean of channels last": PINPOINT,
    "relu and global average pooling: clone": PINPOINT,
    "relu and global average pooling: clamp": PINPOINT,
    "relu and global average pooling: clamp_min": PINPOINT,
    "relu and global average pooling: maximum": PINPOINT,
    "relu and global average pooling: where": PINPOINT,
    "relu and global average pooling: x * (x > 0)": PINPOINT,
    "relu and global average pooling: (x + |x|) / 2": PINPOINT,
    "silu and global average pooling: x * sigmoid": PINPOINT,
    "silu and global average pooling: x / (1 + exp(-x))": PINPOINT,
    "hardswish and global average pooling: x * relu6(x + 3) / 6": OTHER_RULES,
    "relu6 and global average pooling: clamp": PINPOINT,
    # Linear
    "linear: tensordot": OTHER_RULES,
    "linear: inner": OTHER_RULES,
    "linear: multiply and sum": OTHER_RULES,
    "linear: sum of two halves": OTHER_RULES,
    "linear: chain_matmul": OTHER_RULES,
    "linear with bias: matmul + bias": OTHER_RULES,
    "linear with bias: bias + matmul": OTHER_RULES,
    "linear with bias: torch.add": OTHER_RULES,
    "linear with bias: add_": OTHER_RULES,
    "linear with bias: +=": OTHER_RULES,
    "linear with bias: minus the negative": OTHER_RULES,
    "linear with bias: linear + bias": OTHER_RULES,
    "linear with bias: einsum + bias": OTHER_RULES,
    "linear with bias: tensordot + bias": OTHER_RULES,
    "linear with bias: inner + bias": OTHER_RULES,
    "linear with bias: bmm + bias": OTHER_RULES,
    "linear with bias: @ with vectors + bias": OTHER_RULES,
    "linear with bias: multiply, sum, add": OTHER_RULES,
    "linear, relu, linear: matmul + bias": OTHER_RULES,
    "linear, relu, linear: einsum + bias": OTHER_RULES,
    "linear, relu, linear: neuron by neuron": OTHER_RULES,
    "linear, relu, linear: neurons scaled": OTHER_RULES,
    "scaled channels: einsum": OTHER_RULES,
    # Convolution
    "conv2d: + bias": OTHER_RULES,
    "conv2d: sum over groups of channels": OTHER_RULES,
    "conv2d by matrices: unfold, matmul": OTHER_RULES,
    "conv2d by matrices: Tensor.unfold, einsum": OTHER_RULES,
    "conv2d by matrices: sum of shifted products": OTHER_RULES,
    "1x1 convolution: matmul": OTHER_RULES,
    "1x1 convolution: einsum": OTHER_RULES,
    "conv_transpose2d: + bias": OTHER_RULES,
    # Residual
    "x + f(x): cat, linear": OTHER_RULES,
    "linear of cat: sum of two": OTHER_RULES,
    "x: identity matrix": OTHER_RULES,
    # Recurrent
    "lstm: written out, sigmoid by hand": ATTNLRP,
    "lstm: written out, one product": OTHER_RULES,
    "lstm: written out, matmuls": OTHER_RULES,
    "gru: written out, n + z * (h - n)": ATTNLRP,
    "gru: written out, lerp": ATTNLRP,
    "gru: written out, n - z * n + z * h": ATTNLRP,
    "gru: written out, sigmoid by hand": ALL,
    "rnn: written out, matmuls": OTHER_RULES,
    "rnn: written out, one product": OTHER_RULES,
    # Wrappers
    "block: vmap": ALL,
    # Squashed outputs
    "softmax output: exp / sum": ATTNLRP,
    "softmax output: exp / sum, maximum subtracted": ALL,
    "softmax output: exp / sum, detached maximum": ALL,
    "softmax output: exp / sum, max with indices": ALL,
    "softmax output: exp * sum.reciprocal()": ALL,
    "softmax output: exp * (1 / sum)": ALL,
    "softmax output: normalize of p = 1": ATTNLRP,
    "softmax output: log_softmax, exp": ATTNLRP,
    "softmax output: exp(x - logsumexp)": ALL,
    "softmax output: exp(x - log of sum of exp)": ALL,
    "softmax output: softmin of the negative": ATTNLRP,
    "softmax output: shifted by a number": ALL,
    "softmax output: shifted by the mean": ALL,
    "softmax output: 2 ** x": ATTNLRP,
    "log_softmax output: x - logsumexp": ALL,
    "log_softmax output: log of softmax": ATTNLRP,
    "log_softmax output: x - log of sum of exp": ALL,
    "log_softmax output: -cross_entropy": ALL,
    "sigmoid output: 1 / (1 + exp(-x))": ALL,
    "sigmoid output: (1 + tanh(x / 2)) / 2": ALL,
    "sigmoid output: 1 - sigmoid(-x)": ALL,
    "sigmoid output: reciprocal": ALL,
    "sigmoid output: softmax of two": ATTNLRP,
    "tanh output: 2 sigmoid(2 x) - 1": ALL,
}


def unexpected(pair: Pair, names: set[str]) -> list[str]:
    """What deviates under some presets although it is neither known nor undecidable."""
    chosen = tuple(names - KNOWN_DEVIATIONS.get(pair.name, set()))
    measured = [] if pair.undecidable else deviations(pair, chosen)
    return [f"{one.preset}: {one.size:.1e}, {one.place}" for one in measured if not one.is_none]


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_function_has_the_same_map(name: str) -> None:
    assert unexpected(PAIRS[name], {"paper"}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_function_has_the_same_map_under_every_preset(name: str) -> None:
    assert unexpected(PAIRS[name], ALL - {"paper"}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if name in KNOWN_DEVIATIONS or pair.undecidable])
def test_what_is_said_to_deviate_does(name: str) -> None:
    assert not all(one.is_none for one in deviations(PAIRS[name])), "remove it from KNOWN_DEVIATIONS"


def test_the_table_is_large_and_has_all_groups() -> None:
    assert len(PAIRS) >= 150
    assert set(KNOWN_DEVIATIONS) <= set(PAIRS)
    groups = {pair.group for pair in PAIRS.values()}
    expected = "attention norms softmax activations pooling linear convolution residual recurrent wrappers roles"
    assert groups == {*expected.split(), "squashed outputs"}
    assert {preset for pair in PAIRS.values() for preset in pair.presets} == set(RULES)


def pair_of(function: Callable[..., torch.Tensor], rewrite: Callable[..., torch.Tensor] | Spelling) -> Pair:
    (pair,) = family("planted", "function", function, {"rewrite": rewrite})
    return pair


def test_another_map_of_the_same_function_is_found() -> None:
    found = deviation(pair_of(F.silu, lambda x: F.silu(x).detach() + 0 * x), "paper")
    assert found.size > 0.1
    assert found.place == "map of the inputs"


def test_another_share_of_constants_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, ones = pair_of(F.relu, torch.relu), torch.ones(2, 3)

    def explained(spelling: Spelling, *_: object) -> Explained:
        return Explained(ones, {INPUTS: ones}, {INPUTS: torch.tensor([0.0, 0.5 * (spelling is pair.rewrite)])})

    monkeypatch.setattr("benchmarks.invariance.measure.explained", explained)
    assert deviation(pair, "paper") == ("paper", 0.5, "constants behind the inputs")


def test_a_rewrite_that_computes_something_else_is_no_rewrite() -> None:
    found = deviation(pair_of(F.relu, lambda x: F.relu(x) + 1e-6), "paper")
    assert (found.size, found.place) == (float("inf"), "the scores differ")


def test_a_rewrite_that_is_refused_deviates() -> None:
    found = deviation(pair_of(F.silu, lambda x: F.dropout(F.silu(x), 1e-30)), "paper")
    assert (found.size, found.place) == (float("inf"), "a map against ModelError")


def test_a_line_names_the_worst_preset() -> None:
    pair = pair_of(F.silu, lambda x: F.silu(x).detach() + 0 * x)
    line = shown(pair, deviations(pair, ("paper", "gamma")))
    assert line.startswith("FAIL planted: function: rewrite ")
    assert line.endswith("2 of 2 presets")
    assert shown(pair_of(F.relu, torch.relu), deviations(PAIRS["relu: torch.relu"], ("paper",))).startswith("ok   ")


def test_the_page_says_why_something_cannot_be_told_apart() -> None:
    (pair,) = family("planted", "f", F.silu, {"a | b": lambda x: F.silu(x).detach() + 0 * x}, undecidable="no | trace")
    page = written([(pair, deviations(pair, ("paper",)))])
    assert "1 pairs, of which 0 have equal maps" in page
    assert "| `f: a \\| b` | 1e+00 | paper | 1 of 1 | no \\| trace |" in page


def test_the_command_measures_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, page = torch.get_num_threads(), tmp_path / "page.md"
    with pytest.raises(SystemExit, match="0"):
        command.main(
            [*"--preset paper gamma --threads".split(), str(threads), "--table", str(page), "--only", "relu6: clip"]
        )
    assert capsys.readouterr().out.splitlines()[-1] == "1 pairs, 0 deviate, 0 cannot be told apart"
    assert "- relu6: `clip`\n" in page.read_text()
