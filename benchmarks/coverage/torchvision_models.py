"""Every classifier of torchvision, and its networks for segmentation, video and detection, with random parameters."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torchvision.models import detection, segmentation, video

from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised

_UNINITIALISED: dict[str, Any] = {"init_weights": False}
# Its own sizes where a network takes no other, small ones elsewhere: (channels, [frames,] height, width).
_SIZES = {
    "inception_v3": (3, 299, 299),
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
    "s3d": (3, 14, 224, 224),
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (3, 8, 64, 64)),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), (3, 8, 96, 96)),
}
# Detectors resize what they are given; few classes and any score let random weights detect something.
_TWO_STAGES = {"min_size": 128, "max_size": 128, "box_score_thresh": 0.0}
_ONE_STAGE = {"score_thresh": 0.0, "num_classes": 5}


def _detection(name: str) -> dict[str, Any]:
    if "rcnn" in name:
        return dict(_TWO_STAGES)
    return dict(_ONE_STAGE) if name.startswith("ssd") else {**_ONE_STAGE, "min_size": 128, "max_size": 128}


def cases() -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of each."""
    for module in (torchvision.models, segmentation, video):
        for name in torchvision.models.list_models(module=module):
            yield name, functools.partial(build, name)
    for name in torchvision.models.list_models(module=detection):
        yield name, functools.partial(build, name)


def _shrink_predictions(net: torch.nn.Module, x: torch.Tensor) -> None:
    """Untrained features are large: let boxes lie in the picture, and their scores not be all 0 or 1."""
    with torch.no_grad():
        for _ in range(20):
            scores = net(list(x))[0]["scores"]
            if len(scores) > 5 and float(scores.max()) < 0.99:
                return
            for name, parameter in net.named_parameters():
                if name.endswith(("bbox_pred.weight", "cls_score.weight")):
                    parameter.mul_(0.1)


def build(name: str) -> Problem:
    """A network, an input and the class that it gives the highest score."""
    torch.manual_seed(SEED)
    detects = name in torchvision.models.list_models(module=detection)
    options = _detection(name) if detects else dict(_UNINITIALISED) if name in ("googlenet", "inception_v3") else {}
    if detects or name in torchvision.models.list_models(module=segmentation):
        options["weights_backbone"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = randomised(torchvision.models.get_model(name, weights=None, **options))
    shape = _SIZES.get(name, (3, 96, 96) if "weights_backbone" in options else (3, 224, 224))
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    score: Callable[[torch.Tensor], torch.Tensor] = net
    if detects:
        x = x.sigmoid()
        _shrink_predictions(net, x)

        def score(images: torch.Tensor) -> torch.Tensor:
            """The scores of the first ten boxes."""
            return torch.stack([found["scores"][:10] for found in net(list(images))])

    elif "weights_backbone" in options:

        def score(images: torch.Tensor) -> torch.Tensor:
            """The scores of one pixel's classes."""
            classes: torch.Tensor = net(images)["out"][:, :, 40, 50]
            return classes

    with torch.no_grad():
        return Problem(score, net, x, int(score(x).argmax(1)))
