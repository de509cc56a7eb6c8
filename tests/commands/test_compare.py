"""``captum-cav compare``."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from matplotlib.figure import Figure
from PIL import Image

import captum_cav
from captum_cav import Comparison, cli
from captum_cav.compilation import repeated
from captum_cav.compilation.compiled import Compiled

PICTURE = str(Path(captum_cav.__file__).parent / "data" / "dog_above_cat.png")
NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 8, 8), nn.GELU(), nn.Conv2d(4, 6, 2, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "tiny_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    options = ["--model", "tiny_network:make", "--layers", "3,0", "--repeats", "1", "--output", "out"]
    shutil.copy(PICTURE, tmp_path / "other.png")
    return ["compare", PICTURE, "other.png", *options]


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What figures look like is tested elsewhere, and drawing takes long."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b"figure"))


def test_a_table_a_figure_of_each_picture_and_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--methods", "cav", "gradcam", "deeplift", "--measures", "sparseness", "--target", "1", "3"]
    assert cli.main([*arguments, *chosen]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"the score of class 1, .* in tiny_network:make; out/dog_above_cat_comparison.png", printed)
    assert re.search(r"the score of class 3, .* in tiny_network:make; out/other_comparison.png", printed)
    assert "| method | layer | map | sparseness ↑ | seconds | forward | backward | GPU MiB |" in printed
    assert "| cav | 0 | 28x28 |" in printed
    assert "deeplift at input: UnsupportedOperationError: Captum's DeepLift sees certain modules only" in printed
    output = tmp_path / "out"
    rows = list(csv.DictReader((output / "comparison.csv").open()))
    assert [(row["method"], row["layer"], row["target"]) for row in rows[:4]] == [
        ("cav", "3", "1"), ("cav", "3", "3"), ("cav", "0", "1"), ("cav", "0", "3"),
    ]  # fmt: skip
    for name in ("dog_above_cat", "other"):
        assert Comparison.load(output / f"{name}_maps").maps["cav", "3"].shape == (1, 224, 224)
        with Image.open(output / f"{name}_comparison.png") as figure:
            assert figure.width > 300


@pytest.mark.usefixtures("no_drawing")
def test_each_picture_has_its_best_class_by_default(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--methods", "cav", "--measures"]) == 0
    classes = re.findall(r"the score of (class \d)", capsys.readouterr().out)
    assert len(classes) == 2
    assert len(set(classes)) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--methods", "gradcan"], r"unknown method 'gradcan' \(did you mean 'gradcam'"),
        (["--measures", "deletoin"], r"unknown measure 'deletoin' \(did you mean 'deletion'"),
        (["--target", "1", "2", "3"], "--target names 3 classes for 2 pictures; give one, or one for each"),
        (["--layers", "9"], "unknown layer '9'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err.split("\r")[-1].lstrip()
    assert error.startswith("captum-cav: error: ")
    assert re.search(message, error)


@pytest.mark.usefixtures("no_drawing")
def test_results_come_picture_by_picture_and_a_run_goes_on(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second picture interrupts the first run. The second run explains that picture alone."""
    from captum_cav.commands.running import compare as running

    real, explained = running.compare, []

    def interrupted(*given: object, **options: object) -> object:
        explained.append(given)
        if len(explained) == 2:
            raise KeyboardInterrupt
        return real(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "compare", interrupted)
    chosen = ["--methods", "cav", "--measures", "sparseness"]
    assert cli.main([*arguments, *chosen]) == 130
    output = tmp_path / "out"
    assert (output / "dog_above_cat_comparison.png").exists()
    assert Comparison.load(output / "dog_above_cat_maps").maps
    assert not (output / "comparison.csv").exists()
    assert cli.main([*arguments, *chosen, "--resume"]) == 0
    assert len(explained) == 3
    resumed = (output / "comparison.csv").read_text()
    assert cli.main([*arguments, "--methods", "cav", "gradcam", "--resume"]) == 0
    assert len(explained) == 5, "other options, so both pictures"
    assert cli.main([*arguments, *chosen]) == 0
    assert len(explained) == 7, "without --resume"
    columns = ("method", "layer", "example", "target", "sparseness")
    both = [csv.DictReader(text.splitlines()) for text in (resumed, (output / "comparison.csv").read_text())]
    first, second = ([[row[name] for name in columns] for row in rows] for rows in both)
    assert first == second


@pytest.mark.usefixtures("no_drawing")
def test_the_default_measures_nothing(arguments: list[str], tmp_path: Path) -> None:
    assert cli.main([arguments[0], arguments[1], *arguments[3:], "--methods", "cav"]) == 0
    header = (tmp_path / "out" / "comparison.csv").read_text().splitlines()[0]
    assert "deletion" not in header
    assert cli.main([arguments[0], arguments[1], *arguments[3:], "--methods", "cav", "--measures"]) == 0
    header = (tmp_path / "out" / "comparison.csv").read_text().splitlines()[0]
    assert "deletion,insertion,single_deletion,sparseness" in header


@pytest.mark.usefixtures("no_drawing")
def test_rows_as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--methods", "cav", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["layer"], row["example"]) for row in rows[:3]] == [
        ("cav", "3", 0),
        ("cav", "3", 1),
        ("cav", "0", 0),
    ]
    assert rows[1]["picture"] == "other.png"


def test_measures_that_explain_again_replay_what_comes_often(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    chosen = [*arguments, "--methods", "cav", "gradcam", "--measures", "random_logit", "--target", "1"]
    assert cli.main(chosen) == 0
    monkeypatch.setattr(repeated, "RECORD_AFTER", 1)
    with patch.object(Compiled, "_record", autospec=True, side_effect=Compiled._record) as record:
        assert cli.main([*chosen, "--output", "recorded"]) == 0
    # One recording for each layer.
    assert record.call_count == 2
    usual, recorded = (
        list(csv.DictReader((tmp_path / name / "comparison.csv").open())) for name in ("out", "recorded")
    )
    for one, other in zip(usual, recorded, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


@pytest.mark.slow
def test_fused_kernels_are_timed_and_passes_are_counted(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_drawing: None
) -> None:
    with patch.object(Compiled, "_record", autospec=True, side_effect=Compiled._record) as record:
        chosen = ["--methods", "cav", "gradcam", "--target", "1", "--layers", "3", "--compile"]
        assert cli.main([*arguments, *chosen]) == 0
    # One recording for both pictures.
    assert record.call_count == 1
    assert "seconds of CAV are those of fused kernels" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert {(row["forwards"], row["backwards"]) for row in rows if row["method"] == "cav"} == {("1.0", "1.0")}
