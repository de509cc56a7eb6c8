"""Rules for activations. :class:`GradientRule` and :class:`StopRule` can be given for any other operation, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.operations import TABLE
from captum_cav.operations.elementwise import pass_on
from captum_cav.operations.pooled import Poolable
from captum_cav.operations.surrogates import in_place_with_backward, with_backward
from captum_cav.propagation import zeros
from captum_cav.propagation.constant_shares import OperationShares
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.marks import Handoff
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.propagation.saved_values import SavedValue


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

    Given for a module, this rule treats the module's whole call as one operation, whatever runs inside.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> score = lambda x: torch.tanh(x) + x
        >>> x = torch.tensor([1.0])
        >>> InputCAV(score, rules={torch.tanh: StopRule()}, normalize=None).attribute(x)
        tensor([1.])
    """

    as_one: ClassVar[bool] = True

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value as a constant."""
        return operation.value_as_constant()


@dataclass(frozen=True, repr=False)
class MeanSlopeRule(Rule):
    """One slope for each channel, for an activation that a global average pooling follows.

    By default each position has its own slope ``f(z) / z``. So a position where a ReLU gives 0 contributes nothing.
    This rule takes the mean slope of all positions that are pooled, ``c_z = c_y mean(f(z) / z)``. Then the sign of the
    pre-activation counts: a position where the feature is absent, ``z < 0``, contributes negatively.

    Positions are pooled if their outputs have equal coefficients ``c_y``. A global average pooling makes them equal,
    whatever torch functions it is written with. Where the coefficients differ, an activation keeps its default rule.

    The difference between the contributions behind and before the activation counts as a share of constants.

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
        """The default value, whose slopes are averaged over the positions that are pooled."""
        carrier, shares = operation.sources[0], operation.shares()
        layer = operation.handoff_of(carrier)
        pooled = _Pooled(operation.save(carrier) if shares.are_measured else None, shares, layer)
        rectifiers = 0 if layer is None else layer.rectifiers
        if operation.in_place:  # The activation writes over the carrier, which stays the same tensor.
            averaged = in_place_with_backward(carrier, pooled.average)
            output = in_place_with_backward(operation.on({id(carrier): averaged}).by_default(), pooled.find)
        else:
            averaged = with_backward(carrier.detach(), pooled.average, carrier)
            operation.mark_as(averaged, carrier)
            output = operation.on({id(carrier): averaged}).by_default()
            output = with_backward(output.detach(), pooled.find, output)
        pooled.is_rectifier = layer is not None and layer.rectifiers > rectifiers
        pooled.beside = operation.handoff
        operation.handoff = pooled
        return output


class _Pooled(Poolable):
    """An activation whose slopes are averaged over positions with equal coefficients.

    Args:
        before: the saved value of the pre-activation. None if shares of constants are not measured.
        shares: where the activation reports shares of constants.
        layer: the handoff of the operation before. None if it left none.

    Attributes:
        is_rectifier: whether the operation before counts the activation as a rectifier. It is none where its slopes are
            averaged.
    """

    is_rectifier = False

    def __init__(self, before: SavedValue | None, shares: OperationShares, layer: Handoff | None) -> None:
        self._before = before
        self._shares = shares
        self._layer = layer
        self._counts = True
        self._is_pooled: list[tuple[int, torch.Tensor]] = []

    def find(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """Behind the activation: find the lines along each dimension on which all coefficients are equal."""
        dims = [dim for dim in range(1, coefficients.dim()) if self.may_be_pooled and coefficients.shape[dim] > 1]
        self._is_pooled = [(dim, _is_uniform(coefficients, dim)) for dim in dims]
        return (coefficients,)

    def average(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """Before the activation: replace the coefficients on these lines by their mean."""
        if self.is_rectifier and self._layer is not None and self._counts is bool(self._is_pooled):
            self._counts = not self._counts
            self._layer.rectifiers += 1 if self._counts else -1
        if not self._is_pooled:
            return (coefficients,)
        averages = coefficients
        for dim, is_pooled in self._is_pooled:
            averages = torch.where(is_pooled, averages.mean(dim, keepdim=True), averages)
        self._is_pooled = []
        if self._before is not None:
            self._shares.enter((self._before.value * (coefficients - averages)).sum(dtype=torch.float64))
        return (averages,)


def _is_uniform(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Whether all elements are equal along a dimension, which keeps size 1."""
    return torch.eq(x, x.narrow(dim, 0, 1)).all(dim, keepdim=True)
