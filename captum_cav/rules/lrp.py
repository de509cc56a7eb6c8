"""The rules of layer-wise relevance propagation (LRP) for affine operations, and the paper's rule among them.

Notation: ``z_ij = x_i w_ij`` are the summands of output ``j``. The bias is one of them, ``z_0j = b_j``. ``z_ij+`` and
``z_ij-`` are their positive and negative parts. ``R_j = y_j c_j`` is the contribution of output ``j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.errors import OptionError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.rules.affine import AffineRule, Bias, Share, Summands


@dataclass(frozen=True, repr=False)
class ContributionRule(Rule):
    """The default rule of each operation, which is the paper's rule (LRP-0).

    For affine operations ``R_i = sum_j z_ij / y_j R_j`` (equations 1-4 and 9). For activations each contribution is
    passed through (equation 7). In max pooling the winner takes all (equation 8).

    Give this rule to a layer that a more general key of ``rules`` covers, and that shall keep its default rule.

    Source: Kakishita and Hattori, equations 1-9.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[2., -1.]]))      # y = 2 - 1
        >>> cav = InputCAV(net, rules={torch.nn.Linear: ZPlusRule(), "0": ContributionRule()})
        >>> cav.attribute(torch.ones(1, 2))
        tensor([[ 2., -1.]])
    """

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value by its default rule."""
        return operation.by_default()


@dataclass(frozen=True, repr=False)
class EpsilonRule(AffineRule):
    """LRP-epsilon: ``R_i = sum_j z_ij / (y_j + epsilon sign(y_j)) R_j``.

    The part of a contribution that epsilon absorbs goes to no input. It counts as a share of constants.

    Args:
        epsilon: at least 0, in units of the output.
        relative: whether epsilon is multiplied with the root mean square of the sample's outputs.
        bias, fold: see :class:`AffineRule`.

    Raises:
        OptionError: for an epsilon that is negative or not finite.

    Source: Bach et al. 2015, equation 58.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])                           # y = 2 - 1; shares 2 / 1.25 and -1 / 1.25
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: EpsilonRule(0.25)}).attribute(torch.ones(1, 2))
        tensor([[ 1.6000, -0.8000]])
    """

    epsilon: float = 1e-6
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon < float("inf"):
            raise OptionError(f"epsilon is {self.epsilon!r}; expected a finite number of at least 0.")

    def shares(self, summands: Summands) -> Sequence[Share]:
        """All summands, divided by the stabilised sum."""
        total = summands.total
        # Filled on the device: if a number is copied to a GPU, the host waits.
        epsilon = total.new_full((), self.epsilon)
        if self.relative:
            dims = tuple(range(1, total.dim())) or (0,)
            epsilon = epsilon * total.square().mean(dims, keepdim=True).sqrt()
        return [Share(None, summands.ratio(torch.copysign(epsilon, total).add_(total)), is_ratio=True)]


@dataclass(frozen=True, repr=False)
class AbsoluteEpsilonRule(AffineRule):
    """LRP-epsilon in units of what cancels: ``R_i = sum_j z_ij / (y_j + epsilon sign(y_j) sum_i |z_ij|) R_j``.

    An output whose summands all have one sign passes ``1 / (1 + epsilon)`` of its contribution on. The more the
    summands of an output cancel each other, the smaller the part that the output passes on. So large shares of opposite
    signs, which leave a small sum, do not drown all else. The part that epsilon absorbs goes to no input. It counts as
    a share of constants, and in deep networks most of the score ends there. So compare places and classes, not sums.

    The scale of an output, and of the weights, does not matter. The bias is one of the summands.

    Args:
        epsilon: a finite number of at least 0. With 0 the rule is LRP-0. With a very large epsilon, the summands share
            in proportion to ``z_ij / sum_i |z_ij|``.
        bias, fold: see :class:`AffineRule`.

    Raises:
        OptionError: for an epsilon that is negative or not finite.

    Source: Bach et al. 2015, equation 58, whose epsilon is here a multiple of the sum of the absolute summands.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])                           # y = 2 - 1, and 2 + 1 is the absolute sum
        >>> rule = AbsoluteEpsilonRule(1.)                               # shares 2 / (1 + 3) and -1 / (1 + 3)
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: rule}).attribute(torch.ones(1, 2))
        tensor([[ 0.5000, -0.2500]])
    """

    epsilon: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon < float("inf"):
            raise OptionError(f"epsilon is {self.epsilon!r}; expected a finite number of at least 0.")

    def shares(self, summands: Summands) -> Sequence[Share]:
        """All summands, divided by the sum that the absolute sum stabilises."""
        total = summands.total
        with torch.no_grad():  # Absolute sums only divide.
            absolute = summands.absolute() + summands.constant.abs()
        signed_epsilon = torch.copysign(total.new_full((), self.epsilon), total)
        return [Share(None, summands.ratio(absolute.mul_(signed_epsilon).add_(total)), is_ratio=True)]


@dataclass(frozen=True, repr=False)
class GammaRule(AffineRule):
    """LRP-gamma: summands that agree with the sign of their output weigh ``1 + gamma`` times.

    Where ``y_j >= 0``, ``R_i = sum_j (z_ij + gamma z_ij+) / (y_j + gamma sum_i z_ij+) R_j``. Where ``y_j < 0``, the
    negative parts ``z_ij-`` take the place of the positive parts. Inputs may have either sign.

    The sign of ``y_j`` here is the sign of the sum that divides. With ``bias="absorb"`` that is the sum without the
    bias. The library zennit goes by the sign of the output with its bias in any case.

    Args:
        gamma: a finite number of at least 0. With 0 the rule is LRP-0. The larger gamma is, the nearer the rule comes
            to the z+ rule where ``y_j >= 0``.
        bias, fold: see :class:`AffineRule`.

    Raises:
        OptionError: for a gamma that is negative or not finite.

    Source: Montavon et al. 2019, section 10.2.2; Andéol et al. 2021 for inputs and outputs of both signs.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])                           # y = 2 - 1; shares (2 + 2) / 3 and -1 / 3
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: GammaRule(1.)}).attribute(torch.ones(1, 2))
        tensor([[ 1.3333, -0.3333]])
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < float("inf"):
            raise OptionError(f"gamma is {self.gamma!r}; expected a finite number of at least 0.")

    def shares(self, summands: Summands) -> Sequence[Share]:
        """All summands, and those that agree with the sign of the output once more.

        The sum of the positive summands is half of the sum of all summands plus half of the sum of their absolute
        values. The sum of the negative summands is half of the difference. So one sum of absolute values is enough for
        inputs and weights of any sign. In the divisor no numbers cancel.
        """
        if summands.rectified and summands.nonnegative:  # One sum is enough here. Inputs of both signs need two.
            raised = summands.raised(self.gamma)
            constant = summands.constant + self.gamma * summands.constant.clamp(min=0)
            return [Share(raised, summands.ratio(summands.with_constant(raised, constant)), is_ratio=True)]
        # With the sign of the output s, the shares are z s (1 + gamma / 2) / d and |z| gamma / 2 / d of the output,
        # where d = |y| (1 + gamma / 2) + gamma / 2 sum |z|. Both are divided by 1 + gamma / 2 here.
        weight = self.gamma / (2 + self.gamma)
        absolute = summands.absolute()
        sums = summands.with_constant(absolute, summands.constant.abs())
        divisor = summands.total.abs().add_(sums, alpha=weight)
        ratio = summands.ratio(divisor, out=absolute)
        # The divisor is not needed any more, so its memory serves again.
        if self.bias == "share":
            signed = torch.abs(ratio, out=divisor)
        else:  # The bias may have the other sign than the sum that divides.
            signed = torch.copysign(torch.ones_like(ratio), summands.total, out=divisor).mul_(ratio)
        return [Share(None, signed, is_ratio=True), Share(absolute, ratio, weight, is_ratio=True)]


@dataclass(frozen=True, repr=False)
class AlphaBetaRule(AffineRule):
    """LRP-alpha-beta: positive and negative summands share separately.

    ``R_i = sum_j (alpha z_ij+ / sum_i z_ij+ - beta z_ij- / sum_i z_ij-) R_j`` with ``alpha - beta = 1``.

    If an output has no summands of one sign, no input gets the part of this sign. That part counts as a share of
    constants.

    Args:
        alpha: at least 1.
        beta: ``alpha - 1``.
        bias, fold: see :class:`AffineRule`.

    Raises:
        OptionError: for an alpha below 1, or a beta that is not ``alpha - 1``.

    Source: Bach et al. 2015, equation 60.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])    # 2 R for the positive summand, -R for the negative
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: AlphaBetaRule()}).attribute(torch.ones(1, 2))
        tensor([[ 2., -1.]])
    """

    alpha: float = 2.0
    beta: float = 1.0

    uses_total: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.alpha >= 1 and abs(self.alpha - self.beta - 1) < 1e-9):
            raise OptionError(
                f"alpha is {self.alpha!r} and beta {self.beta!r}; expected alpha of at least 1 and beta = alpha - 1."
            )

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The positive summands, and the negative summands unless beta is 0."""
        positive = summands.positive()
        ratio = summands.ratio(summands.with_constant(positive, summands.constant.clamp(min=0)))
        shares = [Share(positive, ratio, self.alpha, is_ratio=True)]
        if self.beta:
            negative = summands.negative()
            ratio = summands.ratio(summands.with_constant(negative, summands.constant.clamp(max=0)))
            shares.append(Share(negative, ratio, -self.beta, is_ratio=True))
        return shares


def ZPlusRule(*, bias: Bias = "share", fold: bool = True) -> AlphaBetaRule:  # noqa: N802 - named like the other rules
    """The z+ rule: only positive summands share, ``R_i = sum_j z_ij+ / sum_i z_ij+ R_j``.

    This is :class:`AlphaBetaRule` with alpha 1 and beta 0. Behind ReLUs it equals deep Taylor decomposition.

    Args:
        bias, fold: see :class:`AffineRule`.

    Returns:
        The rule.

    Raises:
        OptionError: for a ``bias`` that is neither ``"share"`` nor ``"absorb"``.

    Source: Montavon et al. 2017, section 5.1.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1., 2.]])
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: ZPlusRule()}).attribute(torch.ones(1, 3))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    return AlphaBetaRule(1.0, 0.0, bias=bias, fold=fold)
