"""The base of rules for affine operations ``y_j = sum_i x_i w_ij + b_j``: how the contribution ``R_j`` is shared out.

The paper shares ``R_j`` in proportion to the summands, ``R_i = sum_j x_i w_ij / y_j R_j`` (equations 1-4 and 9). The
rules of layer-wise relevance propagation (LRP) share in other proportions. All these rules have one form here: a rule
gets :class:`Summands` and returns :class:`Share` objects.

The bias is one more input, always 1 (equations 3 and 4). Its share is a share of constants. With ``bias="absorb"`` the
inputs get its share.

With ``fold=True`` a batch norm ``s y + t`` right behind the operation is folded in. So are a constant summand, such as
a bias behind a matrix product, and a constant factor for each channel. The rule then treats both as one affine
operation with ``w' = s w`` and ``b' = s b + t``. The model itself does not change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.errors import OptionError, UnsupportedOperationError
from captum_cav.operations import TABLE
from captum_cav.operations.affine import AffineView
from captum_cav.operations.folding import (
    Foldability,
    Foldable,
    Folded,
    Part,
    ScaleAndShift,
    foldable_before,
    folded,
    split,
)
from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation import zeros
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.rules.changed_weights import AbsoluteWeights, SignedWeights, absolute, changed_linear, is_large
from captum_cav.torch_internals import is_batched

Bias = Literal["share", "absorb"]


class Share(NamedTuple):
    """One part of the contributions that a rule shares out.

    Input ``i`` gets the part ``q_ij * factor_j`` of the contribution ``R_j`` of output ``j``. Here ``q_ij`` is the
    summand of input ``i`` in ``sums_j``.

    Attributes:
        sums: sums in the shape of the output. They are linear in the inputs, and computed from ``Summands.x`` so that
            autograd can differentiate them. None stands for the operation's own sums ``sum_i x_i w_ij``.
        factor: broadcasts to the output's shape.
        times: a number, or a tensor of the output's shape, with which the factor is multiplied.
        is_ratio: whether ``factor`` is the factor times the output, as :meth:`Summands.ratio` gives it. Such a tensor
            has the output's shape, belongs to one share, and may be overwritten.
    """

    sums: torch.Tensor | None
    factor: torch.Tensor
    times: torch.Tensor | float = 1.0
    is_ratio: bool = False


class Summands:
    """The summands of the outputs of an affine operation, as a rule sees them in the backward pass.

    Attributes:
        x: the input. A rule computes its sums from this tensor, because autograd differentiates them by it.
        weight: the weight, times the scale of what is folded in.
        constant: the bias, with the shift of what is folded in. Broadcasts to the output's shape. 0 if the inputs
            absorb the bias.
        total: the sums of all summands and the constant, in the shape of the output.
        output: the output. It has the bias also if the inputs absorb the bias.
        has_constant: whether the operation, or what is folded in, has a constant.
        rectified: whether outputs below 0 have no contributions, because only ReLUs take the output.
        nonnegative: whether no input is below 0, as behind a ReLU.
        overwritable: whether nobody but the rule reads the numbers of the sums that the rule computes.
    """

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        constant: torch.Tensor,
        total: torch.Tensor,
        output: torch.Tensor,
        sum_: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        nonnegative: bool,
        has_constant: bool,
        rectified: bool,
        channels: int | None,
        overwritable: bool,
    ) -> None:
        self.x = x
        self.weight = weight
        self.constant = constant
        self.total = total
        self.output = output
        self.has_constant = has_constant
        self.rectified = rectified
        self.overwritable = overwritable
        self._sum = sum_
        self.nonnegative = nonnegative
        self._channels = channels

    def sum(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``sum_i x_i w_ij`` for each output ``j``, in the shape of the output."""
        return self._sum(x, weight)

    def positive(self) -> torch.Tensor:
        """The sum of the positive summands, without the constant."""
        return self._sums_by_sign(SignedWeights(False, 1.0), of_positive=True)

    def negative(self) -> torch.Tensor:
        """The sum of the negative summands, without the constant."""
        return self._sums_by_sign(SignedWeights(False, 1.0), of_positive=False)

    def raised(self, gamma: float) -> torch.Tensor:
        """The sum of all summands, in which the positive summands count ``1 + gamma`` times, without the constant."""
        return self._sums_by_sign(SignedWeights(True, gamma), of_positive=True)

    def absolute(self) -> torch.Tensor:
        """The sum of the absolute values of all summands, without the constant."""
        return self._sums_with(self.x if self.nonnegative else absolute(self.x), AbsoluteWeights(), True)

    def with_constant(self, sums: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        """Sums plus a constant, without a graph. If nobody else reads the sums, they are overwritten."""
        # A fresh tensor would cost more than the addition.
        sums = sums.detach()
        overwrites = self.overwritable and constant.dtype == sums.dtype
        return sums.add_(constant) if overwrites else sums + constant

    def ratio(self, sums: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The output divided by sums, without a graph, and 0 where a sum is 0, because there is nothing to share out.

        Args:
            sums: the sums, without a graph. They are overwritten.
            out: a tensor of the same kind, whose numbers the rule does not need any more. The ratio is written into it
                if nobody else reads the numbers. By default, the ratio takes the place of the sums.
        """
        if sums.dtype != self.output.dtype or (out is not None and not self.overwritable):
            return inverted(sums) * self.output
        return torch.mul(inverted(sums), self.output, out=sums if out is None else out.detach())

    def _sums_by_sign(self, change: SignedWeights, *, of_positive: bool) -> torch.Tensor:
        """Sums in which the summands of one sign are changed.

        A summand is positive if its input and its weight have the same sign. So inputs above 0 meet the changed weights
        of this sign, and inputs below 0 those of the other sign.
        """
        if self.nonnegative:
            return self._sums_with(self.x, change, of_positive)
        above, below = self.x.clamp(min=0), self.x.clamp(max=0)
        if self._channels is not None:  # One operation on twice as many channels is cheaper than two operations.
            weights = [change.apply(self.weight, of_positive), change.apply(self.weight, not of_positive)]
            return self.sum(torch.cat([above, below], self._channels), torch.cat(weights, 1))
        return self._sums_with(above, change, of_positive) + self._sums_with(below, change, not of_positive)

    def _sums_with(self, x: torch.Tensor, change: SignedWeights | AbsoluteWeights, of_positive: bool) -> torch.Tensor:
        if self._sum is F.linear and is_large(self.weight):
            return changed_linear(x, self.weight, change, of_positive)
        return self.sum(x, change.apply(self.weight, of_positive))

    def in_place_of_x(self, value: torch.Tensor | float) -> torch.Tensor:
        """Other values in the place of the input. What these values contribute counts as the input's contribution.

        Args:
            value: a number, or a tensor that broadcasts to the input.

        Returns:
            The values, from which a rule can compute sums.
        """
        x = self.x.detach()
        value = value.to(x) if isinstance(value, torch.Tensor) else x.new_full((), value)
        return value + (self.x - x) * (value / zeros.without_zeros(x))


def inverse_of(sums: torch.Tensor) -> torch.Tensor:
    """``1 / sums``, and 0 where a sum is 0, because there is nothing to share out.

    Args:
        sums: a tensor of any shape.

    Returns:
        A tensor of the same shape.

    Example::

        >>> import torch
        >>> from captum_cav import rules
        >>> rules.inverse_of(torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return sums.reciprocal().nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)


def inverted(sums: torch.Tensor) -> torch.Tensor:
    """As :func:`inverse_of`, but overwrites the sums. A fresh tensor would cost more than the division."""
    return sums.reciprocal_().nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class AffineRule(Rule):
    """The base class of rules for affine operations: convolutions, linear layers and products with a weight.

    A subclass defines :meth:`shares`. The part of a contribution that no share takes counts as a share of constants.

    Args:
        bias: with ``"share"`` the bias is one more input, and its share is a share of constants. With ``"absorb"`` the
            inputs get the share of the bias.
        fold: whether a batch norm, a constant summand, and a constant factor for each channel are folded in, if they
            are right behind the operation.

    Raises:
        OptionError: for another value of ``bias``.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV, rules
        >>> class Boldest(rules.AffineRule):                     # shares in proportion to the squared summands
        ...     uses_total = False
        ...     def shares(self, summands):
        ...         squares = summands.sum(summands.in_place_of_x(summands.x.detach() ** 2), summands.weight ** 2)
        ...         return [rules.Share(squares, rules.inverse_of(squares.detach()))]
        >>> weight = torch.tensor([[1., 1.]])                    # y = 1 * 1 + 1 * 3
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: Boldest()}).attribute(torch.tensor([[1., 3.]]))
        tensor([[0.1000, 0.9000]])
    """

    bias: Bias = "share"
    fold: bool = True

    operations: ClassVar[frozenset[str] | None] = frozenset(
        name for name, spec in TABLE if spec.view_as_affine is not None
    )
    #: Whether a share may have ``sums=None``, so that torch's own gradient of the operation is needed.
    uses_total: ClassVar[bool] = True
    #: Whether inputs of value 0 get contributions, too.
    gives_to_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bias not in ("share", "absorb"):
            raise OptionError(f'bias is {self.bias!r}; expected "share" or "absorb".')

    def shares(self, summands: Summands) -> Sequence[Share]:
        """How the contribution of each output is shared out.

        Args:
            summands: the operation's summands.

        Returns:
            The shares. The rule conserves contributions if ``factor * sums``, added over all shares and the share of
            the constant, is 1.

        Raises:
            UnsupportedOperationError: in this base class.
        """
        raise UnsupportedOperationError(f"{type(self).__name__} does not say how to share: define shares.")

    def governs(self, operation: Operation) -> bool:
        """Whether one tensor depends on the inputs, and the operation is affine in this tensor."""
        return super().governs(operation) and operation.as_affine is not None

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value, shared out by this rule in the backward pass."""
        view: AffineView = operation.as_affine
        # A batch norm is affine itself, and may be folded into the operation before.
        before = foldable_before(operation, view.x.shape[1]) if operation.name == "batch_norm" else None
        if before is not None:
            norm = ScaleAndShift(view.weight, view.bias)
            return folded(operation, norm, before, lambda: Affine(operation, view, operation.value(), self).pass_alone)
        if self.gives_to_zeros:
            zeros.tiny(view.x.dtype)
            operation.let_zeros_carry()
        with torch.set_grad_enabled(self.uses_total):
            native = operation.value()
        affine = Affine(operation, view, native, self)
        output = with_backward(native.detach(), affine.share_out, native, view.x)
        operation.handoff = affine
        return output


class _Shares(NamedTuple):
    """The contributions of an output, shared out.

    Attributes:
        of_output: coefficients of the operation's own output, to which torch's own gradient applies. None for none.
        of_input: coefficients of the input. None for none.
        constant_share: the share of constants, a float64 scalar. None if shares of constants are not measured.
    """

    of_output: torch.Tensor | None
    of_input: torch.Tensor | None
    constant_share: torch.Tensor | None


class Affine(Foldable):
    """One affine operation between its forward and its backward pass. What is behind it is folded in meanwhile.

    Args:
        operation: the operation.
        view: the operation as an affine one.
        output: the operation's value.
        rule: the operation's rule.
    """

    def __init__(self, operation: Operation, view: AffineView, output: torch.Tensor, rule: AffineRule) -> None:
        self.rule = rule
        self._view = view._replace(x=view.x.detach())
        self._x = operation.save(view.x)
        self._output: SavedValue | None = operation.save(output)
        self._nonnegative = operation.is_nonnegative(view.x)
        self.shares = operation.shares()
        self._began = self.shares.rules_for_zeros
        self._behind: list[Folded] = []
        # What the coefficients of the output are multiplied with if several scores share a backward pass. The passes of
        # the next scores need the same.
        self._slope: torch.Tensor | None = None
        # A linear layer whose weight is a vector has no channels.
        channels = output.shape[1] if view.scaled is not None and output.dim() > 1 else None
        self.foldability = Foldability(rule.fold, channels)

    def fold(self, behind: Folded) -> SavedValue | None:
        """Rule this operation and one behind it as one affine operation. Then its own output is seldom needed."""
        self._behind.append(behind)
        output, self._output = self._output, None
        return output

    def _own_output(self) -> torch.Tensor:
        """The output, which is computed anew if something is folded in."""
        if self._output is not None:
            return self._output.value
        with torch.no_grad():
            sums = self._view.sum(self._x.value, self._view.weight)
            return sums if self._view.bias is None else sums + self._view.bias

    def share_out(self, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Share out the contributions of the output and of all folded batch norms.

        Args:
            coefficients: coefficients of the operation's output.

        Returns:
            Coefficients of the operation's own output, to which torch's own gradient applies, and coefficients of the
            input. None for none.
        """
        unfolded, taken = split(coefficients, self._behind)
        shared = [self._share(part.coefficients, part) for passed in taken for part in passed.parts]
        if unfolded is not None:
            shared.append(self._share(unfolded, None))
        for constant_share in (one.constant_share for one in shared):
            if constant_share is not None:
                self.shares.enter(constant_share)
        for constant_share in (passed.constant_share for passed in taken):
            if constant_share is not None:
                # The operations behind have entered shares of constants already. The shares of the pairs replace them.
                self.shares.enter(-constant_share)
        return (
            functools.reduce(_sum, [one.of_output for one in shared]),
            functools.reduce(_sum, [one.of_input for one in shared]),
        )

    def pass_alone(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What this operation, a batch norm, passes on if it is not folded into the operation before."""
        of_output, of_input, constant_share = self._share(coefficients, None)
        passed = _sum(None if of_output is None else of_output * self._view.weight, of_input)
        assert passed is not None
        return passed, constant_share

    def _share(self, coefficients: torch.Tensor, folded_in: Part | None) -> _Shares:
        """Share out contributions.

        Args:
            coefficients: coefficients of the operation's output, or of the output of the last operation folded in.
            folded_in: the operations behind that are folded in. None for none.
        """
        of_several = is_batched(coefficients) and not self.shares.are_measured
        if of_several and folded_in is None and self._slope is not None:
            return _Shares(coefficients * self._slope, None, None)
        view = self._view
        weight, constant, rectified, scale = view.weight, view.bias, self.is_rectified, None
        if folded_in is None:
            output = self._own_output()
        else:
            output, rectified = folded_in.last.output.value, folded_in.last.is_rectified
            scale, constant = folded_in.total.behind(ScaleAndShift(None, constant))
            if scale is not None:
                scaled = view.scaled if scale.dim() else torch.mul
                assert scaled is not None
                weight = scaled(weight, scale)
        zeros_carry = self.shares.zeros_carry_since(self._began) and output.dtype != torch.float16
        divided = zeros.without_zeros(output) if zeros_carry else output
        overwritable = not (self.shares.are_measured or torch.is_grad_enabled() or is_batched(coefficients))
        with torch.enable_grad():
            x = self._x.value.detach().requires_grad_()
            has_constant = constant is not None
            constant = torch.zeros((), dtype=output.dtype, device=output.device) if constant is None else constant
            total = output
            if self.rule.bias == "absorb" and has_constant:
                # The output minus the constant would leave a rounding error where there is nothing to share.
                constant, total = torch.zeros_like(constant), view.sum(x.detach(), weight)
            summands = Summands(
                x,
                weight,
                constant,
                total,
                divided,
                view.sum,
                self._nonnegative,
                has_constant,
                rectified,
                view.channels,
                overwritable,
            )
            shares = self.rule.shares(summands)
        constant_share = None
        if self.shares.are_measured:
            constant_share = self._not_shared(coefficients, divided, shares, total - constant)
        if of_several and folded_in is None and len(shares) == 1:
            sums, factor, times, is_ratio = shares[0]
            if sums is None and is_ratio and not isinstance(times, torch.Tensor):
                self._slope = factor.detach() * times
        of_output = None
        differentiated, seeds = [], []
        for sums, factor, times, is_ratio in shares:
            if not is_ratio:
                part = _product(coefficients * divided, factor, True)
            elif overwritable:
                part = _product(factor, coefficients, True)
            else:
                part = coefficients * factor.detach()
            if sums is None:
                # Of two small factors one is made first.
                part = _product(part, times if scale is None else scale * times, overwritable)
                of_output = _sum(of_output, part)
            else:
                differentiated.append(sums)
                seeds.append(_product(part, times, overwritable).to(sums.dtype))
        of_input = None
        if differentiated:
            (of_input,) = torch.autograd.grad(differentiated, x, seeds, create_graph=torch.is_grad_enabled())
        return _Shares(of_output, of_input, constant_share)

    @staticmethod
    def _not_shared(
        coefficients: torch.Tensor, output: torch.Tensor, shares: Sequence[Share], total: torch.Tensor
    ) -> torch.Tensor:
        """The sum of all contributions, without the parts that the shares take."""
        rest = output
        for sums, factor, times, is_ratio in shares:
            ratio = factor.detach() if is_ratio else output * factor.detach()
            rest = rest - ratio * times * (total if sums is None else sums.detach())
        return (coefficients * rest).sum(dtype=torch.float64)


def _product(one: torch.Tensor, other: torch.Tensor | float, overwrites: bool) -> torch.Tensor:
    """The product of two tensors, or of a tensor and a number, in the place of the first one if it is overwritten."""
    if not isinstance(other, torch.Tensor):
        if other == 1:
            return one
        return one.mul_(other) if overwrites else one * other
    # A fresh tensor would cost more than the arithmetic.
    return one.mul_(other.detach()) if overwrites and other.dtype == one.dtype else one * other.detach()


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two tensors, in which None counts as 0."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
