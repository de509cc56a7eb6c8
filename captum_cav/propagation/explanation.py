"""Writes down which operation of a forward pass met which rule, and why: what ``explain_rules`` prints."""

from __future__ import annotations

from captum_cav.propagation.operation import Derivative, ModuleCall, Operation, Surrogate, describe_rule
from captum_cav.propagation.records import RuleLog, RuleRow
from captum_cav.propagation.rule import Rule


def note(log: RuleLog, operation: Operation, rule: Surrogate, why: str, module: str) -> None:
    """Note an operation and its rule.

    Args:
        log: where to write.
        operation: the operation, after its rule ran.
        rule: the rule.
        why: the key that chose the rule.
        module: the name of the module in which the operation ran.
    """
    places = [str(place) for place, tensor in enumerate(operation.sources, 1) if id(tensor) in operation.detached]
    name = operation.name if not isinstance(operation, ModuleCall) else f"{operation.name} as one"
    shown = describe_rule(rule)
    if operation.is_decomposed:  # Its operations met rules of their own, in the rows above.
        shown += ", written out"
    constant = f"{' and '.join(places)} of {len(operation.sources)}" if places else ""
    row = RuleRow(module, name, shown, why, constant)
    log.rows.append(row)
    if not operation.is_decomposed and not _passes_derivative(rule, operation):
        log.inexact.append(row)


def _passes_derivative(rule: Surrogate, operation: Operation) -> bool:
    """Whether a rule passes on an operation's own derivative, so that contributions are activation x gradient."""
    if operation.detached:
        return False
    if isinstance(rule, Rule):
        return rule.is_derivative
    derivative = operation.spec.derivative if rule is operation.spec.rule else Derivative.NEVER
    return derivative is Derivative.ALWAYS or (derivative is Derivative.OF_ONE_TENSOR and len(operation.sources) == 1)
