"""Rules for the layer that meets the input, where values say little by themselves: pixels, embeddings.

They give shares to inputs of value 0 too (:mod:`captum_cav.rules.zero`). Behind other layers, give those a rule as
well (:class:`EpsilonRule`, :class:`PassThroughRule` for activations): the defaults hand on coefficients, of which a
unit that is exactly 0 has none to give to inputs that are 0 themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.rules.affine import AffineRule, Bias, Share, Summands, inverse_of


@dataclass(frozen=True, eq=False, repr=False)
class ZBoxRule(AffineRule):
    """The z-box rule for inputs between bounds, as pixels are.

    ``u_ij = x_i w_ij - low_i w_ij+ - high_i w_ij-``, ``R_i = sum_j u_ij / sum_i u_ij R_j``. The bias, an input that is
    always 1, has no room between its bounds and so no share.

    Args:
        low: lower bound: a number, or a tensor that broadcasts to the input, as one of shape (1, 3, 1, 1) for pixels
            that are normalised by channel.
        high: upper bound.
        fold: as for :class:`AffineRule`.

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
        if not bool((torch.as_tensor(self.low) < torch.as_tensor(self.high)).all()):
            raise OptionError(f"low is {self.low!r} and high {self.high!r}; expected low below high everywhere.")

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The summands' distance from the least that the bounds allow."""
        weight = summands.weight
        room = (
            summands.sum(summands.x, weight)
            - summands.sum(summands.in_place_of_x(self.low), weight.clamp(min=0))
            - summands.sum(summands.in_place_of_x(self.high), weight.clamp(max=0))
        )
        return [Share(room, inverse_of(room.detach()))]


@dataclass(frozen=True, repr=False)
class WSquareRule(AffineRule):
    """The w-square rule: ``R_i = sum_j w_ij^2 / sum_i w_ij^2 R_j``, whatever the inputs are.

    Args:
        bias, fold: as for :class:`AffineRule`; the bias counts as a weight, squared.

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

    uses_total: ClassVar[bool] = False
    gives_to_zeros: ClassVar[bool] = True

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The squared weights, with 1 in the place of the input."""
        squares = summands.sum(summands.in_place_of_x(torch.ones_like(summands.x)), summands.weight.square())
        return [Share(squares, inverse_of(squares.detach() + summands.constant.square()))]


@dataclass(frozen=True, repr=False)
class FlatRule(AffineRule):
    """The flat rule: all inputs of an output share alike, ``R_i = sum_j 1 / n_j R_j``.

    Args:
        bias, fold: as for :class:`AffineRule`; the bias counts as an input.

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

    uses_total: ClassVar[bool] = False
    gives_to_zeros: ClassVar[bool] = True

    def shares(self, summands: Summands) -> Sequence[Share]:
        """The number of inputs, with 1 in the place of input and weight."""
        ones = torch.ones_like(summands.weight)
        count = summands.sum(summands.in_place_of_x(torch.ones_like(summands.x)), ones)
        biased = self.bias == "share" and summands.has_constant
        return [Share(count, inverse_of(count.detach() + float(biased)))]


@dataclass(frozen=True, repr=False)
class AtInput(Rule):
    """A rule for the first layer only: for operations before which no layer with weights has met the inputs.

    Args:
        rule: the rule.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import rules
        >>> mapping = {F.conv2d: [rules.AtInput(rules.FlatRule()), rules.ZPlusRule()]}
    """

    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise CAVTypeError(f"AtInput takes a rule, as AtInput(rules.FlatRule()); got {self.rule!r}.")

    @property
    def operations(self) -> frozenset[str] | None:  # type: ignore[override]
        """Those of the rule."""
        return self.rule.operations

    def governs(self, operation: Operation) -> bool:
        """Whether the rule does, and the operation is of the first layer."""
        return operation.is_at_input and self.rule.governs(operation)

    def __call__(self, operation: Operation, /) -> Any:
        """What the rule makes of the operation."""
        return self.rule(operation)
