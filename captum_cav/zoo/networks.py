"""A network with its preprocessing and the names of its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

from captum_cav.zoo.names import find_class


@dataclass(frozen=True)
class Network:
    """A model, and what a caller needs to ask the model about a picture and to read the answer.

    The constructor puts the model into evaluation mode.

    Args:
        name: the name of the network in messages and captions.
        model: maps a batch of shape (N, 3, H, W) to scores of shape (N, number of classes).
        preprocess: turns an RGB picture into the float tensor of shape (3, H, W) that the model expects.
        display: turns an RGB picture into the part of the picture that the model sees: an RGB picture of H x W pixels.
            A map of shape (H, W) lies over this part, pixel by pixel.
        classes: the names of the classes, in the order of the scores; empty if they are unknown.
        depths: the qualified names of five layers, from the last feature layer (1) to the layer next to the input (5);
            empty if they are unknown.

    Example::

        >>> from torch import nn
        >>> network = Network("pets", nn.Identity(), preprocess=None, display=None, classes=("tabby", "boxer"))
        >>> network.class_index("Boxer"), network.class_index("tab"), network.class_index(1)
        (1, 0, 1)
        >>> network.class_name(1), network.class_name(17)
        ('boxer', 'class 17')
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Callable[[Image.Image], torch.Tensor] = field(repr=False)
    display: Callable[[Image.Image], Image.Image] = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    depths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.model.eval()

    def class_index(self, name_or_index: str | int) -> int:
        """Find the index of a class.

        Args:
            name_or_index: an index, the digits of an index, a class name in upper or lower case, or a part of a name
                that occurs in no other name.

        Returns:
            The position of the class in ``classes``. If the class names are unknown, every index from 0 on is accepted.

        Raises:
            InputError: if the index is out of range, or if the name fits no class or several classes.
        """
        return find_class(name_or_index, self.classes, self.name)

    def class_name(self, index: int) -> str:
        """The name of a class.

        Args:
            index: the position of the class among the scores.

        Returns:
            The name, or for example "class 17" if the class has no name.
        """
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"
