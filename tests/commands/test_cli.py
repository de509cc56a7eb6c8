"""The command line, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from captum_cav import cli, zoo

PICTURE = str(Path(zoo.__file__).parents[1] / "data" / "dog_above_cat.png")


def rows_of(table: str, layer: str) -> list[list[str]]:
    """The rows of the share tables for a layer: places, raised, lowered, constants, unexplained."""
    return [line.split()[1:] for line in table.splitlines() if line.split()[:1] == [layer]]


def test_demo_explains_dog_and_cat_at_five_depths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Egyptian cat (285)" in printed
    assert "score 5.68 of 'German shepherd'" in printed
    assert "of 'tabby'" in printed
    for layer in zoo.load("efficientnet_lite0").depths:
        shepherd, tabby = rows_of(printed, layer)
        for row in (shepherd, tabby):
            raised, lowered, constants, unexplained = map(float, row[3:])
            assert raised + lowered + constants == pytest.approx(100, abs=0.2)
            assert abs(unexplained) < 0.01
    # Behind the last feature layer the classifier's bias is the only constant.
    network = zoo.load("efficientnet_lite0")
    for row, target, score in zip(rows_of(printed, "head"), (235, 281), (5.68, 5.47), strict=True):
        assert float(row[5]) == pytest.approx(100 * float(network.model.classifier.bias[target]) / score, abs=0.1)
    with Image.open(tmp_path / "dog_above_cat_contributions.png") as drawn:
        assert drawn.width > 1000
        assert np.asarray(drawn).std() > 20
    assert f"photographs to try other commands with: {tmp_path / 'photographs'}" in printed
    with Image.open(tmp_path / "photographs" / "dog_above_cat.png") as photograph:
        assert np.array_equal(np.asarray(photograph), np.asarray(zoo.demo_picture()))
    for name in ("dog.png", "cat.png"):
        with Image.open(tmp_path / "photographs" / name) as photograph:
            assert photograph.size == (224, 224)


def test_explain_takes_targets_by_name_and_index_and_layers_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", PICTURE, "--model", "squeezenet1_1", "--target", "tabby", "235", "--output", str(tmp_path)]
    assert cli.main([*arguments, "--layers", "features.12, features.7"]) == 0
    printed = capsys.readouterr().out
    assert [row[0] for row in rows_of(printed, "features.7")] == ["28", "28"]
    assert re.findall(r"of '(.+)' came from", printed) == ["tabby", "German shepherd"]


def test_explain_without_a_target_takes_the_best_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", PICTURE, "--depths", "2", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"of '(.+)' came from", printed) == ["Egyptian cat"]
    assert len(re.findall(r"^  \S+ +\d+ x \d+", printed, re.MULTILINE)) == 2


def test_a_torchvision_network_with_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), weights)
    arguments = ["explain", PICTURE, "--model", "mobilenet_v3_small", "--weights", str(weights), "--target", "tabby"]
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    places = re.findall(r"(\d+) x \d+", capsys.readouterr().out)
    assert places == ["7", "14", "28", "56", "112"]


def test_a_users_network_from_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(
        "import torch, torchvision\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    net = torchvision.models.VisionTransformer(224, 16, 5, 2, 32, 64, num_classes=3)\n"
        "    torch.nn.init.normal_(net.heads.head.weight)\n"
        "    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert cli.main(["explain", PICTURE, "--model", "own_network:make", "--output", "out"]) == 0
    assert sys.path == path
    printed = capsys.readouterr().out
    assert re.search(r"best classes of own_network:make", printed)
    assert printed.count("14 x 14") == 5
    assert (tmp_path / "out" / "dog_above_cat_contributions.png").exists()


def networks_that_segment_and_detect(folder: Path) -> None:
    """A module with a network that segments and a network that detects, both small and with random weights."""
    (folder / "dense_networks.py").write_text(
        "import torch\n"
        "from captum_cav import zoo\n"
        "from tests.support.detectors import torchvision_detector\n"
        "def segmenter():\n"
        "    torch.manual_seed(0)\n"
        "    features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 4, 3), torch.nn.ReLU())\n"
        "    net = torch.nn.Sequential(features, torch.nn.Conv2d(4, 3, 1), torch.nn.Upsample(scale_factor=4))\n"
        "    torch.nn.init.zeros_(net[1].weight[0])\n"
        "    net[1].bias.data = torch.tensor([-9.0, 5.0, 0.0])\n"
        "    other = zoo.load_factory('torchvision.models:squeezenet1_1')\n"
        "    return zoo.Network('pets', net, other.preprocess, other.display, ('grass', 'cat', 'dog'))\n"
        "def detector():\n"
        "    return torchvision_detector('ssd').float()\n"
    )


@pytest.mark.parametrize(
    ("model", "score", "layer", "said"),
    [
        ("segmenter", "region:cat", "0", "'region of cat'"),
        pytest.param("detector", "box:1", "backbone.body.3", "'box 1'", marks=pytest.mark.slow),
    ],
)
def test_explain_takes_regions_and_boxes(
    model: str,
    score: str,
    layer: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks_that_segment_and_detect(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["explain", PICTURE, "--model", f"dense_networks:{model}", "--score", score, "--layers", layer]
    assert cli.main([*arguments, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert f"of {said} came from" in printed
    ((*_, raised, lowered, constants, unexplained),) = rows_of(printed, layer)
    assert abs(float(unexplained)) < 0.01
    assert abs(float(raised) + float(lowered) + float(constants)) == pytest.approx(100, abs=0.2)
    assert "best classes" not in printed
    assert (tmp_path / "out" / "dog_above_cat_rules.png").exists()


@pytest.mark.slow
def test_explain_takes_log_odds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", PICTURE, "--target", "tabby", "--layers", "head", "--output", str(tmp_path)]
    assert cli.main([*arguments, "--score", "log_odds"]) == 0
    printed = capsys.readouterr().out
    network = zoo.load("efficientnet_lite0")
    outputs = network.model(network.preprocess(zoo.demo_picture())[None])[0].detach()
    others = torch.cat([outputs[:281], outputs[282:]])
    assert f"score {float(outputs[281] - others.logsumexp(0)):.2f} of 'tabby'" in printed
    assert "best classes" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "region"], "'region' is no score; expected logit, log_odds, output, region:CLASS or box:NUMBER"),
        (["--score", "box:x"], "'box:x' is no score"),
    ],
)
def test_a_wrong_score_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["explain", PICTURE, *arguments])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "region:1", "--target", "1"], "expected no --target beside it"),
        (
            ["--model", "squeezenet1_1", "--score", "box:0"],
            "the model returned a tensor of shape (1, 1000); expected by",
        ),
    ],
)
def test_a_score_that_does_not_fit_is_one_line_and_status_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", PICTURE, "--output", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def squashed_network(folder: Path) -> None:
    """A module with networks that differ only in what comes last."""
    (folder / "squashed_network.py").write_text(
        "import torch, torchvision\n"
        "def make(*last):\n"
        "    torch.manual_seed(0)\n"
        "    net = torchvision.models.VisionTransformer(224, 16, 5, 2, 32, 64, num_classes=3)\n"
        "    torch.nn.init.normal_(net.heads.head.weight)\n"
        "    net.heads.extend(last)\n"
        "    return net\n"
        "def squashed():\n"
        "    return make(torch.nn.LogSoftmax(1))\n"
        "def hidden():\n"
        "    class Halves(torch.nn.Module):\n"
        "        def forward(self, z):\n"
        "            return z.softmax(1) / 2\n"
        "    return make(Halves())\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["explain", PICTURE, "--target", "0", "1"],
        ["compare", PICTURE, "--methods", "cav", "gradcam", "--measures", "deletion", "--repeats", "1"],
        ["reproduce", PICTURE, "--classes", "0", "1", "--region", "0,0,1,0.5"],
    ],
    ids=lambda command: command[0],
)
def test_a_network_that_squashes_its_scores(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command prints logits and true probabilities, and says so in one line."""
    squashed_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    printed = {}
    for name in ("make", "squashed"):
        arguments = [*command, "--depths", "2", "--model", f"squashed_network:{name}", "--output", name]
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out.replace(f"squashed_network:{name}", "net").replace(f"{name}/", "")
        text = text.replace(f"in {name}:", "in the folder:")
        printed[name] = [line for line in text.splitlines() if not line.startswith(("| cav", "| gradcam"))]
    if command[0] == "compare":
        said = "The model ends in log_softmax: scores and maps are those of the numbers before it."
    else:
        said = "net ends in log_softmax: all scores are the numbers before it."
    assert said in printed["squashed"]
    assert [line for line in printed["squashed"] if line != said] == printed["make"]
    if command[0] == "explain":
        probabilities = [
            float(number) for number in re.findall(r"^ +\d +\S+ +(\S+)%", "\n".join(printed["squashed"]), re.M)
        ]
        assert sum(probabilities) == pytest.approx(100, abs=0.2)


def test_a_network_whose_logits_cannot_be_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    squashed_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", PICTURE, "--model", "squashed_network:hidden", "--output", "out"]) == 2
    assert "let forward_func return the logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "no_such_file.png"], r"no_such_file\.png"),
        (["explain", PICTURE, "--model", "efficientnet_lite"], r"near matches: .*efficientnet_lite0"),
        (["explain", PICTURE, "--target", "tabbi"], "tabby"),
        (["explain", PICTURE, "--target", "1000"], "no class 1000"),
        (["explain", PICTURE, "--layers", "block.1"], r"unknown layer 'block\.1' \(did you mean 'blocks\.1'"),
        (["explain", PICTURE, "--depths", "0"], "--depths is 0; expected at least 1"),
        (["explain", PICTURE, "--model", "no_module:make"], "no_module"),
        (["explain", PICTURE, "--layers", "classifier"], "no places to lay over a picture"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err.split("\r")[-1].lstrip()  # behind a progress bar that was wiped
    assert error.startswith("captum-cav: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert cli.main(["demo", "--output", str(blocked / "folder")]) == 2
    assert re.search(
        r"cannot write to the folder .*file/folder: .+; choose another with --output", capsys.readouterr().err
    )


def test_cuda_is_refused_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["demo", "--device", "cuda", "--output", str(tmp_path)]) == 2
    assert "no CUDA device; use --device cpu" in capsys.readouterr().err


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "captum_cav", "explain", "missing.png", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    assert done.returncode == 2
    assert "missing.png" in done.stderr
