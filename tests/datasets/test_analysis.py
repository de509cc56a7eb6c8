"""What the maps of a dataset say: a planted shortcut is found, none is invented, the numbers are those of the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from captum_cav import InputCAV, LayerCAV, datasets
from captum_cav.datasets.analysis import analyze
from captum_cav.datasets.reading import ExplainedDataset
from captum_cav.errors import InputError, LayerError, OptionError
from captum_cav.metrics import agreement
from tests.datasets import digits
from tests.support.errors import raising


def network(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1, bias=bias),
        nn.Flatten(),
        nn.Linear(64, 3, bias=bias),
    ).eval()


def explained(folder: Path, model: nn.Module | None = None, **options: Any) -> ExplainedDataset:
    """36 pictures of 8 x 8 pixels with labels 0, 1 and 2, explained at two layers."""
    pictures = torch.rand(36, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    normalize = options.pop("normalize", "abs")
    attribution = LayerCAV(model or network(), ["3", "0"], normalize=normalize)
    options = {"targets": "label", "progress": False, "dtype": "float32", "shard_size": 10} | options
    return datasets.explain_dataset(attribution, TensorDataset(pictures, torch.arange(36) % 3), folder, **options)


@pytest.mark.parametrize("is_marked", [True, False], ids=["mark", "no mark"])
def test_a_planted_shortcut_is_found_and_none_is_invented(is_marked: bool, tmp_path: Path) -> None:
    pictures, marks = digits.digits(0.75 if is_marked else 0)
    found = analyze(digits.explained(tmp_path, pictures, digits.trained(pictures)), sample=120)
    if not is_marked:
        assert found.reported == ()
        return
    first, second, *_ = found.classes
    assert found.reported == (first,)
    assert (first.target, first.name) == (digits.MARKED_CLASS, "digit 3")
    assert first.clustering.distance > 2 * second.clustering.distance
    standout = first.clustering.standout
    assert standout is not None
    raised = standout.mean.clamp(min=0)
    assert float(raised[: digits.MARK, : digits.MARK].sum() / raised.sum()) > 0.8
    has_mark = [bool(marks[first.rows[place]]) for place in standout.members]
    assert sum(has_mark) > 0.95 * len(has_mark)
    assert sum(has_mark) > 0.95 * sum(bool(marks[row]) for row in first.rows)


def test_numbers_of_a_class_are_those_of_its_rows(tmp_path: Path) -> None:
    out = explained(tmp_path)
    found = analyze(out, layer="0")
    assert sorted(one.target for one in found.classes) == [0, 1, 2]
    for one in found.classes:
        rows = [row for row in out.rows() if row["label"] == one.target]
        assert one.rows == tuple(row["row"] for row in rows)
        assert one.count == len(rows) == 12
        maps = torch.stack([out.map(row, "0") for row in one.rows]).double()
        shares = maps / maps.abs().sum((1, 2), keepdim=True)
        assert torch.allclose(one.maps, shares)
        assert torch.allclose(one.mean, shares.mean(0))
        similar = torch.nn.functional.cosine_similarity(shares.flatten(1), shares.mean(0).flatten()[None])
        assert one.typical_first[0] == int(similar.argmax())
        assert one.typical_first[-1] == int(similar.argmin())
        for layer in ("3", "0"):
            assert one.constants[layer] == pytest.approx(sum(row[f"constants:{layer}"] for row in rows) / 12)
        between = [float(agreement(out.map(row, "3")[None], out.map(row, "0")[None])) for row in one.rows]
        assert one.agreement == {("3", "0"): pytest.approx(sum(between) / 12)}
        assert one.clustering.clusters == (), "12 maps are too few for groups"


def test_positive_numbers_raised_the_score_whatever_the_unit_of_the_maps(tmp_path: Path) -> None:
    found = {}
    for normalize in ("abs", "score", None):
        out = explained(tmp_path / str(normalize), normalize=normalize)
        found[normalize] = {one.target: one.maps for one in analyze(out, layer="0").classes}
    assert any(row["score"] < 0 for row in out.rows())
    for normalize in ("score", None):
        for target, maps in found["abs"].items():
            assert torch.allclose(found[normalize][target], maps, atol=1e-6)


def test_maps_with_channels_count_as_their_sums(tmp_path: Path) -> None:
    whole = explained(tmp_path / "maps")
    channels = explained(tmp_path / "channels", keep=("channels", "scores", "constants"))
    for one, other in zip(analyze(whole).classes, analyze(channels).classes, strict=True):
        assert torch.allclose(one.maps, other.maps, atol=1e-6)


def test_pictures_explained_for_several_classes_count_for_the_best_class(tmp_path: Path) -> None:
    out = explained(tmp_path, targets=[0, 1, 2])
    rows = list(out.rows())
    found = analyze(out)
    assert sum(one.count for one in found.classes) == 36
    for one in found.classes:
        assert all(rows[number]["target"] == rows[number]["best"] == one.target for number in one.rows)


def test_pictures_explained_for_one_class_count_for_that_class(tmp_path: Path) -> None:
    (found,) = analyze(explained(tmp_path, targets=[1])).classes
    assert (found.target, found.rows) == (1, tuple(range(36)))


def test_a_sample_is_chosen_by_the_seed(tmp_path: Path) -> None:
    out = explained(tmp_path)
    chosen = [[one.rows for one in analyze(out, sample=5, seed=seed).classes] for seed in (0, 0, 1)]
    assert all(len(rows) == 5 and sorted(rows) == list(rows) for rows in chosen[0])
    assert chosen[0] == chosen[1] != chosen[2]
    assert analyze(tmp_path, sample=5).classes[0].count == 12


def test_the_layer_with_enough_places_is_chosen(tmp_path: Path) -> None:
    assert analyze(explained(tmp_path / "small")).layer == "0"  # 8 x 8 places rather than 4 x 4
    pictures = TensorDataset(torch.rand(4, 1, 48, 48), torch.zeros(4, dtype=torch.long))
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 2)
    ).eval()
    attribution = LayerCAV(model, ["3", "2", "1"], normalize="abs")  # 6 x 6, 12 x 12 and 24 x 24 places
    out = datasets.explain_dataset(attribution, pictures, tmp_path / "large", targets="label", progress=False)
    found = analyze(out)
    assert found.layer == "2"
    # Finer maps are pooled, and keep their sums.
    finer = analyze(out, layer="1").classes[0].maps
    assert finer.shape == (4, 16, 16)
    assert torch.allclose(finer.abs().sum((1, 2)), torch.ones(4, dtype=torch.float64))


def test_pictures_with_errors_and_without_contributions_are_left_out(tmp_path: Path) -> None:
    pictures = torch.rand(30, 1, 4, 4)
    pictures[:2] = 0  # no contributions
    pictures[2:5] = torch.nan  # cannot be explained

    def dataset(number: int) -> tuple[torch.Tensor, int]:
        return pictures[number], 0

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    listed = [dataset(number) for number in range(30)]
    attribution = InputCAV(model, normalize="abs")
    out = datasets.explain_dataset(attribution, listed, tmp_path, targets="label", progress=False)
    found = analyze(out)
    assert found.classes[0].rows == tuple(range(5, 30))
    assert found.classes[0].count == 27
    assert found.skipped == 2
    assert bool(found.classes[0].mean.isfinite().all())


def test_a_model_without_contributions_is_refused(tmp_path: Path) -> None:
    model = network()
    nn.init.zeros_(model[5].weight)
    out = explained(tmp_path, model)
    with raising(InputError, ValueError, r"all 36 maps of 0 in .* hold only zeros, NaN or infinity"):
        analyze(out)


def test_what_cannot_be_analysed_is_refused(tmp_path: Path) -> None:
    out = explained(tmp_path / "whole")
    with raising(LayerError, ValueError, r"has no maps of '5'.*; expected one of '3', '0'"):
        analyze(out, layer="5")
    with raising(OptionError, ValueError, "sample is 0"):
        analyze(out, sample=0)
    with raising(InputError, ValueError, "holds no explained dataset"):
        analyze(tmp_path)
    with raising(InputError, ValueError, r'has no maps; expected keep=\("maps", ...\)'):
        analyze(explained(tmp_path / "scores", keep=("scores", "constants")))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    rows = TensorDataset(torch.rand(3, 16), torch.zeros(3, dtype=torch.long))
    flat = datasets.explain_dataset(InputCAV(model), rows, tmp_path / "flat", targets="label", progress=False)
    with raising(LayerError, ValueError, r"the maps of input in .* have no places in two dimensions"):
        analyze(flat)


def test_the_analysis_is_json(tmp_path: Path) -> None:
    found = analyze(explained(tmp_path))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [one["target"] for one in read["classes"]] == [one.target for one in found.classes]
    assert read["reported"] == []
    assert read["rows"] == 36
    assert torch.allclose(torch.tensor(read["classes"][0]["mean"]), found.classes[0].mean.float())
    for one in found.classes:
        assert not math.isnan(one.agreement["3", "0"])
