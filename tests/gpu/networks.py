"""Small networks of each kind, and what they give: on a device and in a type, compared with CPU and float64."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from captum_cav import InputCAV, LayerCAV
from tests.support import networks

SAMPLES = 3


class Gates(nn.Module):
    """Gated units of all sorts: GLU, a squeezed sigmoid, a softmax mixture of experts, SiLU times a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.squeeze = nn.Linear(8, 8)
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.up, self.gate = nn.Linear(8, 12), nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.glu(self.first(x))
        x = x * torch.sigmoid(self.squeeze(F.relu(x)))
        mixture = torch.stack([expert(x) for expert in self.experts], 1) * self.router(x).softmax(-1).unsqueeze(-1)
        x = mixture.sum(1)
        return self.head(F.silu(self.gate(x)) * self.up(x))


class Words(nn.Module):
    """A small causal language model: embeddings, rotations, RMS norm, grouped queries; scores of the last place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.norm = nn.RMSNorm(16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words)
        places = torch.arange(words.shape[1], device=words.device, dtype=x.dtype)
        x = x + torch.cos(places)[:, None]
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + F.gelu(self.mix(self.norm(x))))[:, -1]


class Packed(nn.Module):
    """A GRU over sequences of different lengths, packed; the lengths stay on CPU, as torch wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.arange(len(x), 0, -1) + 2
        states, _ = self.gru(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        padded, _ = pad_packed_sequence(states, batch_first=True)
        return self.head(padded.mean(1))


class Decoder(nn.Module):
    """Group and instance norms, transposed convolution, interpolation, sampling on a grid, einsum, a constant part."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.mask = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.group(self.down(x)))
        y = self.instance(self.up(y)).tanh()
        y = torch.cat([F.interpolate(F.avg_pool2d(y, 2), scale_factor=2, mode="bilinear"), y], 3)
        grid = F.affine_grid(
            torch.eye(2, 3, device=x.device, dtype=y.dtype).expand(len(x), 2, 3), [len(x), 1, 6, 6], align_corners=False
        )
        y = F.grid_sample(y, grid, align_corners=False)
        y = torch.where(torch.ones_like(y[:1]).triu() > 0, y, self.mask) + 0.1
        return self.head(torch.einsum("nchw,nchw->nc", y, torch.full_like(y, 0.1).detach()))


class Case(NamedTuple):
    """A network, the inputs of a batch, and layers in the order of its forward pass; integers have none before them."""

    model: nn.Module
    inputs: torch.Tensor
    layers: list[str]


_OWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], list[str]]] = {
    "gates": (Gates, lambda: networks.fixed(SAMPLES, 6), ["first", "up"]),
    "words": (Words, lambda: (networks.fixed(SAMPLES, 7).abs() * 7).long() % 20, ["embedding", "value", "out"]),
    "packed": (Packed, lambda: networks.fixed(SAMPLES, SAMPLES + 2, 6), ["gru"]),
    "decoder": (Decoder, lambda: networks.fixed(SAMPLES, 3, 12, 12), ["down", "group", "up"]),
}
_LAYERS = {
    "functional": ["first", "second"],
    "reused": ["first"],
    "resnet18": ["relu", "layer1", "layer4"],
    "mobilenet_v3_small": ["features.0", "features.4", "features.12"],
    "convnext_tiny": ["features.0", "features.3", "features.7"],
    "swin_t": ["features.0", "features.3", "features.7"],
    "transformer_encoder": ["encoder.layers.0", "encoder.layers.1.norm1"],
    "lstm": ["lstm"],
}
#: More of them, for what needs no numbers: with pictures of 64 x 64 and random weights their scores mean little.
_MORE = {
    "vit_small": ["conv_proj", "encoder.layers.encoder_layer_0"],
    "maxvit_small": ["stem", "blocks.0"],
    "densenet121": ["features.conv0", "features.denseblock2"],
    "googlenet": ["conv1", "inception4a"],
    "squeezenet1_1": ["features.0", "features.6"],
    "shufflenet_v2_x0_5": ["conv1", "stage3"],
    "mnasnet0_5": ["layers.0", "layers.9"],
    "mobilenet_v2": ["features.0", "features.7"],
    "efficientnet_b0": ["features.0", "features.3"],
    "regnet_y_400mf": ["stem", "trunk_output.block2"],
}
NETWORKS = (*_LAYERS, *_OWN)
ALL_NETWORKS = (*NETWORKS, *_MORE)
#: One of each kind, for what is tried in many ways.
FEW = ("functional", "resnet18", "mobilenet_v3_small", "transformer_encoder", "lstm", "gates", "words")


@functools.cache
def case(name: str) -> Case:
    """A network in float64 on CPU; do not change it."""
    if name in _OWN:
        build, inputs, layers = _OWN[name]
        torch.manual_seed(0)
        model = build()
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        return Case(model.double().eval(), inputs(), layers)
    channels, *sides = networks.shape_of(name)
    shape = (channels, *(min(side, 64) for side in sides))
    layers = (_LAYERS | _MORE)[name]
    return Case(copy.deepcopy(networks.network(name)).double(), networks.fixed(SAMPLES, *shape), layers)


def on(name: str, device: torch.device, dtype: torch.dtype = torch.float64) -> Case:
    """A copy of a network and its inputs, on a device and in a type."""
    model, inputs, layers = case(name)
    inputs = inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device)
    return Case(copy.deepcopy(model).to(device, dtype), inputs, layers)


class Found(NamedTuple):
    """What an attribution gave, in score units.

    Attributes:
        output: the model's output under the propagation.
        maps: of the layers and, where they are no integers, of the inputs.
        deltas: of the same.
        dtypes: of the maps, as they came.
    """

    output: torch.Tensor
    maps: list[torch.Tensor]
    deltas: list[torch.Tensor]
    dtypes: set[torch.dtype]


def explain(here: Case, rules: Any = "paper", autocast: AbstractContextManager[Any] | None = None) -> Found:
    """Contributions of all that a case asks for to its first output, brought to CPU and float64."""
    model, inputs, layers = here
    outputs: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        scores = model(x)
        outputs.append(scores.detach())
        return scores

    explained = LayerCAV(watched, [model.get_submodule(name) for name in layers], rules=rules, normalize=None)
    with autocast or nullcontext():
        maps, deltas = explained.attribute(inputs, 0, return_convergence_delta=True)
        if inputs.is_floating_point():
            map_, delta = InputCAV(watched, rules=rules, normalize=None).attribute(
                inputs, 0, return_convergence_delta=True
            )
            maps, deltas = [*maps, map_], [*deltas, delta]
    flat = [part for map_ in maps for part in (map_ if isinstance(map_, tuple) else (map_,))]
    assert all(part.device.type == inputs.device.type for part in (*flat, *deltas))
    return Found(
        outputs[0].double().cpu(),
        [part.double().cpu() for part in flat],
        [delta.double().cpu() for delta in deltas],
        {part.dtype for part in flat},
    )


@functools.cache
def reference(name: str, rules: str = "paper") -> Found:
    """The same on CPU in float64."""
    return explain(on(name, torch.device("cpu")), rules)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, over the norm of what is expected."""
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
