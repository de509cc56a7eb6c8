"""Selections: the winner takes all (equations 7' and 8), which is autograd's own gradient.

Average pooling is linear and lives in :mod:`captum_cav.rules.linear`.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.propagation.operation import Operation, Rule


def winner_takes_all(operation: Operation) -> Any:
    """Max pooling, max, sort, top-k: what is selected carries all, the rest nothing."""
    return operation.value()


def larger_of_two(operation: Operation) -> Any:
    """``maximum`` and ``minimum``, and ``max`` and ``min`` of two tensors: a choice between two summands."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    if not isinstance(b, torch.Tensor):
        return operation.value()
    greater = operation.name in ("maximum", "fmax", "max")
    chosen = (a >= b) if greater else (a <= b)
    return operation.inside(lambda: torch.where(chosen, a, b))


_WINNERS = """
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices amax amin topk sort msort kthvalue median
    nanmedian mode cummax cummin
""".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_WINNERS, winner_takes_all),
    **dict.fromkeys(("max", "min", "maximum", "minimum", "fmax", "fmin"), larger_of_two),
}
KEEPING_WEIGHTS = frozenset(("topk", "sort", "amax"))
