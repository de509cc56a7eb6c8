"""Targets, inputs and further arguments are taken as Captum takes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import (
    LayerGradientXActivation,
    NoiseTunnel,
    configure_interpretable_embedding_layer,
)
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import (
    CAVTypeError,
    TargetError,
)
from tests.support.captum_cases import CASES, SAMPLES, SMALL, assert_same, row
from tests.support.captum_networks import basic_models
from tests.support.ids import without_address

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Targets -------------------------------------------------------------------------------------------------------------


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


# Inputs and further arguments ----------------------------------------------------------------------------------------


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
    ids=without_address,
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
