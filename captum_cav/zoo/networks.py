"""A network with its preprocessing and the names of its classes."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

from captum_cav.errors import InputError


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
        if isinstance(name_or_index, str):
            wanted = name_or_index.strip()
            return self._check_index(int(wanted)) if re.fullmatch(r"[+-]?[0-9]+", wanted) else self._find_name(wanted)
        # In Python a bool is an int, but whoever passes True as class 1 has made a mistake.
        if isinstance(name_or_index, bool) or not hasattr(name_or_index, "__index__"):
            raise InputError(f"a class is an index or a name, not {name_or_index!r} ({type(name_or_index).__name__})")
        return self._check_index(operator.index(name_or_index))

    def class_name(self, index: int) -> str:
        """The name of a class.

        Args:
            index: the position of the class among the scores.

        Returns:
            The name, or for example "class 17" if the class has no name.
        """
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def _check_index(self, index: int) -> int:
        if index < 0 or (self.classes and index >= len(self.classes)):
            expected = f"an index from 0 to {len(self.classes) - 1}" if self.classes else "an index from 0 on"
            raise InputError(f"{self.name} has no class {index}: give {expected}")
        return index

    def _find_name(self, wanted: str) -> int:
        if not self.classes:
            raise InputError(f"the class names of {self.name} are not known: give an index instead of {wanted!r}")
        if not wanted:
            raise InputError(f"the class name is empty: give a class of {self.name} or its index")
        names = [name.casefold() for name in self.classes]
        folded = wanted.casefold()
        exact = [index for index, name in enumerate(names) if name == folded]
        found = exact or [index for index, name in enumerate(names) if folded in name]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{self.classes[index]} ({index})" for index in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise InputError(
                f"{wanted!r} fits {len(found)} classes of {self.name}: {listed}{more}. Give the whole name or the index"
            )
        near = [self.classes[names.index(name)] for name in difflib.get_close_matches(folded, names)]
        hint = f"near matches: {', '.join(near)}" if near else "no name comes near; give an index"
        raise InputError(f"{self.name} has no class {wanted!r}; {hint}")
