"""What type checkers know of the results of attributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

# A type variable with a default lets users write LayerCAV alone, without types in brackets. Python 3.10 to 3.12 have no
# such default, but type checkers know it.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Found = TypeVar("Found", default=Any)
    Deltas = TypeVar("Deltas", default=Any)
else:
    from typing import TypeVar

    Found = TypeVar("Found")
    Deltas = TypeVar("Deltas")

#: The attributions of one layer. Only the model tells whether the layer gives one tensor or several.
OfLayer: TypeAlias = torch.Tensor | Any
#: Inputs that are explained. Their attributions have the same form.
Inputs = TypeVar("Inputs", torch.Tensor, tuple[torch.Tensor, ...], Mapping[str, Any])
