"""The engine with a table of a few rows: the engine knows no operation but those of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from captum_cav.propagation.dispatch import OnUnknown, Propagation
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.kinds import Derivative, Numbers
from captum_cav.propagation.marks import get_mark
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.overrides import Rulebook, Translator
from captum_cav.propagation.table import OperationTable
from captum_cav.propagation.trace import Trace
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import tensors_in


def add(operation: Operation) -> Any:
    """``a + b``: what no input carries is a constant with a share."""
    output = operation.value()
    b = operation.argument(1, "other")
    if not operation.depends_on_inputs(b):
        operation.add_constant(output, torch.as_tensor(b, dtype=output.dtype))
    return output


def small_table() -> OperationTable:
    """Rows of some operations, and of what a forward pass asks of tensors."""
    table = OperationTable()
    table.register(
        "relu",
        OperationSpec(rule=Operation.value, is_as_is=True, derivative=Derivative.ALWAYS, makes=Trait.NONNEGATIVE),
    )
    table.register(
        "add|iadd",
        OperationSpec(rule=add, keeps_without_constants=Trait.NONNEGATIVE, numbers=Numbers.OPERANDS),
    )
    table.register("mul|imul", OperationSpec(rule=Operation.value, derivative=Derivative.OF_ONE_TENSOR))
    table.register("neg", OperationSpec(rule=Operation.value, is_as_is=True, derivative=Derivative.ALWAYS))
    table.register(
        "getitem view clone detach",
        OperationSpec(
            rule=Operation.value, is_as_is=True, derivative=Derivative.ALWAYS, keeps=Trait.NONNEGATIVE | Trait.GATE
        ),
    )
    table.register("copy fill setitem", OperationSpec(rule=Operation.value))
    table.register("sigmoid", OperationSpec(rule=Operation.value, makes=Trait.GATE | Trait.NONNEGATIVE))
    table.register("linear", OperationSpec(rule=Operation.value, has_weights=True))
    return table


def no_translation(value: object) -> None:
    return None


def rulebook(
    rules: Mapping[Any, Any] | None = None,
    model: Callable[..., Any] = torch.relu,
    translate: Translator = no_translation,
) -> Rulebook:
    return Rulebook(rules or {}, model, small_table(), translate)


class Pass:
    """One pass, step by step: tensors are marked and tapped by hand.

    Args:
        table: the table of operations.
        rules: the user's rules.
        names_of: gives the qualified names of a module.
        on_unknown: what to do with an operation without a row.
        options: what the trace notes.
    """

    def __init__(
        self,
        table: OperationTable | None = None,
        *,
        rules: Rulebook | None = None,
        names_of: Callable[[torch.nn.Module], Sequence[str]] = lambda module: (),
        on_unknown: OnUnknown = "error",
        **options: bool,
    ) -> None:
        self.trace = Trace(**{"with_shares": False, "with_rules": False, "audited": False, **options})
        rules = rulebook() if rules is None else rules
        self.propagation = Propagation(table or small_table(), rules, on_unknown, self.trace, names_of)

    def input(self, *values: float) -> torch.Tensor:
        """An input of the model that no tap has seen: it bypasses all layers."""
        tensor = torch.tensor(values)
        self.trace.mark_input(tensor)
        return tensor

    def tapped(self, *values: float) -> torch.Tensor:
        """An input of the model that was tapped: it carries contributions."""
        tensor: torch.Tensor = self.propagation.tap(self.input(*values))
        return tensor

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function returns under the propagation."""
        with self.propagation:
            return function(*args, **kwargs)

    def operation(self, function: Callable[..., Any], *args: Any, in_place: bool = False, **kwargs: Any) -> Operation:
        """A call of a torch function as a rule sees the call. All of its tensors with a mark are its sources."""
        table = small_table()
        name = table.name_of(function) or function.__qualname__
        tensors = tensors_in([*args, *kwargs.values()])
        sources = [tensor for tensor in tensors if get_mark(tensor, self.trace.run) is not None]
        return Operation(name, table.row(name), function, args, kwargs, sources, in_place, self.propagation)

    def taps_of(self, tensor: torch.Tensor) -> int:
        mark = get_mark(tensor, self.trace.run)
        assert mark is not None
        return mark.taps

    def traits_of(self, tensor: torch.Tensor) -> Trait:
        mark = get_mark(tensor, self.trace.run)
        assert mark is not None
        return Trait(mark.traits)


def forward_of(
    model: Callable[..., Any],
    *inputs: torch.Tensor,
    sites: Sequence[Site] = (),
    rules: Rulebook | None = None,
    **options: Any,
) -> Forward:
    """A whole forward pass with the small table. The inputs are tapped, unless some other sites are."""
    request = {"table": small_table(), "rules": rules or rulebook(), "tap_inputs": not sites, **options}
    return run(model, inputs, (), sites, Request(**request))


def contributions(passed: Forward, tap: int = 0) -> list[list[float]]:
    """Values times coefficients of the tensors of a tap, for the sum of the output."""
    return all_contributions(passed)[tap]


def all_contributions(passed: Forward) -> list[list[list[float]]]:
    """The same of every tap, in one backward pass. Empty lists stand for tensors on which the score does not depend."""
    taps = passed.trace.taps
    score = passed.output.sum().reshape(1)
    found = passed.coefficients(score, torch.ones(1), range(len(taps)), not passed.trace.audited)
    return [
        [[] if c is None else (value * c).tolist() for value, c in zip(one.values, coefficients, strict=True)]
        for one, coefficients in zip(taps, found, strict=True)
    ]
