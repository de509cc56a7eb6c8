"""Whether each operation conserves: what its output contributed came from its inputs and its constants.

Under an audit the rule of an operation runs on stand-ins of its carriers, in a graph of its own. The backward pass goes
through that graph as a part of the whole, and what comes into it and out of it is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from captum_cav.propagation.account import Account, Notes
from captum_cav.propagation.marks import get_mark, is_number, set_mark, tensors_in
from captum_cav.propagation.operation import ModuleCall, Operation, Surrogate
from captum_cav.propagation.surroundings import OwnFunction
from captum_cav.propagation.taps import hand_on
from captum_cav.rules import zero
from captum_cav.rules.linear import linear

Pairs = Iterable[tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class Audited:
    """What came of one operation in the backward pass.

    Attributes:
        operation: its name.
        rule: its rule.
        module: the innermost module that it ran in.
        residual: what its output contributed, less what its inputs and constants did; 0 where it conserves.
        size: the sum of the absolute contributions of its output, inputs and constants.
    """

    operation: str
    rule: Surrogate
    module: torch.nn.Module | None
    residual: float = 0.0
    size: float = 0.0


class Audit:
    """The audited operations of one forward pass, in their order.

    Args:
        account: where shares of constants are entered.
        notes: what the rules of the forward pass have in common.
        run: identity of the propagation.
    """

    def __init__(self, account: Account, notes: Notes, run: object) -> None:
        self.found: list[Audited] = []
        self._account = account
        self._notes = notes
        self._run = run

    def apply(self, operation: Operation, rule: Surrogate, module: torch.nn.Module | None) -> Any:
        """An operation's value by its rule, audited.

        Views have nothing to share out. Modules ruled as one are not seen into, and what bypasses a layer is neither a
        carrier nor a constant, so where it takes part nothing is compared.
        """
        bypassed = any(is_number(tensor) and not tensor.requires_grad for tensor in operation.sources)
        if bypassed or isinstance(operation, ModuleCall):
            return rule(operation)
        # Each once: an operation may take a tensor several times.
        carriers = list({id(tensor): tensor for tensor in operation.sources if tensor.requires_grad}.values())
        if rule is linear and not operation.in_place:
            output = rule(operation)
            if _share_memory(tensors_in(output), carriers):
                return output
        stand_ins = {id(tensor): hand_on(tensor.detach()) for tensor in carriers}
        if operation.in_place:
            # What is written over is the model's own tensor, which is to get no other history than the audit's.
            copy = operation.args[0].detach().clone()
            stand_ins[id(operation.args[0])] = hand_on(copy) if operation.args[0].requires_grad else copy
        for tensor in operation.sources:
            self._copy_mark(tensor, stand_ins.get(id(tensor)))
        leaves = [stand_ins[id(tensor)] for tensor in carriers]
        edges, before = [get_gradient_edge(leaf) for leaf in leaves], [leaf.detach().clone() for leaf in leaves]
        local = operation.on(stand_ins)
        output = rule(local)
        operation.origin, operation.written_out = local.origin, local.written_out
        operation.held |= {id(tensor) for tensor in carriers if id(stand_ins[id(tensor)]) in local.held}
        result = local.args[0] if output is None else output
        outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        entry = Audited(operation.name, rule, module)
        if not local.written_out:  # else the operations of which it was written out have entries of their own
            self.found.append(entry)
        linked = iter(_Linked.apply(self, entry, outputs, edges, before, *carriers) if outputs else ())

        def replaced(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.requires_grad):
                return leaf
            tensor = next(linked)
            self._copy_mark(leaf, tensor)
            return tensor

        result = tree_map(replaced, result)
        if operation.in_place:
            result = operation.args[0].copy_(result)
        return None if output is None else result

    def _copy_mark(self, tensor: torch.Tensor, to: torch.Tensor | None) -> None:
        mark = get_mark(tensor, self._run)
        if mark is not None and to is not None:
            set_mark(to, mark)

    def backward(
        self, entry: Audited, outputs: Pairs, before: Sequence[torch.Tensor], local: Any
    ) -> Sequence[torch.Tensor | None]:
        """Run an operation's own backward pass and compare.

        Args:
            entry: where the outcome is added.
            outputs: values of the outputs and their coefficients.
            before: values of the inputs.
            local: gives the coefficients of the inputs.

        Returns:
            The coefficients of the inputs.
        """
        count = len(self._account)
        found: Sequence[torch.Tensor | None] = local()
        constants = [float(share) for share in self._account.since(count)]
        shares = [*self._shares(outputs), *(-part for part in self._shares(zip(before, found, strict=True)))]
        entry.residual += sum(float(share.sum()) for share in shares) - sum(constants)
        entry.size += sum(float(share.abs().sum()) for share in shares) + abs(sum(constants))
        return found

    def _shares(self, pairs: Pairs) -> list[torch.Tensor]:
        zeros_carry = self._notes.zeros_carry
        return [
            (value * part.conj()).real.double()
            if value.is_complex()
            else zero.contributions(value, part, zeros_carry).double()
            for value, part in pairs
            if part is not None
        ]


def _share_memory(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> bool:
    places = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return any(tensor.untyped_storage().data_ptr() in places for tensor in outputs)


class _Linked(OwnFunction):
    """The outputs of an operation whose graph is its own; the backward pass runs through that graph."""

    @staticmethod
    def forward(
        ctx: Any, audit: Audit, entry: Audited, outputs: Any, edges: Any, before: Any, *carriers: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        values = [output.detach().clone() for output in outputs]
        ctx.measured = lambda coefficients: audit.backward(
            entry,
            list(zip(values, coefficients, strict=True)),
            before,
            lambda: torch.autograd.grad(outputs, edges, coefficients, allow_unused=True),
        )
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, None, None, *ctx.measured(coefficients)
