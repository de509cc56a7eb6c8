"""Translates the rule objects of Captum's LRP into rules of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.captum_internals import lrp_rules
from captum_cav.errors import CAVTypeError
from captum_cav.propagation.rule import Rule
from captum_cav.rules.activations import PassThroughRule
from captum_cav.rules.affine import AffineRule, Bias, Share, Summands, inverse_of
from captum_cav.rules.lrp import EpsilonRule


def translate(rule: Any) -> Rule | None:
    """Translate a rule of Captum's LRP. In convolutions and linear layers both rules give the same numbers.

    Args:
        rule: an ``EpsilonRule``, ``GammaRule``, ``Alpha1_Beta0_Rule`` or ``IdentityRule`` of Captum, or any object.

    Returns:
        The rule. None for an object that is no rule of Captum's LRP.

    Raises:
        CAVTypeError: for a rule of Captum's LRP of another class, such as a user's subclass.

    Example::

        >>> from captum_cav.captum_internals import lrp_rules
        >>> translate(lrp_rules.EpsilonRule())
        EpsilonRule(epsilon=1e-09, fold=False)
    """
    if not isinstance(rule, lrp_rules.PropagationRule):
        return None
    if type(rule) is lrp_rules.IdentityRule:
        return PassThroughRule()
    if type(rule) is lrp_rules.EpsilonRule:
        return EpsilonRule(rule.STABILITY_FACTOR, fold=False)
    bias: Bias = "absorb" if getattr(rule, "set_bias_to_zero", False) else "share"
    if type(rule) is lrp_rules.GammaRule:
        return _RaisedWeights(1.0, rule.gamma, rule.STABILITY_FACTOR, bias=bias, fold=False)
    if type(rule) is lrp_rules.Alpha1_Beta0_Rule:
        return _RaisedWeights(0.0, 1.0, rule.STABILITY_FACTOR, bias=bias, fold=False)
    raise CAVTypeError(
        f"{type(rule).__name__} is a rule of Captum's LRP that captum_cav does not know; write it as a rules.Rule."
    )


@dataclass(frozen=True)
class _RaisedWeights(AffineRule):
    """Captum's gamma and alpha-1-beta-0 rules: the weight is ``plain * w + raised * max(w, 0)``, the bias unchanged."""

    plain: float
    raised: float
    epsilon: float

    uses_total: ClassVar[bool] = False

    def shares(self, summands: Summands) -> list[Share]:
        """The summands with the changed weights."""
        weight = summands.weight
        sums = summands.sum(summands.x, self.plain * weight + self.raised * weight.clamp(min=0))
        total = sums.detach() + summands.constant
        return [Share(sums, inverse_of(total + torch.copysign(total.new_full((), self.epsilon), total)))]
