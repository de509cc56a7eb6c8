"""Rules for softmax and for scaled dot-product attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.attention import attention_scores, weights_of, with_derivative_of_softmax
from captum_cav.operations.surrogates import scaled
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation
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
              nothing. Each factor of a product takes half. Some outputs of a softmax, divided by their sum, are a
              softmax of fewer numbers. Routers of experts do so. This division passes its derivative on, too.

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

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.ATTENTION) | {"div"}

    def __post_init__(self) -> None:
        if self.carry not in ("values", "all"):
            raise OptionError(f'carry is {self.carry!r}; expected "values" or "all".')

    @property
    def is_conserving(self) -> bool:  # type: ignore[override]
        """Whether only the values carry contributions. The derivative of the softmax does not conserve them."""
        return self.carry == "values"

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is a softmax or attention, or divides outputs of a softmax by their sum."""
        if operation.name == "div":
            return (
                self.carry == "all"
                and len(operation.sources) == 2
                and all(map(operation.is_softmax, operation.sources))
            )
        return super().governs(operation)

    @property
    def holds_gates(self) -> bool:  # type: ignore[override]
        """Whether attention weights are constants, also where the values are constants."""
        return self.carry == "values"

    def __call__(self, operation: Operation, /) -> Any:
        """The default value, or a value whose softmax passes its derivative on and whose products share in halves."""
        if self.carry == "values":
            return operation.by_default()
        if operation.name == "softmax":
            return _softmax(operation)
        if operation.name == "div":
            return operation.value()
        query, key, value, mask = (
            operation.argument(position, name) for position, name in enumerate(("query", "key", "value", "attn_mask"))
        )
        causal, scale = bool(operation.argument(5, "is_causal", False)), operation.kwargs.get("scale")
        repeats = query.shape[-3] // key.shape[-3] if operation.kwargs.get("enable_gqa", False) else 1

        def scores_and_values() -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = (part if repeats == 1 else part.repeat_interleave(repeats, -3) for part in (key, value))
            products = torch.matmul(query, keys.transpose(-2, -1))
            return attention_scores(products, query.shape[-1], mask, causal, scale), values

        # As in attention that is written out, a mask is a constant, and a constant factor of a product is a weight. But
        # the rules of layers are not for a product with attention weights that depend on the inputs.
        scores, values = operation.decompose(scores_and_values)
        weights = weights_of(scores, mask is not None)
        if not operation.depends_on_inputs(scores):
            return operation.decompose(torch.matmul, weights, values)
        # What follows the scores is ruled here, so the operation as a whole has an audit.
        operation.is_decomposed = False
        output = weights @ values
        return scaled(output, 0.5) if operation.depends_on_inputs(values) else output


def _softmax(operation: Operation) -> Any:
    scores, dim = operation.argument(0, "input"), operation.argument(1, "dim")
    if dim is None:  # The dimension that F.softmax takes if it is given none.
        dim = 0 if scores.dim() in (0, 1, 3) else 1
    weights = operation.on({id(scores): scores.detach()}).value()
    return with_derivative_of_softmax(scores, operation.save(weights), dim)
