"""Units of value 0 that carry contributions. In this case a zero stands for a tiny number.

A contribution is a value times its coefficient, so a unit of value 0 carries nothing, whatever its coefficient is. The
z-box, flat and w-square rules give such units a share all the same. For them a zero stands for the square root of the
smallest number of its type. All code that makes or reads such a coefficient uses this number, so the contribution is
the product of both, up to rounding.
"""

from __future__ import annotations

import math

import torch

from captum_cav.errors import CAVTypeError


def tiny(dtype: torch.dtype) -> float:
    """The number for which a zero stands.

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
    """The values, in which each zero is replaced by the number for which it stands."""
    small = tiny(values.dtype)
    return values.masked_fill(values.abs() < small, small)


def ratio(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``values / inputs``, where 0 / 0 is 1: an output of 0 passes its contribution on to an input of 0."""
    if values.dtype == torch.float16:
        return torch.where(inputs == 0, (values == 0).to(values.dtype), values / inputs)
    return without_zeros(values) / without_zeros(inputs)


def contributions(values: torch.Tensor, coefficients: torch.Tensor, zeros_carry: bool) -> torch.Tensor:
    """Values times coefficients. If ``zeros_carry``, a zero with a share stands for a tiny number.

    A zero has a share if its coefficient is very large. Zeros without a share contribute exactly 0.
    """
    if not zeros_carry:
        return values * coefficients
    has_share = coefficients.abs() > 1 / math.sqrt(tiny(values.dtype))
    return torch.where(has_share, without_zeros(values), values) * coefficients
