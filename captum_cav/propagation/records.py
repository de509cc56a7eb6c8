"""Which operation of a forward pass met which rule, and why: what ``explain_rules`` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from captum_cav.propagation.operation import ModuleCall, Operation, Surrogate
from captum_cav.rules import is_derivative
from captum_cav.rules.rule import Rule


class RuleRow(NamedTuple):
    """One operation of the forward pass.

    Attributes:
        module: qualified name of the innermost module that it ran in, or its type where it has no name; empty outside.
        operation: the torch function, or the type of a module that was ruled as one operation.
        rule: the rule.
        why: the key that chose it: a module, a pattern, a type, a function, or the default.
        constant: which of the tensors that it takes were held constant: gates, attention weights, statistics.
    """

    module: str
    operation: str
    rule: str
    why: str
    constant: str


class RuleTable(tuple[RuleRow, ...]):
    """The operations of a forward pass in their order; prints itself as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        heads = RuleRow("module", "operation", "rule", "because of", "constant")
        rows = [heads, *self]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    __repr__ = __str__


class RuleLog:
    """Collects the rows of one forward pass.

    Args:
        names_of: gives the qualified names of a module.
    """

    def __init__(self, names_of: Callable[[torch.nn.Module], Sequence[str]]) -> None:
        self._names_of = names_of
        self._rows: list[RuleRow] = []
        #: Those whose rule is not the derivative of the operation.
        self.inexact: list[RuleRow] = []

    def __call__(self, operation: Operation, rule: Surrogate, why: str, module: torch.nn.Module | None) -> None:
        """Note an operation and its rule."""
        where = "" if module is None else next(iter(self._names_of(module)), "") or type(module).__name__
        held = [str(place) for place, tensor in enumerate(operation.sources, 1) if id(tensor) in operation.held]
        name = operation.name if not isinstance(operation, ModuleCall) else f"{operation.name} as one"
        shown = repr(rule) if isinstance(rule, Rule) else getattr(rule, "__name__", repr(rule))
        if operation.written_out:  # in operations that met rules of their own, in rows above
            shown += ", written out"
        constant = f"{' and '.join(held)} of {len(operation.sources)}" if held else ""
        row = RuleRow(where, name, shown, why, constant)
        self._rows.append(row)
        if not operation.written_out and not is_derivative(rule, operation):
            self.inexact.append(row)

    def table(self) -> RuleTable:
        """What was noted."""
        return RuleTable(self._rows)
