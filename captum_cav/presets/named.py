"""The presets, each a function of its settings."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from captum_cav.presets.mapping import ACTIVATIONS, CONVOLUTIONS, DENSE, Preset
from captum_cav.rules.activations import MeanSlopeRule
from captum_cav.rules.attention import AttentionRule
from captum_cav.rules.first_layer import FlatRule, ZBoxRule
from captum_cav.rules.lrp import AbsoluteEpsilonRule, AlphaBetaRule, ContributionRule, EpsilonRule, GammaRule, ZPlusRule
from captum_cav.rules.norms import NormRule
from captum_cav.rules.places import AtFineMaps, AtInput
from captum_cav.rules.products import ProductRule


def paper() -> Preset:
    """The paper's rules. They are the defaults, so this mapping is empty.

    Operations that the paper does not treat have default rules, too.

    Source: Kakishita and Hattori, equations 1-9.

    Example::

        >>> from captum_cav import presets
        >>> presets.paper()
        preset paper
          the defaults
    """
    return Preset("paper")


def epsilon(epsilon: float = 1e-6) -> Preset:
    """LRP-epsilon in all affine layers: the paper's shares, damped where an output is near 0.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Raises:
        OptionError: for an epsilon that the rule does not allow.

    Source: Bach et al. 2015.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.epsilon(0.1)[F.linear]
        EpsilonRule(epsilon=0.1)
    """
    return Preset("epsilon", ((*CONVOLUTIONS, *DENSE), EpsilonRule(epsilon)))


def gamma(gamma: float = 0.25) -> Preset:
    """LRP-gamma in all affine layers: summands that agree with the sign of their output weigh more.

    Args:
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Raises:
        OptionError: for a gamma that the rule does not allow.

    Source: Montavon et al. 2019; Andéol et al. 2021.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.gamma(0.5)[F.conv2d]
        GammaRule(gamma=0.5)
    """
    return Preset("gamma", ((*CONVOLUTIONS, *DENSE), GammaRule(gamma)))


def epsilon_plus(epsilon: float = 1e-6) -> Preset:
    """The z+ rule in convolutions, LRP-epsilon in dense layers.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Raises:
        OptionError: for an epsilon that the rule does not allow.

    Source: Kohlbrenner et al. 2020.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.epsilon_plus()[F.conv2d]
        AlphaBetaRule(alpha=1.0, beta=0.0)
    """
    return Preset("epsilon_plus", (CONVOLUTIONS, ZPlusRule()), (DENSE, EpsilonRule(epsilon)))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Preset:
    """The z+ rule in convolutions, LRP-epsilon in dense layers, and the flat rule in the first layer.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Raises:
        OptionError: for an epsilon that the rule does not allow.

    Source: Kohlbrenner et al. 2020.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.epsilon_plus_flat()[F.linear]
        [AtInput(rule=FlatRule()), EpsilonRule()]
    """
    first = AtInput(FlatRule())
    return Preset("epsilon_plus_flat", (CONVOLUTIONS, [first, ZPlusRule()]), (DENSE, [first, EpsilonRule(epsilon)]))


def epsilon_gamma_box(
    low: float | torch.Tensor, high: float | torch.Tensor, epsilon: float = 1e-6, gamma: float = 0.25
) -> Preset:
    """LRP-gamma in convolutions, LRP-epsilon in dense layers, and the z-box rule in the first layer.

    Args:
        low, high: the least and the greatest possible value of an input: see :class:`captum_cav.rules.ZBoxRule`.
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Raises:
        OptionError: for bounds, an epsilon or a gamma that the rules do not allow.

    Source: Montavon et al. 2019.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.epsilon_gamma_box(low=-1.0, high=1.0)[F.conv2d]
        [AtInput(rule=ZBoxRule(low=-1.0, high=1.0)), GammaRule()]
    """
    first = AtInput(ZBoxRule(low, high))
    return Preset(
        "epsilon_gamma_box", (CONVOLUTIONS, [first, GammaRule(gamma)]), (DENSE, [first, EpsilonRule(epsilon)])
    )


def alpha2_beta1(epsilon: float = 1e-6) -> Preset:
    """LRP-alpha-beta with alpha 2 and beta 1 in convolutions, LRP-epsilon in dense layers.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Raises:
        OptionError: for an epsilon that the rule does not allow.

    Source: Bach et al. 2015; Kohlbrenner et al. 2020.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.alpha2_beta1(0.1)[F.linear]
        EpsilonRule(epsilon=0.1)
    """
    return Preset("alpha2_beta1", (CONVOLUTIONS, AlphaBetaRule(2.0, 1.0)), (DENSE, EpsilonRule(epsilon)))


def alpha2_beta1_flat(epsilon: float = 1e-6) -> Preset:
    """LRP-alpha-beta in convolutions, LRP-epsilon in dense layers, and the flat rule in the first layer.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Raises:
        OptionError: for an epsilon that the rule does not allow.

    Source: Kohlbrenner et al. 2020; the composite ``EpsilonAlpha2Beta1Flat`` of zennit.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.alpha2_beta1_flat()[F.conv2d]
        [AtInput(rule=FlatRule()), AlphaBetaRule()]
    """
    first = AtInput(FlatRule())
    return Preset(
        "alpha2_beta1_flat",
        (CONVOLUTIONS, [first, AlphaBetaRule(2.0, 1.0)]),
        (DENSE, [first, EpsilonRule(epsilon)]),
    )


def attnlrp(gamma: float = 0.0) -> Preset:
    """AttnLRP for transformers: queries, keys and gates carry contributions, and each factor of a product takes half.

    In norms the statistic that divides is a constant. For RMS norm this is proposition 3.4 of the source.

    The softmax does not conserve contributions. :func:`captum_cav.verify` tells how much each softmax leaves.

    This preset is not for recurrent layers. There each step halves the contributions again, and contributions of both
    signs grow without bound.

    Args:
        gamma: of the affine layers, see :class:`captum_cav.rules.GammaRule`. 0 is for language models, a larger number
            for vision transformers.

    Raises:
        OptionError: for a gamma that the rule does not allow.

    Source: Achtibat et al. 2024.

    Example::

        >>> import torch
        >>> from captum_cav import presets
        >>> presets.attnlrp()[torch.mul]
        [ProductRule(share='halves'), EpsilonRule()]
    """
    affine = GammaRule(gamma) if gamma else EpsilonRule()
    return Preset(
        "attnlrp",
        ((*CONVOLUTIONS, *DENSE, torch.mul), [ProductRule("halves"), affine]),
        ((F.scaled_dot_product_attention, torch.softmax, torch.div), AttentionRule("all")),
        ((F.layer_norm, F.rms_norm), NormRule("constant")),
    )


def cp_lrp() -> Preset:
    """CP-LRP for transformers: attention weights, gates and the statistics that norms divide by are constants.

    In a gated linear unit such as SwiGLU, the output of the activation is a gate.

    Source: Ali et al. 2022.

    Example::

        >>> import torch
        >>> from captum_cav import presets
        >>> presets.cp_lrp()[torch.softmax]
        AttentionRule()
    """
    return Preset(
        "cp_lrp",
        ((*CONVOLUTIONS, *DENSE, torch.mul), [ProductRule("activations"), EpsilonRule()]),
        ((F.scaled_dot_product_attention, torch.softmax), AttentionRule("values")),
        ((F.layer_norm, F.rms_norm), NormRule("constant")),
    )


def pinpoint(gamma: float = 1.0) -> Preset:
    """Sharp maps that point at the object of the class, for convolutional networks.

    If a picture shows two objects, the paper's rules mix them up, as a gradient does. The nearer a layer is to the
    input, the more they mix: shares of opposite signs amplify each other, and the absence of a feature contributes
    nothing. This preset does the following instead:

    - Convolutions have the gamma rule, so that summands that agree with the sign of their output weigh more. A batch
      norm right behind a convolution is folded in.
    - The first layer spreads each contribution evenly over the pixels that it sees (flat rule).
    - The activation before a global average pooling has one slope for each channel, so that the absence of a feature
      contributes negatively. Where no global average pooling follows (a flattened head, a class token), an activation
      keeps its default rule.
    - The classifier keeps the paper's rules, so that classes stay apart.

    The evidence of a layer shows before its activation. So explain the pre-activation of the last layer.

    The preset tells apart the classes that are in a picture. The map of a class that is not in the picture looks
    similar, up to its sign, and so does the map of a network whose classifier was randomised. With the paper's rules
    they differ far more. A part of this likeness is right: what the places of a picture do to the scores of two classes
    is alike, too, if it is measured (:func:`captum_cav.metrics.causal_effects`), though less than the maps are. So look
    at the paper's rules, too. ``python -m benchmarks.localization``, ``python -m benchmarks.faithfulness`` and
    ``python -m benchmarks.causes`` measure this.

    Args:
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Raises:
        OptionError: for a gamma that the rule does not allow.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> presets.pinpoint()[F.conv2d]
        [AtInput(rule=FlatRule()), GammaRule(gamma=1.0)]
    """
    return Preset(
        "pinpoint",
        (CONVOLUTIONS, [AtInput(FlatRule()), GammaRule(gamma)]),
        (DENSE, ContributionRule()),
        (ACTIVATIONS, MeanSlopeRule()),
    )


def absolute_epsilon_flat(epsilon: float = 0.1, gamma: float = 1.0) -> Preset:
    """Maps that agree with what the network does, for convolutional networks.

    Outputs whose summands cancel each other pass on large contributions of opposite signs under the paper's rules. This
    preset damps such outputs: the more the summands cancel, the less an output passes on. What is not passed on counts
    as a share of constants.

    - Convolutions have LRP-epsilon with an absolute epsilon. A batch norm right behind a convolution is folded in.
    - Early convolutions, up to an eighth of the resolution of the picture, have the gamma rule. There an absolute
      epsilon would scatter small parts of both signs over the whole picture.
    - The first layer spreads each contribution evenly over the pixels that it sees (flat rule).
    - The activation before a global average pooling has one slope for each channel, as with :func:`pinpoint`.
    - The classifier keeps the paper's rules, so that classes stay apart.

    The evidence of a layer shows before its activation. So explain the pre-activation of the last layer.

    Contributions get small from layer to layer, so compare places and classes, and not sums. In networks with many
    layers in a row they may be too small for float16; use float32 or bfloat16.

    The preset was chosen by what the parts of photographs measurably do to the scores
    (:func:`captum_cav.metrics.causal_effects`), and by whether maps point at the right one of several photographs. See
    ``python -m benchmarks.causes``, ``python -m benchmarks.choosing`` and ``python -m benchmarks.localization``.

    Args:
        epsilon: see :class:`captum_cav.rules.AbsoluteEpsilonRule`.
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Raises:
        OptionError: for an epsilon or a gamma that the rules do not allow.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import presets
        >>> for rule in presets.absolute_epsilon_flat()[F.conv2d]:
        ...     print(rule)
        AtInput(rule=FlatRule())
        AtFineMaps(rule=GammaRule(gamma=1.0))
        AbsoluteEpsilonRule(epsilon=0.1)
    """
    return Preset(
        "absolute_epsilon_flat",
        (CONVOLUTIONS, [AtInput(FlatRule()), AtFineMaps(GammaRule(gamma)), AbsoluteEpsilonRule(epsilon)]),
        (DENSE, ContributionRule()),
        (ACTIVATIONS, MeanSlopeRule()),
    )
