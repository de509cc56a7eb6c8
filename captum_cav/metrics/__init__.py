"""Measures of maps: how concentrated, how faithful and how well placed a map is. Captum's metrics work for layers too.

A map has shape (N, h, w): attributions, summed over channels. A positive place raised the score, also if the score is
negative (``LayerCAV(..., normalize="abs")``). Each measure returns one number for each example, shape (N,). Each
measure knows its name, its range, which values are better, and the arguments that it needs:

    >>> deletion.name, deletion.range, deletion.direction, sorted(deletion.needs)
    ('deletion', (0.0, 1.0), 'lower', ['inputs', 'maps', 'model', 'target'])

``MEASURES`` has all measures by name. The arguments have the same names in all measures: ``maps``, ``others`` (the maps
of another method), ``masks`` of the objects, ``scores``, ``model``, ``inputs``, ``target``, and ``explain``, a function
of model, inputs and targets that returns maps. So one dictionary of arguments serves all measures:

    >>> import torch
    >>> available = {"maps": torch.eye(2)[None], "masks": torch.eye(2)[None] > 0}
    >>> for measure in MEASURES.values():
    ...     if measure.needs <= available.keys():
    ...         print(measure.name, float(measure(**{name: available[name] for name in measure.needs})))
    sparseness 0.5
    entropy 0.5
    mass_accuracy 1.0
    rank_accuracy 1.0
    pointing_hit 1.0

No measure changes the model. Measures compute on the device of the inputs or of the maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from captum_cav.metrics.captum_metrics import infidelity, sensitivity_max
from captum_cav.metrics.complexity import completeness, entropy, sparseness
from captum_cav.metrics.effects import (
    CausalEffects,
    EffectAgreement,
    agreement_with_effects,
    causal_effects,
    effect_agreement,
)
from captum_cav.metrics.grids import difull, divide, focus, grid_pointing, shares_in_cells
from captum_cav.metrics.masks import mass_accuracy, pointing_hit, rank_accuracy
from captum_cav.metrics.measure import Direction, Measure
from captum_cav.metrics.perturbation import deletion, insertion, morf_lerf, single_deletion
from captum_cav.metrics.quantus import quantus_explain_func
from captum_cav.metrics.randomisation import model_randomisation, random_logit
from captum_cav.metrics.similarity import agreement, spearman

_ALL: tuple[Measure[...], ...] = (
    sparseness,
    entropy,
    completeness,
    agreement,
    mass_accuracy,
    rank_accuracy,
    pointing_hit,
    deletion,
    insertion,
    morf_lerf,
    single_deletion,
    effect_agreement,
    model_randomisation,
    random_logit,
    grid_pointing,
    focus,
    difull,
)
#: All measures by name.
MEASURES: Mapping[str, Measure[...]] = MappingProxyType({measure.name: measure for measure in _ALL})

__all__ = [
    "MEASURES",
    "CausalEffects",
    "Direction",
    "EffectAgreement",
    "Measure",
    "agreement",
    "agreement_with_effects",
    "causal_effects",
    "completeness",
    "deletion",
    "difull",
    "divide",
    "effect_agreement",
    "entropy",
    "focus",
    "grid_pointing",
    "infidelity",
    "insertion",
    "mass_accuracy",
    "model_randomisation",
    "morf_lerf",
    "pointing_hit",
    "quantus_explain_func",
    "random_logit",
    "rank_accuracy",
    "sensitivity_max",
    "shares_in_cells",
    "single_deletion",
    "sparseness",
    "spearman",
]
