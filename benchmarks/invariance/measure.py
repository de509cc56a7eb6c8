"""How far the maps of two spellings of a function differ."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from benchmarks.invariance.network import Network, inputs_of, network_of
from benchmarks.invariance.pair import RULES, Pair, Spelling
from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVError

#: The largest difference between equal maps, as a part of the largest absolute value.
TOLERANCE = 1e-9
#: The place of the inputs in the names of places.
INPUTS = "the inputs"
_TARGET = 1


class Explained(NamedTuple):
    """What is known of one spelling under one preset.

    Attributes:
        scores: the scores of the network.
        contributions: contributions of the inputs, and of the first layer, by name. In units of the score.
        deltas: what stays unexplained at each of these places. It measures the shares of constants, because
            contributions, shares of constants and delta sum to the score.
        error: why there are no contributions. Empty if there are some.
    """

    scores: torch.Tensor
    contributions: dict[str, torch.Tensor]
    deltas: dict[str, torch.Tensor]
    error: str = ""


class Deviation(NamedTuple):
    """How far the maps of a pair differ under one preset.

    Attributes:
        preset: name of the preset.
        size: the largest difference, as a part of the largest absolute value. Infinite for other scores, and if one of
            the two spellings is refused.
        place: where it is.
    """

    preset: str
    size: float
    place: str

    @property
    def is_none(self) -> bool:
        """Whether the maps are equal."""
        return self.size <= TOLERANCE


def deviations(pair: Pair, names: tuple[str, ...] | None = None) -> list[Deviation]:
    """How far the two maps of a pair differ under each of its presets.

    Args:
        pair: the pair.
        names: the presets that are of interest. None for all.
    """
    chosen = [name for name in pair.presets if names is None or name in names]
    return [deviation(pair, preset) for preset in chosen]


def deviation(pair: Pair, preset: str) -> Deviation:
    """How far the two maps of a pair differ under a preset."""
    usual, other = (explained(one, pair.shape, pair.is_last, preset) for one in (pair.function, pair.rewrite))
    if not torch.allclose(usual.scores, other.scores, rtol=1e-12, atol=1e-12):
        return Deviation(preset, float("inf"), "the scores differ")
    if usual.error or other.error:
        size = 0.0 if usual.error == other.error else float("inf")
        return Deviation(preset, size, f"{usual.error or 'a map'} against {other.error or 'a map'}")
    found = []
    for place, contributions in usual.contributions.items():
        largest = float(contributions.abs().max())
        size = float((contributions - other.contributions[place]).abs().max()) / largest
        found.append(Deviation(preset, size, f"map of {place}"))
        if pair.rewrite.are_inputs and place != INPUTS:
            continue  # The other input bypasses the layer, so its contribution is in the delta.
        largest = max(largest, float(usual.scores[:, _TARGET].abs().max()))
        size = float((usual.deltas[place] - other.deltas[place]).abs().max()) / largest
        found.append(Deviation(preset, size, f"constants behind {place}"))
    return max(found, key=lambda one: one.size)


@functools.lru_cache(maxsize=64)
def explained(spelling: Spelling, shape: tuple[int, ...], is_last: bool, preset: str) -> Explained:
    """Contributions in the network around one spelling of a function.

    Args:
        spelling, shape, is_last: as for :func:`benchmarks.invariance.network.network_of`.
        preset: name of the preset.
    """
    network, scores = _with_scores(spelling, shape, is_last)
    x, rules = inputs_of(shape), RULES[preset]
    inputs = (x, *spelling.arguments) if spelling.are_inputs else (x,)
    additional = None if spelling.are_inputs else spelling.arguments or None
    contributions, deltas = {}, {}
    attributions = {
        INPUTS: InputCAV(network, rules=rules, normalize=None),
        "the first layer": LayerCAV(network, "first", rules=rules, normalize=None),
    }
    try:
        for place, attribution in attributions.items():
            found, deltas[place] = attribution.attribute(
                inputs, _TARGET, additional_forward_args=additional, return_convergence_delta=True
            )
            contributions[place] = found[0] if isinstance(found, tuple) else found
    except CAVError as error:
        return Explained(scores, {}, {}, type(error).__name__)
    return Explained(scores, contributions, deltas)


@functools.lru_cache(maxsize=8)
def _with_scores(spelling: Spelling, shape: tuple[int, ...], is_last: bool) -> tuple[Network, torch.Tensor]:
    """The network around one spelling of a function, and its scores."""
    network = network_of(spelling, shape, is_last)
    with torch.no_grad():
        return network, network(inputs_of(shape), *spelling.arguments)
