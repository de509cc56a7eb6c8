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

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.operations import TABLE
from captum_cav.propagation.operation import Kind
from captum_cav.propagation.rule import Rule
from captum_cav.rules.activations import MeanSlopeRule
from captum_cav.rules.attention import AttentionRule
from captum_cav.rules.first_layer import AtInput, FlatRule, ZBoxRule
from captum_cav.rules.lrp import AlphaBetaRule, ContributionRule, EpsilonRule, GammaRule, ZPlusRule
from captum_cav.rules.norms import NormRule
from captum_cav.rules.products import ProductRule
from captum_cav.suggestions import did_you_mean

#: Convolutions, and batch norms that are not folded into a convolution.
CONVOLUTIONS = TABLE.functions(Kind.CONVOLUTION)
#: Linear layers, and other products with a weight.
DENSE = TABLE.functions(Kind.DENSE)
#: Activations. A global average pooling may follow them.
ACTIVATIONS = TABLE.functions(Kind.ACTIVATION)


class Preset(dict[Any, Any]):
    """A mapping of rules. Its printed form lists the keys of each rule.

    ``preset | mapping`` gives a changed copy.

    Args:
        name: the name that is printed.
        groups: pairs of several keys and their common value: a rule or a list of rules.
    """

    def __init__(self, name: str, *groups: tuple[Iterable[Any], Any]) -> None:
        super().__init__({key: value for keys, value in groups for key in keys})
        self.name = name

    def __or__(self, other: Mapping[Any, Any]) -> Preset:
        changed = Preset(f"{self.name}, changed")
        changed.update(self)
        changed.update(other)
        return changed

    def __repr__(self) -> str:
        by_rule: dict[str, list[str]] = {}
        for key, value in self.items():
            by_rule.setdefault(_printed_rules(value), []).append(_printed_key(key))
        lines = [f"  {', '.join(keys)}: {value}" for value, keys in by_rule.items()]
        return "\n".join([f"preset {self.name}", *(lines or ["  the defaults"])])


def _printed_rules(value: Any) -> str:
    return " else ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def _printed_key(key: Any) -> str:
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, (type, torch.nn.Module)):
        return key.__name__ if isinstance(key, type) else type(key).__name__
    return TABLE.name_of(key) or repr(key)


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


def find(rules: Any) -> Mapping[Any, Any]:
    """The mapping that an attribution uses for its option ``rules``.

    Args:
        rules: a mapping, the name of a preset, or None for the defaults.

    Returns:
        A mapping from keys to rules.

    Raises:
        OptionError: for an unknown name, or the name of a preset that needs arguments.
        CAVTypeError: for a value of another type.

    Example::

        >>> find("cp_lrp")[torch.softmax]
        AttentionRule()
    """
    if rules is None:
        return {}
    if isinstance(rules, str):
        if rules not in PRESETS:
            raise OptionError(
                f"unknown preset {rules!r}{did_you_mean(rules, PRESETS)}; expected one of {', '.join(PRESETS)}."
            )
        preset = PRESETS[rules]
        needed = _required_arguments(preset)
        if needed:
            raise OptionError(
                f"the preset {rules!r} needs {' and '.join(needed)}; pass rules=presets.{rules}({', '.join(needed)})."
            )
        return preset()
    if isinstance(rules, Mapping):
        return rules
    if isinstance(rules, Rule) or rules in PRESETS.values():
        hint = (
            f"presets.{rules.__name__}({', '.join(_required_arguments(rules))})"
            if not isinstance(rules, Rule)
            else "{torch.nn.Conv2d: rule}"
        )
        raise CAVTypeError(f"rules is {rules!r}; expected a mapping or a preset, as rules={hint}.")
    raise CAVTypeError(
        f"rules is a {type(rules).__name__}; expected a mapping from modules, names, types or torch functions to "
        "rules, a preset as presets.gamma(), or its name."
    )


def _required_arguments(preset: Callable[..., Preset]) -> list[str]:
    """The names of the arguments of a preset that have no default."""
    parameters = inspect.signature(preset).parameters.items()
    return [name for name, parameter in parameters if parameter.default is inspect.Parameter.empty]


#: All presets, by name.
PRESETS: dict[str, Callable[..., Preset]] = {
    preset.__name__: preset
    for preset in (
        paper,
        epsilon,
        gamma,
        epsilon_plus,
        epsilon_plus_flat,
        epsilon_gamma_box,
        alpha2_beta1,
        alpha2_beta1_flat,
        attnlrp,
        cp_lrp,
        pinpoint,
    )
}
#: Names of the presets that need no arguments.
NAMES: tuple[str, ...] = tuple(name for name in PRESETS if name != "epsilon_gamma_box")


def __dir__() -> list[str]:
    return [*PRESETS, "NAMES"]
