"""What it costs to follow an operation: microseconds beyond the same operation under autograd.

On tensors of a few numbers arithmetic is nothing. A long chain of operations less a short one leaves what a call of
``attribute`` costs once.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from benchmarks.cost.measure import Call, sample
from captum_cav import LayerCAV

_SHORT, _LONG = 50, 350
_ROUNDS = 25

Step = Callable[[torch.Tensor], torch.Tensor]


class Cost(NamedTuple):
    """What an operation costs.

    Attributes:
        name: of the operation.
        plain: microseconds under autograd, forward and backward.
        ours: microseconds followed.
    """

    name: str
    plain: float
    ours: float


class _Chain(nn.Module):
    """A layer to explain, and the same operation many times behind it."""

    def __init__(self, step: Step, length: int) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.step = step
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        for _ in range(self.length):
            x = self.step(x)
        return x.flatten(1).sum(1)


def _steps(device: torch.device) -> dict[str, tuple[Step, torch.Tensor]]:
    """Operations that neither grow nor shrink what they are given, and what they are given."""
    row, picture = torch.ones(1, 4, device=device), torch.ones(1, 4, 2, 2, device=device)
    matrix = torch.eye(4, device=device)
    kernel, bias = matrix[:, :, None, None], torch.zeros(4, device=device)
    batch_norm, layer_norm = nn.BatchNorm2d(4).eval().to(device), nn.LayerNorm(4).to(device)
    for module in (batch_norm, layer_norm):
        module.requires_grad_(False)
    return {
        "view": (lambda x: x.view(1, 4), row),
        "relu": (F.relu, row),
        "x + 0": (lambda x: x + 0.0, row),
        "cat and slice": (lambda x: torch.cat([x, x])[:1], row),
        "gelu and x + 1": (lambda x: F.gelu(x) + 1.0, row),
        "silu and x + 1": (lambda x: F.silu(x) + 1.0, row),
        "sigmoid gate": (lambda x: x * torch.sigmoid(x) + 1.0, row),
        "linear": (lambda x: F.linear(x, matrix, bias), row),
        "conv2d": (lambda x: F.conv2d(x, kernel, bias), picture),
        "batch_norm": (
            lambda x: F.batch_norm(
                x, batch_norm.running_mean, batch_norm.running_var, batch_norm.weight, batch_norm.bias
            ),
            picture,
        ),
        "layer_norm": (lambda x: F.layer_norm(x, (4,), layer_norm.weight, layer_norm.bias), row),
        "nn.Identity (a module's call)": (nn.Identity(), row),
    }


def _calls(model: nn.Module, layer: str, inputs: torch.Tensor) -> tuple[Call, Call]:
    cav = LayerCAV(model, layer, normalize=None)

    def plain() -> object:
        x = inputs.clone().requires_grad_()
        return torch.autograd.grad(model(x).reshape(len(x), -1)[:, 0].sum(), x)

    target = None if isinstance(model, _Chain) else 0
    return plain, lambda: cav.attribute(inputs, target)


def _medians(calls: list[Call], device: torch.device) -> list[float]:
    """Median microseconds of calls that take turns."""
    gc.collect()
    gc.freeze()  # makes the collection before each sample short
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(_ROUNDS):
        for index in torch.randperm(len(calls)).tolist():
            taken[index].append(sample(calls[index], device).seconds * 1e6)
    gc.unfreeze()
    return [statistics.median(each) for each in taken]


def _operations(device: torch.device) -> list[Cost]:
    """The cost of one operation of each kind."""
    costs = []
    for name, (step, inputs) in _steps(device).items():
        calls = [call for length in (_SHORT, _LONG) for call in _calls(_Chain(step, length), "layer", inputs)]
        plain_short, ours_short, plain_long, ours_long = _medians(calls, device)
        per_step = _LONG - _SHORT
        costs.append(Cost(name, (plain_long - plain_short) / per_step, (ours_long - ours_short) / per_step))
    return costs


def _vision_transformer(device: torch.device) -> tuple[Cost, int]:
    """The cost of a pass, from the first block on, and how many operations met a rule."""
    torch.manual_seed(0)
    model = VisionTransformer(image_size=32, patch_size=16, num_layers=12, num_heads=12, hidden_dim=24, mlp_dim=96)
    model = model.eval().to(device).requires_grad_(False)
    inputs, layer = torch.randn(1, 3, 32, 32, device=device), "encoder.dropout"
    plain, ours = _medians(list(_calls(model, layer, inputs)), device)
    return Cost("vit_b_16 at 1/32 of its width", plain, ours), len(LayerCAV(model, layer).explain_rules(inputs))


class Dispatch(NamedTuple):
    """What following costs.

    Attributes:
        operations: one operation of each kind.
        whole: ViT-B at batch 1, all its operations on hardly any numbers.
        followed: how many operations met a rule there.
    """

    operations: list[Cost]
    whole: Cost
    followed: int


def measure(device: torch.device, threads: int) -> Dispatch:
    """Measure all of it.

    Args:
        device: where to compute.
        threads: of the CPU; 0 for torch's own number.
    """
    if threads:
        torch.set_num_threads(threads)
    return Dispatch(_operations(device), *_vision_transformer(device))
