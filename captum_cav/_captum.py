"""The few private parts of Captum that have no public form, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules

from captum_cav.errors import CAVTypeError
from captum_cav.rules.affine import AffineRule, Bias, Share, Summands, inverse_of
from captum_cav.rules.elementwise import PassThroughRule
from captum_cav.rules.lrp import EpsilonRule
from captum_cav.rules.rule import Rule


def select_scores(output: torch.Tensor, target: Any) -> torch.Tensor:
    """The score of each sample as Captum's ``target`` selects it.

    Args:
        output: shape (N, ...), the model's output.
        target: a tuple of indices, a list of one per sample, or None if ``output`` is one score a sample.

    Returns:
        Shape (N,).
    """
    scores: torch.Tensor = _select_targets(output, target)
    return scores.reshape(output.shape[0])


def select_neuron(outputs: tuple[torch.Tensor, ...], selector: Any) -> torch.Tensor:
    """The value of one neuron of a layer, as Captum's ``neuron_selector`` selects it.

    Args:
        outputs: the layer's tensors, each of shape (N, ...).
        selector: an index, a tuple of indices or slices, or a function of the layer's output.

    Returns:
        Shape (N,).
    """
    selected: torch.Tensor = _verify_select_neuron(outputs, selector)
    return selected.reshape(selected.shape[0], -1).sum(1)


def is_rule(value: object) -> bool:
    """Whether a value is one of the rules of Captum's LRP."""
    return isinstance(value, lrp_rules.PropagationRule)


def translate_rule(rule: Any) -> Rule:
    """A rule of Captum's LRP as one of ours, with the same numbers in convolutions and linear layers.

    Args:
        rule: an ``EpsilonRule``, ``GammaRule``, ``Alpha1_Beta0_Rule`` or ``IdentityRule`` of Captum.

    Raises:
        CAVTypeError: for a rule of a class of the user's own.
    """
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
    """Captum's gamma and alpha-1 beta-0: ``w`` becomes ``plain * w + raised * max(w, 0)``, the bias stays as it is."""

    plain: float
    raised: float
    epsilon: float

    uses_total: ClassVar[bool] = False

    def shares(self, summands: Summands) -> list[Share]:
        """Shares of the summands with the changed weights."""
        weight = summands.weight
        sums = summands.sum(summands.x, self.plain * weight + self.raised * weight.clamp(min=0))
        total = sums.detach() + summands.constant
        return [Share(sums, inverse_of(total + torch.copysign(total.new_full((), self.epsilon), total)))]
