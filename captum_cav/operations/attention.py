"""Attention: by default the attention weights are constants, and only the values carry contributions.

This follows from two default rules, because attention is a softmax and two products. A softmax is a gate, and a gate in
a product is a constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from captum_cav.operations import guards
from captum_cav.operations.surrogates import with_backward
from captum_cav.operations.table import TABLE
from captum_cav.operations.weighing import weighed_values
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.tensors import size_of_infinity


def scaled_dot_product_attention(operation: Operation) -> Any:
    """``softmax(q k^T / sqrt(d) + mask) v``, in which only the values carry contributions.

    If the values are constants, the output is a constant.
    """
    query, key, value, mask = (
        operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
    )
    for argument in (query, key):
        if argument is not value:
            operation.detach(argument)
    if operation.weighs_constants:
        return operation.value_as_weighed_constant()
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
    if operation.depends_on_inputs((query, key, mask)):
        # The weights are gates. The rules of layers are not for this product.
        return torch.matmul(weights, value)
    return operation.decompose(torch.matmul, weights, value)


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
    return weights_of(attention_scores(products, width, mask, causal, scale), mask is not None)


def attention_scores(
    products: torch.Tensor, width: int, mask: torch.Tensor | None, causal: bool, scale: float | None
) -> torch.Tensor:
    """The scores whose softmax are attention weights. For the arguments see :func:`attention_weights`."""
    scores = products * (1 / math.sqrt(width) if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def weights_of(scores: torch.Tensor, has_mask: bool) -> torch.Tensor:
    """The softmax of each row of attention scores. A row that attends to nothing is 0.

    Args:
        scores: of shape (..., L, S).
        has_mask: whether a mask was applied, so that a row may attend to nothing.
    """
    if not has_mask:
        return torch.softmax(scores, -1)
    # The softmax of a fully masked row is 0 / 0.
    values = scores.detach()
    is_empty = (values == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(values.masked_fill(is_empty, 0.0), -1).masked_fill(is_empty, 0.0)
    return with_derivative_of_softmax(scores, SavedValue(weights), -1) if scores.requires_grad else weights


def with_derivative_of_softmax(scores: torch.Tensor, weights: SavedValue, dim: int) -> torch.Tensor:
    """A softmax that passes its derivative on. In a row in which all positions are masked, nothing passes.

    A mask is -inf, or the smallest number of the type. Any other number vanishes beside such a number. So in a fully
    masked row the softmax does not depend on the scores to which the mask was added, although its derivative is not 0.

    Args:
        scores: what goes into the softmax.
        weights: the softmax, a tensor of the same shape.
        dim: the dimension over which the weights sum to 1.

    Returns:
        The weights, in the graph.
    """
    dtype, row = scores.dtype, scores.detach().amax(dim, keepdim=True)
    is_masked = row <= -size_of_infinity(dtype)

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        # NaN is taken out before it can meet a coefficient, because the delta is a derivative of this product.
        values = weights.value.masked_fill(is_masked, 0.0)
        return ((values * (coefficients - (values * coefficients).sum(dim, keepdim=True))).to(dtype),)

    return with_backward(weights.value, backward, scores)


TABLE.register(
    "scaled_dot_product_attention",
    OperationSpec(
        rule=scaled_dot_product_attention,
        kind=Kind.ATTENTION,
        guard=guards.attention,
        weighs_constants=weighed_values,
    ),
)
TABLE.register(
    "multi_head_attention_forward",
    OperationSpec(rule=Operation.decompose_body, has_weights=True, guard=guards.multi_head_attention),
)
