"""Units of value 0 that carry: a zero stands for a tiny number.

A contribution is a value times its coefficient, so a unit of value 0 carries nothing, whatever its coefficient. The
z-box, flat and w-square rules give it a share all the same. There a zero counts as the square root of the smallest
number of its type, in the rule that makes the coefficient as in whatever reads it, so that the contribution comes out
of the product, to rounding.
"""

from __future__ import annotations

import math

import torch

from captum_cav.errors import CAVTypeError


def tiny(dtype: torch.dtype) -> float:
    """What a zero counts as.

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
    """The values with zeros replaced by what they count as."""
    small = tiny(values.dtype)
    return values.masked_fill(values.abs() < small, small)


def ratio(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``values / inputs`` with zeros as what they count as, so that a zero hands on to a zero."""
    if values.dtype == torch.float16:
        return torch.where(inputs == 0, (values == 0).to(values.dtype), values / inputs)
    return without_zeros(values) / without_zeros(inputs)


def contributions(values: torch.Tensor, coefficients: torch.Tensor, zeros_carry: bool) -> torch.Tensor:
    """Values times coefficients, where zeros carry if some rule gave them a share.

    Only a share that it was given makes the coefficient of a zero that large; zeros without one stay exactly 0.
    """
    if not zeros_carry:
        return values * coefficients
    given = coefficients.abs() > 1 / math.sqrt(tiny(values.dtype))
    return torch.where(given, without_zeros(values), values) * coefficients
