"""What a coverage case gives to be explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class Problem(NamedTuple):
    """A network, an input and a class.

    Attributes:
        score: gives scores, (N, classes), of the inputs.
        model: the network that it runs.
        inputs: floats, one sample or two.
        target: a class.
    """

    score: Callable[[torch.Tensor], torch.Tensor]
    model: nn.Module
    inputs: torch.Tensor
    target: int
