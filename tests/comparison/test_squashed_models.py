"""A comparison of a model that ends in a squashing function is that of its logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from captum_cav import Comparison, compare
from captum_cav.errors import ModelError
from tests.support.errors import no_warnings

METHODS = ["cav", "cav:pinpoint+log_odds", "gradcam", "input_x_gradient"]
METRICS = {
    "deletion": {"steps": 3},
    "single_deletion": {"cells": 2},
    "effect_agreement": {"cells": 2},
    "completeness": {},
    "random_logit": {},
    "model_randomisation": {},
    "difull": {},
}


class Ended(nn.Module):
    """A small network, and what comes last."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(self.head(self.features(x).mean((2, 3))))
        return scores


class Halves(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.softmax(1) / 2


PICTURES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))

TARGETS = [0, 3, 1, 2]


def compared(last: nn.Module) -> Comparison:
    net = Ended(last).eval()
    return compare(net, PICTURES, TARGETS, METHODS, ["features"], METRICS, size=(12, 12), repeats=1, progress=False)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=["softmax", "log_softmax"])
def test_scores_maps_and_measures_are_those_of_the_logits(last: nn.Module, tmp_path: Path) -> None:
    with no_warnings():
        found, expected = compared(last), compared(nn.Identity())
    assert {row.score < 0 for row in expected.rows} == {False, True}
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert (one.method, one.layer, one.example) == (other.method, other.layer, other.example)
        assert one.score == pytest.approx(other.score, rel=1e-5)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4, abs=1e-5, nan_ok=True)
    for place, maps in expected.maps.items():
        torch.testing.assert_close(found.maps[place], maps, rtol=1e-4, atol=1e-6)
    name = "log_softmax" if isinstance(last, nn.LogSoftmax) else "softmax"
    said = f"The model ends in {name}: scores and maps are those of the numbers before it."
    assert said in found.to_markdown()
    assert "The model ends in" not in expected.to_markdown()
    found.save(tmp_path)
    assert said in Comparison.load(tmp_path).to_markdown()


def test_a_sigmoid_for_each_class() -> None:
    found = compare(Ended(nn.Sigmoid()).eval(), PICTURES, TARGETS, ["cav"], ["features"], ["deletion"], progress=False)
    expected = compare(Ended(nn.Identity()).eval(), PICTURES, TARGETS, ["cav"], ["features"], [], progress=False)
    torch.testing.assert_close(found.maps["cav", "features"], expected.maps["cav", "features"])
    # Deletion starts at the probability of the class, which a softmax over all classes would change.
    assert all(0 < row.metrics["deletion"] < 1 for row in found.rows)


def test_logits_that_cannot_be_found_are_refused() -> None:
    with pytest.raises(ModelError, match=r'score="logit" needs what the last squashing function takes'):
        compared(Halves())
