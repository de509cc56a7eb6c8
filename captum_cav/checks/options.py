"""Option values and counts."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from captum_cav.errors import CAVTypeError, OptionError


def check_option(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Refuse an option whose value is not one of its choices.

    Args:
        name: of the option, for the message.
        value: what was given.
        choices: at least two, in the order in which the message lists them.

    Raises:
        OptionError: lists the choices.

    Example::

        >>> check_option("normalize", "sum", ("score", "abs", None))
        Traceback (most recent call last):
        captum_cav.errors.OptionError: normalize is 'sum'; expected "score", "abs" or None.
    """
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        *first, last = ("None" if choice is None else f'"{choice}"' for choice in choices)
        raise OptionError(f"{name} is {value!r}; expected {', '.join(first)} or {last}.")


def check_flag(name: str, value: Any) -> None:
    """Refuse an option that is neither True nor False.

    Args:
        name: of the option, for the message.
        value: what was given.

    Raises:
        OptionError: names the option.

    Example::

        >>> check_flag("multiply_by_inputs", "no")
        Traceback (most recent call last):
        captum_cav.errors.OptionError: multiply_by_inputs is 'no'; expected True or False.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; expected True or False.")


def check_delta(value: Any) -> None:
    """Refuse a text other than "joint" as ``return_convergence_delta``; any other value counts as true or false.

    Raises:
        OptionError: lists the choices.
    """
    if isinstance(value, str) and value != "joint":
        raise OptionError(f'return_convergence_delta is {value!r}; expected True, False or "joint".')


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Refuse a value that is not an integer of at least ``least``.

    Args:
        value: what was given.
        name: of the argument, for the message.
        least: the smallest allowed number.

    Raises:
        OptionError: names the argument and the smallest allowed number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r}; expected an integer of at least {least}.")


def as_list(values: Any, name: str) -> list[Any]:
    """The entries of a list, a tuple, an array or an iterator.

    Args:
        values: what was given.
        name: of the argument, for the message.

    Raises:
        CAVTypeError: for what has no entries.

    Example::

        >>> as_list(None, "names")
        Traceback (most recent call last):
        captum_cav.errors.CAVTypeError: names is None (NoneType); expected a list.
    """
    try:
        return list(values)
    except TypeError as error:
        raise CAVTypeError(f"{name} is {values!r} ({type(values).__name__}); expected a list.") from error


def as_integer(value: Any) -> int | None:
    """An integer of any kind (of Python, of numpy, or in a tensor of one element) as an ``int``; None for the rest."""
    is_boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    try:
        return None if is_boolean else operator.index(value)
    except TypeError:
        return None
