"""Networks of medical imaging, segmentation and detection: map, conservation and ``verify``, also at a middle layer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.coverage.field_models import PACKAGES, SUITES, build
from benchmarks.coverage.measure import measure, shown
from benchmarks.coverage.problem import Problem
from captum_cav import InputCAV, LayerCAV, scores, verify
from captum_cav.scores.detections import Quantity
from tests.scores.networks import pictures
from tests.support.detectors import torchvision_detector

pytestmark = pytest.mark.slow

NETWORKS = [(suite, name) for suite, networks in SUITES.items() for name in networks]


@pytest.fixture(scope="module", autouse=True)
def _kept_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ultralytics writes settings, downloads packages, changes how numbers are printed and replaces ``torch.save``."""
    folder = str(tmp_path_factory.mktemp("settings"))
    variables = {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    with mock.patch.dict(os.environ, variables), mock.patch.object(torch, "save", torch.save), np.printoptions():
        yield
    torch.set_printoptions(profile="default")


def of_layer(problem: Problem, layer: nn.Module) -> torch.Tensor:
    """Activation x gradient / score."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()  # The next operation may write into this tensor.

    handle = layer.register_forward_hook(keep)
    try:
        score = problem.score(problem.inputs)[:, problem.target]
    finally:
        handle.remove()
    (activation,) = kept
    (gradient,) = torch.autograd.grad(score.sum(), activation)
    return (activation * gradient / score).detach()


def of_inputs(problem: Problem) -> torch.Tensor:
    """Input x gradient / score."""
    leaf = problem.inputs.clone().requires_grad_()
    score = problem.score(leaf)[:, problem.target]
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    return (leaf * gradient / score).detach()


def check(suite: str, name: str, problem: Problem, layer: str, *, is_piecewise_linear: bool = False) -> None:
    score, net, x, target = problem
    row = measure(suite, name, problem, [])
    assert row.is_right, shown(row)
    assert row.map is not None, f"the oracle has to know this network: {shown(row)}"
    found = verify(score, x, target)
    assert found.ok, found
    module = net.get_submodule(layer)
    map_of_layer, delta = LayerCAV(score, module).attribute(x, target, return_convergence_delta=True)
    assert map_of_layer.count_nonzero() > 1, "the layer is the output, whose map is trivial"
    assert delta.abs().max() < 1e-9
    if is_piecewise_linear:
        # The norm, as the oracle does: single pixels may be sums of large parts that cancel.
        for ours, expected in (
            (map_of_layer, of_layer(problem, module)),
            (InputCAV(score).attribute(x, target), of_inputs(problem)),
        ):
            assert (ours - expected).norm() < 1e-10 * expected.norm()


def need_package(suite: str) -> None:
    package = PACKAGES[suite]
    pytest.importorskip(package.replace("-", "_"), reason=f"{package} is not installed; run pip install -e .[field]")


@pytest.mark.parametrize(("suite", "name"), NETWORKS)
def test_networks_of_the_field(suite: str, name: str) -> None:
    need_package(suite)
    network = SUITES[suite][name]
    check(suite, name, build(network), network.layer, is_piecewise_linear=network.is_piecewise_linear)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_detectors_of_torchvision(name: str) -> None:
    net, x = torchvision_detector(name), pictures(1, 64).sigmoid()

    def score(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([found["scores"] for found in net(list(images))])

    check("torchvision", name, Problem(score, net, x, 0), "backbone.body.3")


@pytest.mark.parametrize("value", ["score", "x1", "height"])
@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite in ("yolo", "detr") for name in SUITES[suite]])
def test_one_detection(suite: str, name: str, value: Quantity) -> None:
    need_package(suite)
    problem = build(SUITES[suite][name])
    detection = scores.Detection(index=1, value=value, label=1)

    def score(images: torch.Tensor) -> torch.Tensor:
        return detection(problem.model(images))[:, None]

    check(suite, name, problem._replace(score=score, target=0), SUITES[suite][name].layer)


@pytest.mark.parametrize("name", ["UNet", "SegResNet", "DynUNet", "HighResNet"])
def test_a_region_of_a_volume(name: str) -> None:
    """Networks of MONAI, with the region in which a class has the largest score."""
    need_package("monai")
    network = SUITES["monai"][name]
    net, x, layer = build(network).model, build(network).inputs, network.layer
    maps = net(x).detach()
    assert maps.dim() == 5
    region = scores.Region(int(maps.argmax(1).flatten().mode().values))

    def score(volumes: torch.Tensor) -> torch.Tensor:
        return region(net(volumes))[:, None]

    check("monai", f"region of {name}", Problem(score, net, x, 0), layer)
    by_name = LayerCAV(net, layer, score=region).attribute(x)
    torch.testing.assert_close(by_name, LayerCAV(score, net.get_submodule(layer)).attribute(x, 0))
