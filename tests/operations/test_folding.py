"""A batch norm, a bias or a scale behind an affine operation that takes it in."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav import InputCAV, presets
from captum_cav.operations.folding import Alone, Foldability, Foldable, Folded, ScaleAndShift, foldable_before, folded
from captum_cav.propagation.constant_shares import ConstantShares, OperationShares
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.saved_values import SavedValue
from tests.propagation.engine import Pass, rulebook, small_table

SCALE, SHIFT = torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0])
NORM = ScaleAndShift(SCALE, SHIFT)


class Taking(Foldable):
    """What an operation leaves that takes in batch norms over two channels."""

    def __init__(self, shares: OperationShares) -> None:
        self.shares = shares
        self.foldability = Foldability(True, 2)
        self.norms: list[Folded] = []

    def fold(self, behind: Folded) -> None:
        self.norms.append(behind)


def pair(is_read: bool, with_shares: bool = False, alone: Alone | None = None) -> tuple[Folded, ConstantShares]:
    shares = ConstantShares(with_shares)
    its_shares = OperationShares(shares, 1)
    return Folded(SavedValue(torch.zeros(1, 2)), NORM, Taking(its_shares), its_shares, is_read, alone), shares


COEFFICIENTS = torch.tensor([[1.0, 100.0], [2.0, 200.0]])


def test_what_nobody_reads_is_passed_on_as_it_is() -> None:
    norm, _ = pair(is_read=False)
    (found,) = norm.pass_on(COEFFICIENTS)
    assert found is COEFFICIENTS


def test_what_a_tap_reads_is_what_the_batch_norm_alone_passes_on() -> None:
    norm, shares = pair(is_read=True)
    (found,) = norm.pass_on(COEFFICIENTS)
    assert found.tolist() == [[2.0, 300.0], [4.0, 600.0]]
    assert len(shares) == 0


def test_the_share_of_the_shift_is_entered_if_somebody_asks() -> None:
    norm, shares = pair(is_read=True, with_shares=True)
    norm.pass_on(COEFFICIENTS)
    assert [float(share) for share in shares.settle([1], torch.device("cpu"))] == [10.0 * 3 + 20.0 * 300]


def test_a_rule_of_its_own_goes_before() -> None:
    norm, shares = pair(True, True, lambda c: (c * 7, torch.tensor(5.0, dtype=torch.float64)))
    (found,) = norm.pass_on(torch.ones(1, 2))
    assert found.tolist() == [[7.0, 7.0]]
    assert [float(share) for share in shares.settle([1], torch.device("cpu"))] == [5.0]


def test_what_was_passed_on_is_taken_once_a_backward_pass() -> None:
    norm, _ = pair(is_read=True)
    assert norm.take() is None
    norm.pass_on(COEFFICIENTS)
    passed = norm.take()
    assert passed is not None
    (part,) = passed.parts
    assert part.coefficients is COEFFICIENTS
    assert part.last is norm
    assert part.total is NORM
    assert passed.passed.tolist() == [[2.0, 300.0], [4.0, 600.0]]
    assert norm.take() is None


def test_one_operation_behind_another_is_one_operation() -> None:
    """2 x + 10, then 5 y + 1, is 10 x + 51. None is a scale of 1 or a shift of 0."""
    first, second = (ScaleAndShift(torch.tensor([a]), torch.tensor([b])) for a, b in ((2.0, 10.0), (5.0, 1.0)))
    assert [float(value) for value in second.behind(first)] == [10.0, 51.0]
    bias, scale = ScaleAndShift(None, torch.tensor([3.0])), ScaleAndShift(torch.tensor([4.0]), None)
    assert [float(value) for value in scale.behind(bias)] == [4.0, 12.0]
    assert [float(value) for value in bias.behind(scale)] == [4.0, 3.0]
    assert bias.behind(ScaleAndShift(None, None)) == bias


@pytest.mark.parametrize("is_read", [True, False])
def test_what_comes_through_two_operations_is_a_part_of_its_own(is_read: bool) -> None:
    """A scale, and a bias behind it. The output of the scale is taken elsewhere, too, with coefficients of 1."""
    first, shares = pair(is_read, with_shares=is_read)
    bias = torch.tensor([[1.0, 2.0]])
    second = Folded(SavedValue(bias), ScaleAndShift(None, bias), first, first.shares, is_read, None)
    assert second.foldability.allows(2)
    assert not second.foldability.allows(3)
    first.fold(second)
    (passed,) = second.pass_on(torch.tensor([[1.0, 10.0]]))
    first.pass_on(passed + 1)
    taken = first.take()
    assert taken is not None
    through_both, elsewhere = taken.parts
    assert through_both.coefficients.tolist() == [[1.0, 10.0]]
    assert through_both.last is second
    assert [value.tolist() for value in through_both.total] == [[2.0, 3.0], [[11.0, 22.0]]]
    assert elsewhere.coefficients.tolist() == [[1.0, 1.0]]
    assert elsewhere.total is NORM
    if is_read:
        # 1 * 1 + 2 * 10 of the bias; 10 * 2 + 20 * 11 of the shift.
        assert taken.constant_share is not None
        assert float(taken.constant_share) == 21.0 + 240.0
        assert float(sum(shares.settle([1], torch.device("cpu")))) == 261.0


# In a forward pass --------------------------------------------------------------------------------------------------


class Case:
    """neg takes in batch norms, and relu6 stands for one."""

    def __init__(self) -> None:
        self.left: list[Taking] = []
        self.found: list[Foldable | None] = []
        self.asked: list[str] = []

        def taking(operation: Operation) -> Any:
            handoff = Taking(operation.shares())
            self.left.append(handoff)
            operation.handoff = handoff
            return operation.value()

        def alone() -> Alone:
            self.asked.append("alone")
            return lambda c: (c * 7, None)

        def norm(operation: Operation) -> Any:
            before = foldable_before(operation, operation.sources[0].shape[1])
            self.found.append(before)
            return operation.value() if before is None else folded(operation, NORM, before, alone)

        table = small_table()
        table.register("relu6", OperationSpec(rule=norm))
        self.one = Pass(table, rules=rulebook({torch.neg: taking}))

    def coefficients(self, output: torch.Tensor) -> list[list[float]]:
        edges = [edge for tap in self.one.trace.taps for edge in tap.edges]
        return [c[0].tolist() for c in torch.autograd.grad(output.sum(), edges)]


def relu6(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.relu6(x)


def test_a_batch_norm_right_behind_is_taken_in() -> None:
    case = Case()
    x = case.one.propagation.tap(torch.tensor([[-1.0, -2.0]]))
    y = case.one.run(torch.neg, x)
    output = case.one.run(relu6, y)
    (before,) = case.left
    assert case.found == [before]
    (norm,) = before.norms
    assert norm.norm is NORM
    assert norm.output.value.tolist() == output.tolist() == [[1.0, 2.0]]
    # Nobody reads what lies between the two.
    assert case.coefficients(output) == [[-1.0, -1.0]]
    assert case.asked == []
    # And the pair is what the batch norm leaves for the next rule.
    assert case.one.run(torch.relu, output) is not None
    assert norm.consumers == 1


def test_a_tap_between_the_two_reads_what_the_batch_norm_alone_passes_on() -> None:
    case = Case()
    x = case.one.propagation.tap(torch.tensor([[-1.0, -2.0]]))
    y = case.one.propagation.tap(case.one.run(torch.neg, x))
    output = case.one.run(relu6, y)
    assert case.found == case.left
    assert case.asked == ["alone"]
    assert case.coefficients(output) == [[-7.0, -7.0], [7.0, 7.0]]


def test_what_cannot_take_it_in_is_not_asked_to() -> None:
    case = Case()
    three_channels = case.one.run(torch.neg, case.one.propagation.tap(torch.zeros(1, 3)))
    case.one.run(relu6, three_channels)
    not_right_behind = case.one.run(torch.relu, case.one.run(torch.neg, case.one.propagation.tap(torch.zeros(1, 2))))
    case.one.run(relu6, not_right_behind)
    case.one.run(relu6, case.one.propagation.tap(torch.zeros(1, 2)))
    assert case.found == [None, None, None]


def test_the_pair_keeps_nothing_of_a_backward_pass() -> None:
    norm, _ = pair(is_read=True)
    coefficients = torch.ones(1, 2)
    norm.pass_on(coefficients)
    norm.take()
    gc.disable()
    try:
        dead = weakref.ref(coefficients)
        del coefficients
        assert dead() is None
    finally:
        gc.enable()


def test_a_linear_layer_whose_weight_is_a_vector_has_no_channels() -> None:
    weight, x = torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 3.0], [2.0, 1.0]])
    for name in presets.NAMES:
        found = InputCAV(lambda x: F.linear(x, weight), rules=name, normalize=None).attribute(x)
        assert found.isfinite().all(), name
    found = InputCAV(lambda x: F.linear(x, weight), rules="epsilon", normalize=None).attribute(x)
    torch.testing.assert_close(found, x * weight, rtol=1e-5, atol=1e-5)
