"""Captum's contract: the models, configurations and expected numbers of its own tests, and all that takes a method."""

from __future__ import annotations

import ast
import copy
import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum import metrics as captum_metrics
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr import (
    Attribution,
    GradientAttribution,
    InputXGradient,
    LayerAttribution,
    LayerGradCam,
    LayerGradientXActivation,
    LayerLRP,
    NeuronAttribution,
    NeuronGradient,
    NoiseTunnel,
    configure_interpretable_embedding_layer,
)
from captum.attr import visualization as captum_visualization
from captum.attr._utils import lrp_rules
from captum.concept import TCAV, Classifier, Concept
from captum.testing.helpers import basic_models
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.nn import functional as F

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, metrics, rules
from captum_cav.errors import (
    CAVTypeError,
    LayerError,
    ModelError,
    TargetError,
    UnavailableError,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _load_cases() -> dict[str, dict[str, Any]]:
    """Captum's table of test cases; to load it seeds every generator and sets a flag of cuDNN."""
    states = random.getstate(), np.random.get_state(), torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=[]):
        from captum.testing.attr.helpers.test_config import config
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.backends.cudnn.deterministic = states[2]
    return {case["name"]: case for case in config}


CASES = _load_cases()


def names_of(algorithm: type[Attribution], **flags: Any) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if algorithm in case["algorithms"] and all(case.get(key, False) == value for key, value in flags.items())
    ]


AT_LAYERS = names_of(LayerGradientXActivation)
AT_LAYERS_BY_LRP = names_of(LayerLRP)
AT_INPUTS = names_of(InputXGradient, noise_tunnel=False)
AT_NEURONS = names_of(NeuronGradient)
THROUGH_NOISE = names_of(InputXGradient, noise_tunnel=True)
# It ends in a softmax, through which contributions pass (equation 7) and gradients do not.
SOFTMAX = "conv_layer_single_target"


def case_of(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A copy of a case: its model, its layer or layers if it has any, and the arguments of ``attribute``."""
    case = copy.deepcopy({key: CASES[name].get(key) for key in ("model", "layer", "attribute_args")})
    model, layer = case["model"], case["layer"]
    if isinstance(layer, list):
        return model, [model.get_submodule(one) for one in layer], case["attribute_args"]
    return model, model.get_submodule(layer) if layer else None, case["attribute_args"]


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in flat(part)]


def shape_of(value: Any) -> Any:
    """The nesting of a result: its containers' types, and the shapes inside."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else (type(value), [shape_of(part) for part in value])


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """The same nesting and the same numbers, not all of them zero."""
    assert shape_of(ours) == shape_of(theirs)
    assert any(bool(tensor.any()) for tensor in flat(theirs))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_the_table_holds_the_cases_that_are_taken_from_it() -> None:
    counts = [len(names) for names in (AT_LAYERS, AT_LAYERS_BY_LRP, AT_INPUTS, AT_NEURONS, THROUGH_NOISE)]
    assert all(count >= known for count, known in zip(counts, (8, 2, 7, 5, 6), strict=True)), counts
    assert SOFTMAX in AT_LAYERS


# Captum's table of cases -------------------------------------------------------------------------------------------


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


# What captum leaves on a model -------------------------------------------------------------------------------------


class Raises(nn.Module):
    """Stands for a layer and raises when it is called."""

    def forward(self, *args: Any) -> None:
        raise AssertionError("raised by the model")


def hooks_on(model: nn.Module) -> list[tuple[str, str]]:
    """Hooks that are left on any module, or on all modules of the process."""
    found = [
        (name, kind)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if kind.endswith("_hooks") and "state_dict" not in kind and value
    ]
    everywhere = vars(torch.nn.modules.module)
    return found + [
        ("torch", kind)
        for kind in everywhere
        if kind.startswith("_global_") and kind.endswith("_hooks") and everywhere[kind]
    ]


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


# The expected arrays of Captum's tests of gradient x activation ----------------------------------------------------

HUNDRED = row(0.0, 100.0, 0.0)
SMALL = row(3.0, 4.0, 0.0)
MULTI = (row(0.0, 10.0, 0.0), row(0.0, 10.0, 0.0), row(0.0, 5.0, 0.0))
EXPECTED: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any, Any]] = {
    "linear0": (basic_models.BasicModel_MultiLayer, "linear0", HUNDRED, None, row(0.0, 400.0, 0.0)),
    "linear1": (basic_models.BasicModel_MultiLayer, "linear1", HUNDRED, None, row(90.0, 101.0, 101.0, 101.0)),
    "linear2": (basic_models.BasicModel_MultiLayer, "linear2", HUNDRED, None, row(392.0, 0.0)),
    "list": (
        basic_models.BasicModel_MultiLayer,
        ["linear0", "linear1"],
        HUNDRED,
        None,
        [row(0.0, 400.0, 0.0), row(90.0, 101.0, 101.0, 101.0)],
    ),
    "relu": (basic_models.BasicModel_MultiLayer, "relu", SMALL, None, row(0.0, 8.0, 8.0, 8.0)),
    "in-place": (
        lambda: basic_models.BasicModel_MultiLayer(inplace=True),
        "linear1",
        SMALL,
        None,
        row(0.0, 8.0, 8.0, 8.0),
    ),
    "tuple": (
        lambda: basic_models.BasicModel_MultiLayer(multi_input_module=True),
        "multi_relu",
        SMALL,
        None,
        (row(0.0, 8.0, 8.0, 8.0), row(0.0, 8.0, 8.0, 8.0)),
    ),
    "list with a tuple": (
        lambda: basic_models.BasicModel_MultiLayer(multi_input_module=True),
        ["multi_relu", "linear0"],
        SMALL,
        None,
        [(row(0.0, 8.0, 8.0, 8.0), row(0.0, 8.0, 8.0, 8.0)), row(9.0, 12.0, 0.0)],
    ),
    "three inputs": (
        basic_models.BasicModel_MultiLayer_MultiInput,
        "model.linear2",
        MULTI,
        (4,),
        row(392.0, 0.0),
    ),
    "two inputs and a tensor": (
        basic_models.BasicModel_MultiLayer_MultiInput,
        "model.relu",
        (row(0.0, 10.0, 1.0), row(0.0, 4.0, 5.0)),
        (row(0.0, 0.0, 0.0), 5),
        row(90.0, 101.0, 101.0, 101.0),
    ),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen under no_grad"])
@pytest.mark.parametrize("name", EXPECTED)
def test_expected_arrays_of_gradient_x_activation(name: str, frozen: bool) -> None:
    make, layer, inputs, additional, expected = EXPECTED[name]
    model = make().requires_grad_(not frozen)
    first = inputs[0] if isinstance(inputs, tuple) else inputs
    first = first.clone().requires_grad_(not frozen)
    inputs = (first, *inputs[1:]) if isinstance(inputs, tuple) else first
    with torch.set_grad_enabled(not frozen):
        in_units = LayerCAV(model, layer, normalize=None).attribute(inputs, 0, additional)
        ratios = LayerCAV(model, layer).attribute(inputs, 0, additional)
    assert_same(in_units, expected)
    arguments = (*inputs, *(additional or ())) if isinstance(inputs, tuple) else (inputs,)
    score = model(*arguments)[0, 0].item()
    assert shape_of(ratios) == shape_of(expected)
    for ratio, value in zip(flat(ratios), flat(expected), strict=True):
        torch.testing.assert_close(ratio, value / score)


def test_a_layer_that_the_score_does_not_need() -> None:
    model = basic_models.BasicModel_MultiLayer(multi_input_module=True)
    cav = LayerCAV(model, ["linear1", "relu"], normalize=None)
    found = cav.attribute(SMALL, 0, grad_kwargs={"materialize_grads": True})
    assert_same(found, [row(0.0, 8.0, 8.0, 8.0), row(0.0, 0.0, 0.0, 0.0)])
    with pytest.raises(ModelError, match="does not depend on layer 'relu'"):
        cav.attribute(SMALL, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_embedding_of_tokens(frozen: bool) -> None:
    model = basic_models.BasicEmbeddingModel().requires_grad_(not frozen)
    tokens = torch.tensor([2, 5, 0, 1]), torch.tensor([3, 0, 0, 2])
    with torch.set_grad_enabled(not frozen):
        ours = LayerCAV(model, "embedding1", normalize=None).attribute(tokens)
    assert ours.shape == (4, 100)
    assert_same(ours, LayerGradientXActivation(model, model.embedding1).attribute(tokens))


def test_a_container_is_a_layer() -> None:
    model, x = basic_models.Conv1dSeqModel(), torch.randn(2, 4, 1000)
    assert_same(
        LayerCAV(model, model.seq, normalize=None).attribute(x, (1, 0)),
        LayerGradientXActivation(model, model.seq).attribute(x, (1, 0)),
    )


def test_parallel_branches_as_a_list() -> None:
    model, layers, args = case_of("basic_layer_ig_multi_layer_multi_output")
    ours, deltas = LayerCAV(model, layers, normalize=None).attribute(**args, return_convergence_delta=True)
    assert_same(ours, LayerGradientXActivation(model, layers).attribute(**args))
    # The score is the sum of the branches: what one gives, the other leaves unexplained.
    torch.testing.assert_close(deltas[0], ours[1].sum(1))
    torch.testing.assert_close(deltas[1], ours[0].sum(1))


# The expected arrays of Captum's tests of LRP ----------------------------------------------------------------------

ONE = row(1.0, 2.0, 3.0)


def lrp_model(**options: Any) -> nn.Module:
    return basic_models.SimpleLRPModel(**{"inplace": False, **options}).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_expected_relevance_of_the_simple_model(inplace: bool) -> None:
    model = lrp_model(inplace=inplace)
    inputs = torch.cat((ONE, 3 * ONE))
    found, delta = InputCAV(model, normalize=None).attribute(inputs, 0, return_convergence_delta=True)
    assert_same(found, torch.tensor([[18.0, 36.0, 54.0], [54.0, 108.0, 162.0]]))
    assert delta.tolist() == [0.0, 0.0]
    assert_same(InputCAV(model).attribute(inputs), torch.tensor([[1 / 6, 1 / 3, 1 / 2]] * 2))
    below = LayerCAV(model, "linear", normalize=None).attribute(ONE)
    assert_same(below, row(36.0, 36.0, 36.0))
    assert_same(LayerCAV(model, "linear2", normalize=None).attribute(ONE, attribute_to_layer_input=True), below)


def test_expected_relevance_of_a_list_of_layers() -> None:
    found, deltas = LayerCAV(lrp_model(), ["linear", "linear2"], normalize=None).attribute(
        torch.cat((ONE, 2 * ONE)), attribute_to_layer_input=True, return_convergence_delta=True
    )
    expected = [
        torch.tensor([[18.0, 36.0, 54.0], [36.0, 72.0, 108.0]]),
        torch.tensor([[36.0, 36.0, 36.0], [72.0, 72.0, 72.0]]),
    ]
    assert_same(found, expected)
    assert [delta.tolist() for delta in deltas] == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("lower", "upper", "at_input"),
    [
        (lrp_rules.GammaRule(gamma=1), lrp_rules.GammaRule(), row(28 / 3, 104 / 3, 52.0)),
        (lrp_rules.Alpha1_Beta0_Rule(), lrp_rules.Alpha1_Beta0_Rule(), row(12.0, 33.6, 50.4)),
        (lrp_rules.IdentityRule(), lrp_rules.EpsilonRule(), row(24.0, 36.0, 36.0)),
    ],
    ids=["gamma", "alpha1_beta0", "identity"],
)
def test_expected_relevance_of_captums_rules(lower: Any, upper: Any, at_input: torch.Tensor) -> None:
    model = lrp_model()
    with torch.no_grad():
        model.linear.weight[0, 0] = -2
    model.linear.rule, model.linear2.rule = lower, upper
    before = model(ONE)
    # Captum deletes the rules after one call.
    for _ in range(2):
        assert_same(InputCAV(model, normalize=None).attribute(ONE), at_input)
        assert_same(LayerCAV(model, "linear", normalize=None).attribute(ONE), row(24.0, 36.0, 36.0))
    assert (model.linear.rule, model.linear2.rule) == (lower, upper)
    assert torch.equal(model(ONE), before)
    del model.linear.rule, model.linear2.rule
    given = InputCAV(model, normalize=None, rules={"linear": lower, "linear2": upper})
    assert_same(given.attribute(ONE), at_input)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data.fill_(5.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + x


def test_expected_relevance_of_a_skip_connection_without_a_module_for_the_sum() -> None:
    assert_same(InputCAV(Skip(), normalize=None).attribute(row(2.0, 3.0), 1), row(10.0, 18.0))


def pooled_linear() -> nn.Module:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data.fill_(2.0)
    return nn.Sequential(linear, nn.MaxPool1d(2))


@pytest.mark.parametrize(
    ("model", "inputs", "target", "expected"),
    [
        (pooled_linear(), [[[1.0, 2.0], [5.0, 6.0]]], (1, 0), [[[0.0, 0.0], [10.0, 12.0]]]),
        (nn.MaxPool2d(2), [[[[1.0, 2.0], [5.0, 6.0]]]], None, [[[[0.0, 0.0], [0.0, 6.0]]]]),
        (
            nn.MaxPool3d(2),
            [[[[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]]]],
            None,
            [[[[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 8.0]]]]],
        ),
    ],
    ids=["1d", "2d", "3d"],
)
def test_expected_relevance_of_max_pooling(model: nn.Module, inputs: Any, target: Any, expected: Any) -> None:
    found = InputCAV(model, normalize=None).attribute(torch.tensor(inputs), target)
    assert_same(found, torch.tensor(expected))


def test_the_winner_of_a_pool_takes_the_whole_score() -> None:
    model = basic_models.LinearMaxPoolLinearModel()
    inputs = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 8.0, 6.0, 7.0]])
    assert_same(InputCAV(model).attribute(inputs, 0), torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]))


def test_an_additional_argument_that_adds_nothing_changes_nothing() -> None:
    cav = InputCAV(basic_models.BasicModel_MultiLayer(), normalize=None)
    assert torch.equal(cav.attribute(ONE, 0), cav.attribute(ONE, 0, (0,)))


def test_two_inputs_share_the_score_where_captums_test_gives_both_too_much() -> None:
    """Captum's test of LRP expects [16, 32, 48] twice and a delta of -104, of a score of 88."""
    model = basic_models.BasicModel_MultiLayer()
    found, delta = InputCAV(model, normalize=None).attribute((ONE, 3 * ONE), 0, return_convergence_delta=True)
    assert_same(found, (row(4.0, 8.0, 12.0), row(12.0, 24.0, 36.0)))
    assert delta.item() == 0.0
    assert model(ONE, 3 * ONE)[0, 0].item() == 88.0


def test_a_model_that_returns_fewer_rows_than_it_was_given() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.linear(x))[0].unsqueeze(0)

    model = First()
    model.linear.weight.data.fill_(1.0)
    inputs = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    assert_same(InputCAV(model, normalize=None).attribute(inputs, 0), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


# Targets -----------------------------------------------------------------------------------------------------------

SAMPLES = torch.randn(4, 3, generator=torch.Generator().manual_seed(1234))


@pytest.mark.parametrize(
    ("target", "additional"),
    [
        (1, None),
        (-1, None),
        ((1,), None),
        (torch.tensor(1), None),
        (torch.tensor([1]), None),
        ([0, 1, 1, 0], None),
        (torch.tensor([0, 1, 1, 0]), None),
        ([(0,), (1,), (1,), (0,)], None),
        ((1, 0, 1), (None, True)),
        ([(1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 0, 0)], (None, True)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", ["linear0", "relu"])
def test_every_form_of_target_selects_what_captum_selects(layer: str, target: Any, additional: Any) -> None:
    model = basic_models.BasicModel_MultiLayer()
    # As it comes, all targets have the same weights.
    model.linear2.weight.data[1] = torch.tensor([2.0, -1.0, 3.0, 0.5])
    captums = LayerGradientXActivation(model, model.get_submodule(layer))
    expected = captums.attribute(SAMPLES, target, additional)
    assert_same(LayerCAV(model, layer, normalize=None).attribute(SAMPLES, target, additional), expected)
    assert not torch.equal(expected, captums.attribute(SAMPLES, (0, 0, 0) if additional else 0, additional))


@pytest.mark.parametrize(
    "target",
    [None, 2, -3, (1, 0), [0, 1], [0, 1, 2, 0], torch.tensor([0, 1]), torch.tensor([[0], [1], [1], [0]])],
    ids=str,
)
def test_targets_that_do_not_fit_are_refused(target: Any) -> None:
    """Captum raises AssertionError, IndexError or nothing at all; ours is a ValueError that says what fits."""
    with pytest.raises(TargetError, match="target"):
        LayerCAV(basic_models.BasicModel_MultiLayer(), "relu").attribute(SAMPLES, target)


@pytest.mark.parametrize("target", [1.0, "1", True, torch.tensor([0.0, 1.0, 1.0, 0.0])], ids=repr)
def test_targets_of_a_wrong_type_are_refused(target: Any) -> None:
    with pytest.raises(CAVTypeError, match="target"):
        LayerCAV(basic_models.BasicModel_MultiLayer(), "relu").attribute(SAMPLES, target)


# Inputs and further arguments --------------------------------------------------------------------------------------


class Takes(nn.Module):
    """Notes the further arguments that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.given: tuple[Any, ...] = ()

    def forward(self, x: torch.Tensor, *given: Any) -> torch.Tensor:
        self.given = given
        return self.linear(x)


ANYTHING = object()


@pytest.mark.parametrize(
    ("additional", "given"),
    [
        (None, ()),
        (3, (3,)),
        (True, (True,)),
        ("text", ("text",)),
        ([1, 2], ([1, 2],)),
        ({"a": [1, None]}, ({"a": [1, None]},)),
        (ANYTHING, (ANYTHING,)),
        ((), ()),
        ((None,), (None,)),
        (((1, 2),), ((1, 2),)),
        ((1.5, "text", None, {"a": 1}, len), (1.5, "text", None, {"a": 1}, len)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["layer", "input", "neuron", "noise"])
def test_further_arguments_of_any_type_arrive_as_they_are(kind: str, additional: Any, given: tuple[Any, ...]) -> None:
    model = Takes()
    if kind == "neuron":
        NeuronCAV(model, "linear").attribute(SAMPLES, 0, additional)
    else:
        method = {"layer": LayerCAV(model, "linear"), "input": InputCAV(model), "noise": NoiseTunnel(InputCAV(model))}
        method[kind].attribute(SAMPLES, target=0, additional_forward_args=additional)
    assert model.given == given


def test_a_nested_input_is_one_argument() -> None:
    model = basic_models.BasicModel_MultiLayer_TupleInput()
    inputs = tuple(row(float(index), 2.0, 3.0) for index in range(3))
    captums = LayerGradientXActivation(model, model.model.linear1).attribute((inputs,), target=0)
    assert_same(LayerCAV(model, "model.linear1", normalize=None).attribute((inputs,), 0), captums)
    by_function = LayerCAV(lambda *x: model(x), model.model.linear1, normalize=None)
    assert_same(by_function.attribute(inputs, 0), captums)


def test_inputs_of_truth_values() -> None:
    model, x = basic_models.BasicModelBoolInput(), torch.tensor([[True, False, True]])
    assert_same(
        LayerCAV(model, "mod.linear1", normalize=None).attribute(x, 0),
        LayerGradientXActivation(model, model.mod.linear1).attribute(x, 0),
    )


def test_a_model_that_returns_a_dict_through_a_function() -> None:
    model = basic_models.BasicModel_GradientLayerAttribution(dict_output=True)
    torch.manual_seed(0)

    def task(x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():  # It draws a linear layer anew in each call.
            torch.manual_seed(1)
            return model(x)["task 1"]

    assert_same(
        LayerCAV(task, model.relu, normalize=None).attribute(SMALL),
        LayerGradientXActivation(task, model.relu).attribute(SMALL),
    )
    with pytest.raises(CAVTypeError, match="the model returned a dict"):
        LayerCAV(model, model.relu).attribute(SMALL)


def test_inputs_as_layers_and_embeddings_as_inputs() -> None:
    """What Captum offers to attribute to inputs by layer methods, and to tokens by input methods."""
    case = CASES["basic_layer_ig_multi_layer_multi_output_with_input_wrapper"]
    model, inputs = copy.deepcopy(case["model"]), case["attribute_args"]["inputs"]
    wrapped = [model.input_maps[name] for name in ("x1", "x2", "x3", "x4")]
    as_layers = LayerCAV(model, wrapped, normalize=None).attribute(inputs, 0)
    assert_same(tuple(as_layers), InputCAV(model.module, normalize=None).attribute(inputs, 0))

    model = basic_models.BasicEmbeddingModel()
    tokens = torch.tensor([[2, 5, 0, 1]]), torch.tensor([[3, 0, 0, 2]])
    as_layer = LayerCAV(model, "embedding1", normalize=None).attribute(tokens, 0)
    embedded = configure_interpretable_embedding_layer(model, "embedding1").indices_to_embeddings(tokens[0])
    assert_same(InputCAV(model, normalize=None).attribute(embedded, 0, (tokens[1],)), as_layer)


# Methods as Captum's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "bases", "name"),
    [
        (LayerCAV, (LayerAttribution, GradientAttribution), "Layer C A V"),
        (InputCAV, (GradientAttribution,), "Input C A V"),
        (NeuronCAV, (NeuronAttribution, GradientAttribution), "Neuron C A V"),
    ],
    ids=str,
)
def test_a_method_is_one_of_captums(method: type[Attribution], bases: tuple[type, ...], name: str) -> None:
    model = basic_models.BasicModel_MultiLayer()
    made = method(model) if method is InputCAV else method(model, model.relu, [0])
    assert isinstance(made, bases)
    assert made.forward_func is model
    assert method.get_name() == name
    assert made.multiplies_by_inputs is True
    assert made.has_convergence_delta() is True
    # NoiseTunnel and TCAV call what log_usage wraps.
    assert list(inspect.signature(made.attribute.__wrapped__).parameters)[:2] == ["self", "inputs"]
    if method is not InputCAV:
        assert made.layer is model.relu
        assert made.device_ids == [0]
    with pytest.raises(UnavailableError, match=r"attribute\(\.\.\., return_convergence_delta=True\)"):
        made.compute_convergence_delta(torch.zeros(1, 4), SMALL, SMALL, target=0)


@pytest.mark.parametrize(
    ("ours", "captums", "same", "before"),
    [
        (LayerCAV, LayerGradientXActivation, 4, ["self", "forward_func", "layer", "device_ids"]),
        (LayerCAV, LayerGradCam, 6, ["self", "forward_func", "layer", "device_ids"]),
        (InputCAV, InputXGradient, 3, ["self", "forward_func"]),
        (NeuronCAV, NeuronGradient, 4, ["self", "forward_func", "layer", "device_ids"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_stand_where_captums_stand(ours: Any, captums: Any, same: int, before: list[str]) -> None:
    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(ours.attribute)[1 : same + 1] == parameters(captums.attribute)[1 : same + 1]
    given = parameters(ours.__init__)
    assert given[: len(before)] == before
    assert all(
        parameter.kind is parameter.KEYWORD_ONLY
        for name, parameter in inspect.signature(ours.__init__).parameters.items()
        if name not in before
    )


def test_the_forward_function_need_not_be_a_module() -> None:
    model, layer, args = case_of("basic_layer_multiple_tuple_target")
    expected = LayerGradientXActivation(model, layer).attribute(**args)
    for function in (model.forward, lambda *given: model(*given)):
        assert_same(LayerCAV(function, layer, normalize=None).attribute(**args), expected)


def test_a_layer_that_is_set_later_is_the_one_explained() -> None:
    model = basic_models.BasicModel_MultiLayer()
    cav = LayerCAV(model, model.relu, normalize=None)
    cav.layer = model.linear0
    assert_same(cav.attribute(SMALL, 0), row(9.0, 12.0, 0.0))
    cav.layer = [model.linear0, model.relu]
    assert_same(cav.attribute(SMALL, 0), [row(9.0, 12.0, 0.0), row(0.0, 8.0, 8.0, 8.0)])
    with pytest.raises(LayerError, match="does not belong"):
        cav.layer = nn.ReLU()
    neuron = NeuronCAV(model, model.relu, normalize=None)
    neuron.layer = model.linear0
    assert_same(neuron.attribute(SMALL, 1), row(0.0, 4.0, 0.0))


class Means(Classifier):
    """The direction between the means of two concepts."""

    def __init__(self) -> None:
        self.found: tuple[torch.Tensor, list[int]] = (torch.empty(0), [])

    def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, float]:
        values, labels = (torch.cat(parts) for parts in zip(*dataloader, strict=True))
        first, second = (values[labels == label].mean(0) for label in (0, 1))
        self.found = torch.stack([first - second, second - first]), [0, 1]
        return {"accs": 1.0}

    def weights(self) -> torch.Tensor:
        return self.found[0]

    def classes(self) -> list[int]:
        return self.found[1]


def test_tcav_takes_it(tmp_path: Path) -> None:
    model = basic_models.BasicModel_MultiLayer()

    def scores(method: LayerAttribution, where: Path) -> list[float]:
        torch.manual_seed(0)
        concepts = [
            Concept(number, str(number), torch.utils.data.DataLoader(torch.rand(6, 3) * size, batch_size=3))
            for number, size in enumerate((5.0, -5.0))
        ]
        tcav = TCAV(model, ["linear0", "relu"], classifier=Means(), layer_attr_method=method, save_path=str(where))
        found = tcav.interpret(SAMPLES, [concepts], target=0)["0-1"]
        return [number for layer in ("linear0", "relu") for number in found[layer]["magnitude"].tolist()]

    ours = scores(LayerCAV(model, model.linear0, normalize=None), tmp_path / "ours")
    captums = scores(LayerGradientXActivation(model, model.linear0), tmp_path / "captums")
    assert ours == pytest.approx(captums)
    assert ours[0] != pytest.approx(ours[2])


@pytest.mark.parametrize("device_ids", [None, [0], [0, 1]], ids=str)
def test_data_parallel_and_device_ids_change_nothing_on_one_device(device_ids: list[int] | None) -> None:
    model, layer, args = case_of("basic_layer_multi_input")
    captums = LayerGradientXActivation(model, layer).attribute(**args)
    parallel = nn.DataParallel(model)
    for wrapped, where in ((model, layer), (parallel, layer), (parallel, "module.model.relu")):
        cav = LayerCAV(wrapped, where, device_ids, normalize=None)
        assert cav.device_ids == device_ids
        assert_same(cav.attribute(**args), captums)
    assert hooks_on(parallel) == []


# NoiseTunnel -------------------------------------------------------------------------------------------------------


class Noted(nn.Module):
    """Two inputs, two branches, a part that bypasses ``left``; notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        self.calls.append((a.detach().clone(), b.detach().clone(), scale))
        return self.head(torch.tanh(self.left(a)) + scale * self.right(b))


PAIR = tuple(
    torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) for size in (3, 2)
)
SCALE = torch.tensor([[2.0], [3.0]], dtype=torch.float64)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("at_once", [None, 2], ids=["together", "in parts"])
@pytest.mark.parametrize("kind", ["layer", "layer-input", "input", "neuron"])
def test_a_noise_tunnel_is_what_its_noisy_samples_give(kind: str, at_once: int | None, nt_type: str) -> None:
    model = Noted().double()
    method = {
        "layer": LayerCAV(model, "left"),
        "layer-input": LayerCAV(model, "left"),
        "input": InputCAV(model),
        "neuron": NeuronCAV(model, "head"),
    }[kind]
    options: dict[str, Any] = {"neuron_selector": 1} if kind == "neuron" else {"target": [2, 0]}
    if kind == "layer-input":
        options["attribute_to_layer_input"] = True
    torch.manual_seed(5)
    found, deltas = NoiseTunnel(method).attribute(
        PAIR,
        nt_type=nt_type,
        nt_samples=5,
        nt_samples_batch_size=at_once,
        stdevs=(0.3, 0.5),
        additional_forward_args=(SCALE,),
        return_convergence_delta=True,
        **options,
    )
    calls, model.calls = model.calls, []
    assert [len(call[0]) for call in calls] == ([10] if at_once is None else [4, 4, 2])
    singles: list[list[tuple[torch.Tensor, ...]]] = [[], []]
    expected_deltas = []
    for a, b, scale in calls:
        assert torch.equal(scale, SCALE.repeat_interleave(len(a) // 2, 0))
        for index in range(len(a)):
            sample = index // (len(a) // 2)
            alone = dict(options) if kind == "neuron" else {**options, "target": options["target"][sample]}
            one, delta = method.attribute(
                (a[index : index + 1], b[index : index + 1]),
                additional_forward_args=(SCALE[sample : sample + 1],),
                return_convergence_delta=True,
                **alone,
            )
            singles[sample].append(tuple(flat(one)))
            expected_deltas.append(delta)
    for number, part in enumerate(flat(found)):
        for sample in (0, 1):
            values = torch.cat([single[number] for single in singles[sample]])
            assert len(values) == 5
            expected = {
                "smoothgrad": values.mean(0),
                "smoothgrad_sq": values.square().mean(0),
                "vargrad": values.var(0, unbiased=False),
            }[nt_type]
            torch.testing.assert_close(part[sample], expected, rtol=1e-9, atol=1e-12)
            assert expected.abs().max() > 1e-6
    torch.testing.assert_close(deltas, torch.cat(expected_deltas), rtol=1e-9, atol=1e-12)
    # What bypasses the layer is left over; inputs are all that there is.
    assert (deltas.abs().max() > 1e-3) == kind.startswith("layer")


def test_a_noise_tunnel_needs_one_layer() -> None:
    model = basic_models.BasicModel_MultiLayer()
    with pytest.raises(AssertionError, match="found: <class 'list'>"):
        NoiseTunnel(LayerCAV(model, ["relu", "linear0"])).attribute(SMALL, target=0)


# Metrics, maps and pictures ----------------------------------------------------------------------------------------


def test_captums_infidelity_takes_attributions_of_inputs() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), SAMPLES

    def perturb(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.rand(inputs.shape)
        return shares, inputs * (1 - shares)

    def of(attributions: torch.Tensor, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return function(model, perturb, x, attributions, target=1, n_perturb_samples=7)

    ours = InputCAV(model, normalize=None).attribute(x, 1)
    found = of(ours, captum_metrics.infidelity)
    assert found.shape == (4,)
    assert found.min() > 0
    torch.testing.assert_close(found, of(InputXGradient(model).attribute(x, 1), captum_metrics.infidelity))
    torch.testing.assert_close(found, of(ours, metrics.infidelity))
    # The input of the first layer has the inputs' shape.
    first = LayerCAV(model, "0", normalize=None).attribute(x, 1, attribute_to_layer_input=True)
    torch.testing.assert_close(found, of(first, captum_metrics.infidelity))


def test_captums_sensitivity_takes_attributions_of_inputs() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

    def of(explain: Callable[..., Any], function: Callable[..., torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return function(explain, (SAMPLES,), perturb_radius=0.5, target=[0, 1, 1, 0])

    found = of(InputCAV(model, normalize=None).attribute, captum_metrics.sensitivity_max)
    assert found.min() > 0
    torch.testing.assert_close(found, of(InputXGradient(model).attribute, captum_metrics.sensitivity_max))
    torch.testing.assert_close(found, of(InputCAV(model, normalize=None).attribute, metrics.sensitivity_max))


@pytest.mark.parametrize(
    ("layer", "sizes", "mode"),
    [
        (nn.Conv1d(2, 3, 2), 12, "linear"),
        (nn.Conv2d(2, 3, 2), (9, 12), "bilinear"),
        (nn.Conv2d(2, 3, 2), (9, 12), "nearest"),
        (nn.Conv3d(2, 3, 2), (6, 7, 8), "trilinear"),
    ],
    ids=str,
)
def test_interpolate(layer: nn.Module, sizes: Any, mode: str) -> None:
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 2, *[4] * (len(layer.kernel_size)))
    model(x)
    ratios = LayerCAV(model, "1").attribute(x, 1)
    larger = LayerCAV.interpolate(ratios, sizes, mode)
    assert larger.shape == (2, 3, *((sizes,) if isinstance(sizes, int) else sizes))
    torch.testing.assert_close(larger, F.interpolate(ratios, sizes, mode=mode))


@pytest.fixture
def shown() -> tuple[np.ndarray, np.ndarray]:
    """A map of a layer in the size of its picture, and the picture, as Captum draws them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    picture = torch.rand(1, 3, 8, 8)
    ratios = LayerCAV(model, "2", normalize=None).attribute(picture, 1)
    larger = LayerCAV.interpolate(ratios, (8, 8), "bilinear")
    return larger[0].permute(1, 2, 0).numpy(), picture[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
def test_captum_draws_a_map(shown: tuple[np.ndarray, np.ndarray], sign: str) -> None:
    attributions, picture = shown
    _, axes = captum_visualization.visualize_image_attr(
        attributions, picture, method="heat_map", sign=sign, outlier_perc=0, use_pyplot=False
    )
    drawn = np.asarray(axes.images[0].get_array())
    summed = attributions.sum(2)
    assert summed.min() < 0 < summed.max()
    of_sign = {
        "all": summed,
        "positive": summed.clip(min=0),
        "negative": (-summed).clip(min=0),
        "absolute_value": np.abs(summed),
    }
    np.testing.assert_allclose(drawn, of_sign[sign] / np.abs(of_sign[sign]).max(), rtol=1e-5, atol=1e-6)


def test_captum_draws_several_pictures_of_a_map(shown: tuple[np.ndarray, np.ndarray]) -> None:
    methods = ["original_image", "heat_map", "blended_heat_map", "masked_image", "alpha_scaling"]
    signs = ["all", "positive", "negative", "positive", "absolute_value"]
    figure, axes = captum_visualization.visualize_image_attr_multiple(*shown, methods, signs, use_pyplot=False)
    assert [len(one.images) for one in axes] == [1, 1, 2, 1, 1]
    FigureCanvasAgg(figure).draw()


# Captum's private parts --------------------------------------------------------------------------------------------

PINNED = {
    ("captum._utils.common", "_select_targets"),
    ("captum._utils.gradient", "_verify_select_neuron"),
    ("captum.attr._utils", "lrp_rules"),
}


def captums_private_names(source: str) -> set[tuple[str, str]]:
    """What a module takes from Captum by a private name, as (module, name)."""
    tree = ast.parse(source)
    taken = set()
    for node in ast.walk(tree):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            found = [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found = [(node.value, "")]
        elif isinstance(node, ast.Attribute):
            found = [tuple(ast.unparse(node).rsplit(".", 1))]  # type: ignore[list-item]
        for module, name in found:
            parts = [*module.split("."), name]
            if parts[0] in ("captum", "captum_visualization", "captum_metrics") and any(
                part.startswith("_") for part in parts
            ):
                taken.add((module, name))
    return taken


@pytest.mark.parametrize(
    "source",
    [
        "from captum._utils.common import _run_forward",
        "import captum.attr._utils.lrp_rules",
        "from captum.attr import _core",
        "import captum\ncaptum._utils",
        "import importlib\nimportlib.import_module('captum._utils.common')",
    ],
)
def test_the_search_for_private_names_finds_them(source: str) -> None:
    assert captums_private_names(source)


def test_only_one_module_takes_private_parts_of_captum_and_they_are_pinned() -> None:
    root = Path(captum_cav.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    taken = {name: found for name, source in sources.items() if (found := captums_private_names(source))}
    by_attributions = {(module, name) for module, name in PINNED if not name.endswith("rules")}
    assert taken == {"attribution/captum_internals.py": by_attributions, "_captum.py": PINNED - by_attributions}


def test_the_private_parts_are_what_they_were() -> None:
    assert list(inspect.signature(_select_targets).parameters) == ["output", "target"]
    scores = torch.arange(6.0).reshape(2, 3)
    assert _select_targets(scores, 1).tolist() == [1.0, 4.0]
    assert _select_targets(scores, [(2,), (0,)]).tolist() == [2.0, 3.0]
    assert _select_targets(scores[:, 0], None).tolist() == [0.0, 3.0]

    assert list(inspect.signature(_verify_select_neuron).parameters) == ["layer_output", "selector"]
    assert _verify_select_neuron((scores,), 2).tolist() == [2.0, 5.0]
    assert _verify_select_neuron((scores,), (slice(0, 2),)).tolist() == [1.0, 7.0]

    for name in ("EpsilonRule", "GammaRule", "Alpha1_Beta0_Rule", "IdentityRule"):
        assert issubclass(getattr(lrp_rules, name), lrp_rules.PropagationRule)
    assert list(inspect.signature(lrp_rules.EpsilonRule).parameters) == ["epsilon"]
    assert lrp_rules.EpsilonRule(0.5).STABILITY_FACTOR == 0.5
    assert list(inspect.signature(lrp_rules.GammaRule).parameters) == ["gamma", "set_bias_to_zero"]
    gamma = lrp_rules.GammaRule(0.5, set_bias_to_zero=True)
    assert (gamma.gamma, gamma.set_bias_to_zero) == (0.5, True)
    assert lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True).set_bias_to_zero is True
