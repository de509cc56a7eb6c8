"""Networks that segment, embed and reconstruct, with random weights in float64; and the oracle of all scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, verify
from captum_cav.scores.running import takes_inputs


def pictures(samples: int = 2, size: int = 8) -> torch.Tensor:
    """Random pictures of shape (N, 3, size, size)."""
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Segmenter(nn.Module):
    """Scores of shape (N, 4, 8, 8); in the dict of torchvision if ``as_dict``."""

    def __init__(self, *, as_dict: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(5, 4, 1)
        self._as_dict = as_dict
        self.double().eval()

    def forward(self, x: torch.Tensor) -> Any:
        """The scores."""
        found = self.head(self.features(x))
        return {"out": found, "aux": found[:, :2]} if self._as_dict else found


def embedder() -> nn.Sequential:
    """Embeddings of shape (N, 4)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).double()


def autoencoder() -> nn.Sequential:
    """Reconstructions of pictures; writes into its input first."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)
    ).double()


def check_like_a_function(net: nn.Module, layer: str, score: Callable[..., Any], x: torch.Tensor) -> None:
    """The oracle: a function around the model gives the same, bit for bit; and all contributions are accounted for."""

    def around(x: torch.Tensor) -> torch.Tensor:
        given = x.clone()
        return score(net(x), given) if takes_inputs(score) else score(net(x))

    found = LayerCAV(net, layer, score=score).attribute(x, return_convergence_delta=True)
    expected = LayerCAV(around, net.get_submodule(layer)).attribute(x, return_convergence_delta=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].abs().max() > 1e-6, "the layer has no contributions, so the test shows nothing"
    # An input that the score takes bypasses the layer.
    assert takes_inputs(score) or found[1].abs().max() < 1e-9
    of_inputs = InputCAV(net, score=score).attribute(x, return_convergence_delta=True)
    assert all(map(torch.equal, of_inputs, InputCAV(around).attribute(x, return_convergence_delta=True)))
    assert of_inputs[1].abs().max() < 1e-9
    assert verify(net, x, score=score).ok
