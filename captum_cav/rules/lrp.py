"""The rules of layer-wise relevance propagation for affine operations, beside the paper's own.

Notation: ``z_ij = x_i w_ij`` the summands of output j, the bias among them as ``z_0j = b_j``; ``z_ij+`` and ``z_ij-``
their positive and negative parts; ``R_j = y_j c_j`` the output's contribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.errors import OptionError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.rules.affine import AffineRule, Share, Summands, inverted


@dataclass(frozen=True, repr=False)
class ContributionRule(Rule):
    """The paper's rules, LRP-0: what each operation does by default.

    ``R_i = sum_j z_ij / y_j R_j`` for affine operations (equations 1-4 and 9), pass-through for activations (7), the
    winner takes all in max pooling (8). Give it to a layer to take it out of a wider override.

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
        """The default for the operation."""
        return operation.by_default()


@dataclass(frozen=True, repr=False)
class EpsilonRule(AffineRule):
    """LRP-epsilon: ``R_i = sum_j z_ij / (y_j + epsilon sign(y_j)) R_j``; what epsilon takes, nobody gets.

    Args:
        epsilon: at least 0; in units of the output, or of its root mean square with ``relative``.
        relative: whether epsilon is times the root mean square of the sample's outputs.
        bias, fold: as for :class:`AffineRule`.

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
        """All summands, over the stabilised sum."""
        total = summands.total
        # Filled where it is: a number that is copied to a GPU makes the host wait.
        epsilon = total.new_full((), self.epsilon)
        if self.relative:
            dims = tuple(range(1, total.dim())) or (0,)
            epsilon = epsilon * total.square().mean(dims, keepdim=True).sqrt()
        return [Share(None, inverted(total + torch.copysign(epsilon, total)))]


@dataclass(frozen=True, repr=False)
class GammaRule(AffineRule):
    """LRP-gamma: what agrees with the output's sign weighs ``1 + gamma`` times.

    ``R_i = sum_j (z_ij + gamma z_ij+) / (y_j + gamma sum_i z_ij+) R_j`` where ``y_j >= 0``, and the same with the
    negative parts where ``y_j < 0``. For inputs of either sign; 0 gives LRP-0, infinity the z+ rule.

    Args:
        gamma: at least 0.
        bias, fold: as for :class:`AffineRule`.

    Source: Montavon et al. 2019, section 10.2.2; Andéol et al. 2021 for both signs.

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
        """All summands, and those that agree with the output once more.

        The positive summands are half of all and their absolute values together, the negative half of the difference,
        so that one sum of absolute values does for inputs and weights of any sign; nothing cancels in what divides.
        """
        if summands.rectified:
            raised = summands.raised(self.gamma)
            constant = summands.constant + self.gamma * summands.constant.clamp(min=0)
            return [Share(raised, inverted(raised.detach() + constant))]
        total, of_all = summands.total, 1 + self.gamma / 2
        absolute = summands.absolute()
        of_absolute = torch.copysign(total.new_full((), self.gamma / 2), total)
        sums = (absolute.detach() + summands.constant.abs()).mul_(of_absolute).add_(total, alpha=of_all)
        inverse = inverted(sums)
        return [Share(None, of_all * inverse), Share(absolute, of_absolute.mul_(inverse))]


@dataclass(frozen=True, repr=False)
class AlphaBetaRule(AffineRule):
    """LRP-alpha-beta: positive and negative summands share apart.

    ``R_i = sum_j (alpha z_ij+ / sum_i z_ij+ - beta z_ij- / sum_i z_ij-) R_j`` with ``alpha - beta = 1``. An output
    without summands of a sign gives away nothing for it: that share is lost, and counts as the constants'.

    Args:
        alpha: at least 1.
        beta: ``alpha - 1``.
        bias, fold: as for :class:`AffineRule`.

    Source: Bach et al. 2015, equation 60.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])    # of the positive all, twice; of the negative, once
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
        """The positive summands, and the negative unless beta is 0."""
        positive = summands.positive()
        found = [Share(positive, inverted(positive.detach() + summands.constant.clamp(min=0)).mul_(self.alpha))]
        if self.beta:
            negative = summands.negative()
            inverse = inverted(negative.detach() + summands.constant.clamp(max=0))
            found.append(Share(negative, inverse.mul_(-self.beta)))
        return found


def ZPlusRule(*, bias: Any = "share", fold: bool = True) -> AlphaBetaRule:  # noqa: N802 - one of the rules by name
    """The z+ rule: positive summands alone share, ``R_i = sum_j z_ij+ / sum_i z_ij+ R_j``.

    It is :class:`AlphaBetaRule` with alpha 1 and beta 0, and the same as deep Taylor decomposition behind ReLUs.

    Args:
        bias, fold: as for :class:`AffineRule`.

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
