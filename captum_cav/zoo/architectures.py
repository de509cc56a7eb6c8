"""Networks that torchvision does not have, written out in torch."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for pictures of 224 x 224 pixels, without the dropout, which only training uses.

    The input has shape (N, 3, 224, 224), the scores have shape (N, 1000). The padding is right only if every layer of
    stride 2 gets an even size, as from 224.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        width = 32
        # For each stage: expansion, kernel, stride of its first block, channels, number of blocks.
        for expansion, kernel, stride, channels, repeats in (
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 5, 2, 40, 2),
            (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3),
            (6, 5, 2, 192, 4),
            (6, 3, 1, 320, 1),
        ):
            for repeat in range(repeats):
                blocks.append(InvertedResidual(width, channels, expansion, kernel, 1 if repeat else stride))
                width = channels
        self.stem = convolution(3, 32, kernel=3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = convolution(width, 1280)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of shape (N, 1000) for pictures of shape (N, 3, 224, 224)."""
        scores: torch.Tensor = self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))
        return scores


class InvertedResidual(nn.Module):
    """The block of EfficientNet: more channels, a convolution for each channel, fewer channels.

    The block adds its input to its output if both have the same shape.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        expansion: how many times as many channels the middle has.
        kernel: size of the convolution for each channel.
        stride: of that convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = convolution(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = convolution(width, width, kernel, stride, groups=width)
        self.project = convolution(width, outputs, activation=False)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of shape (N, outputs, h, w) for maps of shape (N, inputs, H, W)."""
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, activation: bool = True
) -> nn.Sequential:
    """A convolution with TensorFlow's padding, a batch norm and a ReLU6.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: size of the kernel, in pixels.
        stride: 1 or 2.
        groups: as for :class:`torch.nn.Conv2d`.
        activation: whether the ReLU6 is there.

    Returns:
        The layers, with the names ``pad`` (for stride 2), ``conv``, ``norm`` and ``relu``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        # TensorFlow's "SAME" puts the odd pixel of padding to the right and below. Conv2d's padding cannot do that.
        layers["pad"] = nn.ZeroPad2d(((kernel - 2) // 2, (kernel - 1) // 2) * 2)
    padding = 0 if stride == 2 else kernel // 2
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
    if activation:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)
