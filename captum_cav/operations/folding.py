"""A batch norm right behind an affine operation: a rule may take both as one affine operation.

With ``y = W x + b`` and the batch norm ``s y + t``, the pair is ``w' = s w, b' = s b + t``. The model is not touched.
In the backward pass the batch norm first passes on what it would pass on alone, because a tap between the two reads
that. The operation before then asks for what the pair got, and shares that out by its own rule.
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
    """Batch norm with running statistics: ``scale * x + shift``, one number a channel, to broadcast to the input."""

    scale: torch.Tensor
    shift: torch.Tensor


class Passed(NamedTuple):
    """What a batch norm got in the backward pass, and what it would pass on alone.

    Attributes:
        coefficients: coefficients of its output.
        passed: coefficients of its input.
        constant_share: the share of its shift, a float64 scalar; None where nobody asks.
    """

    coefficients: torch.Tensor
    passed: torch.Tensor
    constant_share: torch.Tensor | None


#: Gives what a batch norm passes on alone, for the coefficients of its output.
Alone = Callable[[torch.Tensor], Passed]


class Foldable(Handoff):
    """What an affine operation leaves for a batch norm right behind it.

    Attributes:
        shares: where the operation reports shares of constants.
    """

    shares: OperationShares

    def can_fold(self, channels: int) -> bool:
        """Whether the operation takes in a batch norm over so many channels."""
        raise NotImplementedError

    def fold(self, norm: FoldedNorm) -> None:
        """Take in a batch norm."""
        raise NotImplementedError


class FoldedNorm(Handoff):
    """A batch norm behind an operation that takes it in.

    Whatever else takes that operation's output is no part of the pair.

    Args:
        output: the value of the batch norm.
        norm: the batch norm as an affine operation.
        shares: where the batch norm reports shares of constants.
        is_read: whether anybody reads what the batch norm passes on. If not, the coefficients are passed on as they
            are, so that the operation before recognises them.
        alone: what the batch norm does by a rule of its own; None for what it does by default.

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
        """Coefficients of the input, as the batch norm alone passes them on."""
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
        """What was passed on in this backward pass, once; None if nothing came through the batch norm."""
        passed, self._passed = self._passed, None
        return passed

    def _by_default(self, coefficients: torch.Tensor) -> Passed:
        scale, shift = self.norm
        constant_share = None
        if self._shares.are_measured:
            constant_share = (shift * coefficients.sum_to_size(shift.shape)).sum(dtype=torch.float64)
        return Passed(coefficients, coefficients * scale, constant_share)


def foldable_before(operation: Operation) -> Foldable | None:
    """The operation that takes in a batch norm, if the batch norm's input comes right from such an operation."""
    x = operation.argument(0, "input")
    before = operation.handoff_of(x)
    return before if isinstance(before, Foldable) and before.can_fold(x.shape[1]) else None


def folded(
    operation: Operation, norm: InferenceNorm, before: Foldable, alone: Callable[[], Alone] | None = None
) -> torch.Tensor:
    """The value of a batch norm that the operation before takes in.

    Args:
        operation: the batch norm.
        norm: the batch norm as an affine operation.
        before: the operation before.
        alone: gives what the batch norm does by a rule of its own; None for what it does by default.
    """
    x = operation.argument(0, "input")
    with torch.no_grad():
        value = operation.value()
    shares = operation.shares()
    # A layer between the two was tapped.
    is_tapped = shares.taps != before.shares.taps
    by_rule = alone() if is_tapped and alone is not None else None
    is_read = is_tapped or shares.are_measured
    pair = FoldedNorm(operation.save(value), norm, shares, is_read, by_rule)
    before.fold(pair)
    operation.handoff = pair
    return with_backward(value, pair.pass_on, x)
