"""Attributions and measures without the checks that read numbers on the host: what is left only hands out work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from captum_cav import checks
from captum_cav.attribution.input_checks import Arguments
from tests.gpu.synchronisation import none_allowed

_ATTRIBUTION = "captum_cav.attribution"


@contextmanager
def nothing_read(device: torch.device) -> Iterator[None]:
    """Fail where the host waits for the device between the checks before and behind.

    The checks are left out: on ``meta`` there is nothing to check, and on CUDA they wait. ``verify`` returns the
    tensors of its report.
    """
    replaced = {
        **{f"{_ATTRIBUTION}.{module}.check_arguments": _arguments for module in _MODULES},
        f"{_ATTRIBUTION}.contributions.check_scores": _unchecked,
        f"{_ATTRIBUTION}.contributions.check_contributions": _unchecked,
        f"{_ATTRIBUTION}.contributions.samples_are_separate": lambda found: True,
        f"{_ATTRIBUTION}.verification._report": lambda model, passed, selected, *parts: parts[:2],
        "captum_cav.checks.layouts.check_tensor": _unchecked,
        "captum_cav.checks.maps.check_tensor": _unchecked,
        "captum_cav.checks.check_finite_results": _unchecked,
        "captum_cav.metrics.masks.check_masks": lambda masks, maps: masks,
    }
    with ExitStack() as patched:
        for name, function in replaced.items():
            patched.enter_context(patch(name, function))
        patched.enter_context(none_allowed(device))
        yield


_MODULES = ("inputs", "layer", "neuron", "verification")


def _arguments(
    forward_func: Any,
    inputs: Any,
    additional_forward_args: Any,
    targets: Sequence[Any] = (),
    additional_forward_kwargs: Any = None,
    *,
    inputs_are_explained: bool = False,
) -> Arguments:
    return Arguments(checks.as_inputs(inputs), checks.additional_arguments(additional_forward_args), list(targets))


def _unchecked(*_: Any, **__: Any) -> None:
    pass
