"""Rules for affine operations ``y_j = sum_i x_i w_ij + b_j``: how an output's contribution ``R_j`` is shared out.

The paper shares by the summands, ``R_i = sum_j x_i w_ij / y_j R_j`` (equations 1-4 and 9). The rules of layer-wise
relevance propagation share otherwise. All are of one form here: some sums ``q`` over (changed) summands, each linear in
the inputs, take ``R_j`` times a factor; :class:`Summands` is what a rule sees, and :class:`Share` what it returns.

The bias is one more input, always 1 (equations 3 and 4), and its share belongs to the account of constants; with
``bias="absorb"`` the inputs take its share. With ``fold`` a batch norm right behind the operation is taken in: they are
ruled as one affine operation ``w' = s w, b' = s b + t``, and the model is not touched.

Sources: Bach et al. 2015 (epsilon, alpha-beta, w-square as in Montavon et al. 2017), Montavon et al. 2019 (gamma,
z-box, flat), Andéol et al. 2021 (gamma for inputs of both signs).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.affine import AffineView
from captum_cav.operations.folding import Foldable, FoldedNorm, Passed, foldable_before, folded
from captum_cav.operations.normalization import inference_norm
from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation import zeros
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.tensors import is_same_memory
from captum_cav.torch_internals import OwnFunction

Bias = Literal["share", "absorb"]


class Share(NamedTuple):
    """One part of an output's contribution: ``R_j * factor_j`` goes to the inputs in proportion to their summands.

    Attributes:
        sums: shape of the output: sums that are linear in the inputs, differentiable by ``Summands.x``; None stands for
            all summands ``x_i w_ij`` as they are.
        factor: broadcasts to the output's shape.
    """

    sums: torch.Tensor | None
    factor: torch.Tensor


class Summands:
    """The summands of an affine operation's output, as a rule sees them in the backward pass.

    Attributes:
        x: the input, to be differentiated by.
        weight: the weight, a folded batch norm's scale in it.
        constant: the bias, a folded batch norm's shift in it, broadcasts to the output's shape; 0 where the inputs
            absorb it.
        total: shape of the output: the sum of all summands and the constant.
        has_constant: whether the operation has a bias.
        rectified: whether outputs below 0 have no contributions, because only a ReLU takes them.
    """

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        constant: torch.Tensor,
        total: torch.Tensor,
        sum_: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        nonnegative: bool,
        has_constant: bool,
        rectified: bool,
        channels: int | None,
    ) -> None:
        self.x = x
        self.weight = weight
        self.constant = constant
        self.total = total
        self.has_constant = has_constant
        self.rectified = rectified
        self._sum = sum_
        self._nonnegative = nonnegative
        self._channels = channels

    def sum(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``sum_i x_i w_ij`` for each output j."""
        return self._sum(x, weight)

    def positive(self) -> torch.Tensor:
        """The sum of the positive summands, without the constant."""
        return self._by_sign(_Weighing(False, 1.0), rises=True)

    def negative(self) -> torch.Tensor:
        """The sum of the negative summands, without the constant."""
        return self._by_sign(_Weighing(False, 1.0), rises=False)

    def raised(self, gamma: float) -> torch.Tensor:
        """The sum of all summands, the positive ones ``1 + gamma`` times, without the constant."""
        return self._by_sign(_Weighing(True, gamma), rises=True)

    def absolute(self) -> torch.Tensor:
        """The sum of the absolute values of all summands, without the constant."""
        return self._weighed(self.x if self._nonnegative else self.x.abs(), _Absolute(), True)

    def _by_sign(self, weighing: _Weighing, *, rises: bool) -> torch.Tensor:
        """Sums that weigh the summands of one sign: weights of that sign where inputs rise, of the other elsewhere."""
        if self._nonnegative:
            return self._weighed(self.x, weighing, rises)
        above, below = self.x.clamp(min=0), self.x.clamp(max=0)
        if self._channels is not None:  # both at once, as twice as many inputs
            weights = [weighing.apply(self.weight, rises), weighing.apply(self.weight, not rises)]
            return self.sum(torch.cat([above, below], self._channels), torch.cat(weights, 1))
        return self._weighed(above, weighing, rises) + self._weighed(below, weighing, not rises)

    def _weighed(self, x: torch.Tensor, weighing: _Weighing | _Absolute, rises: bool) -> torch.Tensor:
        if self._sum is F.linear and self.weight.numel() > _AT_ONCE and not self.weight.is_cuda:
            sums: torch.Tensor = _WeighedLinear.apply(x, self.weight, weighing, rises)
            return sums
        return self.sum(x, weighing.apply(self.weight, rises))

    def in_place_of_x(self, value: torch.Tensor | float) -> torch.Tensor:
        """A value that stands in the place of the input: what it brings is the input's contribution."""
        x = self.x.detach()
        value = value.to(x) if isinstance(value, torch.Tensor) else x.new_full((), value)
        return value + (self.x - x) * (value / zeros.without_zeros(x))


class _Weighing(NamedTuple):
    """``signed`` times the weights of one sign, and with ``plain`` every weight once besides."""

    plain: bool
    signed: float

    def apply(self, weight: torch.Tensor, rises: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """The weights, in a given place if there is one."""
        changed = torch.clamp(weight, min=0, out=out) if rises else torch.clamp(weight, max=0, out=out)
        return torch.add(weight, changed, alpha=self.signed, out=changed) if self.plain else changed


class _Absolute:
    """The absolute values of weights."""

    def apply(self, weight: torch.Tensor, rises: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """The weights, in a given place if there is one."""
        return torch.abs(weight, out=out)


# Numbers of a weight that are changed at once: a copy of a large one costs more than the product with it.
_AT_ONCE = 1 << 20


class _WeighedLinear(OwnFunction):
    """A linear layer with changed weights, of which no copy is made as a whole."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, weighing: _Weighing | _Absolute, rises: bool
    ) -> torch.Tensor:
        ctx.weights = weight, weighing, rises
        return torch.cat([F.linear(x, rows) for rows in _rows(*ctx.weights)], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        start, total = 0, torch.zeros((), dtype=gradient.dtype, device=gradient.device)
        for rows in _rows(*ctx.weights):
            total = total + gradient[..., start : start + len(rows)] @ rows
            start += len(rows)
        return total, None, None, None


def _rows(weight: torch.Tensor, weighing: _Weighing | _Absolute, rises: bool) -> Iterator[torch.Tensor]:
    """Some changed rows of a weight after the other; where nothing is recorded, in one place in memory."""
    count = max(1, _AT_ONCE // weight.shape[1])
    place = None if torch.is_grad_enabled() else weight.new_empty(count, weight.shape[1])
    for rows in torch.split(weight, count):
        yield weighing.apply(rows, rises, None if place is None else place[: len(rows)])


def inverse_of(sums: torch.Tensor) -> torch.Tensor:
    """``1 / sums``, and 0 where there is nothing to share by."""
    return sums.reciprocal().nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)


def inverted(sums: torch.Tensor) -> torch.Tensor:
    """:func:`inverse_of` sums that nobody else needs, in their memory: a fresh tensor costs more than the division."""
    return sums.reciprocal_().nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class AffineRule(Rule):
    """A rule that shares out what an affine operation gave: convolutions, linear layers, products with a weight.

    Subclasses define :meth:`shares`. The output's contributions that no share takes count as the constants' own.

    Args:
        bias: ``"share"``: the bias is one more input with its own share; ``"absorb"``: the inputs take its share.
        fold: whether a batch norm right behind the operation is taken in.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV, rules
        >>> class Boldest(rules.AffineRule):                     # the square of each summand decides
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
    #: Whether a share goes by all summands as they are.
    uses_total: ClassVar[bool] = True
    #: Whether inputs of value 0 get shares.
    gives_to_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bias not in ("share", "absorb"):
            raise OptionError(f'bias is {self.bias!r}; expected "share" or "absorb".')

    def shares(self, summands: Summands) -> Sequence[Share]:
        """How each output's contribution is shared out.

        Args:
            summands: the operation's summands.

        Returns:
            Shares; their factors times their sums, the constant's part added, are 1 where nothing is held back.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to share: define shares.")

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is affine in one tensor that depends on the inputs."""
        return super().governs(operation) and _view(operation) is not None

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value, shared out by this rule in the backward pass."""
        view = _view(operation)
        assert view is not None
        # What may be folded is a batch norm, which is affine itself.
        norm = inference_norm(operation) if operation.name == "batch_norm" else None
        before = foldable_before(operation) if norm is not None else None
        if norm is not None and before is not None:
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


def _view(operation: Operation) -> AffineView | None:
    """The operation as an affine one in its one source, or None."""
    view = operation.spec.view_as_affine
    return None if view is None else view(operation)


class _Shares(NamedTuple):
    """What became of an output's contributions.

    Attributes:
        direct: coefficients of the operation's own sums, to go on as torch differentiates them; None for none.
        through: coefficients of the input; None for none.
        constant_share: the share of constants, a float64 scalar; None where nobody asks.
    """

    direct: torch.Tensor | None
    through: torch.Tensor | None
    constant_share: torch.Tensor | None


class Affine(Foldable):
    """One affine operation between forward and backward pass. Batch norms behind it may still be folded in."""

    def __init__(self, operation: Operation, view: AffineView, output: torch.Tensor, rule: AffineRule) -> None:
        self.rule = rule
        self._view = view._replace(x=view.x.detach())
        self._x = operation.save(view.x)
        self._output = operation.save(output)
        self._nonnegative = operation.is_nonnegative(view.x)
        self.shares = operation.shares()
        self._norms: list[FoldedNorm] = []

    def can_fold(self, channels: int) -> bool:
        """Whether the rule folds and the channels are those of the output."""
        return self.rule.fold and self._view.scaled is not None and self._output.value.shape[1] == channels

    def fold(self, norm: FoldedNorm) -> None:
        """Rule what comes through a batch norm together with the batch norm."""
        self._norms.append(norm)

    def share_out(self, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Coefficients of the operation's own sums, which torch differentiates, and coefficients of the input."""
        rest: torch.Tensor | None = coefficients
        found = []
        for norm in self._norms:
            passed = norm.take()
            if passed is not None:
                assert rest is not None
                rest = None if is_same_memory(rest, passed.passed) else rest - passed.passed
                shared = self._share(passed.coefficients, norm)
                if shared.constant_share is not None and passed.constant_share is not None:
                    # The batch norm entered a share when it passed on alone. This share is the pair's to share out.
                    self.shares.enter(shared.constant_share - passed.constant_share)
                found.append(shared)
        if rest is not None:
            found.append(self._share(rest, None))
            if found[-1].constant_share is not None:
                self.shares.enter(found[-1].constant_share)
        return (
            functools.reduce(_sum, [shared.direct for shared in found]),
            functools.reduce(_sum, [shared.through for shared in found]),
        )

    def pass_alone(self, coefficients: torch.Tensor) -> Passed:
        """What a batch norm passes on if it is ruled as an operation without the one before."""
        direct, through, constant_share = self._share(coefficients, None)
        passed = _sum(None if direct is None else direct * self._view.weight, through)
        assert passed is not None
        return Passed(coefficients, passed, constant_share)

    def _share(self, coefficients: torch.Tensor, pair: FoldedNorm | None) -> _Shares:
        """Share out what came through a batch norm, by the coefficients of its output, or what came through none."""
        view = self._view
        output, weight, constant, rectified = self._output.value, view.weight, view.bias, self.is_rectified
        if pair is not None:
            assert view.scaled is not None
            output, rectified = pair.output.value, pair.is_rectified
            weight = view.scaled(weight, pair.norm.scale)
            constant = pair.norm.shift if constant is None else constant * pair.norm.scale + pair.norm.shift
        zeros_carry = self.shares.zeros_carry and output.dtype != torch.float16
        contributions = coefficients * (zeros.without_zeros(output) if zeros_carry else output)
        with torch.enable_grad():
            x = self._x.value.detach().requires_grad_()
            has_constant = constant is not None
            constant = torch.zeros((), dtype=output.dtype, device=output.device) if constant is None else constant
            total = output
            if self.rule.bias == "absorb" and has_constant:
                # Not the output less the constant, which would leave rounding where there is nothing to share.
                constant, total = torch.zeros_like(constant), view.sum(x.detach(), weight)
            summands = Summands(
                x, weight, constant, total, view.sum, self._nonnegative, has_constant, rectified, view.channels
            )
            shares = self.rule.shares(summands)
        constant_share = self._not_shared(contributions, shares, total - constant) if self.shares.are_measured else None
        direct = None
        parts, seeds = [], []
        for number, (sums, factor) in enumerate(shares, 1):
            # Memory is dear: fresh tensors of this size cost more than the arithmetic.
            last = number == len(shares) and factor.dtype == contributions.dtype
            part = contributions.mul_(factor.detach()) if last else contributions * factor.detach()
            if sums is None:
                direct = _sum(direct, part)
            else:
                parts.append(sums)
                seeds.append(part.to(sums.dtype))
        if direct is not None and pair is not None:
            direct = direct * pair.norm.scale
        through = None
        if parts:
            (through,) = torch.autograd.grad(parts, x, seeds, create_graph=torch.is_grad_enabled())
        return _Shares(direct, through, constant_share)

    @staticmethod
    def _not_shared(contributions: torch.Tensor, shares: Sequence[Share], total: torch.Tensor) -> torch.Tensor:
        given = sum(factor.detach() * (total if sums is None else sums.detach()) for sums, factor in shares)
        return (contributions * (1 - given)).sum(dtype=torch.float64)


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
