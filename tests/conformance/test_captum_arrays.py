"""The expected arrays of Captum's own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum.attr import (
    LayerGradientXActivation,
)
from captum.attr._utils import lrp_rules
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    ModelError,
)
from tests.support.captum_cases import SMALL, assert_same, case_of, flat, row, shape_of
from tests.support.captum_networks import basic_models

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# The expected arrays of Captum's tests of gradient x activation ------------------------------------------------------


HUNDRED = row(0.0, 100.0, 0.0)


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


# The expected arrays of Captum's tests of LRP ------------------------------------------------------------------------


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
