"""Whether what a user's rule returns is what the operation returns."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.rule import FunctionRule, Rule


def is_users(rule: Surrogate) -> bool:
    """Whether a user wrote a rule, so that the rule may err."""
    written = rule.function if isinstance(rule, FunctionRule) else type(rule) if isinstance(rule, Rule) else rule
    return not str(getattr(written, "__module__", "")).startswith("captum_cav.")


def expected_of(operation: Operation) -> Any:
    """What an operation gives, without a graph and without writing into anything."""
    first = operation.args[0] if operation.in_place else None
    with torch.no_grad():
        copied = operation if first is None else operation.on({id(first): first.detach().clone()})
        return copied.value()


def check_result(expected: Any, found: Any, rule: str) -> None:
    """Refuse what a user's rule returned where the operation returns something else.

    Args:
        expected: what the operation returns.
        found: what the rule returned.
        rule: the rule, the operation and where it ran, for the message.

    Raises:
        CAVTypeError: for something of another type.
        OptionError: for a tensor of another shape or type of numbers, or numbers that are not finite.
    """
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            raise CAVTypeError(
                f"the rule {rule} returned a {type(found).__name__}; expected a tuple of {len(expected)}, as the "
                "operation returns."
            )
        for part, made in zip(expected, found, strict=True):
            check_result(part, made, rule)
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
