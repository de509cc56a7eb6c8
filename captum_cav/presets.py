"""Ready mappings of rules: to be used as they are, printed, copied and changed.

Each preset is a mapping from torch functions to rules, as an attribution takes it for ``rules``. A key of your own, for
a module, a name pattern or a type, is more specific and goes before it::

    >>> from captum_cav import presets, rules
    >>> changed = presets.gamma(0.5) | {"features.0": rules.FlatRule()}
    >>> print(presets.alpha2_beta1())
    preset alpha2_beta1
      conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, batch_norm: AlphaBetaRule()
      linear, matmul, mm, bmm, mv, addmm, addmv, baddbmm, einsum: EpsilonRule()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.checks import did_you_mean
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

#: Convolutions, and the batch norm that no convolution takes in.
CONVOLUTIONS = TABLE.functions(Kind.CONVOLUTION)
#: Linear layers, and products with a weight in any other form.
DENSE = TABLE.functions(Kind.DENSE)
#: Activations that a global average pooling may follow.
ACTIVATIONS = TABLE.functions(Kind.ACTIVATION)


class Preset(dict[Any, Any]):
    """A mapping of rules that prints itself by rule.

    Args:
        name: its name.
        groups: pairs of keys and what rules them all: a rule or a list of rules.
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
            by_rule.setdefault(_written(value), []).append(_key(key))
        lines = [f"  {', '.join(keys)}: {value}" for value, keys in by_rule.items()]
        return "\n".join([f"preset {self.name}", *(lines or ["  the defaults"])])


def _written(value: Any) -> str:
    return " else ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, (type, torch.nn.Module)):
        return key.__name__ if isinstance(key, type) else type(key).__name__
    return TABLE.name_of(key) or repr(key)


def paper() -> Preset:
    """The paper's rules, and the defaults for what it leaves open: no overrides at all.

    Source: Kakishita and Hattori, equations 1-9.
    """
    return Preset("paper")


def epsilon(epsilon: float = 1e-6) -> Preset:
    """LRP-epsilon everywhere: the paper's shares, damped where an output is near 0.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Source: Bach et al. 2015.
    """
    return Preset("epsilon", ((*CONVOLUTIONS, *DENSE), EpsilonRule(epsilon)))


def gamma(gamma: float = 0.25) -> Preset:
    """LRP-gamma everywhere: what agrees with an output weighs more.

    Args:
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Source: Montavon et al. 2019; Andéol et al. 2021.
    """
    return Preset("gamma", ((*CONVOLUTIONS, *DENSE), GammaRule(gamma)))


def epsilon_plus(epsilon: float = 1e-6) -> Preset:
    """The z+ rule in convolutions, epsilon in dense layers.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Source: Kohlbrenner et al. 2020.
    """
    return Preset("epsilon_plus", (CONVOLUTIONS, ZPlusRule()), (DENSE, EpsilonRule(epsilon)))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Preset:
    """As :func:`epsilon_plus`, with the flat rule in the first layer.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Source: Kohlbrenner et al. 2020.
    """
    first = AtInput(FlatRule(bias="absorb"))
    return Preset("epsilon_plus_flat", (CONVOLUTIONS, [first, ZPlusRule()]), (DENSE, [first, EpsilonRule(epsilon)]))


def epsilon_gamma_box(
    low: float | torch.Tensor, high: float | torch.Tensor, epsilon: float = 1e-6, gamma: float = 0.25
) -> Preset:
    """Gamma in convolutions, epsilon in dense layers, z-box in the first layer.

    Args:
        low, high: the least and greatest value that an input can have: see :class:`captum_cav.rules.ZBoxRule`.
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.
        gamma: see :class:`captum_cav.rules.GammaRule`.

    Source: Montavon et al. 2019.
    """
    first = AtInput(ZBoxRule(low, high))
    return Preset(
        "epsilon_gamma_box", (CONVOLUTIONS, [first, GammaRule(gamma)]), (DENSE, [first, EpsilonRule(epsilon)])
    )


def alpha2_beta1(epsilon: float = 1e-6) -> Preset:
    """Alpha 2, beta 1 in convolutions, epsilon in dense layers.

    Args:
        epsilon: see :class:`captum_cav.rules.EpsilonRule`.

    Source: Bach et al. 2015; Kohlbrenner et al. 2020.
    """
    return Preset("alpha2_beta1", (CONVOLUTIONS, AlphaBetaRule(2.0, 1.0)), (DENSE, EpsilonRule(epsilon)))


def attnlrp(gamma: float = 0.0) -> Preset:
    """AttnLRP for transformers: queries, keys and gates carry, both factors of a product take half.

    Not for recurrent layers, where halves of halves at every step let contributions of both signs grow without bound.

    Args:
        gamma: of the affine layers; 0 for language models, larger for vision transformers.

    Source: Achtibat et al. 2024. Norms hold the statistic that divides constant, which is proposition 3.4 for RMS norm.
    """
    affine = GammaRule(gamma) if gamma else EpsilonRule()
    return Preset(
        "attnlrp",
        ((*CONVOLUTIONS, *DENSE, torch.mul), [ProductRule("halves"), affine]),
        ((F.scaled_dot_product_attention, torch.softmax), AttentionRule("all")),
        ((F.layer_norm, F.rms_norm), NormRule("constant")),
    )


def cp_lrp() -> Preset:
    """CP-LRP for transformers: attention weights, sigmoid and softmax gates and what norms divide by are constants.

    Source: Ali et al. 2022.
    """
    return Preset(
        "cp_lrp",
        ((*CONVOLUTIONS, *DENSE, torch.mul), [ProductRule("gates"), EpsilonRule()]),
        ((F.scaled_dot_product_attention, torch.softmax), AttentionRule("values")),
        ((F.layer_norm, F.rms_norm), NormRule("constant")),
    )


def pinpoint(gamma: float = 1.0) -> Preset:
    """Sharp maps that point at the object of the class, for convolutional networks.

    Of two objects in a picture the paper's rules, like a gradient, mix up the two the more the nearer to the input:
    shares of opposite signs blow each other up, and a feature that is absent says nothing. Here gamma keeps what agrees
    with an output together, a batch norm taken in; the activation before a global average pooling has one slope a
    channel, so that the absence of a feature speaks against; the classifier keeps the paper's rules, so that classes
    stay apart; and the first layer spreads each contribution over the pixels it looked at. The evidence of a layer
    sits before its activation: of the last one, look at the pre-activation. Where no global pooling follows an
    activation (a flattened head, a class token) that one has its default.

    It tells apart the classes that are in a picture. The map of one that is not, or of a network whose classifier was
    drawn anew, resembles it but for its sign, far more than with the paper's rules: look at both. Measured by
    ``python -m benchmarks.localization`` and ``benchmarks.faithfulness``.

    Args:
        gamma: see :class:`captum_cav.rules.GammaRule`.
    """
    return Preset(
        "pinpoint",
        (CONVOLUTIONS, [AtInput(FlatRule(bias="absorb")), GammaRule(gamma)]),
        (DENSE, ContributionRule()),
        (ACTIVATIONS, MeanSlopeRule()),
    )


def find(rules: Any) -> Mapping[Any, Any]:
    """The mapping that is meant by an attribution's ``rules``: a mapping, a preset's name, or None.

    Raises:
        OptionError: for an unknown name.
        CAVTypeError: for anything else.
    """
    if rules is None:
        return {}
    if isinstance(rules, str):
        if rules not in PRESETS:
            raise OptionError(
                f"unknown preset {rules!r}{did_you_mean(rules, PRESETS)}; expected one of {', '.join(PRESETS)}."
            )
        preset = PRESETS[rules]
        needed = _needed(preset)
        if needed:
            raise OptionError(
                f"the preset {rules!r} needs {' and '.join(needed)}; pass rules=presets.{rules}({', '.join(needed)})."
            )
        return preset()
    if isinstance(rules, Mapping):
        return rules
    if isinstance(rules, Rule) or rules in PRESETS.values():
        hint = (
            f"presets.{rules.__name__}({', '.join(_needed(rules))})"
            if not isinstance(rules, Rule)
            else "{torch.nn.Conv2d: rule}"
        )
        raise CAVTypeError(f"rules is {rules!r}; expected a mapping or a preset, as rules={hint}.")
    raise CAVTypeError(
        f"rules is a {type(rules).__name__}; expected a mapping from modules, names, types or torch functions to "
        "rules, a preset as presets.gamma(), or its name."
    )


def _needed(preset: Callable[..., Preset]) -> list[str]:
    """The arguments without which a preset cannot be made."""
    parameters = inspect.signature(preset).parameters.items()
    return [name for name, one in parameters if one.default is inspect.Parameter.empty]


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
        attnlrp,
        cp_lrp,
        pinpoint,
    )
}
#: Names of the presets that need no arguments.
NAMES: tuple[str, ...] = tuple(name for name in PRESETS if name != "epsilon_gamma_box")
