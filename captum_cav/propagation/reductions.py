"""How much smaller than the network's input a map is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

_DIRECTIONS = re.compile("[123](?=d(_|$))")


def reduction_of(name: str, tensors: Sequence[torch.Tensor], inputs: Sequence[torch.Size]) -> float | None:
    """How many times smaller than the network's input the map is that an operation takes, in each direction.

    The number of places counts, and not their arrangement. So a convolution in 2 directions has the same reduction if
    it is written as one in 3 directions, or for each sample alone.

    Args:
        name: the plain name of the operation. Names such as "conv2d" say how many directions a map has. Otherwise all
            dimensions behind the samples and the channels are directions.
        tensors: what the operation takes. Its finest map counts.
        inputs: sizes of the maps of the network's inputs. The largest one counts.

    Returns:
        The mean over the directions of the input's map. None if the input or the operation has no map.
    """
    told = _DIRECTIONS.search(name)
    last = -int(told[0]) if told else None  # Of the frames of a video, each is a map.
    sizes = [tensor.shape[last:] if told else tensor.shape[2:] for tensor in tensors]
    places = max((math.prod(size) for size in sizes if size), default=0)
    largest = max((size[last:] for size in inputs), key=math.prod, default=torch.Size())
    directions = sum(side > 1 for side in largest)
    return float((math.prod(largest) / places) ** (1 / directions)) if places and directions else None
