"""Scores made of several outputs or scores: differences, sums and means."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from captum_cav import checks
from captum_cav.captum_internals import select_scores
from captum_cav.errors import InputError, OptionError
from captum_cav.scores.outputs import check_whole, tensor_of
from captum_cav.scores.running import ScoreFunction, check_score, scores_of, takes_inputs

#: An output, in any of the forms of ``target``, or a score.
Part: TypeAlias = int | tuple[int, ...] | list[Any] | torch.Tensor | ScoreFunction


class _Combination:
    """A score made of parts."""

    def __init__(self, *parts: Part) -> None:
        for part in parts:
            if callable(part):
                check_score(part)
        self.parts = parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    @property
    def takes_inputs(self) -> bool:
        """Whether one of the parts is computed from the arguments of the model too."""
        return any(map(takes_inputs, self.parts))

    def _values(self, output: Any, inputs: tuple[Any, ...]) -> torch.Tensor:
        """The values of the parts, shape (parts, N)."""
        values = [self._value(part, output, inputs) for part in self.parts]
        if len({value.shape for value in values}) > 1 or values[0].dim() != 1:
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise InputError(f"the parts of {self!r} have the shapes {shapes}; expected (N,) for all of them.")
        return torch.stack(values)

    def _value(self, part: Part, output: Any, inputs: tuple[Any, ...]) -> torch.Tensor:
        if callable(part):
            return scores_of(part, output, inputs)
        if isinstance(part, list) or (isinstance(part, torch.Tensor) and part.numel() > 1):
            check_whole(f"{part!r} lists an output")
        found = tensor_of(output, self, "a tensor of shape (N, classes)", (), "logits")
        selected: torch.Tensor = select_scores(found, checks.resolve_target(found, part))
        return selected


class Difference(_Combination):
    """One output minus another: what speaks for class a rather than for class b.

    Args:
        first: an output, in any of the forms of ``target``; or a score.
        second: what is subtracted, in the same forms.

    Returns of a call:
        Shape (N,). For outputs, the model returns a tensor, or an object that has it as ``"logits"``.

    Raises:
        TargetError, CAVTypeError, InputError: for parts that do not fit the output of the model.

    Example::

        >>> from captum_cav import InputCAV
        >>> difference = InputCAV(torch.nn.Identity(), score=Difference(0, 2), normalize=None)
        >>> difference.attribute(torch.tensor([[5.0, 1.0, 2.0]]))
        tensor([[ 5.,  0., -2.]])
    """

    def __init__(self, first: Part, second: Part) -> None:
        super().__init__(first, second)

    def __call__(self, output: Any, *inputs: Any) -> torch.Tensor:
        """The scores, see the class."""
        values = self._values(output, inputs)
        return values[0] - values[1]


class Sum(_Combination):
    """The sum of several outputs or scores.

    Args:
        parts: outputs, in any of the forms of ``target``, or scores; at least one.

    Returns of a call:
        Shape (N,). For outputs, the model returns a tensor, or an object that has it as ``"logits"``.

    Raises:
        OptionError: without any part.
        TargetError, CAVTypeError, InputError: for parts that do not fit the output of the model.

    Example::

        >>> Sum(0, 2)(torch.tensor([[5.0, 1.0, 2.0]]))
        tensor([7.])
        >>> Sum(0, Difference(1, 2))
        Sum(0, Difference(1, 2))
    """

    def __init__(self, *parts: Part) -> None:
        if not parts:
            name = type(self).__name__
            raise OptionError(f"{name} got no part; expected at least one, as {name}(0, 3).")
        super().__init__(*parts)

    def __call__(self, output: Any, *inputs: Any) -> torch.Tensor:
        """The scores, see the class."""
        return self._values(output, inputs).sum(0)


class Mean(Sum):
    """The mean of several outputs or scores.

    Args:
        parts: as for :class:`Sum`.

    Returns of a call:
        Shape (N,), as for :class:`Sum`.

    Raises:
        CAVError: as for :class:`Sum`.

    Example::

        >>> Mean(0, 1)(torch.tensor([[5.0, 1.0, 2.0]]))
        tensor([3.])
    """

    def __call__(self, output: Any, *inputs: Any) -> torch.Tensor:
        """The scores, see the class."""
        return self._values(output, inputs).mean(0)
