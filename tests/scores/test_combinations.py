"""Differences, sums and means of outputs and of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav import LayerCAV, scores
from tests.scores.networks import Segmenter, autoencoder, check_like_a_function, embedder, pictures
from tests.support.errors import cav_error

OUTPUT = torch.tensor([[5.0, 1.0, 2.0], [0.0, 4.0, 7.0]])


@pytest.mark.parametrize(
    "score",
    [scores.Difference(0, 3), scores.Sum(0, -1, 2), scores.Mean(1, 2), scores.Difference([0, 1], [2, 3])],
    ids=repr,
)
def test_outputs_are_combined(score: Any) -> None:
    check_like_a_function(embedder(), "1", score, pictures())


def test_scores_are_combined() -> None:
    score = scores.Difference(scores.Region(0), scores.Sum(scores.Region(1), (2, 0, 0)))
    check_like_a_function(Segmenter(), "features.1", score, pictures())


def test_a_part_may_take_the_inputs() -> None:
    score = scores.Mean(scores.ReconstructionError(), scores.ReconstructionError(kind="l1"))
    assert score.takes_inputs
    check_like_a_function(autoencoder(), "2", score, pictures())


def test_values() -> None:
    assert scores.Difference(0, 2)(OUTPUT).tolist() == [3.0, -7.0]
    assert scores.Difference([0, 1], [2, 0])(OUTPUT).tolist() == [3.0, 4.0]
    assert scores.Sum(0, 1, 2)(OUTPUT).tolist() == [8.0, 11.0]
    assert scores.Mean(torch.tensor([0, 1]), 2)(OUTPUT).tolist() == [3.5, 5.5]


def test_contributions_to_a_difference_are_the_difference_of_contributions() -> None:
    net, x = embedder(), pictures()
    first, second = LayerCAV(net, "1", normalize=None).attribute_targets(x, [0, 3])
    found = LayerCAV(net, "1", normalize=None, score=scores.Difference(0, 3)).attribute(x)
    torch.testing.assert_close(found, first - second)


def test_wrong_parts_are_refused() -> None:
    with cav_error(ValueError, "target is 3, out of range for output shape (2, 3)"):
        scores.Sum(0, 3)(OUTPUT)
    with cav_error(ValueError, "Mean got no part; expected at least one, as Mean(0, 3)"):
        scores.Mean()
    with cav_error(TypeError, "score is the class Region; expected an object of it, as Region(...)"):
        scores.Sum(scores.Region)
    with cav_error(ValueError, "the parts of Sum((0, 0, 0), Region(class_index=None, mask=None)) have the shapes"):
        scores.Sum((0, 0, 0), scores.Region())(torch.zeros(2, 3, 1, 1))
