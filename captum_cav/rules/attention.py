"""Attention: by default the softmax weights are constants and contributions flow through the values.

That is what the rules of softmax (a weight) and of products (weights do not carry) give once attention is written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from captum_cav.errors import OptionError
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.rules.product import shared_matmul
from captum_cav.rules.rule import Rule


def scaled_dot_product_attention(operation: Operation) -> Any:
    """``softmax(q k^T / sqrt(d) + mask) v``; only the values carry."""
    query, key, value, mask = (
        operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
    )
    for weighing in (query, key):
        operation.hold(weighing)
    if not operation.carries(value):
        return operation.value().detach()
    if operation.kwargs.get("enable_gqa", False):
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        # The values carry: their repetition is an operation like any other.
        value = operation.inside(value.repeat_interleave, repeats, -3)
    weights = attention_weights(
        query.detach() @ key.detach().transpose(-2, -1),
        query.shape[-1],
        mask.detach() if isinstance(mask, torch.Tensor) else None,
        bool(operation.argument(5, "is_causal", False)),
        operation.kwargs.get("scale"),
    )
    return operation.inside(torch.matmul, weights, value)


@dataclass(frozen=True, repr=False)
class AttentionRule(Rule):
    """Softmax, and the attention that is made of it.

    Args:
        carry: ``"values"``, the default of all attention: the weights are constants, contributions flow through the
            values alone (CP-LRP); ``"all"``: queries and keys carry too (AttnLRP). There the softmax passes on
            ``R_i = x_i (R_i - s_i sum_j R_j)``, which is its derivative times its input and keeps a part to itself,
            and of each product both factors take half.

    Source: Ali et al. 2022 (values); Achtibat et al. 2024, propositions 3.1-3.3 (all).

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> q, k, v = torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.)
        >>> score = lambda q, k, v: F.scaled_dot_product_attention(q, k, v)[:, 0, 0]
        >>> InputCAV(score).attribute((q, k, v))[2]
        tensor([[[1.]]])
        >>> rules = {F.scaled_dot_product_attention: AttentionRule("all")}
        >>> InputCAV(score, rules=rules).attribute((q, k, v))[2]
        tensor([[[0.5000]]])
    """

    carry: Literal["values", "all"] = "values"

    operations: ClassVar[frozenset[str] | None] = frozenset(("scaled_dot_product_attention", "softmax"))

    def __post_init__(self) -> None:
        if self.carry not in ("values", "all"):
            raise OptionError(f'carry is {self.carry!r}; expected "values" or "all".')

    def __call__(self, operation: Operation, /) -> Any:
        """The default, or softmax by its derivative and attention written out in carriers."""
        if self.carry == "values":
            return operation.by_default()
        if operation.name == "softmax":
            return operation.value()
        query, key, value, mask = (
            operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
        )
        of_inputs = [operation.depends_on_inputs(part) for part in (query, key, value, mask)]
        if operation.kwargs.get("enable_gqa", False):
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (part.repeat_interleave(repeats, -3) for part in (key, value))
        products = shared_matmul(query, key.transpose(-2, -1), of_inputs[0] and of_inputs[1])
        causal, scale = bool(operation.argument(5, "is_causal", False)), operation.kwargs.get("scale")
        weights = attention_weights(products, query.shape[-1], mask, causal, scale)
        return shared_matmul(weights, value, of_inputs[2] and any((*of_inputs[:2], of_inputs[3])))


def attention_weights(
    products: torch.Tensor, width: int, mask: torch.Tensor | None, causal: bool, scale: float | None
) -> torch.Tensor:
    """Attention weights as :func:`torch.nn.functional.scaled_dot_product_attention` defines them.

    Args:
        products: shape (..., L, S), of each query and each key.
        width: number of elements of a query.
        mask: boolean (True attends) or additive, broadcastable to (..., L, S).
        causal: whether a query sees only keys at its own or earlier positions.
        scale: factor of the products; 1 / sqrt(width) by default.

    Returns:
        Shape (..., L, S), each row summing to 1; a row that attends to nothing is 0.
    """
    scores = products * (1 / math.sqrt(width) if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # A fully masked row is 0 / 0.
    return torch.nan_to_num(torch.softmax(scores, -1), nan=0.0)


RULES: dict[str, Surrogate] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "multi_head_attention_forward": Operation.reentered,
}
