"""A decorator that makes a rule from a plain function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_cav.errors import CAVTypeError
from captum_cav.operations import TABLE
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import FunctionRule


def rule(*functions: Callable[..., Any]) -> Callable[[Callable[[Operation], Any]], FunctionRule]:
    """Make a rule for torch functions from a function that takes an :class:`Operation`.

    Args:
        functions: the torch functions that the rule governs, in any of their forms. ``torch.relu`` means ``F.relu`` and
            ``x.relu_()``, too.

    Returns:
        A decorator. It replaces the function that it decorates by a :class:`FunctionRule`.

    Raises:
        CAVTypeError: if no function is given, or a function that is not torch's own.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> @rules.rule(torch.special.i0)
        ... def bessel(operation):
        ...     return rules.pass_through(operation)
        >>> InputCAV(torch.special.i0, rules={torch.special.i0: bessel}).attribute(torch.tensor([2.0]))
        tensor([1.])
    """
    for function in functions:
        if TABLE.name_of(function) is None:
            raise CAVTypeError(f"{function!r} is not a torch function; give the rule for its module's type instead.")
    if not functions:
        raise CAVTypeError("rule() names no torch function; expected @rule(torch.special.i0), say.")
    names = frozenset(str(TABLE.name_of(function)) for function in functions)
    return lambda function: FunctionRule(function, names)
