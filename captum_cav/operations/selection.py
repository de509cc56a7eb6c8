"""Selections: the winner takes all (equations 7' and 8), which is autograd's own gradient."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative, Kind
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import FACTOR, Trait


def winner_takes_all(operation: Operation) -> Any:
    """Max pooling, max, sort, top-k: the selected value carries everything, and the other values carry nothing.

    If several values are equal, torch chooses. Max pooling, ``max`` over a dimension and top-k select one of them.
    ``amax`` and ``max`` of all values share among them.

    Args:
        operation: a selection.

    Returns:
        The operation's value, which is its own surrogate.

    Source: Kakishita and Hattori, equations 7' and 8.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> InputCAV(torch.amax, rules={torch.amax: rules.winner_takes_all}).attribute(torch.tensor([1., 3.]))
        tensor([0., 1.])
    """
    return operation.value()


def one_of_two(is_greater: bool) -> Surrogate:
    """Rule of ``maximum`` and ``minimum``, and of ``max`` and ``min`` of two tensors, decomposed into ``where``.

    Args:
        is_greater: whether the greater of the two is chosen.
    """

    def rule(operation: Operation) -> Any:
        a, b = operation.argument(0, "input"), operation.argument(1, "other")
        if not isinstance(b, torch.Tensor):
            return operation.value()
        chosen = (a >= b) if is_greater else (a <= b)
        return operation.decompose(lambda: torch.where(chosen, a, b))

    rule.__name__ = "larger_of_two" if is_greater else "smaller_of_two"
    return rule


def _winner(kind: Kind) -> OperationSpec:
    return OperationSpec(
        rule=winner_takes_all,
        is_as_is=True,
        derivative=Derivative.ALWAYS,
        keeps=FACTOR | Trait.NONNEGATIVE,
        kind=kind,
    )


def _of_two(is_greater: bool) -> OperationSpec:
    return OperationSpec(rule=one_of_two(is_greater), derivative=Derivative.ALWAYS, keeps=FACTOR, kind=Kind.SELECTION)


TABLE.register(
    """
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
    """,
    _winner(Kind.SELECTION | Kind.MAX_POOLING),
)
TABLE.register(
    """
    fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
    amax amin aminmax topk sort msort kthvalue median nanmedian mode quantile nanquantile cummax cummin
    """,
    _winner(Kind.SELECTION),
)
TABLE.register("max maximum fmax", _of_two(True))
TABLE.register("min minimum fmin", _of_two(False))
# Their Python bodies take a power, average it and take the root.
TABLE.register("lp_pool1d lp_pool2d lp_pool3d", OperationSpec(rule=Operation.decompose_body, kind=Kind.SELECTION))
