"""Small detectors of torchvision with random weights, in float64, and small networks with the outputs of others."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign


class Backbone(nn.Module):
    """Three convolutions, whose maps have an eighth of the size of the picture."""

    def __init__(self, *, several_outputs: bool = False) -> None:
        super().__init__()
        widths = (3, 6, 6, 6)
        self.body = nn.Sequential(
            *(
                layer
                for before, behind in itertools.pairwise(widths)
                for layer in (nn.Conv2d(before, behind, 3, 2, 1), nn.ReLU())
            )
        )
        self.out_channels: Any = [6] if several_outputs else 6
        self._several = several_outputs

    def forward(self, x: torch.Tensor) -> Any:
        """The maps; in a dict for SSD."""
        return {"0": self.body(x)} if self._several else self.body(x)


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((8, 16),), ((1.0,),))


def retinanet() -> nn.Module:
    """One stage, sigmoid scores."""
    return RetinaNet(
        Backbone(), 3, anchor_generator=_anchors(), min_size=64, max_size=64, score_thresh=0.0, detections_per_img=5
    )


def faster_rcnn() -> nn.Module:
    """Two stages with proposals, softmax scores."""
    return FasterRCNN(
        Backbone(),
        rpn_anchor_generator=_anchors(),
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(54, 8),
        box_predictor=FastRCNNPredictor(8, 3),
        box_score_thresh=0.0,
        box_detections_per_img=5,
        min_size=64,
        max_size=64,
    )


def ssd() -> nn.Module:
    """One stage, softmax scores."""
    boxes = DefaultBoxGenerator([[2]], scales=[0.2, 0.4])
    return SSD(Backbone(several_outputs=True), boxes, (64, 64), 3, score_thresh=0.0, detections_per_img=5)


TORCHVISION = {"retinanet": retinanet, "faster_rcnn": faster_rcnn, "ssd": ssd}


def torchvision_detector(name: str) -> nn.Module:
    """A detector whose scores and boxes depend much on the picture."""
    torch.manual_seed(0)
    net = TORCHVISION[name]().double().eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5
    return net


class Queries(nn.Module):
    """Boxes and scores for each place of a map, as DETR and YOLO return them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Conv2d(6, 4 + 3, 1)
        self._kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        """The outputs of ``kind``, for three classes."""
        found = self.head(self.body(x)).flatten(2)
        if self._kind == "yolo":
            return found
        boxes, logits = found[:, :4].sigmoid().transpose(1, 2), found[:, 4:].transpose(1, 2)
        return {"pred_logits": logits, "pred_boxes": boxes}
