"""Rules that are restricted to some places of a network: to its first layer, or to its fine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule


@dataclass(frozen=True, repr=False)
class _AtPlace(Rule):
    """A rule that governs operations only at some places.

    Args:
        rule: the rule.
    """

    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise CAVTypeError(
                f"{type(self).__name__} takes a rule, as {type(self).__name__}(rules.FlatRule()); got {self.rule!r}."
            )

    @property
    def operations(self) -> frozenset[str] | None:  # type: ignore[override]
        """The plain names of the functions that the rule governs."""
        return self.rule.operations

    @property
    def is_conserving(self) -> bool:  # type: ignore[override]
        """Whether the rule conserves contributions."""
        return self.rule.is_conserving

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value by the rule."""
        return self.rule(operation)


@dataclass(frozen=True, repr=False)
class AtInput(_AtPlace):
    """Restricts a rule to the first layer: to operations with no layer with weights between them and the inputs.

    Args:
        rule: the rule.

    Raises:
        CAVTypeError: for something other than a rule.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import rules
        >>> rules.AtInput(rules.FlatRule())              # the flat rule in the first layer, z+ in the others:
        AtInput(rule=FlatRule())
        >>> mapping = {F.conv2d: [rules.AtInput(rules.FlatRule()), rules.ZPlusRule()]}
    """

    def governs(self, operation: Operation) -> bool:
        """Whether the rule governs the operation, and the operation belongs to the first layer."""
        return operation.is_at_input and self.rule.governs(operation)


@dataclass(frozen=True, repr=False)
class AtFineMaps(_AtPlace):
    """Restricts a rule to fine maps: to operations that take a map of nearly the resolution of the network's input.

    The early layers of a convolutional network have fine maps, in which single values mean little. The later layers
    have coarse maps, in which single values stand for objects and their parts. So the two may need different rules.
    How fine a map is does not hang on the number of layers, or on the size of the picture.

    Args:
        rule: the rule.
        reduction: how many times smaller than the network's input a fine map may be in each direction. Layers without
            padding make maps a little smaller, so the bound is 1.4 times this number: a map of 27 x 27 of a picture of
            224 x 224 pixels is still one of the reduction 8. Of several inputs, the largest one counts.

    Raises:
        CAVTypeError: for something other than a rule.
        OptionError: for a reduction below 1.

    Example::

        >>> from torch.nn import functional as F
        >>> from captum_cav import rules
        >>> early, late = rules.AtFineMaps(rules.GammaRule(1.0)), rules.EpsilonRule()
        >>> early
        AtFineMaps(rule=GammaRule(gamma=1.0))
        >>> mapping = {F.conv2d: [early, late]}      # gamma up to an eighth of the input's resolution, then epsilon
    """

    reduction: float = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reduction >= 1:
            raise OptionError(f"reduction is {self.reduction!r}; expected a number of at least 1.")

    def governs(self, operation: Operation) -> bool:
        """Whether the rule governs the operation, and the operation takes a fine map."""
        reduction = operation.reduction
        return reduction is not None and reduction < self.reduction * 2**0.5 and self.rule.governs(operation)
