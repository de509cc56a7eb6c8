"""Units of value 0 that carry contributions: a zero stands for a tiny number.

A contribution is a value times its coefficient, so a unit of value 0 carries nothing, whatever its coefficient is. The
z-box, flat and w-square rules give such units a share all the same. For them a zero counts as the square root of the
smallest number of its type. The rule that makes the coefficient and everybody who reads the coefficient agree on that,
so the contribution is their product, up to rounding.
"""

from __future__ import annotations

import math

import torch

from captum_cav.errors import CAVTypeError


def tiny(dtype: torch.dtype) -> float:
    """The number as which a zero counts.

    Raises:
        CAVTypeError: for float16, which has no such number.
    """
    if dtype == torch.float16:
        raise CAVTypeError(
            "this rule gives shares to inputs that are zero, for which float16 has too small a range; use float32, "
            "bfloat16 or autocast."
        )
    return math.sqrt(torch.finfo(dtype).tiny)


def without_zeros(values: torch.Tensor) -> torch.Tensor:
    """The values, with each zero replaced by the number as which a zero counts."""
    small = tiny(values.dtype)
    return values.masked_fill(values.abs() < small, small)


def ratio(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``values / inputs``, where a zero over a zero is 1: a zero passes on what it got to a zero."""
    if values.dtype == torch.float16:
        return torch.where(inputs == 0, (values == 0).to(values.dtype), values / inputs)
    return without_zeros(values) / without_zeros(inputs)


def contributions(values: torch.Tensor, coefficients: torch.Tensor, zeros_carry: bool) -> torch.Tensor:
    """Values times coefficients. If zeros carry, a zero with a share counts as a tiny number.

    Only a share makes the coefficient of a zero so large. Zeros without a share stay exactly 0.
    """
    if not zeros_carry:
        return values * coefficients
    given = coefficients.abs() > 1 / math.sqrt(tiny(values.dtype))
    return torch.where(given, without_zeros(values), values) * coefficients
