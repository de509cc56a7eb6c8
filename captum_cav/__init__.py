"""Contribution Analysis Visualization (CAV) for PyTorch, as Captum attributions.

Which parts of this picture gave the network its score for this class? The score is followed back through the network;
in every layer each input gets its share of the output. Not to be confused with Concept Activation Vectors
(``captum.concept.CAV``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from captum_cav.version import __version__ as __version__

if TYPE_CHECKING:
    from captum_cav import ablation as ablation
    from captum_cav import metrics as metrics
    from captum_cav import presets as presets
    from captum_cav import rules as rules
    from captum_cav import visualization as visualization
    from captum_cav.attribution import InputCAV, LayerCAV, NeuronCAV, verify
    from captum_cav.comparison import Comparison, Method, compare

__all__ = [
    "Comparison",
    "InputCAV",
    "LayerCAV",
    "Method",
    "NeuronCAV",
    "ablation",
    "compare",
    "metrics",
    "presets",
    "rules",
    "verify",
    "visualization",
]

_WHERE = {
    **dict.fromkeys(("InputCAV", "LayerCAV", "NeuronCAV", "verify"), "attribution"),
    **dict.fromkeys(("Comparison", "Method", "compare"), "comparison"),
}


def __getattr__(name: str) -> Any:
    # Captum imports matplotlib; whoever imports only this package's name should not wait for either.
    if name in _WHERE:
        return getattr(importlib.import_module(f"captum_cav.{_WHERE[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"captum_cav.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
