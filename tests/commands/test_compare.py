"""``captum-cav compare``."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import captum_cav
from captum_cav import Comparison, cli

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
