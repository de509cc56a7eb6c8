"""What makes the host wait for the device between the checks, and why. The tests see that the list is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.gpu.between_checks import nothing_read

#: Names of cases, and the reason.
READS: dict[str, str] = {
    "operation masked_select": "torch counts the places of the mask, for the shape of the result",
    "operation boolean index": "torch counts the places of the mask, for the shape of the result",
    "operation values at a mask": "torch counts the places of the mask, to match the values with them",
    "operation counted repetitions": "torch adds up the counts, for the shape of the result",
    "operation sparse product": "torch counts the entries of the sparse matrix",
    "operation covariance": "torch.cov compares the number of observations with the correction on the device",
    "operation inverse": "torch looks whether the matrix was singular",
    "operation solve": "torch looks whether the matrix was singular",
    "operation power of a tensor": "whether all exponents are negative decides whether the power is a gate",
    "operation tensor to the power": "a base that is positive everywhere is an exponential, any other base is not",
    "rule of a user": "a rule that a user wrote may return NaN or infinity, and the message names the rule",
    "network packed": "torch packs and unpacks sequences by lengths on the host, and copies places to the device",
    "measure mass_accuracy": "the weights of resize_map are computed in float64 on the host, for devices without it",
    "measure completeness": "the scores are an argument that is checked inside the measure",
    "measure model_randomisation": "a parameter that reset_parameters did not change is shuffled instead",
    "measure effect_agreement": "masks are drawn on the host, so that all devices hide the same cells",
    "measure grid_pointing": "which cells of a grid belong to the class is known on the host",
    "measure focus": "which cells of a grid belong to the class is known on the host",
    "measure difull": "which cells of a grid belong to the class is known on the host",
}

# What torch raises on CUDA and on meta, and what the stand-in of synchronisation.py raises.
_WAITED = (RuntimeError, NotImplementedError, AssertionError)
_SAID = r"synchronizing CUDA operation|[Mm]eta tensor|nonzero|is singular|counts the places|copies a number|and device$"


def check_reads(name: str, device: torch.device, run: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """See that a case makes the host wait if it is in the list, and that it does not otherwise.

    Args:
        name: of the case.
        device: ``meta`` or a GPU.
        run: returns tensors, in nested lists and tuples. All must lie on the device.
        args, kwargs: for ``run``.
    """
    with nothing_read(device):
        if name in READS:
            with pytest.raises(_WAITED, match=_SAID):
                run(*args, **kwargs)
            return
        found = run(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {device.type}


def names_of(kind: str) -> set[str]:
    """The names of one kind in the list."""
    return {name.removeprefix(f"{kind} ") for name in READS if name.startswith(f"{kind} ")}
