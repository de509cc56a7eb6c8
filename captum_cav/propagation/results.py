"""Checks that a user's rule returns the value of the operation."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.rule import FunctionRule, Rule


def is_users(rule: Surrogate) -> bool:
    """Whether a user wrote a rule, so that its result is checked."""
    source = rule.function if isinstance(rule, FunctionRule) else type(rule) if isinstance(rule, Rule) else rule
    return not str(getattr(source, "__module__", "")).startswith("captum_cav.")


def expected_of(operation: Operation) -> Any:
    """The value of an operation, without a graph. An operation that writes in place writes into a copy."""
    first = operation.args[0] if operation.in_place else None
    with torch.no_grad():
        on_copy = operation if first is None else operation.on({id(first): first.detach().clone()})
        return on_copy.value()


def check_result(expected: Any, found: Any, rule: str) -> None:
    """Refuse the result of a user's rule if it does not fit the operation's value.

    Args:
        expected: the operation's value.
        found: the result of the rule.
        rule: the rule, the operation and where it ran, for the message.

    Raises:
        CAVTypeError: for a result of another type.
        OptionError: for a tensor of another shape or type of numbers, or for numbers that are not finite.
    """
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            raise CAVTypeError(
                f"the rule {rule} returned a {type(found).__name__}; expected a tuple of {len(expected)}, as the "
                "operation returns."
            )
        for expected_part, found_part in zip(expected, found, strict=True):
            check_result(expected_part, found_part, rule)
        return
    if not isinstance(expected, torch.Tensor):
        return
    wanted = f"expected the operation's value, a tensor of shape {tuple(expected.shape)} and {expected.dtype}"
    if not isinstance(found, torch.Tensor):
        raise CAVTypeError(f"the rule {rule} returned {'None' if found is None else type(found).__name__}; {wanted}.")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise OptionError(f"the rule {rule} returned shape {tuple(found.shape)} and {found.dtype}; {wanted}.")
    if bool(torch.isfinite(expected).all()) and not bool(torch.isfinite(found.detach()).all()):
        raise OptionError(f"the rule {rule} returned NaN or infinity, where the operation's value has none.")
