"""Rules for sums of two tensors, such as residual connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.surrogates import with_slopes
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule


@dataclass(frozen=True, repr=False)
class AdditionRule(Rule):
    """How the two summands of ``a + b`` or ``a - b`` share.

    Args:
        share: which summand takes which part.

            - ``"signed"``, the default of all sums: each summand takes a part by its value, ``R_a = a / (a + b) R``
              (equations 1-4).
            - ``"magnitude"``: each summand takes a part by its absolute value, ``R_a = |a| / (|a| + |b|) R``. So
              summands of opposite signs do not amplify each other.

    Raises:
        OptionError: for another value of ``share``.

    Source: Kakishita and Hattori, equations 1-4 (signed).

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> inputs = (torch.tensor([3.]), torch.tensor([-1.]))
        >>> InputCAV(torch.add).attribute(inputs)
        (tensor([1.5000]), tensor([-0.5000]))
        >>> InputCAV(torch.add, rules={torch.add: AdditionRule("magnitude")}).attribute(inputs)
        (tensor([0.7500]), tensor([0.2500]))
    """

    share: Literal["signed", "magnitude"] = "signed"

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.SUM)

    def __post_init__(self) -> None:
        if self.share not in ("signed", "magnitude"):
            raise OptionError(f'share is {self.share!r}; expected "signed" or "magnitude".')

    def __call__(self, operation: Operation, /) -> Any:
        """The default value, or a value whose summands share by magnitude."""
        if self.share == "signed":
            return operation.by_default()
        a, b = (operation.argument(position, name) for position, name in enumerate(("input", "other")))
        carrier = operation.sources[0]
        scale = operation.kwargs.get("alpha", 1)
        summands = {"add": (1, scale), "sub": (1, -scale), "rsub": (-scale, 1)}[operation.name]
        values = [
            factor * (value.detach().clone() if isinstance(value, torch.Tensor) else carrier.new_full((), value))
            for value, factor in zip((a, b), summands, strict=True)
        ]
        total = values[0] + values[1]
        # c_a = y / a * |a| / (|a| + |b|), times the factor that a has in the sum.
        per_size = total / (values[0].abs() + values[1].abs()).clamp(min=torch.finfo(total.dtype).tiny)
        carriers, slopes = [], []
        for value, summand, factor in zip((a, b), values, summands, strict=True):
            if operation.depends_on_inputs(value):
                carriers.append(value)
                slopes.append(factor * summand.sign() * per_size)
        output = with_slopes(total, carriers, slopes)
        if operation.counts_constants and len(carriers) < 2:
            constant = next(
                summand for value, summand in zip((a, b), values, strict=True) if not operation.depends_on_inputs(value)
            )
            operation.add_constant(output, constant.sign() * constant * per_size)
        return operation.args[0].copy_(output) if operation.in_place else output
