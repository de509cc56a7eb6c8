"""Captum's own test cases: the same numbers, and no hooks left on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum.attr import (
    InputXGradient,
    LayerGradientXActivation,
    LayerLRP,
    NeuronGradient,
    NoiseTunnel,
)
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import (
    TargetError,
)
from tests.support.captum_cases import (
    AT_INPUTS,
    AT_LAYERS,
    AT_LAYERS_BY_LRP,
    AT_NEURONS,
    CASES,
    SOFTMAX,
    THROUGH_NOISE,
    assert_same,
    case_of,
    flat,
    hooks_on,
    row,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_table_holds_the_cases_that_are_taken_from_it() -> None:
    counts = [len(names) for names in (AT_LAYERS, AT_LAYERS_BY_LRP, AT_INPUTS, AT_NEURONS, THROUGH_NOISE)]
    assert all(count >= known for count, known in zip(counts, (8, 2, 7, 5, 6), strict=True)), counts
    assert SOFTMAX in AT_LAYERS


# Captum's table of cases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("name", [name for name in AT_LAYERS if name != SOFTMAX])
def test_layers_of_relu_nets_have_gradient_x_activation(name: str, of_input: bool) -> None:
    model, layer, args = case_of(name)
    args["attribute_to_layer_input"] = of_input
    if of_input and isinstance(layer, list):
        # linear0 shares its input with a layer beside it; see the next test.
        layer.remove(model.linear0)
    ours = LayerCAV(model, layer, normalize=None).attribute(**args)
    assert_same(ours, LayerGradientXActivation(model, layer).attribute(**args))


class Beside(nn.Module):
    """Two layers that take the same tensor, one before the other."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Linear(2, size, bias=False) for size in (2, 1, 1))
        for layer, value in ((self.stem, 1.0), (self.a, 1.0), (self.b, 3.0)):
            layer.weight.data.fill_(value)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(x)
        found = {name: self.get_submodule(name)(hidden) for name in self.order}
        return found["a"] + found["b"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_input_of_a_layer_counts_what_flows_through_it(order: str, frozen: bool) -> None:
    """On purpose: Captum counts other uses of the same tensor too, of a frozen model only those that come later."""
    model = Beside(order).requires_grad_(not frozen)
    cav = LayerCAV(model, ["a", "b", "stem"], normalize=None)
    found, deltas = cav.attribute(row(1.0, 1.0), 0, attribute_to_layer_input=True, return_convergence_delta=True)
    assert_same(found, [row(2.0, 2.0), row(6.0, 6.0), row(8.0, 8.0)])
    assert [delta.item() for delta in deltas] == [12.0, 4.0, 0.0]


@pytest.mark.parametrize("name", AT_LAYERS_BY_LRP)
def test_layers_have_the_relevance_of_captums_lrp(name: str) -> None:
    model, layer, args = case_of(name)
    ours = LayerCAV(model, layer, normalize=None).attribute(**args)
    assert_same(ours, LayerLRP(model, layer).attribute(**args))


def test_a_softmax_at_the_end_has_the_ratios_of_the_score_before_it() -> None:
    model, layer, args = case_of(SOFTMAX)
    ours = LayerCAV(model, layer).attribute(**args)
    model.softmax = nn.Identity()
    logits = model(args["inputs"])[:, args["target"]].detach()
    captums = LayerGradientXActivation(model, layer).attribute(**args)
    assert_same(ours, captums / logits[:, None, None, None])


@pytest.mark.parametrize("name", AT_INPUTS)
def test_inputs_of_relu_nets_have_input_x_gradient(name: str) -> None:
    model, _, args = case_of(name)
    ours = InputCAV(model, normalize=None).attribute(**args)
    assert_same(ours, InputXGradient(model).attribute(**args))


@pytest.mark.parametrize("name", AT_NEURONS)
def test_neurons_of_relu_nets_have_input_x_gradient(name: str) -> None:
    model, layer, args = case_of(name)
    ours = NeuronCAV(model, layer, normalize=None).attribute(**args)
    gradients, inputs = NeuronGradient(model, layer).attribute(**args), args["inputs"]
    if isinstance(inputs, tuple):
        assert_same(ours, tuple(x * gradient for x, gradient in zip(inputs, gradients, strict=True)))
    else:
        assert_same(ours, inputs * gradients)


@pytest.mark.parametrize("name", THROUGH_NOISE)
def test_a_tunnel_without_noise_changes_nothing(name: str) -> None:
    model, _, args = case_of(name)
    through = NoiseTunnel(InputCAV(model, normalize=None)).attribute(**args)
    plain = {key: value for key, value in args.items() if key not in ("nt_samples", "nt_samples_batch_size", "stdevs")}
    assert_same(through, InputXGradient(model).attribute(**plain))


PER_SAMPLE = [
    name
    for name in AT_LAYERS + AT_INPUTS
    if isinstance(CASES[name]["attribute_args"]["target"], (list, torch.Tensor))
    and len(CASES[name]["attribute_args"]["target"]) > 1
]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_batch_with_a_target_for_each_sample_is_its_samples(name: str) -> None:
    model, layer, args = case_of(name)
    method = LayerCAV(model, layer) if layer is not None else InputCAV(model)
    together = flat(method.attribute(**args))
    several = isinstance(args["inputs"], tuple)
    samples = len(args["inputs"][0] if several else args["inputs"])
    assert samples > 3
    for index in range(samples):

        def of_sample(value: Any, index: int = index) -> Any:
            return value[index : index + 1] if isinstance(value, torch.Tensor) else value

        alone = {**args, "inputs": tuple(map(of_sample, args["inputs"])) if several else of_sample(args["inputs"])}
        if "additional_forward_args" in args:
            alone["additional_forward_args"] = tuple(map(of_sample, args["additional_forward_args"]))
        for target in (args["target"][index], args["target"][index : index + 1]):
            alone["target"] = target
            for part, whole in zip(flat(method.attribute(**alone)), together, strict=True):
                torch.testing.assert_close(part, whole[index : index + 1], rtol=1e-5, atol=1e-6)


def test_there_are_lists_of_indices_and_of_tuples_and_tensors_among_them() -> None:
    targets = [CASES[name]["attribute_args"]["target"] for name in PER_SAMPLE]
    kinds = {type(target[0]) for target in targets}
    assert kinds >= {int, tuple, torch.Tensor}
    assert len(targets) >= 7


# What captum leaves on a model ---------------------------------------------------------------------------------------


class Raises(nn.Module):
    """Stands for a layer and raises when it is called."""

    def forward(self, *args: Any) -> None:
        raise AssertionError("raised by the model")


def method_of(name: str) -> tuple[nn.Module, Callable[[], Any], dict[str, Any]]:
    """A case's model, what makes its method of ours, and its arguments."""
    model, layer, args = case_of(name)
    if name in AT_NEURONS:
        return model, lambda: NeuronCAV(model, layer, normalize=None), args
    if layer is not None:
        # Read when it is made: the layer may have been replaced.
        found = CASES[name]["layer"]
        return model, lambda: LayerCAV(model, found), args
    if name in THROUGH_NOISE:
        return model, lambda: NoiseTunnel(InputCAV(model)), args
    return model, lambda: InputCAV(model), args


@pytest.mark.parametrize("name", [*AT_LAYERS, *AT_LAYERS_BY_LRP, *AT_INPUTS, *AT_NEURONS, *THROUGH_NOISE])
def test_no_hooks_remain(name: str) -> None:
    model, make, args = method_of(name)
    seen: list[Any] = []
    probe = model.register_forward_hook(lambda *_: seen.append(hooks_on(model)))
    make().attribute(**args)
    probe.remove()
    # Otherwise the search could not find any: beside the probe there is one at the layer.
    if name not in AT_INPUTS and name not in THROUGH_NOISE:
        assert set(seen[0]) > {("", "_forward_hooks")}
    assert hooks_on(model) == []


def test_no_hooks_remain_where_the_rules_ask_for_modules() -> None:
    model, layer, args = case_of("conv_layer_single_target")
    seen: list[Any] = []
    probe = model.register_forward_hook(lambda *_: seen.append(hooks_on(model)))
    LayerCAV(model, layer, rules={nn.Conv2d: rules.EpsilonRule()}).attribute(**args)
    probe.remove()
    assert ("torch", "_global_forward_hooks") in seen[0]
    assert hooks_on(model) == []


@pytest.mark.parametrize("name", [*AT_LAYERS, *AT_LAYERS_BY_LRP, *AT_INPUTS, *AT_NEURONS, *THROUGH_NOISE])
def test_no_hooks_remain_after_a_wrong_target(name: str) -> None:
    """Captum raises an AssertionError or IndexError here; ours names what would fit."""
    model, make, args = method_of(name)
    args["neuron_selector" if name in AT_NEURONS else "target"] = (9999,) * 20
    with pytest.raises(TargetError, match="9999"):
        make().attribute(**args)
    assert hooks_on(model) == []


@pytest.mark.parametrize("name", [*AT_LAYERS, *AT_LAYERS_BY_LRP])
def test_no_hooks_remain_after_a_module_raised(name: str) -> None:
    model, make, args = method_of(name)
    layer = CASES[name]["layer"]
    parent, _, child = (layer[0] if isinstance(layer, list) else layer).rpartition(".")
    setattr(model.get_submodule(parent), child, Raises())
    with pytest.raises(AssertionError, match="raised by the model"):
        make().attribute(**args)
    assert hooks_on(model) == []
