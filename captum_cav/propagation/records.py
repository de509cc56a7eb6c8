"""What a pass records for people: the rule of each operation, whether it conserves, and operations without a rule."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class RuleRow(NamedTuple):
    """One operation of the forward pass.

    Attributes:
        module: qualified name of the innermost module in which the operation ran, or the type of a module without a
            name. Empty outside of modules.
        operation: the torch function, or the type of a module that was ruled as one operation.
        rule: the rule.
        why: the key that chose the rule: a module, a pattern, a type, a function, or the default.
        constant: which of the operation's tensors the rule treated as constants, such as ``1 of 2``: gates, attention
            weights, statistics.
    """

    module: str
    operation: str
    rule: str
    why: str
    constant: str


class RuleTable(tuple[RuleRow, ...]):
    """The operations of a forward pass in their order, as ``explain_rules`` returns them. Prints itself as a table.

    Attributes:
        title: the preset that the name ``"auto"`` stands for, and why. It is printed above the rows. Empty otherwise.
    """

    title: str = ""

    def __str__(self) -> str:
        heads = RuleRow("module", "operation", "rule", "because of", "constant")
        rows = [heads, *self]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *lines] if self.title else lines)

    __repr__ = __str__


@dataclass
class RuleLog:
    """The rules of one forward pass.

    Attributes:
        rows: every operation that had a rule, in order.
        inexact: the rows whose rule does not pass the derivative of the operation on.
    """

    rows: list[RuleRow] = field(default_factory=list)
    inexact: list[RuleRow] = field(default_factory=list)

    def table(self, title: str = "") -> RuleTable:
        """The rows, as a table that prints itself.

        Args:
            title: see :class:`RuleTable`.
        """
        table = RuleTable(self.rows)
        table.title = title
        return table


class Unknown(NamedTuple):
    """An operation without a rule.

    Attributes:
        operation: its plain name.
        module: the innermost module in which the operation ran, for messages. Empty outside of modules.
        key: the key for the operation in ``rules``, as a user writes it.
        rule: a rule that can be given for it.
        when: when that rule is right.
    """

    operation: str
    module: str
    key: str
    rule: str
    when: str


@dataclass
class Audited:
    """The audit of one operation: what its backward pass did to contributions.

    Attributes:
        operation: its name.
        rule: its rule.
        module: the innermost module in which the operation ran.
        residual: the contributions of its output, minus those of its inputs and constants. 0 if the rule conserves.
        size: the sum of the absolute contributions of its output, inputs and constants.
        rewritten: by how much the contributions of its inputs changed because the model wrote into the inputs, and
            autograd did not record that.
        rewritten_size: the sum of the absolute changes.
        precision: the machine epsilon of its carriers; the largest if they differ.
        is_decomposed: whether the operation consists of other operations, which have entries of their own. Then only
            ``rewritten`` counts.
        is_module: whether the operation is the whole call of a module, which is not compared.

    The numbers are float64 scalars on the device of the operation, or the number 0 if the backward pass did not reach
    the operation. Nobody reads them on the host before the backward pass ends.
    """

    operation: str
    rule: object
    module: torch.nn.Module | None
    residual: float | torch.Tensor = 0.0
    size: float | torch.Tensor = 0.0
    rewritten: float | torch.Tensor = 0.0
    rewritten_size: float | torch.Tensor = 0.0
    precision: float = 0.0
    is_decomposed: bool = False
    is_module: bool = False

    def compare(self, contributions: Sequence[torch.Tensor], constants: Sequence[torch.Tensor]) -> None:
        """Add what one backward pass found.

        Args:
            contributions: of each output, and with the opposite sign of each input; float64.
            constants: the shares of constants, float64 scalars.
        """
        if not (contributions or constants):
            return
        shares = [_sum(constants)] if constants else []
        self.residual = self.residual + _sum([*(part.sum() for part in contributions), *map(torch.neg, shares)])
        self.size = self.size + _sum([*(part.abs().sum() for part in contributions), *map(torch.abs, shares)])

    def note_writes(self, changes: Sequence[torch.Tensor]) -> None:
        """Note changes of inputs that autograd did not record.

        Args:
            changes: of the contributions of each input; float64.
        """
        if changes:
            self.rewritten = self.rewritten + _sum([change.sum() for change in changes])
            self.rewritten_size = self.rewritten_size + _sum([change.abs().sum() for change in changes])


def _sum(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one scalar, on the device of the first of them."""
    first, *others = numbers
    return functools.reduce(lambda total, number: total + number.to(total.device), others, first.detach())
