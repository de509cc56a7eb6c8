"""Rules for softmax and for scaled dot-product attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.attention import attention_weights, with_derivative_of_softmax
from captum_cav.operations.products import shared_matmul
from captum_cav.propagation.operation import Kind, Operation
from captum_cav.propagation.rule import Rule


@dataclass(frozen=True, repr=False)
class AttentionRule(Rule):
    """Which arguments of softmax and of scaled dot-product attention carry contributions.

    Args:
        carry: what carries contributions.

            - ``"values"``, the default of all attention: the attention weights are constants, and only the values carry
              contributions (CP-LRP).
            - ``"all"``: queries and keys carry contributions, too (AttnLRP). The softmax ``s`` passes its derivative
              on, ``R_i = x_i (R_i - s_i sum_j R_j)``, which does not conserve contributions. Masked positions carry
              nothing. Each factor of a product takes half.

    Raises:
        OptionError: for another value of ``carry``.

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

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.ATTENTION)

    def __post_init__(self) -> None:
        if self.carry not in ("values", "all"):
            raise OptionError(f'carry is {self.carry!r}; expected "values" or "all".')

    @property
    def is_conserving(self) -> bool:  # type: ignore[override]
        """Whether only the values carry contributions. The derivative of the softmax does not conserve them."""
        return self.carry == "values"

    def __call__(self, operation: Operation, /) -> Any:
        """The default value, or a value whose softmax passes its derivative on and whose products share in halves."""
        if self.carry == "values":
            return operation.by_default()
        if operation.name == "softmax":
            return _softmax(operation)
        query, key, value, mask = (
            operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
        )
        depend = [operation.depends_on_inputs(part) for part in (query, key, value, mask)]
        if operation.kwargs.get("enable_gqa", False):
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (part.repeat_interleave(repeats, -3) for part in (key, value))
        products = shared_matmul(query, key.transpose(-2, -1), depend[0] and depend[1])
        causal, scale = bool(operation.argument(5, "is_causal", False)), operation.kwargs.get("scale")
        weights = attention_weights(products, query.shape[-1], mask, causal, scale)
        return shared_matmul(weights, value, depend[2] and any((*depend[:2], depend[3])))


def _softmax(operation: Operation) -> Any:
    scores, dim = operation.argument(0, "input"), operation.argument(1, "dim")
    if dim is None:  # The dimension that F.softmax takes if it is given none.
        dim = 0 if scores.dim() in (0, 1, 3) else 1
    weights = operation.on({id(scores): scores.detach()}).value()
    return with_derivative_of_softmax(scores, operation.save(weights), dim)
