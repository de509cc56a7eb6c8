"""Networks of other libraries, unmodified: conservation, the value, and the map against the benchmark's oracle."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import pytest
import torch
from torchvision.models.video import resnet

from benchmarks.coverage import torchvision_models
from benchmarks.coverage.measure import measure, shown
from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised

#: Kinds that ``test_architectures.py`` leaves out: further classifiers, segmentation, video, detection.
TORCHVISION = """
    mobilenet_v3_large regnet_x_400mf lraspp_mobilenet_v3_large ssdlite320_mobilenet_v3_large
""".split()
HEAVY = """
    efficientnet_v2_s mnasnet1_3 resnext50_32x4d swin_v2_t vit_b_32 wide_resnet50_2
    deeplabv3_mobilenet_v3_large fcn_resnet50 mc3_18 r2plus1d_18 swin3d_t fcos_resnet50_fpn
    fasterrcnn_mobilenet_v3_large_320_fpn
""".split()


def check(suite: str, name: str, build: Callable[[], Problem]) -> None:
    row = measure(suite, name, build(), [])
    assert row.is_right, shown(row)


@pytest.mark.parametrize("name", [*TORCHVISION, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)])
def test_torchvision(name: str) -> None:
    check("torchvision", name, lambda: torchvision_models.build(name))


def _small_video_network() -> Problem:
    torch.manual_seed(SEED)
    convolutions = [resnet.Conv3DSimple, *[resnet.Conv3DNoTemporal] * 3]
    net = randomised(resnet.VideoResNet(resnet.BasicBlock, convolutions, [1, 1, 1, 1], resnet.BasicStem))
    x = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64)
    return Problem(net, net, x, int(net(x).argmax(1)))


def test_small_video_network() -> None:
    """The operations of mc3_18."""
    check("torchvision", "small video network", _small_video_network)


@functools.cache
def _families() -> list[tuple[str, Callable[[], Problem]]]:
    return list(importlib.import_module("benchmarks.coverage.timm_models").families())


@pytest.mark.slow
@pytest.mark.parametrize("position", range(40))
def test_timm(position: int) -> None:
    """The lightest families; the benchmark runs them all."""
    name, build = _families()[position]
    check("timm", name, build)


@pytest.mark.slow
def test_transformers() -> None:
    wrong = []
    for name, build in importlib.import_module("benchmarks.coverage.transformers_models").cases():
        row = measure("transformers", name, build(), [])
        if not row.is_right:
            wrong.append(shown(row))
    assert not wrong, "\n".join(wrong)
