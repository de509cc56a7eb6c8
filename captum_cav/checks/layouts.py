"""Where samples have their places and their channels: pictures, volumes, signals, sequences of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from captum_cav.checks.inputs import check_tensor
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.tensors import is_number

#: The sides of samples, as messages name them.
SIDES = {1: "t", 2: "h, w", 3: "d, h, w"}
_KINDS = (
    "floating-point pictures of shape (N, C, H, W), volumes (N, C, D, H, W), signals (N, C, T), series (N, T) "
    "or embeddings (N, T, C), or token ids, integers of shape (N, T)"
)


@dataclass(frozen=True)
class Layout:
    """Where samples have their places and their channels.

    Attributes:
        size: the number of places along each side: (T,), (H, W) or (D, H, W).
        channels: the dimension of the channels, 1 or -1; None if each place has one number or one token id.
    """

    size: tuple[int, ...]
    channels: int | None

    def channels_first(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples in the shape (N, C, places), in the same memory."""
        return samples.unsqueeze(1) if self.channels is None else samples.movedim(self.channels, 1)

    def restored(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples of shape (N, C, places) in the shape that the model takes."""
        return samples.squeeze(1) if self.channels is None else samples.movedim(1, self.channels)


def is_ids(inputs: Any) -> bool:
    """Whether inputs are token ids: integers of shape (N, T)."""
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 2 or inputs.dtype == torch.bool:
        return False
    return not is_number(inputs) and not inputs.is_quantized


def sides_of(inputs: Any) -> int:
    """How many sides samples have: 3 for volumes and videos, 1 for signals, series and sequences of tokens, else 2."""
    dimensions = inputs.dim() if isinstance(inputs, torch.Tensor) else 4
    return {2: 1, 3: 1, 5: 3}.get(dimensions, 2)


def check_channels(channels: Any) -> None:
    """Refuse a dimension of the channels that is neither the first nor the last behind the samples."""
    if channels not in (1, -1) or isinstance(channels, bool):
        raise OptionError(f"channels is {channels!r}; expected 1 for inputs (N, C, T), or -1 for inputs (N, T, C).")


def check_layout(inputs: Any, channels: int = 1) -> Layout:
    """Find out where samples have their places and their channels.

    Args:
        inputs: floating-point numbers of shape (N, C, H, W), (N, C, D, H, W), (N, C, T), (N, T, C) or (N, T), or token
            ids of shape (N, T).
        channels: the dimension of the channels of inputs with three dimensions: 1 or -1.

    Raises:
        InputError: for what is not such a tensor.
        OptionError: for another dimension of the channels.
    """
    check_channels(channels)
    is_tensor = isinstance(inputs, torch.Tensor)
    if not is_tensor or not 2 <= inputs.dim() <= 5 or not (inputs.is_floating_point() or is_ids(inputs)):
        what = f"{inputs.dtype} tensor of shape {tuple(inputs.shape)}" if is_tensor else type(inputs).__name__
        raise InputError(f"inputs is a {what}; expected {_KINDS}.")
    if inputs.dim() == 2:
        return Layout(tuple(inputs.shape[1:]), None)
    if inputs.dim() == 3 and channels == -1:
        return Layout((inputs.shape[1],), -1)
    if channels == -1:
        raise OptionError(f"channels is -1 for inputs of shape {tuple(inputs.shape)}; expected inputs (N, T, C).")
    return Layout(tuple(inputs.shape[2:]), 1)


def check_samples(inputs: Any) -> torch.Tensor:
    """Samples as metrics take them.

    Args:
        inputs: as :func:`check_layout` takes them, finite numbers.

    Returns:
        The samples without a graph.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
    """
    if not isinstance(inputs, torch.Tensor):
        raise CAVTypeError(f"inputs is a {type(inputs).__name__}; expected a tensor.")
    check_layout(inputs)
    check_tensor(inputs, "inputs")
    return inputs.detach()


def check_places(maps: torch.Tensor, inputs: torch.Tensor, layout: Layout) -> None:
    """Refuse maps that tell of another dimension than that of the places, and token ids without one number for each.

    Args:
        maps: shape (N, t), (N, h, w) or (N, d, h, w).
        inputs: the samples.
        layout: the layout of the samples.

    Raises:
        InputError: with what is wrong with the maps.
    """
    if is_ids(inputs) and maps.shape[1:] != layout.size:
        raise InputError(
            f"maps has shape {tuple(maps.shape)} for token ids of shape {tuple(inputs.shape)}; expected one number for "
            "each token."
        )
    if inputs.dim() == 3 and layout.channels is not None and maps.shape[1:] != layout.size:
        other = 1 if layout.channels == -1 else -1
        if maps.shape[1] == inputs.shape[layout.channels]:
            raise InputError(
                f"maps has shape {tuple(maps.shape)} for inputs of shape {tuple(inputs.shape)}, whose channels are "
                f"dimension {layout.channels}; expected channels={other} if that dimension has the places, or maps "
                f"of {layout.size[0]} places, as resize_map of captum_cav.visualization makes them."
            )
