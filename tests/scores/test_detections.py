"""Scores of one detection: its class score, or a side of its box."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from captum_cav import LayerCAV, rules, scores
from captum_cav.scores.detections import QUANTITIES
from tests.scores.networks import check_like_a_function, pictures
from tests.support.detectors import TORCHVISION, Queries, torchvision_detector
from tests.support.errors import cav_error


@pytest.mark.parametrize("value", ["score", "x2"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_detectors_of_torchvision(name: str, value: Any) -> None:
    net, x = torchvision_detector(name), pictures(2, 64).sigmoid()
    boxes = torch.stack([found["boxes"][1] for found in net(x)]).detach()
    score = scores.Detection(boxes, value=value)
    of_index = scores.Detection(index=1, value=value)(net(x))
    assert torch.equal(score(net(x)), of_index), "the nearest box is the box itself"
    check_like_a_function(net, "backbone.body.3", score, x)


@pytest.mark.parametrize("name", TORCHVISION)
def test_sizes_of_detections_have_contributions_where_gates_carry(name: str) -> None:
    net, x = torchvision_detector(name), pictures(2, 64).sigmoid()
    score, carrying = scores.Detection(index=1, value="height"), {torch.mul: rules.ProductRule("halves")}
    found = LayerCAV(net, "backbone.body.3", score=score, rules=carrying).attribute(x, return_convergence_delta=True)
    assert found[0].abs().sum() > 1
    assert found[1].abs().max() < 1e-9


@pytest.mark.parametrize("value", ["score", "x1", "width"])
@pytest.mark.parametrize("kind", ["detr", "yolo"])
def test_queries_and_anchors(kind: str, value: Any) -> None:
    torch.manual_seed(0)
    net = Queries(kind).double().eval()
    check_like_a_function(net, "body.1", scores.Detection(index=2, value=value, label=1), pictures())


BOXES = torch.tensor([[1.0, 2.0, 5.0, 10.0], [20.0, 20.0, 30.0, 24.0], [22.0, 20.0, 32.0, 24.0]])
LISTED = [{"boxes": BOXES, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([1, 2, 1])}]
OF_THE_SECOND = {"x1": 20, "y1": 20, "x2": 30, "y2": 24, "width": 10, "height": 4}
CENTRES = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1)[None]
LOGITS = torch.arange(9.0).reshape(1, 3, 3)
OUTPUTS: dict[str, Any] = {
    "detr": {"pred_logits": LOGITS, "pred_boxes": CENTRES},
    "transformers": SimpleNamespace(logits=LOGITS, pred_boxes=CENTRES),
    "yolo": torch.cat([CENTRES, LOGITS], -1).transpose(1, 2),
    "yolo in a tuple": (torch.cat([CENTRES, LOGITS], -1).transpose(1, 2), ["features"]),
}


def test_every_value_of_a_listed_detection() -> None:
    found = {value: scores.Detection([21, 20, 30, 24], value=value)(LISTED).item() for value in QUANTITIES}  # type: ignore[arg-type]
    assert found == pytest.approx({"score": 0.8, **OF_THE_SECOND})


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=list(OUTPUTS))
def test_every_value_of_a_query(output: Any) -> None:
    found = {v: scores.Detection([21, 20, 30, 24], value=v, label=2)(output).item() for v in QUANTITIES}  # type: ignore[arg-type]
    assert found == pytest.approx({"score": 5, **OF_THE_SECOND})
    assert scores.Detection(index=2)(output).tolist() == [[6.0, 7.0, 8.0]], "without a label, target selects"


def test_a_label_chooses_among_listed_detections() -> None:
    assert scores.Detection([20, 20, 30, 24], label=1)(LISTED).item() == pytest.approx(0.7)
    assert scores.Detection(index=1, label=1)(LISTED).item() == pytest.approx(0.7)


def test_each_sample_may_have_its_box() -> None:
    boxes = torch.stack([BOXES[0], BOXES[2]])
    assert scores.Detection(boxes)(LISTED * 2).tolist() == pytest.approx([0.9, 0.7])
    with cav_error(ValueError, "box has shape (2, 4); expected (4,) for all samples, or (3, 4) with one for each"):
        scores.Detection(boxes)(LISTED * 3)


@pytest.mark.parametrize("name", TORCHVISION)
def test_no_detection_left_is_refused_and_the_advice_works(name: str) -> None:
    net, x = torchvision_detector(name), pictures(1, 64).sigmoid()
    where: Any = net.roi_heads if name == "faster_rcnn" else net
    where.score_thresh = 1.0
    attribution = LayerCAV(net, "backbone.body.3", score=scores.Detection([0, 0, 60, 60]))
    with cav_error(
        ValueError,
        "sample 0 has no detection; expected at least one",
        "model.score_thresh = 0.0, or model.roi_heads.score_thresh = 0.0 of a model with two stages",
    ):
        attribution.attribute(x)
    where.score_thresh = 0.0
    assert attribution.attribute(x).abs().sum() > 0


def test_a_box_elsewhere_is_refused() -> None:
    with cav_error(
        ValueError,
        "no detection of sample 0 overlaps with the box [40, 40, 50, 50]",
        "expected a box in the unit of the model's boxes, which lie between (1, 2) and (32, 24)",
    ):
        scores.Detection([40, 40, 50, 50])(LISTED)


def test_wrong_arguments_are_refused() -> None:
    with cav_error(ValueError, "neither box nor index was given; expected one of them"):
        scores.Detection()
    with cav_error(ValueError, "both box and index were given; expected one of them"):
        scores.Detection([0, 0, 1, 1], index=0)
    with cav_error(ValueError, 'value is \'area\'; expected "score", "x1", '):
        scores.Detection(index=0, value="area")  # type: ignore[arg-type]
    with cav_error(ValueError, "index is -1; expected an integer of at least 0"):
        scores.Detection(index=-1)
    with cav_error(TypeError, "box is 'left'; expected four numbers"):
        scores.Detection("left")  # type: ignore[arg-type]
    with cav_error(ValueError, "box has shape (3,); expected (4,) or (N, 4)"):
        scores.Detection([0, 0, 1])
    with cav_error(ValueError, "box is [5.0, 0.0, 1.0, 1.0]; expected x1, y1, x2, y2 with x1 < x2"):
        scores.Detection([5, 0, 1, 1])


def test_detections_that_are_not_there_are_refused() -> None:
    with cav_error(ValueError, "index is 3, but sample 0 has 3 detections; expected 0 to 2"):
        scores.Detection(index=3)(LISTED)
    with cav_error(ValueError, "sample 0 has no detection of label 4; expected one of its labels 1, 2"):
        scores.Detection(index=0, label=4)(LISTED)
    with cav_error(ValueError, "label is 3; expected 0 to 2, the model's classes"):
        scores.Detection(index=0, label=3)(OUTPUTS["yolo"])


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(2, 10), "a tensor of shape (2, 10)"),
        ({"logits": LOGITS}, "a dict with 'logits'"),
        ([{"masks": BOXES}], "a list of length 1 that begins with a dict with 'masks'"),
        ([], "a list of length 0"),
    ],
)
def test_another_kind_of_output_is_refused(output: Any, said: str) -> None:
    with cav_error(TypeError, f"the model returned {said}; expected by the score Detection: a list with a dict of"):
        scores.Detection(index=0)(output)
