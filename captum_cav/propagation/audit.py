"""The audit: whether each operation conserves contributions.

An operation conserves if its inputs and its constants contribute as much as its output. In an audit the rule of an
operation runs on stand-ins for the tensors that carry contributions, and so builds a separate graph. The backward pass
runs through this graph, and the contributions at its two ends are compared.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from captum_cav.propagation import zeros
from captum_cav.propagation.constant_shares import ConstantShares
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.marks import get_mark, let_be_constant, set_mark
from captum_cav.propagation.module_operation import ModuleCall
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.records import Audited
from captum_cav.propagation.taps import as_carrier
from captum_cav.propagation.trace import Trace
from captum_cav.tensors import is_number, tensors_in
from captum_cav.torch_internals import OwnFunction, edge_of, tree_map

#: A value and its coefficient. None if the backward pass did not reach the value.
Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


def run_audited(trace: Trace, operation: Operation, rule: Surrogate, module: torch.nn.Module | None) -> Any:
    """An operation's value by its rule, audited.

    Some operations run without an audit. Under ``torch.no_grad()`` the output is a constant, as is the output of
    ``randn_like``. A view shares nothing out.
    A module that is ruled as one operation ran unseen. A tensor that bypasses the layer is neither a carrier nor a
    constant, so its operation cannot be compared.

    Args:
        trace: the running pass, to which the comparison is added.
        operation: the operation.
        rule: its rule.
        module: the module in which the operation runs.
    """
    assert trace.audited is not None
    if not torch.is_grad_enabled():
        return rule(operation)
    is_module = isinstance(operation, ModuleCall)
    is_bypassed = any(is_number(tensor) and not tensor.requires_grad for tensor in operation.sources)
    if is_module or is_bypassed:
        output = rule(operation)
        if is_module:
            trace.audited.append(Audited(operation.name, rule, module, is_module=True))
        _note_bypass(trace, operation)
        return output
    # Each tensor once: an operation may take a tensor several times.
    carriers = list({id(tensor): tensor for tensor in operation.sources if tensor.requires_grad}.values())
    if _may_be_view(operation, rule):
        output = operation.value()
        made = tensors_in(output)
        # A constant has nothing to compare. A second run of ``randn_like`` would draw other numbers.
        if not any(tensor.requires_grad for tensor in made) or _share_memory(made, carriers):
            return output
    stand_ins = {id(tensor): as_carrier(tensor.detach()) for tensor in carriers}
    if operation.in_place:
        # The operation must not write into the model's tensor now: that tensor gets its graph from the audit below.
        copy = operation.args[0].detach().clone()
        stand_ins[id(operation.args[0])] = as_carrier(copy) if operation.args[0].requires_grad else copy
    for tensor in operation.sources:
        _copy_mark(trace, tensor, stand_ins.get(id(tensor)))
    leaves = [stand_ins[id(tensor)] for tensor in carriers]
    edges, before = [edge_of(leaf) for leaf in leaves], [leaf.detach().clone() for leaf in leaves]
    local = operation.on(stand_ins)
    geometry = _geometry_of(local.args[0]) if operation.in_place else None
    output = rule(local)
    operation.handoff, operation.is_decomposed = local.handoff, local.is_decomposed
    operation.is_constant = local.is_constant
    operation.detached |= {id(tensor) for tensor in carriers if id(stand_ins[id(tensor)]) in local.detached}
    result = local.args[0] if output is None else output
    outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
    # Each operation inside a decomposed operation has an entry of its own.
    precision = max(torch.finfo(tensor.dtype).eps for tensor in carriers)
    entry = Audited(operation.name, rule, module, precision=precision, is_decomposed=local.is_decomposed)
    trace.audited.append(entry)
    _note_bypass(trace, operation)
    comparison = _Comparison(trace.shares, entry, before, [trace.snapshots.values_of(tensor) for tensor in carriers])
    linked = iter(_Linked.apply(comparison, outputs, edges, *carriers) if outputs else ())

    def replaced(leaf: Any) -> Any:
        if not (isinstance(leaf, torch.Tensor) and leaf.requires_grad):
            return leaf
        tensor = next(linked)
        _copy_mark(trace, leaf, tensor)
        trace.snapshots.take(tensor)
        return tensor

    if operation.in_place and (not outputs or _geometry_of(local.args[0]) != geometry):
        return rule(operation)  # The operation writes no numbers: ``detach_`` or a view in place, such as ``t_``.
    result = tree_map(replaced, result)
    if operation.in_place:
        if operation.is_constant:
            let_be_constant(operation.args[0])
        result = operation.args[0].copy_(result)
    return None if output is None else result


def _geometry_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _copy_mark(trace: Trace, tensor: torch.Tensor, to: torch.Tensor | None) -> None:
    mark = get_mark(tensor, trace.run)
    if mark is not None and to is not None:
        handoff = mark.handoff
        if handoff is not None and not (handoff.is_for_all and handoff.beside is None):
            # The handoff tells of tensors in another graph than that of the audit.
            mark = mark._replace(handoff=None)
        set_mark(to, mark)


def _note_bypass(trace: Trace, operation: Operation) -> None:
    """Note the tapped layers that some of an operation's tensors come from, and others do not."""
    marks = [
        get_mark(tensor, trace.run)
        for tensor in operation.sources
        if is_number(tensor) and id(tensor) not in operation.detached
    ]
    taps = [mark.taps for mark in marks if mark is not None]
    if taps:
        trace.bypassed |= functools.reduce(operator.or_, taps) & ~functools.reduce(operator.and_, taps)


def _may_be_view(operation: Operation, rule: Surrogate) -> bool:
    """Whether the operation may return a view, and its rule returns its plain value."""
    spec = operation.spec
    is_default = rule is spec.rule and spec.is_as_is and spec.derivative is Derivative.ALWAYS
    return is_default and not operation.in_place


def _share_memory(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> bool:
    # Storages are compared, not addresses: all tensors of the meta device, and all empty tensors, have the address 0.
    storages = [tensor.untyped_storage() for tensor in inputs]
    return any(tensor.untyped_storage() is storage for tensor in outputs for storage in storages)


class _Comparison:
    """Compares the contributions of the outputs and of the inputs of one operation in the backward pass.

    Args:
        shares: the shares of constants of the pass.
        entry: the entry to which the outcome is added.
        before: the values of the inputs when the operation took them.
        made: their values when the operations before made them. None where they are not known.
    """

    def __init__(
        self,
        shares: ConstantShares,
        entry: Audited,
        before: Sequence[torch.Tensor],
        made: Sequence[torch.Tensor | None],
    ) -> None:
        self._shares = shares
        self._entry = entry
        self._before = before
        self._made = made

    def run(self, outputs: Sequence[Pair], backward: Callable[[], Sequence[torch.Tensor | None]]) -> Any:
        """Run the backward pass of the operation, and compare.

        Args:
            outputs: the values of the outputs and their coefficients.
            backward: runs the backward pass, and gives the coefficients of the inputs.

        Returns:
            The coefficients of the inputs.
        """
        count = len(self._shares)
        coefficients = backward()
        pairs = list(zip(self._before, coefficients, strict=True))
        inputs = self._contributions(pairs)
        parts = [*self._contributions(outputs), *(-part for part in inputs)]
        self._entry.compare(parts, self._shares.since(count))
        self._entry.note_writes(self._changes(coefficients))
        return coefficients

    def _changes(self, coefficients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """By how much the contributions of the inputs changed between the operations before and this one."""
        changes = []
        for now, made, part in zip(self._before, self._made, coefficients, strict=True):
            if made is not None and part is not None:
                new, old = self._contributions([(now, part), (made, part)])
                is_same = (now == made) | (now.isnan() & made.isnan())
                changes.append((new - old).masked_fill(is_same, 0.0))
        return changes

    def _contributions(self, pairs: Sequence[Pair]) -> list[torch.Tensor]:
        """The contributions, in float64."""
        found = []
        for value, part in pairs:
            if part is None:
                continue
            if value.is_complex():
                parts = (value * part.conj()).real
            else:
                parts = zeros.contributions(value, part, self._shares.zeros_carry)
            # A mask of -inf has the coefficient 0 and contributes nothing, but infinity times 0 is NaN.
            found.append(parts.masked_fill(part == 0, 0.0).double())
        return found


class _Linked(OwnFunction):
    """Links the outputs of an audited operation to its carriers. Its backward pass runs through the separate graph."""

    @staticmethod
    def forward(ctx: Any, comparison: _Comparison, outputs: Any, edges: Any, *carriers: torch.Tensor) -> Any:
        values = [output.detach().clone() for output in outputs]
        ctx.compared = lambda coefficients: comparison.run(
            list(zip(values, coefficients, strict=True)),
            lambda: torch.autograd.grad(outputs, edges, coefficients, allow_unused=True),
        )
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, *ctx.compared(coefficients)
