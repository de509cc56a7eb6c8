"""What must hold for any network: properties of random networks, drawn from a grammar of operations."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.coverage.oracle import UnknownOperationError, exact_map
from captum_cav import InputCAV, LayerCAV, presets, verify
from captum_cav.tensors import tensors_in
from tests.support.grammar import (
    AROUND,
    AROUND_CHANNELS,
    BY_CHANNEL,
    BY_HAND,
    KEEPING,
    OPERATIONS,
    OTHERWISE_IN_THE_ORACLE,
    RESIZING,
    TARGET,
    Call,
    Function,
    Network,
    Operation,
    chains,
    is_known_to_the_oracle,
    networks,
    weighs_weights,
)


def holds(examples: int, **drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """A test that a property holds for some examples, and for many where slow tests run."""

    def as_test(holds_for: Callable[..., None]) -> Callable[[int], None]:
        several = [examples, pytest.param(12 * examples, marks=pytest.mark.slow)]

        @pytest.mark.parametrize("number", several, ids=["some", "many"])
        def test(number: int) -> None:
            patient = settings(
                max_examples=number, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
            )
            patient(given(**drawn)(holds_for))()

        test.__name__ = test.__qualname__ = holds_for.__name__
        test.__doc__ = holds_for.__doc__
        return test

    return as_test


def scores(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Without captum_cav. A network may write into what it is given."""
    with torch.no_grad():
        return net(x.clone())[:, TARGET]


def of_input(net: nn.Module, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """Contributions of the input in units of the score, or as the options say."""
    return InputCAV(net, **{"normalize": None, **options}).attribute(x.clone(), TARGET)


def of_layers(net: nn.Module, x: torch.Tensor, layers: list[str], **options: Any) -> list[list[torch.Tensor]]:
    """Contributions of layers in units of the score, and what is left of it."""
    found, deltas = LayerCAV(net, layers, normalize=None, **options).attribute(
        x.clone(), TARGET, return_convergence_delta=True, grad_kwargs={"materialize_grads": True}
    )
    return [[*tensors_in(parts), delta] for parts, delta in zip(found, deltas, strict=True)]


def assert_same(found: torch.Tensor, expected: torch.Tensor, of: torch.Tensor, tolerance: float = 1e-9) -> None:
    """Equal, to a part of the contributions and the scores that they are of."""
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm() + of.norm())


@holds(100, network=networks())
def test_the_networks_value_is_unchanged(network: Network) -> None:
    """The output under the attribution is the output without."""
    net, x = network.build(), network.samples()
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(net(x))
        return seen[-1]

    of_input(watched, x)
    (found,) = seen
    torch.testing.assert_close(found.detach(), net(x.clone()).detach(), rtol=1e-12, atol=1e-12)


@holds(100, network=networks())
def test_contributions_and_constants_add_up_to_the_score(network: Network) -> None:
    """Of the input and of every layer that all else passes through, nothing is left but rounding."""
    net, x = network.build(), network.samples()
    contributions, delta = InputCAV(net, normalize=None).attribute(x.clone(), TARGET, return_convergence_delta=True)
    layers = [str(i) for i in range(len(net))]
    for *parts, left in [[contributions, delta], *of_layers(net, x, layers)]:
        size = sum(part.abs().flatten(1).sum(1) for part in parts) + scores(net, x).abs()
        assert (left.abs() <= 1e-9 * size).all()


@holds(50, network=networks(st.lists(OPERATIONS.filter(is_known_to_the_oracle), min_size=1, max_size=6)))
def test_the_map_is_the_oracles(network: Network) -> None:
    """An implementation that shares nothing with the package gives the same map."""
    net, x = network.build(), network.samples()
    expected = scores(net, x)
    assume(expected.abs().min() > 1e-6 and not weighs_weights(network))
    exact = exact_map(net, x.clone(), TARGET).detach() * expected.reshape(-1, 1, 1, 1)
    assert_same(of_input(net, x), exact, expected, 1e-8)


def test_the_oracle_knows_the_grammar() -> None:
    """All operations but those that are named, so that the maps of the others are compared."""
    known = set()
    for name in [*KEEPING, *RESIZING, *((name, ("conv", "tanh")) for name in AROUND)]:
        network = Network(4, 3, (name,), "mean", 0)
        try:
            exact_map(network.build(), network.samples(), TARGET)
        except UnknownOperationError:
            continue
        known.add(name if isinstance(name, str) else name[0])
    assert known >= {*KEEPING, *RESIZING, *AROUND} - OTHERWISE_IN_THE_ORACLE
    assert len({name.removeprefix("F.") for name in known}) >= 20


@holds(70, network=networks())
def test_a_batch_has_the_maps_of_its_samples(network: Network) -> None:
    """Nothing of a sample reaches another, in contributions, and what is left of each."""
    net, x = network.build(), network.samples()
    layers = [str(i) for i in range(len(net))]
    together, apart = of_layers(net, x, layers), [of_layers(net, sample[None], layers) for sample in x]
    for layer, parts in enumerate(together):
        for part, *alone in zip(parts, *(one[layer] for one in apart), strict=True):
            assert_same(part, torch.cat(alone), scores(net, x))
    assert_same(of_input(net, x), torch.cat([of_input(net, sample[None]) for sample in x]), scores(net, x))


@holds(90, network=networks())
def test_layers_in_one_call_have_the_maps_of_separate_calls(network: Network) -> None:
    """Five layers in one call, nested ones among them, have the contributions of five calls."""
    # Fused attention has its own idea of weights, see below.
    assume(not weighs_weights(network))
    net, x = network.build(), network.samples()
    layers = reached_once(net, x)
    assert_together_as_alone(net, x, random.Random(network.seed).sample(layers, min(5, len(layers))))  # noqa: S311


@pytest.mark.parametrize(
    ("operations", "layers"),
    [
        # In front of the first layer the fused operation is not written out, and a weight goes in.
        (("sigmoid", "glu", "dropout", "excite"), ["0", "2"]),
        # What is not negative and gated is not negative, whether or not the gate is held constant.
        (("relu", "excite", "tanh", "rms_by_hand"), ["0", "2"]),
        # What the second layer gives is written over behind it, and used beside it.
        (("conv", ("residual", ("silu_", "silu_"))), ["0", "1.used.0.0"]),
        # In front of the first layer zeros are no part of the network, and what is written into them stays a gate.
        (("sigmoid", "interleave_in_place", "excite"), ["0", "1"]),
    ],
    ids=["fused", "held", "in place", "written into zeros"],
)
def test_layers_in_one_call_have_the_maps_of_separate_calls_in_special_cases(
    operations: tuple[Operation, ...], layers: list[str]
) -> None:
    network = Network(2, 2, operations, "mean", 0)
    assert_together_as_alone(network.build(), network.samples(), layers)


@pytest.mark.parametrize("at_input", [False, True])
def test_writing_over_a_layers_output_reaches_every_reference_to_it(at_input: bool) -> None:
    """The skip of a residual sees what its branch writes in place, with a tap between them or not."""

    class Residual(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.first, self.second = nn.SiLU(in_place), nn.SiLU(in_place)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(self.first(x))
            return (x if self.first.inplace else y) + y

    torch.manual_seed(0)
    ends = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    nets = [nn.Sequential(ends[0], Residual(in_place), ends[1]) for in_place in (True, False)]
    x = torch.randn(2, 3, dtype=torch.float64)
    # Behind the second activation the skip bypasses what the branch gives.
    layers = ["0", "1.first", "1.second"] if at_input else ["0", "1.first"]
    found, expected = (
        LayerCAV(net, layers, normalize=None).attribute(
            x, 1, attribute_to_layer_input=at_input, return_convergence_delta=True
        )
        for net in nets
    )
    torch.testing.assert_close(found, expected)
    assert max(delta.abs().max() for delta in found[1]) < 1e-12


def assert_together_as_alone(net: nn.Module, x: torch.Tensor, layers: list[str]) -> None:
    for name, parts in zip(layers, of_layers(net, x, layers), strict=True):
        for part, alone in zip(parts, of_layers(net, x, [name])[0], strict=True):
            assert_same(part, alone, scores(net, x))


def reached_once(net: nn.Module, x: torch.Tensor) -> list[str]:
    """Names of the modules that a forward pass reaches exactly once.

    A module inside another, which returns the memory that it was given, is left out: see the test of what writes in
    place.
    """
    reached: list[str] = []
    aliases: set[str] = set()

    def note(name: str, given: tuple[Any, ...], output: Any) -> None:
        reached.append(name)
        places = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(given)}
        if "." in name and any(tensor.untyped_storage().data_ptr() in places for tensor in tensors_in(output)):
            aliases.add(name)

    handles = [
        module.register_forward_hook(lambda _, given, output, name=name: note(name, given, output))
        for name, module in net.named_modules()
        if name
    ]
    scores(net, x)
    for handle in handles:
        handle.remove()
    return [name for name in reached if reached.count(name) == 1 and name not in aliases]


def other_form(operation: Operation) -> Operation:
    """Modules for functions and functions for modules."""
    if not isinstance(operation, str):
        name, inside = operation
        return name, tuple(map(other_form, inside))
    if operation.startswith("F."):
        return operation.removeprefix("F.")
    return f"F.{operation}" if f"F.{operation}" in {**KEEPING, **RESIZING} else operation


@holds(100, network=networks(), preset=st.sampled_from(presets.NAMES))
def test_functions_have_the_maps_of_modules(network: Network, preset: str) -> None:
    """Every module that there is a function for, called as a function, and the other way round."""
    assume(not weighs_weights(network))
    assert_functions_are_modules(network, preset)


def by_hand(operation: Operation) -> Operation:
    """What is fused, written out."""
    if not isinstance(operation, str):
        name, inside = operation
        return name, tuple(map(by_hand, inside))
    name = operation.removeprefix("F.")
    return f"hand.{name}" if name in BY_HAND else operation


@holds(100, network=networks(), preset=st.sampled_from(presets.NAMES))
def test_what_is_written_out_has_the_map_of_what_is_fused(network: Network, preset: str) -> None:
    """Also where one follows another, in any network, under every preset."""
    written = replace(network, operations=tuple(map(by_hand, network.operations)))
    assume(not weighs_weights(network) and written != network)
    x, of = network.samples(), scores(network.build(), network.samples())
    assert_same(scores(written.build(), x), of, of)
    assert_same(of_input(written.build(), x, rules=preset), of_input(network.build(), x, rules=preset), of)


def test_functions_have_the_maps_of_modules_where_a_sigmoid_is_attended_to() -> None:
    assert_functions_are_modules(Network(2, 2, ("sigmoid", "attention"), "mean", 0))


def test_functions_have_the_maps_of_modules_where_a_gate_is_clipped() -> None:
    assert_functions_are_modules(Network(2, 2, (("product", ("sigmoid", "relu6")),), "mean", 0))


def assert_functions_are_modules(network: Network, preset: str = "paper") -> None:
    x, other = network.samples(), replace(network, operations=tuple(map(other_form, network.operations)))
    found, expected = (of_input(one.build(), x, rules=preset) for one in (other, network))
    assert_same(found, expected, scores(network.build(), x))


@st.composite
def with_pair(
    draw: st.DrawFn, first: list[str], between: st.SearchStrategy[Operation], most: int, second: list[str]
) -> tuple[Network, int, int]:
    """A network and the places of two operations in it, with at most so many of some others between them."""
    before, after = (draw(st.lists(OPERATIONS, max_size=2)) for _ in range(2))
    inner = draw(st.lists(between, max_size=most))
    one, other = (draw(st.sampled_from(names)) for names in (first, second))
    network = draw(networks(st.just((*before, one, *inner, other, *after))))
    return network, len(before), len(before) + 1 + len(inner)


@holds(
    70,
    pair=with_pair(["conv", "depthwise", "strided"], st.nothing(), 0, ["batch_norm"]),
    preset=st.sampled_from(["paper", "gamma", "epsilon_plus"]),
)
def test_a_batch_norm_folds_into_the_convolution_before_it(pair: tuple[Network, int, int], preset: str) -> None:
    """Written as one convolution, the two are as before for every layer but the convolution itself.

    By the paper's rules both are linear. What is before them has as its coefficient the same product of weights, and
    the convolution's bias and the norm's shift have together the share of the folded bias. So maps and sums of
    constants are the same in exact numbers. Only the convolution's own output, before it is shifted, is no layer of
    the folded network; the norm's output is the folded convolution's. Other rules take the pair as one operation.
    """
    network, first, second = pair
    # Other rules take in a second batch norm instead, where there is one behind what was folded.
    assume(preset == "paper" or "batch_norm" not in str(network.operations[second + 1 :]))
    net, x = network.build(), network.samples()
    folded = copy.deepcopy(net)
    folded[first], folded[second] = fuse_conv_bn_eval(net[first], net[second]), nn.Identity()
    of = scores(net, x)
    assert_same(of_input(folded, x, rules=preset), of_input(net, x, rules=preset), of)
    layers = [str(i) for i in range(len(net)) if i != first]
    for found, expected in zip(
        of_layers(folded, x, layers, rules=preset), of_layers(net, x, layers, rules=preset), strict=True
    ):
        assert_same(found[0], expected[0], of)
        assert_same(of - found[-1] - found[0].flatten(1).sum(1), of - expected[-1] - expected[0].flatten(1).sum(1), of)


@holds(70, pair=with_pair(["conv", "strided"], chains(BY_CHANNEL, AROUND_CHANNELS), 3, ["conv", "strided"]))
def test_the_order_of_channels_does_not_change_other_maps(pair: tuple[Network, int, int]) -> None:
    """Channels between two layers in another order, with their weights, leave the input's map as it is."""
    network, first, second = pair
    net, x = network.build(), network.samples()
    order = torch.randperm(network.channels, generator=torch.Generator().manual_seed(network.seed))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for module in other[first:second]:
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.dim():
                    tensor.copy_(tensor[order])
        other[second].weight.copy_(other[second].weight[:, order])
    of = scores(net, x)
    assert_same(of_input(other, x), of_input(net, x), of)
    for layer in range(first, second):
        (found, _), (expected, _) = (of_layers(one, x, [str(layer)])[0] for one in (other, net))
        assert_same(found, expected[:, order], of)


@holds(90, network=networks(), factor=st.sampled_from([0.01, 3.0, -1.0, -20.0]))
def test_the_scale_of_the_scores_does_not_change_ratios(network: Network, factor: float) -> None:
    """The last layer times a number: the same ratios; by the score's size, their sign is the number's."""
    net, x = network.build(), network.samples()
    assume(scores(net, x).abs().min() > 1e-3)
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled[-1].weight.mul_(factor)
        scaled[-1].bias.mul_(factor)
    for normalize, expected in (("score", 1.0), ("abs", math.copysign(1.0, factor)), (None, factor)):
        found, before = (of_input(one, x, normalize=normalize) for one in (scaled, net))
        assert_same(found, before * expected, torch.tensor(expected))


#: What changes nothing, as a module or not.
IDENTITIES: dict[str, Function] = {
    "Identity": nn.Identity(),
    "Dropout": nn.Dropout().eval(),
    "x * 1": lambda x: x * 1,
    "x / 1": lambda x: x / 1,
    "x + 0": lambda x: x + 0,
    "x - zeros": lambda x: x - torch.zeros_like(x),
    "clone": lambda x: x.clone(),
    "x[:]": lambda x: x[:],
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: x.to(torch.float64),
    "view": lambda x: x.view_as(x),
    "expand": lambda x: x.expand_as(x),
    "there and back": lambda x: x[..., None].transpose(1, -1).transpose(1, -1).squeeze(-1),
    "cat": lambda x: torch.cat([x]),
    "halves": lambda x: torch.cat(x.chunk(2, 1), 1),
    "neg, neg": lambda x: x.neg().neg(),
    "write": lambda x: torch.empty_like(x).copy_(x),
    "where": lambda x: torch.where(torch.ones_like(x, dtype=torch.bool), x, 7.0),
}


@holds(100, network=networks(), name=st.sampled_from(list(IDENTITIES)), place=st.integers(0, 6))
def test_an_identity_does_not_change_the_maps(network: Network, name: str, place: int) -> None:
    """An identity anywhere leaves the maps of the input and of every layer as they are."""
    net, x = network.build(), network.samples()
    place = min(place, len(network.operations))
    layers = [*net]
    other = nn.Sequential(*layers[:place], Call(IDENTITIES[name]), *layers[place:])
    of = scores(net, x)
    assert_same(of_input(other, x), of_input(net, x), of)
    names = [str(i) for i in range(len(net))]
    found = of_layers(other, x, [str(i + (i >= place)) for i in range(len(net))])
    for one, expected in zip(found, of_layers(net, x, names), strict=True):
        assert_same(one[0], expected[0], of)


@holds(50, network=networks())
def test_verify_finds_nothing(network: Network) -> None:
    """Every operation of the grammar has a rule and conserves."""
    net, x = network.build(), network.samples()
    found = verify(net, x, TARGET)
    assert found.ok, found
