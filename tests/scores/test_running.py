"""Functions as scores: in the same forward pass as the model, with rules, targets and names as ever."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, compare, metrics, rules, scores, verify
from captum_cav.attribution.logits import logit_model
from tests.scores.networks import Segmenter, embedder, pictures
from tests.support.errors import cav_error
from tests.support.traces import left_as_it_was


class Named(nn.Module):
    """Several outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = embedder()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores, and their negatives."""
        found = self.tower(x)
        return {"scores": found, "negatives": -found}


def pick(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return output["scores"]


def test_the_target_selects_among_the_scores_of_a_function() -> None:
    net, x = Named(), pictures()
    found = LayerCAV(net, "tower.1", score=pick).attribute_targets(x, [0, [1, 2]], return_convergence_delta=True)
    expected = LayerCAV(net.tower, "1").attribute_targets(x, [0, [1, 2]], return_convergence_delta=True)
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))


def test_a_function_with_the_attribute_gets_the_arguments_of_the_model() -> None:
    class Weighted:
        takes_inputs = True

        def __call__(self, output: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return (output * weights).sum(1) + x.mean((1, 2, 3))

    net, x, weights = embedder(), pictures(), torch.rand(4, dtype=torch.float64)
    score = Weighted()
    found = InputCAV(lambda x, w: net(x), score=score).attribute(x, None, weights, return_convergence_delta=True)
    around = InputCAV(lambda x, w: score(net(x), x, w)).attribute(x, None, weights, return_convergence_delta=True)
    assert all(map(torch.equal, found, around))


def test_names_and_rules_are_those_of_the_model() -> None:
    net, x = Named(), pictures()
    chosen = {"tower.4": rules.EpsilonRule(0.3)}
    found = LayerCAV(net, "tower.1", rules=chosen, score=pick)
    assert torch.equal(
        found.attribute(x, 1), LayerCAV(net.tower, "1", rules={"4": rules.EpsilonRule(0.3)}).attribute(x, 1)
    )
    assert "tower.4" in str(found.explain_rules(x))


def test_operations_of_a_function_have_rules() -> None:
    net, x = embedder(), pictures()
    _, delta = LayerCAV(net, "1", score=lambda output: output.square().sum(1) + 3).attribute(
        x, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-12
    assert verify(net, x, score=lambda output: output.exp().sum(1)).ok
    with cav_error(NotImplementedError, "special_i0"):
        LayerCAV(net, "1", score=lambda output: torch.special.i0(output).sum(1)).attribute(x)


def test_contributions_that_can_be_differentiated() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    score = scores.Difference(0, 1)
    found = LayerCAV(net, "1", score=score).attribute(x, grad_kwargs={"create_graph": True})
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), LayerCAV(net, "1", score=score).attribute(x))


def test_nothing_stays_on_the_model() -> None:
    net = Named()
    with left_as_it_was(net):
        LayerCAV(net, "tower.1", score=pick).attribute(pictures(), 0)


@pytest.mark.parametrize("kind", ["layer", "inputs", "verify"])
def test_wrong_scores_are_refused(kind: str) -> None:
    net, x = embedder(), pictures()

    def explain(score: Any) -> Any:
        if kind == "verify":
            return verify(net, x, score=score)
        return (LayerCAV(net, "1", score=score) if kind == "layer" else InputCAV(net, score=score)).attribute(x)

    with cav_error(TypeError, "score is the class Region; expected an object of it, as Region(...)"):
        explain(scores.Region)
    with cav_error(TypeError, "the score list returned a list; expected a floating-point tensor"):
        explain(named_list)
    with cav_error(TypeError, "returned a tensor of torch.int64; expected a floating-point tensor"):
        explain(lambda output: output.argmax(1))
    with cav_error(ValueError, "target is missing: the model gives 4 values a sample"):
        explain(lambda output: output)
    with cav_error(ValueError, "score is 'probability'; expected \"output\""):
        explain("probability")


def named_list(output: torch.Tensor) -> list[torch.Tensor]:
    return list(output)


named_list.__name__ = "list"


def test_a_function_that_selects_a_neuron_has_rules_too() -> None:
    """The gradient of a square would count each contribution twice."""
    net, x = embedder(), pictures()
    inner = net[:2]
    select = lambda values: values.square().sum((1, 2, 3))  # noqa: E731
    found = NeuronCAV(net, "1").attribute(x, select, return_convergence_delta=True)
    expected = InputCAV(lambda x: select(inner(x))).attribute(x, return_convergence_delta=True)
    assert all(map(torch.equal, found, expected))
    assert found[1].abs().max() < 1e-12
    assert torch.equal(
        NeuronCAV(net, "4").attribute(x, scores.Difference(0, 1)),
        InputCAV(net, score=scores.Difference(0, 1)).attribute(x),
    )
    with cav_error(NotImplementedError, "special_i0"):
        NeuronCAV(net, "1").attribute(x, lambda values: torch.special.i0(values).sum((1, 2, 3)))


# Models that return a score -----------------------------------------------------------------------------------------


def test_a_model_with_a_score_shares_everything_and_leaves_the_model() -> None:
    net, x = Segmenter(as_dict=True), pictures()
    with left_as_it_was(net):
        scored = scores.with_score(net, scores.Region())
        assert dict(scored.named_parameters()).keys() == dict(net.named_parameters()).keys()
        assert scored.head is net.head
        assert torch.equal(scored(x), scores.Region()(net(x)))
        assert torch.equal(copy.deepcopy(scored)(x), scored(x))
    assert set(net(x)) == {"out", "aux"}


def test_a_deep_copy_of_a_scored_model_runs_its_own_modules() -> None:
    net, x = Segmenter(), pictures()
    copied = copy.deepcopy(scores.with_score(net, scores.Region(1, torch.ones(8, 8))))
    torch.nn.init.zeros_(copied.head.weight)
    torch.nn.init.zeros_(copied.head.bias)
    assert copied(x).tolist() == [0.0, 0.0]


def test_a_function_with_a_score() -> None:
    net, x = Named(), pictures()
    assert torch.equal(scores.with_score(lambda x: net(x), pick)(x), net(x)["scores"])


def test_metrics_and_methods_of_captum_take_models_with_scores() -> None:
    net, x = Segmenter(as_dict=True), pictures()
    scored = scores.with_score(net, scores.Region())
    cam = LayerGradCam(scored, scored.features).attribute(x, 2)
    assert cam.shape == (2, 1, 8, 8)
    found = metrics.deletion(scored, x, cam[:, 0].detach(), 2, steps=4, output="score")
    assert found.shape == (2,)


def test_methods_are_compared_on_a_score() -> None:
    net, x = Segmenter(as_dict=True), pictures()
    report = compare(
        net,
        x,
        2,
        ["cav", "gradcam", "saliency"],
        ["features"],
        {"deletion": {"output": "score", "steps": 2}},
        score=scores.Region(),
        progress=False,
        repeats=1,
    )
    assert [row.score for row in report.rows[:2]] == pytest.approx(scores.Region()(net(x))[:, 2].tolist())
    expected = LayerCAV(net, "features", score=scores.Region(), normalize="abs").attribute(
        x, 2, attr_dim_summation=True
    )
    torch.testing.assert_close(report.raw["cav", "features"].double(), expected[:, 0])


@pytest.mark.parametrize("as_function", [False, True], ids=["module", "function"])
def test_measures_take_the_score_as_it_is_also_if_it_is_squashed(as_function: bool) -> None:
    """Otherwise they would look for the logit, which a map of the score does not explain."""
    net, x = nn.Sequential(*embedder(), nn.Softmax(1)), pictures()

    def first(output: torch.Tensor) -> torch.Tensor:
        return output[:, 0]

    scored = scores.with_score((lambda x: net(x)) if as_function else net, first)
    assert logit_model(scored, x) is scored
    assert logit_model(net, x) is not net
