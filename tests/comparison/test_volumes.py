"""Comparisons of methods on volumes and videos."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import Comparison, compare
from captum_cav.comparison import NAMES
from captum_cav.errors import MethodError, OptionError
from tests.support.small_networks import seeded

#: The measures that apply to a single picture with a mask.
METRICS = [
    "sparseness", "entropy", "completeness", "agreement", "mass_accuracy", "rank_accuracy", "pointing_hit", "deletion",
    "insertion", "morf_lerf", "single_deletion", "effect_agreement", "model_randomisation",
    "random_logit",
]  # fmt: skip


def network() -> nn.Sequential:
    with seeded():
        return nn.Sequential(
            nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(24, 3)
        ).eval()


def volumes() -> torch.Tensor:
    return torch.rand(2, 1, 4, 4, 6, generator=torch.Generator().manual_seed(1))


def test_methods_are_measured_on_volumes(tmp_path: Path) -> None:
    masks = torch.zeros(1, 4, 4, 6, dtype=torch.bool)
    masks[:, 1:3, :2] = True
    metrics = {name: {"steps": 2} if name in ("deletion", "insertion", "morf_lerf") else {} for name in METRICS}
    metrics["single_deletion"] = metrics["effect_agreement"] = {"cells": 2}
    report = compare(
        network(), volumes()[:1], 1, ["cav", "saliency"], ["2"], metrics, masks=masks, batch_size=2, progress=False
    )
    assert report.maps["cav", "2"].shape == (1, 4, 4, 6)
    assert report.raw["cav", "2"].shape == (1, 2, 2, 3)
    assert report.raw["saliency", "input"].shape == (1, 4, 4, 6)
    torch.testing.assert_close(report.maps["cav", "2"].flatten(1).sum(1), report.raw["cav", "2"].flatten(1).sum(1))
    of_cav = next(row for row in report.rows if row.method == "cav")
    assert of_cav.native_shape == (2, 2, 3)
    assert not any(math.isnan(value) for value in of_cav.metrics.values())
    assert "maps of 4 x 4 x 6" in report.to_markdown()
    first = next(csv.DictReader(io.StringIO(report.to_csv())))
    assert (first["depth"], first["height"], first["width"]) == ("2", "2", "3")
    assert not any(math.isnan(value) for value in list(report.agreement().values())[:1])
    figure = report.figure()
    drawn = next(axis for axis in figure.axes if axis.get_title().startswith("cav, 2 x 3"))
    levels = np.asarray(drawn.images[-1].get_array())
    assert levels.shape == (4, 6)
    report.save(tmp_path / "saved")
    again = Comparison.load(tmp_path / "saved")
    assert [row.native_shape for row in again.rows] == [row.native_shape for row in report.rows]
    assert again.settings.size == (4, 4, 6)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("cav:")])
def test_a_method_explains_volumes_or_says_why_not(name: str) -> None:
    is_of_layer = name in ("guided_gradcam", "gradcam") or name.startswith(("layer", "internal"))

    def run() -> Comparison:
        layers = ["0" if is_of_layer else "input"]
        return compare(network(), volumes()[:1], 1, [name], layers, (), progress=False)

    if name.endswith("lrp"):
        with pytest.raises(MethodError, match=f"{name!r} failed .*Conv3d.* has no rule"):
            run()
    else:
        assert next(iter(run().raw.values())).dim() == 4


def test_a_grid_of_a_volume_has_three_sides() -> None:
    report = compare(network(), volumes(), 1, ["cav"], ["0"], (), size=(2, 2, 3), progress=False)
    assert report.maps["cav", "0"].shape == (2, 2, 2, 3)
    with pytest.raises(OptionError, match=r'size is \(2, 2\); expected "input" or \(depth, height, width\)'):
        compare(network(), volumes(), 1, ["cav"], ["0"], (), size=(2, 2), progress=False)
