"""What a row explains: a network with a batch of inputs, the layers and the rules."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch

import captum_cav
from benchmarks.cost.networks import Network
from captum_cav import InputCAV, LayerCAV
from captum_cav.compilation.runners import Backend


class Setup:
    """A network with a batch of inputs, and which of its layers are asked for.

    Args:
        network: the network.
        batch: number of samples.
        layers: names of layers; empty for the inputs themselves (or the layer that takes them, where they are words).
        preset: name of the rules.
        device: where to compute.

    Attributes:
        backend: of the compiled attribution; None for the attribution itself.
    """

    backend: Backend | None = None

    def __init__(self, network: Network, batch: int, layers: Sequence[str], preset: str, device: torch.device) -> None:
        self.model = network.model.eval().to(device)
        self.inputs = network.inputs(batch).to(device)
        self.entrance = [network.embedding] if network.embedding else []
        self.layers = list(layers) or self.entrance
        self.preset = preset

    @functools.cached_property
    def frozen(self) -> torch.nn.Module:
        """A copy of the model whose parameters take no gradients."""
        return copy.deepcopy(self.model).requires_grad_(False)

    @property
    def cav(self) -> LayerCAV | InputCAV:
        """Contributions of what is asked for."""
        layers = self.layers if len(self.layers) > 1 else "".join(self.layers)
        cav = LayerCAV(self.model, layers, rules=self.preset) if layers else InputCAV(self.model, rules=self.preset)
        # Fused kernels are fast on a CPU only where they are made for the numbers of the parameters.
        return (
            cav
            if self.backend is None
            else captum_cav.compile(cav, backend=self.backend, freeze=self.backend == "inductor")
        )
