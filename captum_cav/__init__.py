"""Contribution Analysis Visualization (CAV) for PyTorch, as Captum attributions.

Which parts of this picture gave the network its score for this class? The score is followed back through the network.
In every layer each input gets its share of the output. CAV here does not mean the Concept Activation Vectors of
``captum.concept.CAV``.

Example::

    >>> import torch
    >>> from captum_cav import InputCAV
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 3.0]]))      # the score is 1 * 1 + 3 * 1
    >>> InputCAV(model).attribute(torch.ones(1, 2), target=0)
    tensor([[0.2500, 0.7500]])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from captum_cav.version import __version__ as __version__

if TYPE_CHECKING:
    from captum_cav import ablation as ablation
    from captum_cav import datasets as datasets
    from captum_cav import memory as memory
    from captum_cav import metrics as metrics
    from captum_cav import patching as patching
    from captum_cav import presets as presets
    from captum_cav import rules as rules
    from captum_cav import scores as scores
    from captum_cav import text as text
    from captum_cav import visualization as visualization
    from captum_cav import zoo as zoo
    from captum_cav.attribution import InputCAV, LayerCAV, NeuronCAV, verify
    from captum_cav.comparison import Comparison, Method, compare
    from captum_cav.compilation import compile  # noqa: A004 - as torch.compile
    from captum_cav.depths import layers
    from captum_cav.explanation import Explanation, explain
    from captum_cav.text import SequenceCAV

__all__ = [
    "Comparison",
    "Explanation",
    "InputCAV",
    "LayerCAV",
    "Method",
    "NeuronCAV",
    "SequenceCAV",
    "ablation",
    "compare",
    "compile",
    "datasets",
    "explain",
    "layers",
    "memory",
    "metrics",
    "patching",
    "presets",
    "rules",
    "scores",
    "text",
    "verify",
    "visualization",
    "zoo",
]

_MODULE_OF = {
    **dict.fromkeys(("InputCAV", "LayerCAV", "NeuronCAV", "verify"), "attribution"),
    "compile": "compilation",
    **dict.fromkeys(("Comparison", "Method", "compare"), "comparison"),
    "SequenceCAV": "text",
    **dict.fromkeys(("Explanation", "explain"), "explanation"),
    "layers": "depths",
}


def __getattr__(name: str) -> Any:
    # Captum imports matplotlib. Both load only when a name is used that needs them, so that the import is fast.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"captum_cav.{_MODULE_OF[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"captum_cav.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
