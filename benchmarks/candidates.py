"""Rules to search among: few parameters, each with a reason.

The name of a candidate says what it is: parts joined by "+", each ``NAME=NUMBER``. ``pinpoint`` is "gamma=1", and
``absolute_epsilon_flat`` is "absolute=0.1+fine=8".

- ``gamma=1``: the gamma rule in convolutions, as ``pinpoint`` has it.
- ``absolute=0.3``: an absolute epsilon in the deep half of the convolutions instead, see
  ``captum_cav.rules.AbsoluteEpsilonRule``.
- ``deep=0.1``: another gamma in the deep half of the convolutions; with an absolute epsilon, both at once.
- ``fine=8``: gamma up to this reduction of the picture, and the absolute epsilon in all coarser maps, see
  ``captum_cav.rules.AtFineMaps``. It takes the place of ``share``.
- ``share=0.5``: which part of the convolutions is deep, if not half of them.
- ``slopes=0``: activations before a global average pooling keep their default rule.
- ``flat=0``: the first layer has the rule of the other layers.
- ``odds=1``: the log odds are explained, not the score of the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_cav import LayerCAV, Method, presets, rules

#: What the search looks at: presets, and candidates. All are compared with the first.
SEARCH = (
    "cav:pinpoint",
    "cav:epsilon_plus_flat",
    "cav:gamma",
    "cav",
    "gamma=0.25",
    "gamma=4",
    "gamma=1+slopes=0",
    "gamma=1+flat=0",
    "gamma=1+odds=1",
    "deep=0.1",
    "absolute=0.1",
    "absolute=0.3",
    "absolute=1",
    "absolute=0.3+share=0.25",
    "absolute=0.1+share=0.75",
    "absolute=0.3+gamma=4",
    "absolute=0.1+share=1",
    "absolute=0.2+share=1",
    "absolute=0.3+share=1",
    "absolute=0.1+share=1+deep=0.25",
    "absolute=0.1+share=1+slopes=0",
    "absolute=0.1+share=1+flat=0",
    "absolute=0.1+share=1+odds=1",
    "absolute=0.05+fine=8",
    "absolute=0.1+fine=8",
    "absolute=0.2+fine=8",
    "absolute=0.3+fine=8",
    "absolute=0.1+fine=4",
    "absolute=0.1+fine=16",
    "fine=8+deep=0.1",
    "fine=8+deep=0.25",
    "fine=8+deep=0.5",
    "absolute=0.1+fine=8+deep=0.1",
    "absolute=0.1+fine=8+deep=0.25",
    "absolute=0.3+fine=8+deep=0.1",
)
_DEFAULTS = {
    "gamma": 1.0,
    "absolute": 0.0,
    "deep": 0.0,
    "share": 0.5,
    "fine": 0.0,
    "slopes": 1.0,
    "flat": 1.0,
    "odds": 0.0,
}


@dataclass(frozen=True, repr=False)
class DampedGammaRule(rules.AffineRule):
    """The gamma rule with an absolute epsilon in its divisor.

    Args:
        gamma: see :class:`captum_cav.rules.GammaRule`.
        epsilon: see :class:`captum_cav.rules.AbsoluteEpsilonRule`.
    """

    gamma: float
    epsilon: float

    def shares(self, summands: rules.Summands) -> Sequence[rules.Share]:
        """All summands, and their absolute values with the sign of the output, as the gamma rule has them."""
        absolute = summands.absolute()
        signs = torch.copysign(torch.ones_like(summands.total), summands.total)
        size = absolute.detach() + summands.constant.abs()
        factor = rules.inverse_of(
            (1 + self.gamma / 2) * summands.total + (self.gamma / 2 + self.epsilon) * signs * size
        )
        return [rules.Share(None, factor, 1 + self.gamma / 2), rules.Share(absolute, factor, self.gamma / 2 * signs)]


def method_of(candidate: str, model: nn.Module) -> Method:
    """A candidate as a method for a network.

    Args:
        candidate: as above.
        model: the network; its convolutions stand in the order in which they run.

    Returns:
        ``LayerCAV`` with the rules and the score of the candidate.
    """
    options = _DEFAULTS | {name: float(value) for name, _, value in (p.partition("=") for p in candidate.split("+"))}
    unknown = options.keys() - _DEFAULTS.keys()
    if unknown:
        raise ValueError(f"{candidate} has the parts {sorted(unknown)}; expected some of {sorted(_DEFAULTS)}")
    chosen: dict[Any, Any] = dict(presets.pinpoint(options["gamma"]))
    if not options["slopes"]:
        chosen = {key: rule for key, rule in chosen.items() if not isinstance(rule, rules.MeanSlopeRule)}
    if not options["flat"]:
        chosen = {
            key: [one for one in rule if not isinstance(one, rules.AtInput)] if isinstance(rule, list) else rule
            for key, rule in chosen.items()
        }
    if options["absolute"] or options["deep"]:
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        first = round(len(convolutions) * (1 - options["share"]))
        rule = (
            DampedGammaRule(options["deep"], options["absolute"])
            if options["deep"]
            else rules.AbsoluteEpsilonRule(options["absolute"])
        )
        if options["fine"]:
            early = rules.AtFineMaps(rules.GammaRule(options["gamma"]), options["fine"])
            chosen |= {key: [*given[:-1], early, rule] for key, given in chosen.items() if isinstance(given, list)}
        else:
            # The first convolution keeps its rule for the input.
            chosen |= dict.fromkeys(convolutions[max(first, 1) :], rule)
    return Method(LayerCAV, rules=chosen, score="log_odds" if options["odds"] else "output")
