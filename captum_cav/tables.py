"""Numbers in printed tables."""

from __future__ import annotations


def decimals(number: float, digits: int) -> str:
    """A number with a fixed number of decimals. What rounds to zero has no sign.

    Args:
        number: the number.
        digits: how many decimals.

    Returns:
        The text.

    Example::

        >>> decimals(-0.00001, 4), decimals(-0.31, 1)
        ('0.0000', '-0.3')
    """
    return f"{round(number, digits) + 0.0:.{digits}f}"
