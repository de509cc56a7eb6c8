"""All presets by their names, and the rules that a user's option means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.presets.automatic import AUTO, auto, recommended
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
from captum_cav.propagation.rule import Rule
from captum_cav.suggestions import did_you_mean

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
        absolute_epsilon_flat,
    )
}
#: Names of the presets that need no arguments.
NAMES: tuple[str, ...] = tuple(name for name in PRESETS if name != "epsilon_gamma_box")


def find(rules: Any, model: Callable[..., Any]) -> Mapping[Any, Any]:
    """The mapping that an attribution uses for its option ``rules``.

    Args:
        rules: a mapping, the name of a preset, ``"auto"``, or None for the defaults.
        model: the model, which ``"auto"`` looks at.

    Returns:
        A mapping from keys to rules.

    Raises:
        OptionError: for an unknown name, or the name of a preset that needs arguments. For ``"auto"``, if nothing
            tells the kind of the model.
        CAVTypeError: for a value of another type.

    Example::

        >>> find("cp_lrp", len).name
        'cp_lrp'
    """
    if rules is None:
        return {}
    if isinstance(rules, str):
        return auto(model) if rules == AUTO else by_name(rules)()
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


def by_name(name: str) -> Callable[..., Preset]:
    """A preset that needs no arguments.

    Args:
        name: the name of a preset.

    Returns:
        The function that makes the preset.

    Raises:
        OptionError: for an unknown name, or the name of a preset that needs arguments.

    Example::

        >>> by_name("gamma")().name
        'gamma'
    """
    if name not in PRESETS:
        known = [*PRESETS, AUTO]
        raise OptionError(f"unknown preset {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}.")
    needed = _required_arguments(PRESETS[name])
    if needed:
        raise OptionError(
            f"the preset {name!r} needs {' and '.join(needed)}; pass rules=presets.{name}({', '.join(needed)})."
        )
    return PRESETS[name]


def name_for(rules: str, model: Callable[..., Any]) -> str:
    """The name of the preset that a name stands for: that of the recommended preset for ``"auto"``.

    Args:
        rules: the name of a preset, or ``"auto"``.
        model: the model, which ``"auto"`` looks at.

    Returns:
        The name of a preset.

    Raises:
        OptionError: see :func:`find`.

    Example::

        >>> from torch import nn
        >>> name_for("auto", nn.Linear(2, 2))
        'paper'
    """
    return recommended(model)[0] if rules == AUTO else by_name(rules).__name__


def _required_arguments(preset: Callable[..., Preset]) -> list[str]:
    """The names of the arguments of a preset that have no default."""
    parameters = inspect.signature(preset).parameters.items()
    return [name for name, parameter in parameters if parameter.default is inspect.Parameter.empty]
