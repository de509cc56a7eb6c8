"""Scores of networks that segment: one class in a region of the picture, of the volume or of the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from captum_cav.checks.numbers import sample_names
from captum_cav.checks.options import as_integer
from captum_cav.errors import CAVTypeError, InputError, TargetError
from captum_cav.scores.outputs import Shown, for_each_sample, tensor_of


@dataclass(frozen=True, eq=False, repr=False)
class Region(Shown):
    """The scores of one class, summed over a region of the picture, of the volume or of the video.

    The region is a constant: the score tells where the scores of the class in that region came from, and not why the
    region has its shape.

    Args:
        class_index: the class; None for one score for each class, of which ``target`` selects one.
        mask: the region, shape (h, w) or (N, h, w) on the grid of the model's output: booleans, or zeros and ones. Of
            volumes (d, h, w) or (N, d, h, w), of videos the same with frames in the place of slices. None for the
            region in which the class has the largest score of all classes. If the model has a single class, that is
            the region of its positive scores.

    Returns of a call:
        Shape (N,), or (N, classes) without ``class_index``. The output of the model is a tensor of shape
        (N, classes, h, w) or (N, classes, d, h, w), or an object that has it as ``"out"`` (torchvision) or
        ``"logits"`` (transformers).

    Raises:
        CAVTypeError: for a mask that is no tensor, and for another kind of output.
        InputError: for a mask of another size.
        TargetError: for a class that the output does not have, and for a region without any place.

    Example::

        >>> from captum_cav import InputCAV
        >>> pixels = torch.tensor([[[[4.0, 1.0]], [[2.0, 3.0]]]])    # class 0 wins on the left, class 1 on the right
        >>> InputCAV(torch.nn.Identity(), score=Region(1), normalize=None).attribute(pixels)[0, 1]
        tensor([[0., 3.]])
        >>> everywhere = Region(1, mask=torch.ones(1, 2))
        >>> everywhere(pixels), everywhere
        (tensor([5.]), Region(class_index=1, mask=<tensor of shape (1, 2)>))
    """

    class_index: int | None = None
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.class_index is not None and as_integer(self.class_index) is None:
            raise CAVTypeError(f"class_index is {self.class_index!r}; expected the index of a class, or None.")
        if self.mask is None:
            return
        if not isinstance(self.mask, torch.Tensor):
            raise CAVTypeError(f"mask is a {type(self.mask).__name__}; expected a tensor of shape (h, w) or (N, h, w).")
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise InputError("mask holds other numbers than 0 and 1; expected booleans, as mask > 0.5.")

    def __call__(self, output: Any) -> torch.Tensor:
        """The scores, see the class."""
        expected = "scores of shape (N, classes, h, w) or (N, classes, d, h, w)"
        maps = tensor_of(output, self, expected, (4, 5), "out", "logits")
        classes = maps.shape[1]
        if self.class_index is None:
            return (maps * self._region(maps, torch.arange(classes, device=maps.device))).flatten(2).sum(2)
        if not -classes <= self.class_index < classes:
            raise TargetError(f"class_index is {self.class_index}; expected 0 to {classes - 1}, the model's classes.")
        index = self.class_index % classes
        region = self._region(maps, torch.tensor([index], device=maps.device))
        filled = region.flatten(1).any(1).expand(len(maps))
        if not bool(filled.all()):
            why = f"class {index} has the largest score nowhere" if self.mask is None else "the mask holds no place"
            raise TargetError(
                f"{why} in {sample_names(~filled)}; expected a region with at least one place. Pass another "
                f"class, or a region, as Region({index}, mask=torch.ones{tuple(maps.shape[2:])})."
            )
        return (maps[:, index : index + 1] * region).flatten(1).sum(1)

    def _region(self, maps: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Whether each place belongs to the region, shape (N or 1, len(classes) or 1, *places)."""
        if self.mask is not None:
            size = tuple(maps.shape[2:])
            if tuple(self.mask.shape[-len(size) :]) != size:
                advice = (
                    " Resize the mask, as torch.nn.functional.interpolate("
                    f"mask.reshape(-1, 1, *mask.shape[-{len(size)}:]).float(), {size})[:, 0]."
                )
                raise InputError(
                    f"mask has shape {tuple(self.mask.shape)}; expected {size} or (N, {str(size)[1:]}, the size of "
                    f"the model's output.{advice if self.mask.dim() in (len(size), len(size) + 1) else ''}"
                )
            return for_each_sample("mask", self.mask, size, len(maps))[:, None].to(maps.device).bool()
        scores = maps.detach()
        if maps.shape[1] == 1:
            return scores > 0
        return scores.argmax(1, keepdim=True) == classes.reshape(-1, *[1] * (maps.dim() - 2))
