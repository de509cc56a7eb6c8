"""Presets: ready mappings of rules, which a user can print, copy and change.

Each preset is a mapping from torch functions to rules. An attribution takes a preset as ``rules``. A key for a module,
a name pattern or a type of module is more specific than a torch function, and takes precedence::

    >>> from captum_cav import presets, rules
    >>> changed = presets.gamma(0.5) | {"features.0": rules.FlatRule()}
    >>> print(presets.alpha2_beta1())
    preset alpha2_beta1
      conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, batch_norm: AlphaBetaRule()
      linear, matmul, mm, bmm, mv, addmm, addmv, einsum: EpsilonRule()
"""

from captum_cav.presets.automatic import AUTO, auto
from captum_cav.presets.finding import NAMES, PRESETS, by_name, find, name_for
from captum_cav.presets.mapping import Preset
from captum_cav.presets.named import (
    absolute_epsilon_flat,
    alpha2_beta1,
    alpha2_beta1_flat,
    attnlrp,
    cp_lrp,
    epsilon,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    gamma,
    paper,
    pinpoint,
)

__all__ = [
    "AUTO",
    "NAMES",
    "PRESETS",
    "Preset",
    "absolute_epsilon_flat",
    "alpha2_beta1",
    "alpha2_beta1_flat",
    "attnlrp",
    "auto",
    "by_name",
    "cp_lrp",
    "epsilon",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "find",
    "gamma",
    "name_for",
    "paper",
    "pinpoint",
]
