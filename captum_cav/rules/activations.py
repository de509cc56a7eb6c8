"""Rules for activations. :class:`GradientRule` and :class:`StopRule` can be given for any other operation, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.operations import TABLE
from captum_cav.operations.elementwise import pass_on
from captum_cav.operations.sums import Poolable
from captum_cav.operations.surrogates import with_backward
from captum_cav.propagation import zeros
from captum_cav.propagation.constant_shares import OperationShares
from captum_cav.propagation.operation import Kind, Operation
from captum_cav.propagation.rule import Rule
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.tensors import is_same_memory


@dataclass(frozen=True, repr=False)
class PassThroughRule(Rule):
    """Equation 7 without exceptions: each output's contribution goes to its own input, also where a ReLU gives 0.

    Given for a module, this rule treats the module's whole call as one operation, whatever runs inside.

    Some rules give contributions to units of value 0, such as :class:`FlatRule`. This rule passes such contributions
    on. The default rule of ReLU does not.

    Source: Kakishita and Hattori, equation 7.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> class Gated(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x * torch.tanh(x)
        >>> net = torch.nn.Sequential(Gated())
        >>> x = torch.tensor([[2.0]])
        >>> InputCAV(net, rules={Gated: PassThroughRule()}).attribute(x)
        tensor([[1.]])
    """

    as_one: ClassVar[bool] = True

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value, with value / input as the slope."""

        def slope(value: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            ratio = zeros.ratio(value, x)
            # The ratio of some functions, such as the sigmoid, has no limit at 0: there the value is a constant.
            is_constant = ratio.abs() > 1 / torch.finfo(x.dtype).eps
            return ratio.masked_fill(is_constant, 0.0), is_constant

        return pass_on(operation, slope)


@dataclass(frozen=True, repr=False)
class GradientRule(Rule):
    """The plain derivative of the operation, so that contributions are gradient x activation.

    Where the operation is not linear, contributions are not conserved.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> x = torch.tensor([3.0])
        >>> InputCAV(torch.square, rules={torch.square: GradientRule()}, normalize=None).attribute(x)   # x * 2x
        tensor([18.])
    """

    is_derivative: ClassVar[bool] = True

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value, differentiated as torch does."""
        return operation.value()


@dataclass(frozen=True, repr=False)
class StopRule(Rule):
    """Contributions end here: the output of the operation counts as a constant.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> score = lambda x: torch.tanh(x) + x
        >>> x = torch.tensor([1.0])
        >>> InputCAV(score, rules={torch.tanh: StopRule()}, normalize=None).attribute(x)
        tensor([1.])
    """

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value as a constant."""
        return operation.value_as_constant()


@dataclass(frozen=True, repr=False)
class MeanSlopeRule(Rule):
    """One slope for each channel, for an activation that a global average pooling follows.

    By default each position has its own slope ``f(z) / z``. So a position where a ReLU gives 0 contributes nothing.
    This rule takes the mean slope of all positions that are pooled, ``c_z = c_y mean(f(z) / z)``. Then the sign of the
    pre-activation counts: a position where the feature is absent, ``z < 0``, contributes negatively.

    The difference between the contributions behind and before the activation counts as a share of constants. An
    activation that no global average pooling follows keeps its default rule.

    Source: at the pre-activation the map is that of Grad-CAM (Selvaraju et al. 2017) without its ReLU.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> z = torch.tensor([[[3., -1.]]])                       # one channel, two positions; slopes 1 and 0
        >>> InputCAV(lambda z: F.relu(z).mean(2), rules={F.relu: MeanSlopeRule()}, normalize=None).attribute(z, 0)
        tensor([[[ 0.7500, -0.2500]]])
    """

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.ACTIVATION)

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is an activation in which one tensor depends on the inputs."""
        return super().governs(operation) and len(operation.sources) == 1

    def __call__(self, operation: Operation, /) -> Any:
        """The default value, in which a pooling behind it may average the slopes."""
        carrier = operation.sources[0]
        pooled = Pooled(operation.save(carrier), operation.shares())
        averaged = with_backward(carrier.detach(), pooled.average, carrier)
        if operation.in_place:
            averaged = averaged.clone()
        output = operation.on({id(carrier): averaged}).by_default()
        output = with_backward(output.detach(), pooled.decide, output)
        operation.handoff = pooled
        return operation.args[0].copy_(output) if operation.in_place else output


class Pooled(Poolable):
    """An activation whose slopes are averaged if a global average pooling takes its output.

    Args:
        before: the saved value of the pre-activation.
        shares: where the activation reports shares of constants.
    """

    def __init__(self, before: SavedValue, shares: OperationShares) -> None:
        self._before = before
        self._shares = shares
        self._poolings: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        self._dims: tuple[int, ...] | None = None

    def note(self, coefficients: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Note the coefficients that come through a pooling over some dimensions."""
        self._poolings.append((coefficients, dims))

    def decide(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """Behind the activation: decide to average if all coefficients of the output came through one pooling."""
        noted, self._poolings = self._poolings, []
        self._dims = noted[0][1] if len(noted) == 1 and is_same_memory(coefficients, noted[0][0]) else None
        return (coefficients,)

    def average(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """Before the activation: replace each position's coefficient by the mean over the pooled positions."""
        if self._dims is None:
            return (coefficients,)
        averages = coefficients.mean(self._dims, keepdim=True).expand_as(coefficients)
        if self._shares.are_measured:
            self._shares.enter((self._before.value * (coefficients - averages)).sum(dtype=torch.float64))
        return (averages,)
