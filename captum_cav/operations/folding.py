"""Folding: a rule may treat an affine operation and the batch norm right behind it as one affine operation.

With ``y = W x + b`` and the batch norm ``s y + t``, the pair is an affine operation with ``W' = s W`` and
``b' = s b + t``. The model does not change.

In the backward pass the batch norm first passes on what it would pass on without folding, because a tap between the two
operations may read that. Then the affine operation asks for the coefficients that the batch norm got, and shares out
the contributions of the pair by its own rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation.constant_shares import OperationShares
from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.saved_values import SavedValue


class InferenceNorm(NamedTuple):
    """Batch norm with running statistics: ``scale * x + shift``. Both hold one number a channel, and broadcast."""

    scale: torch.Tensor
    shift: torch.Tensor


class Passed(NamedTuple):
    """What a batch norm got in the backward pass, and what it passes on without folding.

    Attributes:
        coefficients: the coefficients of its output.
        passed: the coefficients of its input.
        constant_share: the share of its shift, a float64 scalar. None if shares of constants are not measured.
    """

    coefficients: torch.Tensor
    passed: torch.Tensor
    constant_share: torch.Tensor | None


#: Takes the coefficients of a batch norm's output, and gives what the batch norm passes on without folding.
Alone = Callable[[torch.Tensor], Passed]


class Foldable(Handoff):
    """What an affine operation leaves for a batch norm right behind it.

    Attributes:
        shares: where the operation reports shares of constants.
    """

    shares: OperationShares

    def can_fold(self, channels: int) -> bool:
        """Whether a batch norm over so many channels can be folded into the operation."""
        raise NotImplementedError

    def fold(self, norm: FoldedNorm) -> None:
        """Fold a batch norm into the operation."""
        raise NotImplementedError


class FoldedNorm(Handoff):
    """A batch norm that is folded into the operation before.

    Other operations that take the output of the operation before are not part of the pair.

    Args:
        output: the value of the batch norm.
        norm: the batch norm as an affine operation.
        shares: where the batch norm reports shares of constants.
        is_read: whether something reads the coefficients that the batch norm passes on. If not, it passes its
            coefficients on unchanged, so that the operation before recognises them by their memory.
        alone: what the batch norm passes on without folding by its own rule. None for its default rule.

    Attributes:
        output: the value of the pair.
        norm: the batch norm.
    """

    def __init__(
        self, output: SavedValue, norm: InferenceNorm, shares: OperationShares, is_read: bool, alone: Alone | None
    ) -> None:
        self.output = output
        self.norm = norm
        self._shares = shares
        self._is_read = is_read
        self._alone = alone
        self._passed: Passed | None = None

    def pass_on(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """The coefficients of the input, as the batch norm passes them on without folding."""
        if not self._is_read:
            passed = Passed(coefficients, coefficients, None)
        elif self._alone is not None:
            passed = self._alone(coefficients)
        else:
            passed = self._by_default(coefficients)
        if passed.constant_share is not None:
            self._shares.enter(passed.constant_share)
        self._passed = passed
        return (passed.passed,)

    def take(self) -> Passed | None:
        """What was passed on in this backward pass, at the first call. None at later calls, or if nothing was."""
        passed, self._passed = self._passed, None
        return passed

    def _by_default(self, coefficients: torch.Tensor) -> Passed:
        scale, shift = self.norm
        constant_share = None
        if self._shares.are_measured:
            constant_share = (shift * coefficients.sum_to_size(shift.shape)).sum(dtype=torch.float64)
        return Passed(coefficients, coefficients * scale, constant_share)


def foldable_before(operation: Operation) -> Foldable | None:
    """The operation right before a batch norm, if the batch norm can be folded into it. None otherwise."""
    x = operation.argument(0, "input")
    before = operation.handoff_of(x)
    return before if isinstance(before, Foldable) and before.can_fold(x.shape[1]) else None


def folded(
    operation: Operation, norm: InferenceNorm, before: Foldable, alone: Callable[[], Alone] | None = None
) -> torch.Tensor:
    """The value of a batch norm that is folded into the operation before.

    Args:
        operation: the batch norm.
        norm: the batch norm as an affine operation.
        before: the operation before.
        alone: gives what the batch norm passes on without folding by its own rule. None for its default rule.
    """
    x = operation.argument(0, "input")
    with torch.no_grad():
        value = operation.value()
    shares = operation.shares()
    # Whether a layer between the two operations was tapped.
    is_tapped = shares.taps != before.shares.taps
    by_rule = alone() if is_tapped and alone is not None else None
    is_read = is_tapped or shares.are_measured
    pair = FoldedNorm(operation.save(value), norm, shares, is_read, by_rule)
    before.fold(pair)
    operation.handoff = pair
    return with_backward(value, pair.pass_on, x)
