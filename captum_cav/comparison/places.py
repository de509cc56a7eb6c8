"""Where the inputs and the layers of a comparison have their places."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from captum_cav.maps import sequence_channels, spatial_map

#: Stands for the input of the network in a list of layers.
INPUT = "input"


@dataclass(frozen=True)
class Places:
    """Where the inputs and the layers have their places: what makes maps of attributions.

    Attributes:
        size: the places of the inputs: (height, width), (depth, height, width) or (length,).
        of_inputs: the dimension of the channels of the inputs; None if each place has one number or one token id.
        of_layers: the dimension of the channels of layers of sequences and signals; None to decide by the length.
    """

    size: tuple[int, ...]
    of_inputs: int | None
    of_layers: int | None = None

    @classmethod
    def of_pictures(cls, inputs: torch.Tensor) -> Places:
        """The places of pictures of shape (N, C, H, W), or of volumes of shape (N, C, D, H, W)."""
        return cls(tuple(inputs.shape[2:]), 1)

    def maps(self, attributions: torch.Tensor, layer: str) -> torch.Tensor:
        """Attributions summed over channels.

        Args:
            attributions: the shape of the inputs or of the output of the layer.
            layer: the qualified name of the layer, or "input".

        Returns:
            One number for each place, shape (N, h, w), (N, d, h, w) or (N, t).

        Raises:
            InputError: if nothing tells where the places are.
        """
        known = self.of_inputs if layer == INPUT else self.of_layers
        return spatial_map(attributions, self.size, known)

    def are_behind_channels(self, output: torch.Tensor) -> bool:
        """Whether a layer has its channels in dimension 1 and its places behind them.

        Args:
            output: of the layer.

        Raises:
            InputError: if nothing tells where the places are.
        """
        if len(self.size) == 1:
            return sequence_channels(output.shape, self.size[0], self.of_layers) == 1
        grid = spatial_map(output, self.size).shape[1:]
        return output.dim() == len(self.size) + 2 and output.shape[2:] == grid
