"""What wrappers of Captum, such as ``NoiseTunnel``, get from an attribution of several layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from captum_cav.errors import LayerError

_Attribute = TypeVar("_Attribute", bound=Callable[..., Any])


def flat_in_wrappers(attribute: _Attribute) -> _Attribute:
    """Let wrappers of Captum, such as ``NoiseTunnel``, get the maps of several layers as a tuple, and add them up.

    These wrappers call ``attribute.__wrapped__``.
    """
    original = attribute.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(original)
    def flat(cav: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(cav, *args, **kwargs)
        if not isinstance(result, list):
            if isinstance(result[0], list):
                raise LayerError(
                    "a wrapper of Captum, such as NoiseTunnel, takes the delta of one layer, not of several; explain "
                    "one layer at a time, or leave out return_convergence_delta."
                )
            return result
        if any(isinstance(part, tuple) for part in result):
            raise LayerError(
                "a wrapper of Captum, such as NoiseTunnel, takes several layers only if each of them gives one tensor; "
                "explain one layer at a time."
            )
        return tuple(result)

    attribute.__wrapped__ = flat  # type: ignore[attr-defined]
    return attribute
