"""Folding: a rule may treat an affine operation and what is right behind it as one affine operation.

What can be folded in is a batch norm, a constant summand, and a constant factor for each channel. With ``y = W x + b``
and ``s y + t`` behind it, the pair is an affine operation with ``W' = s W`` and ``b' = s b + t``. So a bias that is
added behind a product counts as a bias, and a batch norm may be written by hand. The model does not change.

In the backward pass the operation behind first passes on what it would pass on without folding, because a tap between
the two operations may read that. Then the affine operation asks for the coefficients that the operation behind got, and
shares out the contributions of the pair by its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation.constant_shares import OperationShares
from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.tensors import is_same_memory, tensors_in


class ScaleAndShift(NamedTuple):
    """``scale * x + shift``, as batch norm with running statistics computes it.

    Attributes:
        scale: a scalar, or one number for each channel in a shape that broadcasts to ``x``. None for 1.
        shift: a tensor that broadcasts to ``x``. None for 0.
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def behind(self, before: ScaleAndShift) -> ScaleAndShift:
        """This operation behind another one, as one operation."""
        shift = self.scaled(before.shift)
        if shift is not None and self.shift is not None:
            shift = shift + self.shift
        return ScaleAndShift(self.scaled(before.scale, self.scale), self.shift if shift is None else shift)

    def scaled(self, value: torch.Tensor | None, of_none: torch.Tensor | None = None) -> torch.Tensor | None:
        """A value times the scale. ``of_none`` if the value is None."""
        if value is None:
            return of_none
        return value if self.scale is None else value * self.scale


class Part(NamedTuple):
    """Coefficients that come through operations that are folded in.

    Attributes:
        coefficients: the coefficients of the output of the last of these operations.
        last: the last of these operations.
        total: all these operations as one operation.
    """

    coefficients: torch.Tensor
    last: Folded
    total: ScaleAndShift


class Passed(NamedTuple):
    """What an operation got in the backward pass, and what it passes on without folding.

    Attributes:
        parts: the coefficients of its output, by the operations behind that are folded in, too.
        passed: the coefficients of its input.
        constant_share: the share of its shift, and of the shifts behind, a float64 scalar. None if shares of constants
            are not measured.
    """

    parts: Sequence[Part]
    passed: torch.Tensor
    constant_share: torch.Tensor | None


#: Takes the coefficients of an operation's output. Gives what the operation passes on without folding, and the share of
#: its shift, a float64 scalar, or None if shares of constants are not measured.
Alone = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


class Foldability(NamedTuple):
    """What can be folded into an operation.

    Attributes:
        is_wanted: whether the operation's rule folds anything in.
        channels: how many channels the output has. None if channels cannot be scaled.
    """

    is_wanted: bool
    channels: int | None

    def allows(self, channels: int | None) -> bool:
        """Whether a scale for each of so many channels can be folded in. None for a scale that is a scalar or 1."""
        return self.is_wanted and (channels is None or channels == self.channels)


class Foldable(Handoff):
    """What an affine operation leaves for the operations right behind it.

    Attributes:
        shares: where the operation reports shares of constants.
        foldability: what can be folded into the operation.
    """

    shares: OperationShares
    foldability: Foldability

    def fold(self, behind: Folded) -> SavedValue | None:
        """Fold an operation behind this one in. Returns a saved value that is not needed any more, or None."""
        raise NotImplementedError


class Folded(Foldable):
    """An operation that is folded into the operation before. Operations behind it may be folded in, too.

    Other operations that take the output of the operation before are not part of the pair.

    Args:
        output: the value of the operation.
        norm: the operation.
        before: the operation before.
        shares: where the operation reports shares of constants.
        is_read: whether something reads the coefficients that the operation passes on. If not, it passes its
            coefficients on unchanged, so that the operation before recognises them by their memory.
        alone: what the operation passes on without folding by its own rule. None for its default rule.

    Attributes:
        output: the value of the pair.
        norm: the operation.
    """

    def __init__(
        self,
        output: SavedValue,
        norm: ScaleAndShift,
        before: Foldable,
        shares: OperationShares,
        is_read: bool,
        alone: Alone | None,
    ) -> None:
        self.output = output
        self.norm = norm
        self.shares = shares
        self.foldability = before.foldability
        self._is_read = is_read
        self._alone = alone
        self._behind: list[Folded] = []
        self._passed: Passed | None = None

    def fold(self, behind: Folded) -> SavedValue | None:
        """Fold an operation behind this one in."""
        self._behind.append(behind)
        return None

    def pass_on(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """The coefficients of the input, as the operation passes them on without folding."""
        own, taken = split(coefficients, self._behind)
        parts = [part._replace(total=part.total.behind(self.norm)) for one in taken for part in one.parts]
        if own is not None:
            parts.append(Part(own, self, self.norm))
        alone = self._alone or self._by_default
        passed, constant_share = alone(coefficients) if self._is_read else (coefficients, None)
        if constant_share is not None:
            self.shares.enter(constant_share)
            constant_share = sum(
                (one.constant_share for one in taken if one.constant_share is not None), constant_share
            )
        self._passed = Passed(parts, passed, constant_share)
        return (passed,)

    def take(self) -> Passed | None:
        """What was passed on in this backward pass, at the first call. None at later calls, or if nothing was."""
        passed, self._passed = self._passed, None
        return passed

    def _by_default(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale, shift = self.norm
        constant_share = None
        if self.shares.are_measured:
            constant_share = torch.zeros((), dtype=torch.float64, device=coefficients.device)
            if shift is not None:
                constant_share = (shift * coefficients.sum_to_size(shift.shape)).sum(dtype=torch.float64)
        return coefficients if scale is None else coefficients * scale, constant_share


def split(coefficients: torch.Tensor, behind: Sequence[Folded]) -> tuple[torch.Tensor | None, list[Passed]]:
    """Split the coefficients of an output by the operations behind that are folded in.

    Args:
        coefficients: the coefficients of the output.
        behind: the operations that are folded in.

    Returns:
        The coefficients that come through none of these operations, or None if there are none. And what the operations
        got and passed on.
    """
    rest: torch.Tensor | None = coefficients
    taken = [passed for passed in (one.take() for one in behind) if passed is not None]
    for passed in taken:
        assert rest is not None
        rest = None if is_same_memory(rest, passed.passed) else rest - passed.passed
    return rest, taken


def foldable_before(operation: Operation, channels: int | None) -> Foldable | None:
    """The operation right before an operation, if the operation can be folded into it. None otherwise.

    Args:
        operation: scales and shifts one tensor.
        channels: how many channels it scales. None if the scale is a scalar or 1.
    """
    (x,) = operation.sources
    before = operation.handoff_of(x)
    return before if isinstance(before, Foldable) and before.foldability.allows(channels) else None


def folded(
    operation: Operation,
    norm: ScaleAndShift,
    before: Foldable,
    alone: Callable[[], Alone] | None = None,
    *,
    is_finite: bool = True,
) -> torch.Tensor:
    """The value of an operation that is folded into the operation before.

    Args:
        operation: scales and shifts one tensor.
        norm: the operation.
        before: the operation before.
        alone: gives what the operation passes on without folding by its own rule. None for its default rule.
        is_finite: whether the output is finite. Other numbers, such as those of a mask, count as 0 in the rule.
    """
    (x,) = operation.sources
    with torch.no_grad():
        value: torch.Tensor = (operation.on({id(x): x.clone()}) if operation.in_place else operation).value()
    shares = operation.shares()
    # Whether a layer between the two operations was tapped.
    is_tapped = shares.taps != before.shares.taps
    by_rule = alone() if is_tapped and alone is not None else None
    kept = value if is_finite else value.nan_to_num(0.0, 0.0, 0.0)
    pair = Folded(operation.save(kept), norm, before, shares, is_tapped or shares.are_measured, by_rule)
    unneeded = before.fold(pair)
    if unneeded is not None:
        operation.release(unneeded)
    pair.beside = operation.handoff
    operation.handoff = pair
    output = with_backward(value, pair.pass_on, x)
    return operation.args[0].copy_(output) if operation.in_place else output


def summand_folded(operation: Operation) -> Any:
    """A sum or difference of one tensor and constants, folded into the operation before.

    Args:
        operation: ``add``, ``sub`` or ``rsub``. One tensor depends on the inputs.

    Returns:
        The operation's value. None if it cannot be folded in.
    """
    before = foldable_before(operation, None)
    if before is None:
        return None
    (x,) = operation.sources
    shift = _with_all(operation, x.shape, 0.0).nan_to_num_(0.0, 0.0, 0.0)
    factor = _factor_in_sum(operation, x)
    scale = None if factor == 1 else x.new_full((), factor)
    # A bias does not broadcast the output of its layer.
    if shift.shape != x.shape:
        return None
    return folded(operation, ScaleAndShift(scale, shift), before, is_finite=False)


def _factor_in_sum(operation: Operation, x: torch.Tensor) -> float:
    """The factor of one of the two tensors of ``a + alpha * b`` or ``a - alpha * b``."""
    is_first = operation.argument(0, "input") is x
    if is_first is not (operation.name == "rsub"):
        return 1.0
    alpha: float = operation.kwargs.get("alpha", 1.0)
    return alpha if operation.name == "add" else -alpha


def factor_folded(operation: Operation) -> Any:
    """A product with a constant factor for each channel, or a quotient by it, folded into the operation before.

    A factor for all channels is not folded in, because no rule but one depends on it: LRP-epsilon.

    Args:
        operation: an elementwise product or quotient. One tensor depends on the inputs, and is no divisor.

    Returns:
        The operation's value. None if it cannot be folded in.
    """
    (x,) = operation.sources
    constants = [tensor.shape for tensor in tensors_in(list(operation.args)) if tensor is not x]
    shape = torch.broadcast_shapes(*constants)  # type: ignore[no-untyped-call]
    if x.dim() < 2 or not 0 < len(shape) <= x.dim():
        return None
    channels = torch.Size(x.shape[1] if dim == 1 else 1 for dim in range(x.dim()))
    before = foldable_before(operation, x.shape[1])
    if before is None or not _broadcasts(shape, channels):
        return None
    return folded(operation, ScaleAndShift(_with_all(operation, channels, 1.0), None), before)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of a shape broadcasts to another shape."""
    aligned = [1] * (len(to) - len(shape)) + list(shape)
    return all(one in (1, other) for one, other in zip(aligned, to, strict=True))


def _with_all(operation: Operation, shape: Sequence[int], value: float) -> torch.Tensor:
    """The output of an operation if all elements of the one tensor that depends on the inputs have the same value."""
    (x,) = operation.sources
    with torch.no_grad():
        output: torch.Tensor = operation.on({id(x): x.new_full(shape, value)}).value()
        return output
