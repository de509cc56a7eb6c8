"""Rules for the first layer, whose inputs (pixels, embeddings) mean little as single values.

The z-box, w-square and flat rules give contributions to inputs of value 0, too (see
:mod:`captum_cav.propagation.zeros`). In a later layer they give contributions to units of value 0. The default rules of
the layers before cannot pass such contributions on to inputs of value 0. So give these layers a rule as well:
:class:`EpsilonRule`, and :class:`PassThroughRule` for activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from captum_cav.errors import OptionError
from captum_cav.rules.affine import AffineRule, Bias, Share, Summands, inverse_of
from captum_cav.tensors import as_tensor


@dataclass(frozen=True, eq=False, repr=False)
class ZBoxRule(AffineRule):
    """The z-box rule for inputs between two bounds, such as pixels.

    ``R_i = sum_j u_ij / sum_i u_ij R_j`` with ``u_ij = x_i w_ij - low_i w_ij+ - high_i w_ij-``. The bias is an input
    that is always 1. Both its bounds are 1, so it has no share.

    Args:
        low: the lower bound, in units of the input. A number, or a tensor that broadcasts to the input. For pixels that
            are normalised by channel, the tensor has shape (1, 3, 1, 1).
        high: the upper bound, like ``low``.
        fold: see :class:`AffineRule`.

    Raises:
        OptionError: if ``low`` is not below ``high`` everywhere.

    Source: Montavon et al. 2017, section 5.2.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])                 # y = 1; u = 1*2 - 0*2 and 1*-1 - 2*-1
        >>> rules = {F.linear: ZBoxRule(low=0., high=2.)}
        >>> InputCAV(lambda x: F.linear(x, weight), rules=rules).attribute(torch.ones(1, 2))
        tensor([[0.6667, 0.3333]])
    """

    low: float | torch.Tensor
    high: float | torch.Tensor
    bias: Bias = field(default="share", init=False, repr=False)

    uses_total: ClassVar[bool] = False
    gives_to_zeros: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not bool((as_tensor(self.low) < as_tensor(self.high)).all()):
            raise OptionError(f"low is {self.low!r} and high {self.high!r}; expected low below high everywhere.")

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The differences of the summands from the least summands that the bounds allow."""
        weight = summands.weight
        differences = (
            summands.sum(summands.x, weight)
            - summands.sum(summands.in_place_of_x(self.low), weight.clamp(min=0))
            - summands.sum(summands.in_place_of_x(self.high), weight.clamp(max=0))
        )
        return [Share(differences, inverse_of(differences.detach()))]


@dataclass(frozen=True, repr=False)
class WSquareRule(AffineRule):
    """The w-square rule: ``R_i = sum_j w_ij^2 / sum_i w_ij^2 R_j``. The values of the inputs do not matter.

    Args:
        bias: with ``"absorb"`` the bias has no share, as in the formula. With ``"share"`` the bias counts as one more
            weight, and its share is a share of constants.
        fold: see :class:`AffineRule`.

    Raises:
        OptionError: for a ``bias`` that is neither ``"share"`` nor ``"absorb"``.

    Source: Montavon et al. 2017, section 4.1.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])
        >>> x = torch.tensor([[1., 0.]])
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: WSquareRule()}).attribute(x)
        tensor([[0.8000, 0.2000]])
    """

    bias: Bias = field(default="absorb", kw_only=True)

    uses_total: ClassVar[bool] = False
    gives_to_zeros: ClassVar[bool] = True

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The squared weights, with 1 in the place of each input."""
        squares = summands.sum(summands.in_place_of_x(torch.ones_like(summands.x)), summands.weight.square())
        return [Share(squares, inverse_of(squares.detach() + summands.constant.square()))]


@dataclass(frozen=True, repr=False)
class FlatRule(AffineRule):
    """The flat rule: the ``n_j`` inputs of an output get equal shares, ``R_i = sum_j 1 / n_j R_j``.

    Args:
        bias: with ``"absorb"`` the bias has no share, as in the formula. With ``"share"`` the bias counts as one more
            input, and its share is a share of constants.
        fold: see :class:`AffineRule`.

    Raises:
        OptionError: for a ``bias`` that is neither ``"share"`` nor ``"absorb"``.

    Source: Lapuschkin et al. 2019, supplementary note 1.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> weight = torch.tensor([[2., -1.]])
        >>> x = torch.tensor([[1., 0.]])
        >>> InputCAV(lambda x: F.linear(x, weight), rules={F.linear: FlatRule()}).attribute(x)
        tensor([[0.5000, 0.5000]])
    """

    bias: Bias = field(default="absorb", kw_only=True)

    uses_total: ClassVar[bool] = False
    gives_to_zeros: ClassVar[bool] = True

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The number of inputs of each output: the sums with 1 in the place of each input and each weight."""
        ones = torch.ones_like(summands.weight)
        counts = summands.sum(summands.in_place_of_x(torch.ones_like(summands.x)), ones)
        bias_shares = self.bias == "share" and summands.has_constant
        return [Share(counts, inverse_of(counts.detach() + float(bias_shares)))]
