"""What each measure tells about itself: name, range, direction and needed arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, ParamSpec, Protocol, TypeAlias, cast

import torch

Direction: TypeAlias = Literal["higher", "lower"] | None
P = ParamSpec("P")


class Measure(Protocol[P]):
    """A function that takes maps and other arguments, and returns one number for each example, shape (N,).

    Attributes:
        name: the name of the function.
        range: the smallest and the largest possible value with the default options.
        direction: which values are better, ``"higher"`` or ``"lower"``; None for neither.
        needs: the names of the required parameters. All measures use the same names: ``maps``, ``others``, ``masks``,
            ``scores``, ``model``, ``inputs``, ``target``, ``explain``.
    """

    name: str
    range: tuple[float, float]
    direction: Direction
    needs: frozenset[str]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        """The measured values."""


def measure(low: float, high: float, direction: Direction) -> Callable[[Callable[P, torch.Tensor]], Measure[P]]:
    """Declare a function to be a measure.

    Args:
        low: the smallest possible value.
        high: the largest possible value.
        direction: which values are better.

    Returns:
        The decorator. It returns the same function with the attributes of a :class:`Measure`. The required parameters
        of the function are what the measure needs.

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
