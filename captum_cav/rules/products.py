"""Rules for products of two tensors that both depend on the inputs, and of a gate and a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.products import multiplied
from captum_cav.operations.surrogates import with_slopes
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule

#: The values of the option ``share``.
SHARES = ("gates", "activations", "halves", "first", "second", "magnitude")


@dataclass(frozen=True, repr=False)
class ProductRule(Rule):
    """How two factors that both depend on the inputs share: elementwise and matrix products, einsum.

    Args:
        share: which factor takes which part.

            - ``"gates"``, the default of all products: a gate (the output of a sigmoid or a softmax) is a constant, and
              the other factor takes everything. Without a gate each factor takes half. If the other factor is a
              constant, so is the product, unless the constant is a layer's weight.
            - ``"activations"``: as ``"gates"``, and the output of an activation (SiLU, GELU, ...) is a gate, too. So in
              a gated linear unit such as SwiGLU the other factor takes everything.
            - ``"halves"``: each factor takes half, gates too. If the other factor is a constant, a gate takes
              everything.
            - ``"first"``, ``"second"``: this factor takes everything. The other factor is a constant.
            - ``"magnitude"``: each factor takes a part by its absolute value, ``|a| / (|a| + |b|)``. For elementwise
              products only.

    Raises:
        OptionError: for another value of ``share``. In the forward pass, for a product that is not elementwise with
            ``"magnitude"``.

    Source: Arras et al. 2017 (gates); Achtibat et al. 2024, proposition 3.2 (halves).

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> inputs = (torch.tensor([3.]), torch.tensor([1.]))
        >>> InputCAV(torch.mul, rules={torch.mul: ProductRule("magnitude")}).attribute(inputs)
        (tensor([0.7500]), tensor([0.2500]))
        >>> InputCAV(torch.mul, rules={torch.mul: ProductRule("second")}).attribute(inputs)
        (tensor([0.]), tensor([1.]))
    """

    share: Literal["gates", "activations", "halves", "first", "second", "magnitude"] = "gates"

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.PRODUCT)

    def __post_init__(self) -> None:
        if self.share not in SHARES:
            listed = ", ".join(f'"{share}"' for share in SHARES)
            raise OptionError(f"share is {self.share!r}; expected one of {listed}.")

    def governs(self, operation: Operation) -> bool:
        """Whether two tensors that depend on the inputs are multiplied. A product with a reciprocal is a division.

        For halves: also whether a gate weighs a constant.
        """
        if not super().governs(operation) or len(operation.sources) > 2:
            return False
        if len(operation.sources) == 1:
            return self.share == "halves" and operation.weighs_constants
        return sum(map(operation.is_reciprocal, operation.sources)) != 1

    def __call__(self, operation: Operation, /) -> Any:
        """The product, in which the factors share as the rule says."""
        if len(operation.sources) == 1:
            return operation.value()
        first, second = operation.sources
        if self.share == "gates":
            return operation.by_default()
        if self.share == "activations":
            activated = [factor for factor in operation.sources if operation.is_activated(factor)]
            is_gated = len(activated) == 1 and not any(map(operation.is_gate, operation.sources))
            return multiplied(operation, activated) if is_gated else operation.by_default()
        if self.share == "magnitude":
            if operation.name != "mul":
                raise OptionError(f"{self!r} is for elementwise products; {operation.name!r} is not one.")
            return _by_magnitude(operation, first, second)
        if first is second:  # A square: the one factor takes everything in any case.
            return multiplied(operation, [])
        return multiplied(operation, {"halves": [], "first": [second], "second": [first]}[self.share])


def _by_magnitude(operation: Operation, first: torch.Tensor, second: torch.Tensor) -> Any:
    a, b = first.detach().clone(), second.detach().clone()
    size = (a.abs() + b.abs()).clamp(min=torch.finfo(a.dtype).tiny)
    # c_a = y / a * |a| / (|a| + |b|) with y = a b.
    output = with_slopes(a * b, (first, second), (b * a.abs() / size, a * b.abs() / size))
    return operation.args[0].copy_(output) if operation.in_place else output
