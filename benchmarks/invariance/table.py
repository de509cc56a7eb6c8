"""All pairs of functions and rewrites."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.invariance import (
    activations,
    attention,
    composed,
    convolution,
    gated,
    linear,
    norms,
    pooling,
    recurrent,
    residual,
    roles,
    softmax,
    squashed,
    wrappers,
)
from benchmarks.invariance.pair import Pair

_GROUPS: tuple[Callable[[], Iterator[Pair]], ...] = tuple(
    group.pairs
    for group in (
        attention,
        norms,
        softmax,
        activations,
        gated,
        composed,
        pooling,
        linear,
        convolution,
        residual,
        recurrent,
        wrappers,
        roles,
        squashed,
    )
)


def pairs() -> list[Pair]:
    """All pairs, group by group. No two have the same name."""
    found = [pair for group in _GROUPS for pair in group()]
    names = [pair.name for pair in found]
    doubled = {name for name in names if names.count(name) > 1}
    assert not doubled, doubled
    return found
