"""A forward pass that is only watched: each function computes as without the propagation, and outputs get marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav.propagation.dispatch import Propagation
from captum_cav.propagation.kinds import Role
from captum_cav.propagation.marking import Sources
from captum_cav.propagation.marks import get_mark
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.reentrancy import current, running
from captum_cav.propagation.table import OperationTable
from captum_cav.propagation.taps import as_carrier
from captum_cav.propagation.trace import Trace
from captum_cav.tensors import is_number, tensors_in
from captum_cav.torch_internals import tree_map


class _Watching(Propagation):
    """The mode of a watched forward pass. Gradients are those of the model."""

    def __init__(self, table: OperationTable) -> None:
        trace = Trace(with_shares=False, with_rules=False, audited=False)
        super().__init__(table, Rulebook({}, torch.nn.Identity(), table, lambda _: None), "note", trace, lambda _: ())

    def _admit(self, value: Any, sources: Sources, func: Callable[..., Any]) -> Any:
        """Return an argument unchanged, and add the tensors that depend on the inputs to sources."""
        for tensor in tensors_in(value):
            if get_mark(tensor, self.trace.run) is None and tensor.grad_fn is not None:
                self.trace.mark_input(tensor)  # A custom autograd function made the tensor.
            mark = get_mark(tensor, self.trace.run)
            if mark is not None:
                sources.append((tensor, mark))
        return value

    def _passes_unchanged(self, role: Role, args: tuple[Any, ...]) -> bool:
        """Every function that does not compute is called with its arguments unchanged."""
        return True

    def apply_rule(self, operation: Operation, rule: Surrogate, why: str, module: torch.nn.Module | None) -> Any:
        """The operation's value, differentiated as torch does. The Python body of a function is watched, too."""
        if operation.spec.rule is Operation.decompose_body:
            return super().apply_rule(operation, operation.spec.rule, why, module)
        with self.paused():
            return operation.value()


def watch(table: OperationTable, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, object]:
    """Run a function, and mark what depends on its arguments. Inside a propagation, that propagation marks it.

    Args:
        table: what is known of each torch function.
        function: the function.
        args, kwargs: its arguments.

    Returns:
        What the function returned, in a graph; and the identity of the pass, which is in all its marks.
    """
    outer = current()
    if outer is not None:
        return function(*args, **kwargs), outer.trace.run
    watching = _Watching(table)

    def begin(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not is_number(leaf):
            return leaf
        # Operations leave what they know of their output only where there is a graph.
        tensor = leaf if leaf.requires_grad else as_carrier(leaf)
        watching.trace.mark_input(tensor)
        return tensor

    with torch.enable_grad(), running(watching):
        args, kwargs = tree_map(begin, (args, kwargs))
        with watching:
            return function(*args, **kwargs), watching.trace.run
