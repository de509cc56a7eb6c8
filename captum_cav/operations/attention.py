"""Attention: by default the attention weights are constants, and only the values carry contributions.

This follows from two default rules, because attention is a softmax and two products. A softmax is a gate, and a gate in
a product is a constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from captum_cav.operations import guards
from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Kind, Operation, OperationSpec


def scaled_dot_product_attention(operation: Operation) -> Any:
    """``softmax(q k^T / sqrt(d) + mask) v``, in which only the values carry contributions."""
    query, key, value, mask = (
        operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
    )
    for argument in (query, key):
        if argument is not value:
            operation.detach(argument)
    if not operation.carries(value):
        return operation.value().detach()
    if operation.kwargs.get("enable_gqa", False):
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        # The values carry contributions, so their repetition is an operation with a rule.
        value = operation.decompose(value.repeat_interleave, repeats, -3)
    weights = attention_weights(
        query.detach() @ key.detach().transpose(-2, -1),
        query.shape[-1],
        mask.detach() if isinstance(mask, torch.Tensor) else None,
        bool(operation.argument(5, "is_causal", False)),
        operation.kwargs.get("scale"),
    )
    # The weights depend on the inputs, so the rules of layers are not for this product.
    return torch.matmul(weights, value)


def attention_weights(
    products: torch.Tensor, width: int, mask: torch.Tensor | None, causal: bool, scale: float | None
) -> torch.Tensor:
    """Attention weights as :func:`torch.nn.functional.scaled_dot_product_attention` defines them.

    Args:
        products: the products of each query and each key, of shape (..., L, S).
        width: the number of elements of a query.
        mask: a boolean mask (True attends) or an additive mask. Broadcasts to (..., L, S). None for no mask.
        causal: whether a query sees only keys at its own position and at earlier positions.
        scale: the factor of the products. None for 1 / sqrt(width).

    Returns:
        The attention weights, of shape (..., L, S). Each row sums to 1. A row that attends to nothing is 0.
    """
    scores = products * (1 / math.sqrt(width) if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # A fully masked row is 0 / 0.
    return torch.nan_to_num(torch.softmax(scores, -1), nan=0.0)


TABLE.register(
    "scaled_dot_product_attention",
    OperationSpec(rule=scaled_dot_product_attention, kind=Kind.ATTENTION, guard=guards.attention),
)
TABLE.register(
    "multi_head_attention_forward",
    OperationSpec(rule=Operation.decompose_body, guard=guards.multi_head_attention),
)
