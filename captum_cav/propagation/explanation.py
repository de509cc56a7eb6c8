"""Notes the rule of each operation of a forward pass, and why it was chosen. ``explain_rules`` prints these notes."""

from __future__ import annotations

from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.module_operation import ModuleCall
from captum_cav.propagation.operation import Operation, Surrogate, describe_rule
from captum_cav.propagation.records import RuleLog, RuleRow
from captum_cav.propagation.rule import Rule


def note(log: RuleLog, operation: Operation, rule: Surrogate, why: str, module: str) -> None:
    """Note an operation and its rule.

    Args:
        log: the log to which the operation is added.
        operation: the operation, after its rule ran.
        rule: the rule.
        why: the key that chose the rule.
        module: the name of the module in which the operation ran.
    """
    places = [str(place) for place, tensor in enumerate(operation.sources, 1) if id(tensor) in operation.detached]
    name = operation.name if not isinstance(operation, ModuleCall) else f"{operation.name} as one"
    shown = describe_rule(rule)
    if operation.is_decomposed:  # The operations inside, each with its own rule, are in the rows above.
        shown += ", written out"
    constant = f"{' and '.join(places)} of {len(operation.sources)}" if places else ""
    row = RuleRow(module, name, shown, why, constant)
    log.rows.append(row)
    if not operation.is_decomposed and not _passes_derivative(rule, operation):
        log.inexact.append(row)


def _passes_derivative(rule: Surrogate, operation: Operation) -> bool:
    """Whether a rule passes the derivative of its operation on, so that contributions are gradient x activation."""
    if operation.detached or operation.is_constant:
        return False
    if isinstance(rule, Rule):
        return rule.is_derivative
    derivative = operation.spec.derivative if rule is operation.spec.rule else Derivative.NEVER
    return derivative is Derivative.ALWAYS or (derivative is Derivative.OF_ONE_TENSOR and len(operation.sources) == 1)
