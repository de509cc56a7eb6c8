"""What a measure of maps declares about itself, so that a table can be made of any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, ParamSpec, Protocol, TypeAlias, cast

import torch

Direction: TypeAlias = Literal["higher", "lower"] | None
P = ParamSpec("P")


class Measure(Protocol[P]):
    """A function from maps, and whatever else it needs, to one number for each example, shape (N,).

    Attributes:
        name: the function's name.
        range: the least and the greatest value that it can have with its default options.
        direction: which values are better, ``"higher"`` or ``"lower"``; None where neither is.
        needs: the names of its required parameters. All measures draw them from one vocabulary: ``maps``, ``others``,
            ``masks``, ``scores``, ``model``, ``inputs``, ``target``, ``explain``.
    """

    name: str
    range: tuple[float, float]
    direction: Direction
    needs: frozenset[str]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        """The measured values."""


def measure(low: float, high: float, direction: Direction) -> Callable[[Callable[P, torch.Tensor]], Measure[P]]:
    """Declare a function to be a measure; it stays the function that it is.

    Args:
        low: the least value.
        high: the greatest.
        direction: which values are better.

    Returns:
        The decorator. What the measure needs is read off the function's signature.

    Example::

        >>> @measure(0.0, 1.0, "higher")
        ... def share_of_positive_places(maps, *, above=0.0):
        ...     return (maps > above).double().mean((1, 2))
        >>> share_of_positive_places.name, share_of_positive_places.direction, *share_of_positive_places.needs
        ('share_of_positive_places', 'higher', 'maps')
    """

    def declare(function: Callable[P, torch.Tensor]) -> Measure[P]:
        declared = cast(Measure[P], function)
        declared.name = function.__name__
        declared.range = low, high
        declared.direction = direction
        parameters = inspect.signature(function).parameters.values()
        declared.needs = frozenset(
            parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty
        )
        return declared

    return declare
