"""Tables, figures and files of a comparison."""

from __future__ import annotations

import csv
import io
import json
import math
import stat
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_cav import Comparison, compare
from captum_cav.comparison import Row
from captum_cav.comparison.report import Settings, as_pictures, build
from captum_cav.errors import InputError
from tests.comparison.networks import classifier, pictures

DIRECTIONS = {"insertion": "higher", "deletion": "lower", "completeness": None}


def row(method: str, layer: str, example: int, insertion: float, deletion: float, **others: Any) -> Row:
    metrics = {"insertion": insertion, "deletion": deletion, "completeness": 0.25}
    cost = {"seconds": 0.125, "peak_bytes": 3 * 2**20, "forwards": 1.0, "backwards": 50.0}
    return Row(method, layer, example, 7, 1.5, metrics, **{"native_shape": (2, 3), **cost, **others})


@pytest.fixture
def made() -> Comparison:
    """Written by hand: ``good`` beats the controls, ``bad`` does not, ``failed`` has nothing."""
    rows = [
        row("good", "a", 0, 0.5, 0.1),
        row("good", "a", 1, 0.7, 0.3),
        row("bad|", "a", 0, 0.2, 0.5),
        row("bad|", "a", 1, 0.2, 0.1),
        Row("failed", "input", 0, 7, 1.5, dict.fromkeys(DIRECTIONS, math.nan), error="TypeError: no rule"),
        Row("failed", "input", 1, 7, 1.5, dict.fromkeys(DIRECTIONS, math.nan), error="TypeError: no rule"),
        row("random", "a", 0, 0.3, 0.4),
        row("random", "a", 1, 0.3, 0.4),
        row("uniform", "a", 0, 0.1, 0.35),
        row("uniform", "a", 1, 0.1, math.nan),
        row("random", "input", 0, 0.3, 0.4),
        row("random", "input", 1, 0.3, 0.4),
        row("uniform", "input", 0, 0.1, 0.35),
        row("uniform", "input", 1, 0.1, 0.35),
    ]
    maps = {(method, "a"): torch.rand(2, 6, 6) for method in ("good", "bad|", "random", "uniform")}
    maps |= {(control, "input"): torch.rand(2, 6, 6) for control in ("random", "uniform")}
    settings = Settings(
        methods={"good": "Method(LayerCAV)", "bad|": "function", "failed": "Method(LRP)"},
        unsigned=("bad|",),
        shares=("good",),
        directions=DIRECTIONS,
        size=(6, 6),
        repeats=3,
        seed=0,
        batch_size=8,
        device="cuda:0",
        versions={"torch": "2"},
    )
    raw = {place: values[:, :2, :3] for place, values in maps.items()}
    return build(rows, maps, raw, torch.zeros(2, 6, 6, 3, dtype=torch.uint8), settings)


def test_the_table_has_means_the_best_and_what_is_no_better_than_a_control(made: Comparison) -> None:
    assert (
        made.to_markdown()
        == """\
| method | layer | map | insertion ↑ | deletion ↓ | completeness | seconds | forward | backward | GPU MiB |
|---|---|---|---|---|---|---|---|---|---|
| good | a | 2x3 | **0.6** | **0.2** | 0.25 | 0.125 | 1 | 50 | 3 |
| bad/ | a | 2x3 | 0.2* | 0.3 | 0.25 | 0.125 | 1 | 50 | 3 |
| failed | input | - | - | - | - | - | - | - | - |
| random | a | 2x3 | 0.3 | 0.4 | 0.25 | - | - | - | - |
| uniform | a | 2x3 | 0.1 | 0.35 | 0.25 | - | - | - | - |
| random | input | 2x3 | 0.3 | 0.4 | 0.25 | - | - | - | - |
| uniform | input | 2x3 | 0.1 | 0.35 | 0.25 | - | - | - | - |

Means over 2 examples.
Metrics are of maps of 6 x 6; passes and seconds (the median of 3 after a warm-up, on cuda:0) are those of one example.
Bold: the best. *: no better than a control (random or uniform) at that layer.
Without a sign (absolute values, of what the score is sensitive to): bad|.
failed at input: TypeError: no rule"""
    )
    assert str(made) == made.to_markdown()


def test_without_metrics_the_table_has_no_controls(made: Comparison) -> None:
    unmeasured = replace(made, settings=replace(made.settings, directions={}))
    table = unmeasured.to_markdown()
    assert "random" not in table
    assert "uniform" not in table
    assert "\nPasses and seconds (the median of 3 after a warm-up, on cuda:0) are those of one example.\n" in table
    assert "| good | a | 2x3 | 0.125 | 1 | 50 | 3 |" in table


def test_rows_go_to_csv(made: Comparison, tmp_path: Path) -> None:
    text = made.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == text == made.to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(made.rows)
    measured = "insertion deletion completeness height width seconds peak_bytes forwards backwards error"
    assert list(rows[0]) == f"method layer example target score {measured}".split()
    assert rows[3] == {
        "method": "bad|", "layer": "a", "example": "1", "target": "7", "score": "1.5", "insertion": "0.2",
        "deletion": "0.1", "completeness": "0.25", "height": "2", "width": "3", "seconds": "0.125",
        "peak_bytes": "3145728", "forwards": "1.0", "backwards": "50.0", "error": "",
    }  # fmt: skip
    assert (rows[4]["insertion"], rows[4]["height"], rows[4]["error"]) == ("nan", "", "TypeError: no rule")


def test_rows_go_to_pandas(made: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made.to_pandas()
    assert len(table) == len(made.rows)
    assert list(table.columns) == made.to_csv().splitlines()[0].split(",")
    assert table.groupby(["method", "layer"]).insertion.mean()["good", "a"] == pytest.approx(0.6)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs the package pandas: pip install pandas"):
        made.to_pandas()


def test_rows_cannot_be_changed(made: Comparison) -> None:
    with pytest.raises(FrozenInstanceError):
        made.rows[0].score = 2.0  # type: ignore[misc]


# Files -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(made: Comparison, tmp_path: Path) -> None:
    made.save(tmp_path / "new" / "folder")
    loaded = Comparison.load(tmp_path / "new" / "folder")
    assert repr(loaded.rows) == repr(made.rows), "NaN is not equal to itself"
    assert loaded.settings == made.settings
    assert list(loaded.maps) == list(made.maps)
    for kind in ("maps", "raw"):
        for place, maps in getattr(made, kind).items():
            assert torch.equal(getattr(loaded, kind)[place], maps)
    assert torch.equal(loaded.pictures, made.pictures)
    assert loaded.to_markdown() == made.to_markdown()
    with pytest.raises(KeyError, match="'failed' has no map at 'input': TypeError: no rule"):
        loaded.maps["failed", "input"]


def test_targets_of_several_indices_are_saved(made: Comparison, tmp_path: Path) -> None:
    rows = [replace(one, target=(1, 2)) for one in made.rows[:2]] + [replace(made.rows[2], target=None)]
    build(rows, {}, {}, made.pictures, made.settings).save(tmp_path)
    assert [one.target for one in Comparison.load(tmp_path).rows] == [(1, 2), (1, 2), None]


def test_nothing_that_is_saved_can_be_executed(made: Comparison, tmp_path: Path) -> None:
    made.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["comparison.json", "manifest.json", "maps.safetensors"]
    for file in tmp_path.glob("*.json"):
        json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_an_interrupted_save_is_recognised(made: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.save(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            made.save(tmp_path)
    with pytest.raises(InputError, match=r"holds an unfinished comparison, without its manifest"):
        Comparison.load(tmp_path)
    made.save(tmp_path)
    assert Comparison.load(tmp_path).to_csv() == made.to_csv()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "maps.safetensors").unlink(), r"maps\.safetensors is missing or was changed"),
        (lambda folder: (folder / "comparison.json").write_text("{}"), r"comparison\.json is missing or was changed"),
        (lambda folder: (folder / "manifest.json").write_text("["), r"manifest\.json is not the manifest of a comp"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 9, "sha256": {}}'), "has format 9; this"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no comparison; pass a folder"),
    ],
)
def test_damaged_files_are_recognised(made: Comparison, tmp_path: Path, damage: Any, message: str) -> None:
    made.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        Comparison.load(tmp_path)


# Figures ---------------------------------------------------------------------------------------------------------


def labels_and_titles(found: Comparison) -> tuple[list[str], list[str]]:
    panels = [axis for axis in found.figure(0).axes if axis.get_label() != "<colorbar>"]
    return [axis.get_ylabel() for axis in panels if axis.get_ylabel()], [axis.get_title() for axis in panels]


def test_methods_are_rows_and_three_layers_are_columns() -> None:
    layers = ["body.last", "body.relu", "body.pool"]
    found = compare(classifier(), pictures(), 2, ["cav", "gradcam"], layers, (), progress=False, repeats=1)
    labels, titles = labels_and_titles(found)
    assert labels == ["cav", "gradcam"]
    assert [title.split(",")[0] for title in titles] == layers * 2


def test_captions_of_a_row_begin_at_one_height() -> None:
    found = compare(classifier(), pictures(), 2, ["cav", "gradcam", "input_x_gradient"], ["body.last"], (),
                    progress=False, repeats=1)  # fmt: skip
    labels, titles = labels_and_titles(found)
    assert labels == ["at the input", "at body.last"]
    of_input, of_layer = titles[:2], titles[2:4]
    assert of_input[0] == "the input"
    for row in (of_input, of_layer):
        assert len({title.count("\n") for title in row}) == 1


def test_a_comparison_is_short_in_a_console_and_a_figure_in_a_notebook(made: Comparison) -> None:
    assert len(repr(made)) < 300
    shown = made._repr_html_()
    assert shown.count("<img") == 1
    assert shown.count("<tr>") == 1 + len({(row.method, row.layer) for row in made.rows})


def test_parts_are_joined(made: Comparison) -> None:
    joined = Comparison.join([made, made])
    assert len(joined.rows) == 2 * len(made.rows)
    place = next(iter(made.maps))
    assert torch.equal(joined.maps[place], torch.cat([made.maps[place], made.maps[place]]))
    assert [row.example for row in joined.rows if (row.method, row.layer) == place] == list(range(4))
    assert joined.to_csv().count("\n") == 1 + len(joined.rows)


def test_all_files_have_the_usual_permissions(made: Comparison, tmp_path: Path) -> None:
    made.save(tmp_path)
    assert len({stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}) == 1


def test_the_figure_has_rows_of_methods_at_the_input_and_at_each_of_two_layers() -> None:
    methods = ["cav", "lrp", "gradcam", "saliency", "deeplift", "guided_gradcam", "input_x_gradient"]
    found = compare(
        classifier(torch.nn.Tanh), pictures(), 2, methods, ["body.last", "body.relu"], (), progress=False, repeats=1,
        on_error="record",
    )  # fmt: skip
    figure = found.figure(1)
    score = found.rows[1].score
    assert figure.get_suptitle().replace("\n", " ") == (
        f"What raised (red) and lowered (blue) the score {score:.4g} of target 2 (no map: guided_gradcam)"
    )
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    titles = [axis.get_title().split("\n")[0] for axis in panels]
    assert titles[:4] == ["the input", "lrp, 14 x 14", "deeplift, 14 x 14", "input_x_gradient, 14 x 14"]
    labels = [axis.get_ylabel() for axis in panels if axis.get_ylabel()]
    assert labels == ["at the input", "at the input,\nwithout a sign", "at body.last", "at body.relu"]
    assert titles[8:10] == ["cav, 5 x 5", "gradcam, 5 x 5"]
    assert titles[12:14] == ["cav, 14 x 14", "gradcam, 14 x 14"]
    assert found.figure(0, np.zeros((14, 14, 3), dtype=np.uint8), "mine").get_suptitle().startswith("mine")
    with pytest.raises(InputError, match="example is 2; expected 0 to 1"):
        found.figure(2)


def test_inputs_are_stretched_to_pictures() -> None:
    inputs = torch.stack([torch.linspace(-2, 3, 12).reshape(3, 2, 2), torch.full((3, 2, 2), 5.0)])
    shown = as_pictures(inputs)
    assert shown.shape == (2, 2, 2, 3)
    assert (int(shown[0].min()), int(shown[0].max())) == (0, 255)
    assert torch.equal(shown[0, 0, 0], (255 * (inputs[0, :, 0, 0] + 2) / 5).round().to(torch.uint8))
    assert bool((shown[1] == 0).all()), "an even picture has no range"
    assert torch.equal(*as_pictures(inputs[:, :2])[0].unbind(-1)[:2]), "other channels than three are grey"
