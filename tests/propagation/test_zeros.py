"""Units of value 0 with a share: a zero stands for a tiny number."""

from __future__ import annotations

import math

import pytest
import torch

from captum_cav.propagation import zeros
from tests.support.errors import cav_error

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tiny_number_is_the_root_of_the_smallest(dtype: torch.dtype) -> None:
    assert zeros.tiny(dtype) == math.sqrt(torch.finfo(dtype).tiny)


def test_float16_has_no_such_number() -> None:
    with cav_error(TypeError, "float16 has too small a range", "use float32"):
        zeros.tiny(torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_zeros_are_replaced(dtype: torch.dtype) -> None:
    small = zeros.tiny(dtype)
    values = torch.tensor([0.0, -0.0, small / 2, -small / 2, 2 * small, -2.0, 3.0], dtype=dtype)
    found = zeros.without_zeros(values)
    assert torch.equal(found[:4], torch.full((4,), small, dtype=dtype))
    assert torch.equal(found[4:], values[4:])


def test_a_zero_over_a_zero_is_one() -> None:
    found = zeros.ratio(torch.tensor([0.0, 6.0]), torch.tensor([0.0, 3.0]))
    assert found.tolist() == [1.0, 2.0]


def test_ratios_of_float16_are_defined_without_the_tiny_number() -> None:
    found = zeros.ratio(torch.tensor([0.0, 6.0, 0.0]).half(), torch.tensor([0.0, 3.0, 5.0]).half())
    assert found.tolist() == [1.0, 2.0, 0.0]


def test_a_contribution_is_the_product_with_the_coefficient() -> None:
    found = zeros.contributions(torch.tensor([0.0, 2.0]), torch.tensor([1e30, 3.0]), zeros_carry=False)
    assert found.tolist() == [0.0, 6.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_with_a_share_has_its_share(dtype: torch.dtype) -> None:
    share = 0.25
    coefficient = share / zeros.tiny(dtype)  # As a rule makes the coefficient.
    values = torch.tensor([0.0, 0.0, 2.0], dtype=dtype)
    found = zeros.contributions(values, torch.tensor([coefficient, 3.0, 3.0], dtype=dtype), zeros_carry=True)
    assert float(found[0]) == pytest.approx(share, rel=2 * torch.finfo(dtype).eps)
    assert found[1:].tolist() == [0.0, 6.0]  # A zero without a share stays exactly 0.
