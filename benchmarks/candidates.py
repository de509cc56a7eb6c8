"""Rules that no preset has, to search among: few parameters, each with a reason.

The name of a candidate says what it is: parts joined by "+", each ``NAME=NUMBER``.

- ``gamma=1``: the gamma rule in convolutions, as ``pinpoint`` has it.
- ``absolute=0.3``: an absolute epsilon in the deep half of the convolutions instead, see
  ``captum_cav.rules.AbsoluteEpsilonRule``.
- ``share=0.5``: which part of the convolutions is deep, if not half of them.
- ``slopes=0``: activations before a global average pooling keep their default rule.
- ``flat=0``: the first layer has the rule of the other layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from captum_cav import presets, rules

#: What the search looks at. The first is ``pinpoint``.
SEARCH = (
    "gamma=1",
    "gamma=0.25",
    "gamma=4",
    "absolute=0.1",
    "absolute=0.3",
    "absolute=1",
    "absolute=0.3+share=0.25",
    "absolute=0.3+share=1",
    "absolute=0.3+slopes=0",
    "absolute=0.3+gamma=0.25",
    "gamma=1+slopes=0",
    "gamma=1+flat=0",
)
_DEFAULTS = {"gamma": 1.0, "absolute": 0.0, "share": 0.5, "slopes": 1.0, "flat": 1.0}


def rules_of(candidate: str, model: nn.Module) -> Mapping[Any, Any]:
    """The rules of a candidate for a network.

    Args:
        candidate: as above.
        model: the network; its convolutions stand in the order in which they run.

    Returns:
        What ``LayerCAV`` takes as ``rules``.
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
    if options["absolute"]:
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        first = round(len(convolutions) * (1 - options["share"]))
        # The first convolution keeps its rule for the input.
        for module in convolutions[max(first, 1) :]:
            chosen[module] = rules.AbsoluteEpsilonRule(options["absolute"])
    return chosen
