"""Networks of torchvision that segment and detect, by name. Their weights are random here, and not downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models import detection, segmentation

from captum_cav import InputCAV, LayerCAV, cli, scores, zoo
from captum_cav.zoo import names as zoo_names
from tests.commands.test_cli import PICTURE, rows_of
from tests.support.errors import cav_error

SEGMENTS, DETECTS = "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"
MODELS = {SEGMENTS: segmentation, DETECTS: detection}


def made(name: str) -> nn.Module:
    """The network with random weights, which give every class some scores."""
    torch.manual_seed(0)
    net: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
    return net


@pytest.fixture(autouse=True)
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of torchvision's weights."""

    def state(weights: Any, **options: Any) -> Any:
        name = next(name for name in MODELS if torchvision.models.get_model_weights(name).DEFAULT is weights)
        return made(name).state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", state)


def test_the_names_in_torchvisions_sources_are_its_names() -> None:
    assert sorted(zoo_names.torchvision_models("segmentation")) == torchvision.models.list_models(module=segmentation)
    assert sorted(zoo_names.torchvision_models("detection")) == torchvision.models.list_models(module=detection)
    assert zoo_names.task_of("resnet18") == zoo_names.task_of("efficientnet_lite0") == ""
    assert [zoo_names.task_of(name) for name in (SEGMENTS, DETECTS)] == ["segmentation", "detection"]


def test_a_network_that_segments_sees_the_whole_picture() -> None:
    network = zoo.load(SEGMENTS)
    picture = Image.new("RGB", (300, 200), "red")
    assert network.class_index("cat") == 8
    assert network.display(picture).size == (780, 520)
    inputs = network.preprocess(picture)[None]
    assert inputs.shape == (1, 3, 520, 780)
    assert torch.equal(network.model(inputs)["out"], made(SEGMENTS)(inputs)["out"])
    assert not network.model.training


def test_a_network_that_detects_sees_the_picture_as_it_is() -> None:
    network = zoo.load(DETECTS)
    picture = zoo.demo_picture()
    assert network.display(picture) is picture
    assert network.preprocess(picture).shape == (3, 448, 448)
    assert network.classes[17] == "cat"


def test_weights_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(zoo.load(SEGMENTS, tmp_path / "weights.pt").model(x)["out"], other(x)["out"])
    with_auxiliary = segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    torch.save(with_auxiliary.state_dict(), tmp_path / "fcn.pt")
    found = zoo.load("fcn_resnet50", tmp_path / "fcn.pt").model(x)
    assert torch.equal(found["out"], with_auxiliary(x)["out"])
    with cav_error(RuntimeError, f"{DETECTS} takes no file of weights", "package.module:factory"):
        zoo.load(DETECTS, tmp_path / "weights.pt")


def test_regions_and_boxes_of_networks_by_name() -> None:
    network = zoo.load(SEGMENTS)
    x = network.preprocess(zoo.demo_picture().resize((64, 64)))[None]
    region = scores.Region(network.class_index("cat"), torch.ones(x.shape[-2:]))
    found, delta = LayerCAV(network.model, "backbone.16", score=region).attribute(x, return_convergence_delta=True)
    assert found.abs().sum() > 0
    _, delta = InputCAV(network.model, score=region).attribute(x, return_convergence_delta=True)
    assert float(delta.abs()) < 1e-3


@pytest.mark.parametrize(
    ("model", "score", "layer", "said"),
    [(SEGMENTS, "region:CLASS", "backbone.16", "region of"), (DETECTS, "box:0", "backbone.features.1", "box 0")],
)
def test_explain_takes_networks_by_name(
    model: str, score: str, layer: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == SEGMENTS:
        network = zoo.load(model)
        best = network.model(network.preprocess(zoo.demo_picture())[None])["out"].argmax(1).flatten().mode().values
        score = f"region:{network.classes[int(best)]}"
        said = f"region of {network.classes[int(best)]}"
    arguments = ["explain", PICTURE, "--model", model, "--score", score, "--layers", layer]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"of '{said}' came from" in printed
    assert rows_of(printed, layer)
    assert (tmp_path / "dog_above_cat_contributions.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "--model", SEGMENTS], f"is a network for segmentation, .*--model {SEGMENTS} --score region:CLASS"),
        (["explain", "--model", SEGMENTS, "--score", "box:0"], "expected .* --score region:CLASS"),
        (["explain", "--model", DETECTS, "--score", "region:cat"], "is a network for detection, .*--score box:NUMBER"),
        (["compare", "--model", DETECTS], "expected captum-cav explain IMAGE"),
        (["report", "--model", "fcn_resnet50"], "expected captum-cav explain IMAGE"),
        (["explain", "--model", "fcn_resnet05"], "near matches: fcn_resnet50"),
    ],
)
def test_what_such_a_network_cannot_be_asked_is_said_before_torch_loads(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    assert cli.main([command, PICTURE, *options]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_failed_download_of_a_detector_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(weights: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", refused)
    with cav_error(RuntimeError, "could not be downloaded: no network", "put the file into", "checkpoints"):
        zoo.load(DETECTS)
    with cav_error(RuntimeError, "could not be downloaded: no network", "--weights FILE"):
        zoo.load(SEGMENTS)
