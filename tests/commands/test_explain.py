"""``captum-cav explain`` with several pictures, with files for other programs, and with networks that fail."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import captum_cav
from captum_cav import LayerCAV, cli, single_image, zoo
from captum_cav.compilation import repeated
from captum_cav.compilation.compiled import Compiled
from captum_cav.visualization import spatial_map

PICTURE = Path(captum_cav.__file__).parent / "data" / "dog_above_cat.png"
NETWORKS = """
import torch
from torch import nn

def make(channels=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 8, 8), nn.ReLU(), nn.Conv2d(4, 6, 2, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )
    nn.init.normal_(model[6].weight)
    return model

def grey():
    return make(1)

def double():
    return make().double()

def half():
    return make().half()

def scripted():
    return torch.jit.script(make().eval())

def compiled():
    return torch.compile(make())

def raising():
    return {}["no such key"]

class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("not today\\nnor tomorrow")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with networks, a broken module and two pictures in ``pictures``."""
    (tmp_path / "own.py").write_text(NETWORKS)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "pictures").mkdir()
    shutil.copy(PICTURE, tmp_path / "pictures" / "dog.png")
    with Image.open(PICTURE) as picture:
        picture.rotate(90).save(tmp_path / "pictures" / "turned.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What figures look like is tested elsewhere, and drawing takes long."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b"figure"))


def explain(*arguments: str, model: str = "own:make") -> int:
    return cli.main(["explain", *arguments, "--model", model, "--layers", "3,1", "--output", "out"])


def written(folder: Path) -> set[str]:
    return {file.name for file in (folder / "out").iterdir() if not file.name.startswith(".")}


def test_each_picture_of_a_folder_has_files_of_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pictures" / "cut.png").write_bytes(PICTURE.read_bytes()[:3000])
    assert explain("pictures", str(PICTURE)) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "skipped: cannot open the picture pictures/cut.png" in said.err
    assert [line for line in said.out.splitlines() if line.startswith("== ")] == [
        "== dog", "== turned", "== dog_above_cat",
    ]  # fmt: skip
    names = ("dog", "turned", "dog_above_cat")
    assert written(folder) == {
        *(f"{name}_contributions.png" for name in names), *(f"{name}_rules.png" for name in names), "shares.csv",
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "out" / "shares.csv").open()))
    assert [(row["picture"], row["layer"]) for row in rows] == [(name, layer) for name in names for layer in ("3", "1")]
    for row in rows:
        total = sum(float(row[part]) for part in ("raised", "lowered", "constants", "unexplained"))
        assert abs(total) == pytest.approx(1, abs=1e-4)


def test_standard_output_is_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("pictures", "--json", "--target", "0", "2", "0", "--rules", "gamma") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["picture"], second["picture"]) == ("pictures/dog.png", "pictures/turned.jpg")
    assert [one["index"] for one in first["classes"]] == [0, 2], "each class once"
    assert first["rules"] == "gamma"
    assert sum(one["probability"] for one in first["best"]) == pytest.approx(1)
    assert {Path(file).exists() for file in first["files"]} == {True}


def test_many_pictures_are_replayed_with_the_same_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain("pictures", str(PICTURE)) == 0
    usual = (folder / "out" / "shares.csv").read_bytes()
    monkeypatch.setattr(repeated, "RECORD_AFTER", 1)
    with patch.object(Compiled, "_record", autospec=True, side_effect=Compiled._record) as record:
        assert explain("pictures", str(PICTURE)) == 0
    # The rules of the option, and those that the second figure shows.
    assert record.call_count == 2
    assert (folder / "out" / "shares.csv").read_bytes() == usual


@pytest.mark.slow
def test_fused_kernels_give_the_shares_up_to_rounding(folder: Path) -> None:
    assert explain("pictures") == 0
    usual = list(csv.DictReader((folder / "out" / "shares.csv").open()))
    assert explain("pictures", "--compile") == 0
    for one, other in zip(usual, csv.DictReader((folder / "out" / "shares.csv").open()), strict=True):
        for part in ("raised", "lowered", "constants"):
            assert float(one[part]) == pytest.approx(float(other[part]), abs=1e-4)


@pytest.mark.parametrize(
    "normalize", ["none", *(pytest.param(one, marks=pytest.mark.slow) for one in ("abs", "score"))]
)
@pytest.mark.filterwarnings("ignore::captum_cav.errors.SignWarning")
def test_arrays_are_the_maps(folder: Path, normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    options = ["--save-arrays", "--normalize", normalize, "--target", "1", "--rules", "epsilon_plus"]
    assert explain("pictures/dog.png", *options) == 0
    network = zoo.load_factory("own:make")
    inputs = network.preprocess(zoo.demo_picture())[None]
    kind = None if normalize == "none" else normalize
    cav = LayerCAV(network.model, "1", normalize=kind, rules="epsilon_plus")  # type: ignore[arg-type]
    with np.load(folder / "out" / "dog_maps.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"1/3", "1/1"}
        expected = spatial_map(cav.attribute(inputs, 1), (224, 224))[0]
        np.testing.assert_allclose(arrays["1/1"], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_names_of_classes_come_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.txt").write_text("\ufeffcat\n dog \n猫\n", encoding="utf-8")
    assert explain("pictures/dog.png", "--class-names", "names.txt", "--target", "dog") == 0
    printed = capsys.readouterr().out
    assert "of 'dog' came from" in printed
    assert "猫 (2)" in printed


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        ("cat\n\ndog\n", "cat", "line 2 of names.txt is empty"),
        ("", "cat", "line 1 of names.txt is empty"),
        ("cat\ndog\nbird\n", "dogg", "has no class 'dogg'; near matches: dog"),
        ("cat\ndog\n", "dog", "there are 2 names of classes, and own:make returned 3 scores"),
    ],
)
def test_names_of_classes_that_do_not_fit(
    folder: Path, content: str, target: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "names.txt").write_text(content)
    assert explain("pictures/dog.png", "--class-names", "names.txt", "--target", target) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("own:grey", "own:grey raised RuntimeError for a picture of shape (1, 3, 224, 224)"),
        ("own:scripted", "scripted or traced"),
        ("own:raising", "own:raising raised KeyError: 'no such key'"),
        ("own:Raising", "raised ValueError for a picture of shape (1, 3, 224, 224): not today nor tomorrow"),
        ("broken:make", "broken:make raised SyntaxError"),
        ("own:mkae", "own has no 'mkae'; near matches: make"),
    ],
)
def test_a_network_that_fails_is_one_line_with_the_cause(
    folder: Path, model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("pictures/dog.png", model=model) == 2
    error = capsys.readouterr().err.split("\r")[-1].lstrip()
    assert error.count("\n") == 1
    assert error.startswith("captum-cav: error: ")
    assert said in error


def test_the_line_of_a_factory_that_raises_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("pictures/dog.png", model="own:raising") == 2
    line = NETWORKS.splitlines().index('    return {}["no such key"]') + 1
    assert f"own.py, line {line})" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["own:double", "own:half", "own:compiled"])
def test_precision_and_wrappers_do_not_matter(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {}
    for name in ("own:make", model):
        assert explain("pictures/dog.png", "--json", "--target", "1", model=name) == 0
        scores[name] = json.loads(capsys.readouterr().out)[0]["classes"][0]["score"]
    assert scores[model] == pytest.approx(scores["own:make"], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", ""], "--layers is ''; expected names of layers"),
        (["--layers", "a,,b"], "--layers is 'a,,b'; expected names of layers"),
        (["--rules", "pinpiont"], "unknown preset 'pinpiont' (did you mean 'pinpoint'"),
    ],
)
def test_wrong_options_are_named_at_once(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(PICTURE), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_rules_that_tell_no_amounts_print_no_account(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("pictures/dog.png", "--rules", "pinpoint") == 0
    printed = capsys.readouterr().out
    assert "came from, in per cent" not in printed
    assert "the same with the rules paper" in printed
    assert single_image.WHICH_TO_BELIEVE in printed


def test_the_recommended_rules_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("pictures/dog.png", "--rules", "gamma") == 0
    expected = capsys.readouterr()
    assert explain("pictures/dog.png", "--rules", "auto", "--force") == 0
    printed = capsys.readouterr()
    assert printed.out == expected.out
    assert "captum-cav: auto: gamma, as the model has 2 2-D convolutions" in printed.err
    assert "auto" not in expected.err


@pytest.mark.parametrize("kind", ["state_dict", "model_state_dict", "model", "only", "module", "compiled", "lightning"])
def test_checkpoints_are_unwrapped(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    torch.manual_seed(1)
    state = {key: torch.randn_like(value) for key, value in zoo.load_factory("own:make").model.state_dict().items()}
    prefix = {"module": "module.", "compiled": "_orig_mod.", "lightning": "net."}.get(kind, "")
    named = {prefix + key: value for key, value in state.items()}
    key = {"only": "weights", "lightning": "state_dict"}.get(kind, kind)
    saved = named if kind in ("module", "compiled") else {key: named, "epoch": 3, "optimizer": {"state": {0: {}}}}
    torch.save(saved, folder / "weights.pt")
    loaded = zoo.load_factory("own:make", folder / "weights.pt").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_whole_model_in_a_file_is_refused_without_bad_advice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "model.pt")
    assert explain("pictures/dog.png", "--weights", "model.pt") == 2
    said = capsys.readouterr().err
    assert "it holds objects of the class torch.nn.modules.linear.Linear" in said
    assert "weights_only" not in said
