"""What a comparison records: a row for each map, the settings, and the maps themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from captum_cav.errors import MapError
from captum_cav.suggestions import did_you_mean

#: The names of a method and of a layer.
Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """What was measured on one map: one method, one layer, one example.

    Attributes:
        method: the name of the method.
        layer: the qualified name of the layer, or "input".
        example: the index of the example.
        target: the target that was explained; None if the model gives one score for each example.
        score: the score of the target.
        metrics: the measures by name; NaN if a measure does not apply to the map, or failed.
        native_shape: (h, w) or (d, h, w) of the map as the method returned it; None if the method failed.
        seconds, peak_bytes, forwards, backwards: see :class:`captum_cav.comparison.cost.Cost`; the same for all
            examples of a method and layer.
        error: what failed, if ``compare`` was told to record failures.
    """

    method: str
    layer: str
    example: int
    target: int | tuple[int, ...] | None
    score: float
    metrics: Mapping[str, float]
    native_shape: tuple[int, ...] | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    forwards: float | None = None
    backwards: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """What was compared, and how.

    Attributes:
        methods: for each name of a method, what the name stood for.
        unsigned: the names of the methods whose maps have no sign. Their maps are absolute values: how sensitive the
            score is.
        shares: the names of the methods whose maps are shares of the score.
        directions: for each metric, which values are better: "higher", "lower", or None for neither.
        size: (height, width) or (depth, height, width) of the common grid.
        repeats: how often each method was timed.
        seed: the seed of all random numbers.
        batch_size: how many examples ran at once.
        device: the device of the inputs.
        versions: the versions of Python and of the packages.
        squashed_by: the last function of the model, such as "softmax", if the scores are the numbers before it.
    """

    methods: Mapping[str, str]
    unsigned: tuple[str, ...]
    shares: tuple[str, ...]
    directions: Mapping[str, str | None]
    size: tuple[int, ...]
    repeats: int
    seed: int
    batch_size: int
    device: str
    versions: Mapping[str, str]
    squashed_by: str | None = None


class Maps(Mapping[Place, torch.Tensor]):
    """Maps by method and layer. If a map is missing, the error tells why.

    Args:
        found: the maps.
        errors: for each map that is missing because its method failed, what failed.
    """

    def __init__(self, found: Mapping[Place, torch.Tensor], errors: Mapping[Place, str]) -> None:
        self._found = dict(found)
        self._errors = dict(errors)

    def __getitem__(self, place: Place) -> torch.Tensor:
        if place in self._found:
            return self._found[place]
        if place in self._errors:
            raise MapError(f"{place[0]!r} has no map at {place[1]!r}: {self._errors[place]}")
        method, layer = place
        near = did_you_mean(f"{method} at {layer}", [" at ".join(known) for known in self._found])
        raise MapError(f"no map of {method!r} at {layer!r} was asked for{near}.")

    def __contains__(self, place: object) -> bool:
        return place in self._found

    def __iter__(self) -> Iterator[Place]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
