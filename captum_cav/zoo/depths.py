"""The layers at which the listed networks of torchvision are looked at, from the last one toward the input."""

from __future__ import annotations

import torchvision
from torch import nn


def torchvision_depths(name: str, model: nn.Module) -> tuple[str, ...]:
    """The five layers of a model of torchvision.

    Args:
        name: torchvision's name of the model.
        model: the model.

    Returns:
        Qualified names, from the last feature layer toward the input; empty for models that are not listed here.
    """
    if isinstance(model, torchvision.models.VGG):
        pools = [f"features.{index}" for index, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return tuple(reversed(pools))
    if isinstance(model, torchvision.models.ResNet):
        return ("layer4", "layer3", "layer2", "layer1", "relu")
    if name == "squeezenet1_1":
        # SqueezeNet has four resolutions before the classifier, so two of the five layers have the same one.
        return ("features.12", "features.7", "features.4", "features.2", "features.1")
    return ()
