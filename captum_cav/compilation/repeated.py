"""Attributions that explain one input after another: what comes often is recorded, and replayed from then on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from captum_cav.attribution.contributions import ContributionAttribution
from captum_cav.compilation.compiled import compile as recorded
from captum_cav.errors import CAVError, RecordingError

#: How many calls of one kind run as usual before that kind is recorded. To record takes about as long as ten calls, so
#: a job loses a twentieth of its time at most, and a long job wins.
RECORD_AFTER = 200
# How many attributions are kept for further inputs. The oldest is dropped first.
_MOST = 32


class Repeated:
    """An attribution that is called again and again. What it returns has the same bits as without recordings.

    Args:
        attribution: a :class:`captum_cav.LayerCAV` or another attribution that :func:`captum_cav.compile` takes.
    """

    def __init__(self, attribution: Any) -> None:
        self._usual, self._recorded = attribution, recorded(attribution)
        self._calls: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()

    def attribute(self, inputs: torch.Tensor, target: Any = None, **options: Any) -> Any:
        """What ``attribute`` of the attribution returns."""
        return self._call("attribute", inputs, target, options)

    def attribute_targets(self, inputs: torch.Tensor, targets: Any, **options: Any) -> Any:
        """What ``attribute_targets`` of the attribution returns."""
        return self._call("attribute_targets", inputs, targets, options)

    def _call(self, name: str, inputs: torch.Tensor, target: Any, options: dict[str, Any]) -> Any:
        kind = (name, inputs.shape, inputs.dtype)
        self._calls[kind] += 1
        if self._calls[kind] > RECORD_AFTER and kind not in self._refused:
            try:
                return getattr(self._recorded, name)(inputs, target, **options)
            except Exception as error:
                # Other errors of this package are those of the attribution. Whatever else torch raises while it
                # records, such as for the memory, is no reason to stop.
                if isinstance(error, CAVError) and not isinstance(error, RecordingError):
                    raise
                self._refused.add(kind)
        return getattr(self._usual, name)(inputs, target, **options)


class Recordings:
    """Attributions that are kept for further inputs, with their recordings.

    Args:
        fused: whether they are compiled by inductor from the first input on. Otherwise what comes often is replayed.
    """

    def __init__(self, *, fused: bool) -> None:
        self.fused = fused
        self._made: dict[Hashable, Any] = {}

    def of(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The attribution of a key, made at its first use."""
        if key not in self._made:
            if len(self._made) >= _MOST:
                self._made.pop(next(iter(self._made)))
            cav = make()
            self._made[key] = (
                recorded(cav, backend="inductor", freeze=True, on_break="eager") if self.fused else Repeated(cav)
            )
        return self._made[key]


_KEPT: ContextVar[Recordings | None] = ContextVar("_KEPT", default=None)


@contextmanager
def keeping(recordings: Recordings | None) -> Iterator[None]:
    """A context in which :func:`kept` keeps attributions for further inputs; None for a context without recordings."""
    before = _KEPT.set(recordings)
    try:
        yield
    finally:
        _KEPT.reset(before)


def kept_recordings() -> Recordings | None:
    """What the context keeps."""
    return _KEPT.get()


def kept(key: Hashable, make: Callable[[], ContributionAttribution]) -> Any:
    """An attribution that another call with this key may have made, if the context keeps attributions.

    Args:
        key: what the attribution hangs on: the model itself, names of layers, and options.
        make: makes the attribution.

    Returns:
        An object with the methods ``attribute`` and ``attribute_targets``.
    """
    recordings = _KEPT.get()
    return make() if recordings is None else recordings.of(key, make)
