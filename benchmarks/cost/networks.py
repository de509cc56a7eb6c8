"""The networks, with random weights: what a pass costs does not hang on the numbers in it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import nn

CLASSES = 1000
_WORDS = 64


class Network(NamedTuple):
    """A network and where to look into it.

    Attributes:
        model: gives scores of shape (N, 1000); in evaluation mode.
        inputs: gives a batch of so many samples.
        layers: names of layers from the first to the last.
        embedding: the layer that takes integer inputs, and stands for them; None where inputs are pictures.
    """

    model: nn.Module
    inputs: Callable[[int], torch.Tensor]
    layers: list[str]
    embedding: str | None = None


class LSTMClassifier(nn.Module):
    """Two LSTMs over embedded words; the last step decides."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, width)
        self.first = nn.LSTM(width, width, batch_first=True)
        self.second = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores, (N, 1000), of words, (N, length)."""
        states, _ = self.first(self.embedding(words))
        states, _ = self.second(states)
        scores: torch.Tensor = self.head(states[:, -1])
        return scores


class NextWord(nn.Module):
    """A language model's scores of the next word."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores, (N, words), of the beginnings, (N, length)."""
        scores: torch.Tensor = self.model(words, use_cache=False).logits[:, -1]
        return scores


def _words(samples: int) -> torch.Tensor:
    return torch.randint(CLASSES, (samples, _WORDS))


def _pictures(samples: int) -> torch.Tensor:
    return torch.randn(samples, 3, 224, 224)


def _of_torchvision(name: str, layers: list[str]) -> Network:
    return Network(torchvision.models.get_model(name, weights=None), _pictures, layers)


def _lstm() -> Network:
    return Network(LSTMClassifier(), _words, ["embedding", "first", "second"], "embedding")


def _llama() -> Network:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=CLASSES,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    layers = [f"model.model.layers.{index}" for index in range(5)]
    return Network(NextWord(transformers.LlamaForCausalLM(config)), _words, layers, "model.model.embed_tokens")


_LAYERS = {
    "vgg16": ["features.4", "features.9", "features.16", "features.23", "features.30"],
    "resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "densenet121": [
        "features.relu0",
        "features.denseblock1",
        "features.denseblock2",
        "features.denseblock3",
        "features",
    ],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features.18"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features.8"],
    "convnext_tiny": ["features.0", "features.1", "features.3", "features.5", "features.7"],
    "vit_b_16": [f"encoder.layers.encoder_layer_{index}" for index in (0, 3, 6, 9, 11)],
    "swin_t": ["features.0", "features.1", "features.3", "features.5", "features.7"],
}
NETWORKS: dict[str, Callable[[], Network]] = {
    **{name: functools.partial(_of_torchvision, name, layers) for name, layers in _LAYERS.items()},
    "lstm": _lstm,
    "llama": _llama,
}
