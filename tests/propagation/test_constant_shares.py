"""Shares of constants: measured in the backward pass, and summed up for each layer."""

from __future__ import annotations

import gc
import weakref

import torch

from captum_cav.propagation.constant_shares import ConstantShares, OperationShares

CPU = torch.device("cpu")


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def settled(shares: ConstantShares, count: int) -> list[float]:
    return [float(total) for total in shares.settle([1 << layer for layer in range(count)], CPU)]


def test_a_constant_part_contributes_its_value_times_the_coefficients_of_the_output() -> None:
    shares = ConstantShares(True)
    x = torch.ones(2, 3, requires_grad=True)
    y = x + torch.tensor([1.0, 2.0, 3.0])
    shares.watch(y, torch.tensor([1.0, 2.0, 3.0]), taps=1)
    assert len(shares) == 0
    torch.autograd.backward((y * torch.tensor([[1.0], [10.0]])).sum())
    assert len(shares) == 1
    assert settled(shares, 1) == [6.0 + 60.0]


def test_a_share_belongs_to_the_layers_before_the_constant() -> None:
    shares = ConstantShares(True)
    shares.enter(double(1.0), 0b001)
    shares.enter(double(10.0), 0b011)
    shares.enter(double(100.0), 0b100)
    shares.enter(double(1000.0), 0)
    assert settled(shares, 3) == [11.0, 10.0, 100.0]


def test_each_backward_pass_begins_anew() -> None:
    shares = ConstantShares(True)
    x = torch.ones(1, requires_grad=True)
    y = x + 5
    shares.watch(y, torch.tensor(5.0), taps=1)
    torch.autograd.backward(y.sum(), retain_graph=True)
    assert settled(shares, 1) == [5.0]
    assert settled(shares, 1) == [0.0]
    torch.autograd.backward((2 * y).sum())
    assert settled(shares, 1) == [10.0]


def test_the_shares_since_a_point_can_be_read() -> None:
    shares = ConstantShares(True)
    shares.enter(double(1.0), 1)
    shares.enter(double(2.0), 1)
    shares.enter(double(3.0), 1)
    assert [float(share) for share in shares.since(1)] == [2.0, 3.0]
    assert shares.since(3) == []


def test_a_mask_of_minus_infinity_has_no_share() -> None:
    shares = ConstantShares(True)
    x = torch.zeros(2, requires_grad=True)
    part = torch.tensor([-torch.inf, 2.0])
    y = x + part
    shares.watch(y, part, taps=1)
    torch.autograd.backward(y.softmax(0)[1])
    assert settled(shares, 1) == [0.0]
    shares.watch(x * 1, torch.tensor(torch.nan), taps=1)
    y = x * 1
    shares.watch(y, torch.tensor([torch.nan, torch.inf]), taps=1)
    torch.autograd.backward(y.sum())
    assert settled(shares, 1) == [0.0]


def test_the_share_of_a_complex_constant_is_real() -> None:
    shares = ConstantShares(True)
    x = torch.zeros((), dtype=torch.complex128, requires_grad=True)
    k = torch.tensor(3 + 4j, dtype=torch.complex128)
    y = x + k
    shares.watch(y, k, taps=1)
    torch.autograd.backward((y * (2 - 1j)).real)
    # The real part of (3 + 4i)(2 - i) is 6 + 4.
    assert settled(shares, 1) == [10.0]


def test_shares_of_half_precision_are_summed_in_double_precision() -> None:
    shares = ConstantShares(True)
    x = torch.zeros(257, dtype=torch.bfloat16, requires_grad=True)
    y = x + 1
    shares.watch(y, torch.ones(257, dtype=torch.bfloat16), taps=1)
    torch.autograd.backward(y.sum())
    (total,) = shares.settle([1], CPU)
    assert total.dtype == torch.float64
    assert total == 257  # bfloat16 has no such number.


def test_without_shares_there_is_a_zero_for_each_layer() -> None:
    assert settled(ConstantShares(True), 2) == [0.0, 0.0]


def test_the_sums_are_where_they_are_wanted() -> None:
    shares = ConstantShares(True)
    meta = torch.device("meta")
    assert [total.device for total in shares.settle([1, 2], meta)] == [meta, meta]
    shares.enter(double(3.0), taps=1)
    shares.enter(double(4.0).to(meta), taps=3)
    assert [total.device for total in shares.settle([1, 2], meta)] == [meta, meta]


def test_a_share_can_be_differentiated_by_the_gradient_with_which_the_backward_pass_starts() -> None:
    shares = ConstantShares(True)
    x = torch.zeros(2, requires_grad=True)
    y = x + torch.tensor([3.0, 5.0])
    shares.watch(y, torch.tensor([3.0, 5.0]), taps=1)
    seeds = torch.ones(2, requires_grad=True)
    torch.autograd.grad(y, x, seeds, create_graph=True)
    (total,) = shares.settle([1], CPU)
    assert torch.autograd.grad(total, seeds)[0].tolist() == [3.0, 5.0]  # The share of each sample.


def test_a_mask_without_a_coefficient_has_a_derivative_that_lower_precision_can_hold() -> None:
    """The lowest number of float64 is infinite in float32, and infinity times the coefficient 0 is NaN."""
    lowest = torch.finfo(torch.float64).min
    shares = ConstantShares(True)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    part = torch.tensor([lowest, 5.0], dtype=torch.float64)
    y = x + part
    shares.watch(y, part, taps=1)
    seeds = torch.ones(2, requires_grad=True)
    weights = torch.tensor([0.0, 2.0])
    torch.autograd.grad(y.float() * weights, x, seeds, create_graph=True)
    (total,) = shares.settle([1], CPU)
    assert float(total.detach()) == 10.0
    assert torch.autograd.grad(total, seeds)[0].tolist() == [0.0, 10.0]


def test_the_lowest_number_has_a_share_where_it_has_a_coefficient() -> None:
    """Such as the maximum of masked values that are all the lowest number."""
    lowest = torch.finfo(torch.float32).min
    shares = ConstantShares(True)
    x = torch.zeros(2, requires_grad=True)
    y = x + lowest
    shares.watch(y, torch.tensor(lowest), taps=1)
    torch.autograd.backward((y * torch.tensor([0.0, 1.0])).sum())
    assert settled(shares, 1) == [lowest]


def test_shares_hold_no_graph() -> None:
    shares = ConstantShares(True)
    x = torch.zeros(2, requires_grad=True)
    y = x + 1
    shares.watch(y, y.detach() * 0 + 1, taps=1)
    gc.disable()  # What dies now dies without a search for circles.
    try:
        dead = weakref.ref(y)
        del y
        assert dead() is None
    finally:
        gc.enable()
    assert len(shares) == 0


def test_a_rule_enters_its_shares_for_its_own_layers() -> None:
    shares = ConstantShares(True)
    of_operation = OperationShares(shares, 0b10)
    assert of_operation.are_measured
    assert of_operation.taps == 0b10
    of_operation.enter(double(7.0))
    assert settled(shares, 2) == [0.0, 7.0]


def test_a_rule_learns_late_whether_zeros_carry() -> None:
    shares = ConstantShares(False)
    of_operation = OperationShares(shares, 1)
    assert not of_operation.are_measured
    before = of_operation.rules_for_zeros
    assert not shares.zeros_carry
    assert not of_operation.zeros_carry_since(before)
    shares.rules_for_zeros += 1  # A rule further on in the forward pass.
    assert shares.zeros_carry
    assert of_operation.zeros_carry_since(before)
    assert not of_operation.zeros_carry_since(of_operation.rules_for_zeros), "that rule itself gets no such zeros"
