"""The preset that the benchmarks recommend for the kind of network at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from captum_cav.errors import OptionError
from captum_cav.presets.mapping import Preset
from captum_cav.presets.named import absolute_epsilon_flat, gamma, paper

#: The name that stands for the recommended preset.
AUTO = "auto"
# In a network with these modules, attention or a state mixes the places of an input, or nothing was measured.
_MIXERS = {
    "attention": (nn.MultiheadAttention,),
    "layer norm": (nn.LayerNorm, nn.RMSNorm),
    "a recurrent layer": (nn.RNNBase,),
}
# Norms that centre what they are given. A norm of weights, or a local response norm, does not.
_NORMS = ("batchnorm", "groupnorm", "instancenorm")
# Modules with weights. A model without them computes with functions alone, and nothing tells its kind.
_LAYERS = (
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *(kind for kinds in _MIXERS.values() for kind in kinds),
)


def auto(model: Callable[..., Any]) -> Preset:
    """The preset that the benchmarks recommend for the kind of network at hand. Its printed form says which, and why.

    - A network with at least two 2-D convolutions and with norms has :func:`absolute_epsilon_flat`.
    - Such a network without norms has :func:`gamma`. On one of the two that were measured, the mean slopes of
      :func:`absolute_epsilon_flat` turned some maps round.
    - A transformer, a recurrent network and any other network has :func:`paper`, the rules of the paper.

    The modules of the model tell the kind: torch's own, and their subclasses. A network that has convolutions and
    also attention, layer norms or recurrent layers counts as a transformer, because no such network was measured. Norms
    are batch, group and instance norms: modules whose class, or a class that it is derived from, is called so.

    The recommendation rests on six networks for photographs and on one encoder of sentences:
    ``python -m benchmarks.causes`` and ``python -m benchmarks.sentences``.

    Args:
        model: the model, with its modules.

    Returns:
        The preset, as the name ``"auto"`` gives it.

    Raises:
        OptionError: if the model is no module, or none of its modules tells the kind.

    Example::

        >>> from torch import nn
        >>> from captum_cav import presets
        >>> presets.auto(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        preset auto: paper, as the model has fewer than two 2-D convolutions
          the defaults
    """
    name, reason = recommended(model)
    chosen = Preset(f"{AUTO}: {name}", title=f"{AUTO}: {name}, as the model has {reason}")
    chosen.update({preset.__name__: preset for preset in (paper, gamma, absolute_epsilon_flat)}[name]())
    return chosen


def recommended(model: Callable[..., Any]) -> tuple[str, str]:
    """The name of the preset that :func:`auto` gives, and what the model has that decides.

    Args:
        model: the model, with its modules.

    Returns:
        The name of a preset, and the reason.

    Raises:
        OptionError: if the model is no module, or none of its modules tells the kind.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if not any(isinstance(module, _LAYERS) for module in modules):
        raise OptionError(
            f'rules="{AUTO}" goes by the layers that the model has as modules, but '
            f"{type(model).__name__} has none; expected the name of a preset, such as "
            f"rules={absolute_epsilon_flat.__name__!r} for a convolutional network or rules={paper.__name__!r} for a "
            "transformer."
        )
    for name, kinds in _MIXERS.items():
        if any(isinstance(module, kinds) for module in modules):
            return paper.__name__, name
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    if convolutions < 2:
        return paper.__name__, "fewer than two 2-D convolutions"
    found = f"{convolutions} 2-D convolutions, and no attention,"
    if any(norm in kind.__name__.lower() for module in modules for kind in type(module).__mro__ for norm in _NORMS):
        return absolute_epsilon_flat.__name__, f"{found} layer norm or recurrent layer"
    return gamma.__name__, f"{found} norm or recurrent layer"
