"""A replay gives the bits of the attribution, for other inputs and targets than the recorded ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, torch_graphs
from captum_cav.compilation.compiled import Compiled
from tests.support.small_networks import picture, samples, small_net
from tests.support.tensors import tensors_of


def recordings_of(compiled: Any) -> int:
    assert isinstance(compiled, Compiled)
    return len(compiled._made)


def assert_equal_bits(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert not one.requires_grad


def convolutional() -> nn.Sequential:
    """Operations in place, pooling, and a batch norm with statistics of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    net(torch.randn(8, 3, 12, 12))
    return net.eval()


class Attention(nn.Module):
    """Layer "norm", attention, and a mask that comes as a second argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.norm(x)
        y, _ = self.attention(y, y, y, key_padding_mask=mask, need_weights=False)
        return self.head((x + y).mean(1))


CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any, Any, Any], Any]]] = {
    "plain": (lambda: LayerCAV(convolutional(), "1"), lambda cav, x, t: cav.attribute(x, t)),
    "several layers": (lambda: LayerCAV(convolutional(), ["0", "3"]), lambda cav, x, t: cav.attribute(x, t)),
    "gamma": (lambda: LayerCAV(convolutional(), "0", rules="gamma"), lambda cav, x, t: cav.attribute(x, t)),
    "pinpoint": (lambda: InputCAV(convolutional(), rules="pinpoint"), lambda cav, x, t: cav.attribute(x, t)),
    "delta": (
        lambda: LayerCAV(convolutional(), ["0", "3"]),
        lambda cav, x, t: cav.attribute(x, t, return_convergence_delta=True),
    ),
    "delta of inputs": (
        lambda: InputCAV(convolutional(), normalize=None),
        lambda cav, x, t: cav.attribute(x, t, return_convergence_delta=True),
    ),
    "picture": (
        lambda: LayerCAV(convolutional(), "2", normalize="abs"),
        lambda cav, x, t: cav.attribute(x, t, attr_dim_summation=True, relu_attributions=True),
    ),
    "layer input": (
        lambda: LayerCAV(convolutional(), "2"),
        lambda cav, x, t: cav.attribute(x, t, attribute_to_layer_input=True),
    ),
    "several targets": (
        lambda: LayerCAV(convolutional(), ["0", "3"]),
        lambda cav, x, t: cav.attribute_targets(x, [t, 0, -1]),
    ),
    "parts": (lambda: LayerCAV(convolutional(), "0"), lambda cav, x, t: cav.attribute(x, t, internal_batch_size=2)),
    "neuron": (lambda: NeuronCAV(convolutional(), "4"), lambda cav, x, t: cav.attribute(x, (1, 2, 0))),
    "neurons": (lambda: NeuronCAV(convolutional(), "4"), lambda cav, x, t: cav.attribute(x, (slice(0, 2), 2, 0))),
    "log-odds": (lambda: LayerCAV(convolutional(), "0", score="log_odds"), lambda cav, x, t: cav.attribute(x, t)),
    "logit": (
        lambda: LayerCAV(nn.Sequential(convolutional(), nn.Softmax(1)), "0.0", score="logit"),
        lambda cav, x, t: cav.attribute(x, t),
    ),
    "probability": (
        lambda: LayerCAV(nn.Sequential(convolutional(), nn.Softmax(1)), "0.0", normalize="abs"),
        lambda cav, x, t: cav.attribute(x, t),
    ),
    "function": (
        lambda: LayerCAV(convolutional(), "0", score=lambda output: output[:, :2].sum(1)),
        lambda cav, x, t: cav.attribute(x),
    ),
    "zeros": (
        lambda: LayerCAV(convolutional(), "0"),
        lambda cav, x, t: cav.attribute(x, t, grad_kwargs={"materialize_grads": True}),
    ),
}


#: The others show the same on other ways through the same code.
_QUICK = {"several layers", "gamma", "delta", "several targets", "parts", "neuron", "log-odds", "probability"}


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CALLS]
)
def test_a_replay_has_the_same_bits(name: str) -> None:
    make, call = CALLS[name]
    cav = make()
    compiled = captum_cav.compile(cav)
    assert isinstance(compiled, type(cav))
    for seed, target in enumerate([1, [0, -1, 3], torch.tensor([2, 4, 1])]):
        x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        assert_equal_bits(call(compiled, x, target), call(cav, x, target))
    # A part of another size has a recording of its own.
    assert recordings_of(compiled) == (2 if name == "parts" else 1)


def test_several_inputs_and_further_arguments() -> None:
    cav = InputCAV(lambda x, y, scale: (x * 2 + y[:, :1]) * scale)
    compiled = captum_cav.compile(cav)
    for seed in range(2):
        x, y = (torch.randn(2, 3, generator=torch.Generator().manual_seed(2 * seed + i)) for i in range(2))
        assert_equal_bits(compiled.attribute((x, y), 1, 3.0), cav.attribute((x, y), 1, 3.0))
    assert recordings_of(compiled) == 1
    assert_equal_bits(compiled.attribute((x, y), 1, 2.0), cav.attribute((x, y), 1, 2.0))
    assert recordings_of(compiled) == 2


def test_attention_with_a_mask() -> None:
    net = Attention().eval()
    cav = LayerCAV(net, "norm")
    compiled = captum_cav.compile(cav)
    for seed in range(2):
        x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(2, 4, dtype=torch.bool)
        mask[seed, 3] = True
        assert_equal_bits(compiled.attribute(x, 1, mask), cav.attribute(x, 1, mask))
    assert recordings_of(compiled) == 1
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(one, marks=pytest.mark.slow) for one in (torch.float64, torch.float16))]
)
def test_other_precisions(dtype: torch.dtype) -> None:
    net, x = convolutional().to(dtype), picture().to(dtype)
    cav = LayerCAV(net, ["0", "4"])
    compiled = captum_cav.compile(cav)
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    assert_equal_bits(compiled.attribute(-x, 1), cav.attribute(-x, 1))


def test_autocast() -> None:
    net, x = small_net(), samples()
    cav = LayerCAV(net, "0", normalize=None)
    compiled = captum_cav.compile(cav)
    plain = compiled.attribute(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
        assert_equal_bits(compiled.attribute(2 * x, 2), cav.attribute(2 * x, 2))
    assert_equal_bits(compiled.attribute(x, 1), plain)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_gradients_on_or_off(context: Callable[[], Any]) -> None:
    net, x = small_net(), samples()
    cav, compiled = LayerCAV(net, "0"), captum_cav.compile(LayerCAV(net, "0"))
    with context():
        for scale in (1, 2):
            assert_equal_bits(compiled.attribute(scale * x, 1), cav.attribute(scale * x, 1))


def test_channels_last_has_a_recording_of_its_own() -> None:
    cav = LayerCAV(convolutional(), "0")
    compiled = captum_cav.compile(cav)
    for x in (picture(), picture(2)):
        for y in (x, x.to(memory_format=torch.channels_last)):
            assert_equal_bits(compiled.attribute(y, 1), cav.attribute(y, 1))
    assert recordings_of(compiled) == 2


def test_contributions_with_a_graph_are_computed_as_usual() -> None:
    net, x = small_net(), samples()
    cav, compiled = LayerCAV(net, "0"), captum_cav.compile(LayerCAV(net, "0"))
    options = {"grad_kwargs": {"create_graph": True}}
    found = compiled.attribute(x, 1, **options)
    assert found.requires_grad
    assert torch.equal(found, cav.attribute(x, 1, **options))
    assert recordings_of(compiled) == 0


# Any number of samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_recording_for_any_number_of_samples(delta: bool) -> None:
    cav = LayerCAV(convolutional(), ["0", "3"])
    compiled = captum_cav.compile(cav, dynamic_batch=True)
    for samples_given in (3, 2, 7):
        x = torch.randn(samples_given, 3, 12, 12, generator=torch.Generator().manual_seed(samples_given))
        targets = [sample % 5 for sample in range(samples_given)]
        options = {"return_convergence_delta": delta}
        assert_equal_bits(compiled.attribute(x, targets, **options), cav.attribute(x, targets, **options))
    assert recordings_of(compiled) == 1
    assert_equal_bits(compiled.attribute(x[:1], 1), cav.attribute(x[:1], 1))


def test_attention_for_any_number_of_samples() -> None:
    cav = InputCAV(Attention().eval(), rules="attnlrp")
    compiled = captum_cav.compile(cav, dynamic_batch=True)
    for samples_given in (2, 5):
        x = torch.randn(samples_given, 4, 8, generator=torch.Generator().manual_seed(samples_given))
        mask = torch.zeros(samples_given, 4, dtype=torch.bool)
        assert_equal_bits(compiled.attribute(x, 1, mask), cav.attribute(x, 1, mask))
    assert recordings_of(compiled) == 1


def norms() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(256, 5),
    )  # fmt: skip
    net(torch.randn(8, 3, 12, 12))
    return net.eval()


@pytest.mark.parametrize(("layers", "count"), [(["2"], 2), (["0"], 1), (["0", "3"], 0), (["1", "4"], 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_norm_is_written_over_a_convolution_that_nothing_else_needs(
    layers: list[str], count: int, memory_format: torch.memory_format
) -> None:
    """The map of a layer needs its activation until the end."""
    cav = LayerCAV(norms().to(memory_format=memory_format), layers)  # type: ignore[call-overload]
    compiled = captum_cav.compile(cav)
    for seed in range(2):
        x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        x = x.contiguous(memory_format=memory_format)
        assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    (made,) = compiled._made.values()  # type: ignore[attr-defined]
    recorded = made.recording.graph
    pairs = [(node, node.args[0]) for node in recorded.graph.nodes if "batch_norm" in str(node.target)]
    assert len(pairs) == 2
    assert sum(recorded.memory.group(one) is recorded.memory.group(other) for one, other in pairs) == count


@pytest.mark.parametrize("kind", ["autocast", "statistics in float32", "half", "double"])
def test_a_batch_norm_of_any_precision_is_written_in_place(kind: str) -> None:
    """Under autocast, and where only the norms stay in float32, the statistics have another type than the input."""
    dtype = {"half": torch.float16, "double": torch.float64, "statistics in float32": torch.bfloat16}.get(kind)
    net, x = norms().to(dtype), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    if kind == "statistics in float32":
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    cav = LayerCAV(net, "2")
    compiled = captum_cav.compile(cav)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        compiled.attribute(x, 1)
        assert_equal_bits(compiled.attribute(x * 0.5, 2), cav.attribute(x * 0.5, 2))


def test_a_replay_under_another_default_device() -> None:
    torch_graphs._empty.cache_clear()
    cav, x = LayerCAV(norms(), "2"), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = cav.attribute(x, 1)
    with torch.device("meta"):
        assert_equal_bits(captum_cav.compile(cav).attribute(x, 1), expected)
    assert_equal_bits(captum_cav.compile(cav).attribute(x, 1), expected)
