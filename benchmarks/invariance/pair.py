"""A pair of networks that compute the same in two ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_cav import presets

Function = Callable[..., torch.Tensor]

#: Every preset, by name. Inputs of the pairs are smaller than 6.
RULES: dict[str, Any] = {
    **{name: name for name in presets.NAMES},
    "epsilon_gamma_box": presets.epsilon_gamma_box(-6.0, 6.0),
}


#: The presets whose rules do not depend on the scale of a layer. LRP-epsilon is in units of the output.
OF_ANY_SCALE = ("paper", "gamma", "pinpoint")
#: Why a sum of exponentials is no part of a softmax if it divides later.
DIVIDED_LATER = (
    "The exponentials meet the values before their sum divides. There each factor takes its part of the product, and "
    "no softmax has been made yet."
)
#: Why what is added behind a view is no bias.
BEHIND_A_VIEW = (
    "A view lies between the product and the sum. It may mix positions and channels, so what is added behind the view "
    "is no bias of the layer in general."
)
#: Why a number behind a factor is no bias of the layer before the factor.
BEHIND_A_FACTOR = "A factor lies between the layer and the number, so that the number is no bias of the layer."
#: Why a sum of layers is not one layer.
SUM_OF_LAYERS = (
    "A rule of a layer shares the output of this layer. Several layers and a sum have several outputs, and one layer "
    "has one: residual branches and the two products of a recurrent cell are sums of layers, too."
)


@dataclass(frozen=True, eq=False)
class Spelling:
    """One way to write a function.

    Attributes:
        function: takes the output of the first layer, and ``arguments``. A module becomes a part of the network.
        arguments: further arguments of the network.
        are_inputs: whether ``arguments`` are inputs that are explained, too. Otherwise they are additional arguments.
    """

    function: Function
    arguments: tuple[torch.Tensor, ...] = ()
    are_inputs: bool = False


@dataclass(frozen=True, eq=False)
class Pair:
    """Two ways to write one function, which must get the same map.

    Attributes:
        group: what the function is.
        function_name, rewrite_name: names of the two ways.
        function: the usual way.
        rewrite: another way.
        shape: shape of the inputs.
        is_last: whether the function gives the scores, after the last linear layer. Otherwise the last linear layer
            takes the output of the function.
        presets: names of the presets for which the maps must be equal.
        undecidable: why nothing local tells that the rewrite is the same function. Empty for a rewrite that can be
            recognised.
    """

    group: str
    function_name: str
    rewrite_name: str
    function: Spelling
    rewrite: Spelling
    shape: tuple[int, ...] = (2, 4, 6)
    is_last: bool = False
    presets: tuple[str, ...] = tuple(RULES)
    undecidable: str = ""

    @property
    def name(self) -> str:
        """Names the function and the rewrite."""
        return f"{self.function_name}: {self.rewrite_name}"


def family(
    group: str,
    name: str,
    function: Function | Spelling,
    rewrites: Mapping[str, Function | Spelling],
    *,
    undecidable: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Pair]:
    """Pairs of one function and several rewrites.

    Args:
        group: what the function is.
        name: names the function.
        function: the usual way to write the function.
        rewrites: other ways, by name.
        undecidable: for some of the rewrites, by name, why nothing local tells that they are the same function.
        options: further attributes of each :class:`Pair`.
    """
    usual = _spelling(function)  # One object, so that the usual way is explained once for all rewrites.
    for rewrite, other in rewrites.items():
        reason = (undecidable or {}).get(rewrite, "")
        yield Pair(group, name, rewrite, usual, _spelling(other), undecidable=reason, **options)


def _spelling(function: Function | Spelling) -> Spelling:
    return function if isinstance(function, Spelling) else Spelling(function)


def made(make: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    """A module in float64 and in evaluation mode, with the same random weights every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make().double().eval()
