"""Rules for activations, or for anything: pass on, differentiate, stop, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.operations import TABLE
from captum_cav.operations.activations import pass_on
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
    """Equation 7 to the letter: an output's contribution is that of its own input, also where a ReLU is off.

    Given for a module, it takes the module's call as one operation, whatever runs inside. Units of value 0 pass on,
    too, what a rule behind them gave to zeros (:class:`FlatRule`, say), which the default of a ReLU does not.

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
        """The value over the input as the slope."""

        def slope(value: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = zeros.ratio(value, x)
            # What has no limit at 0, as a sigmoid, gave what it gave without its input.
            silent = found.abs() > 1 / torch.finfo(x.dtype).eps
            return found.masked_fill(silent, 0.0), silent

        return pass_on(operation, slope)


@dataclass(frozen=True, repr=False)
class GradientRule(Rule):
    """The plain derivative of whatever it is given for: gradient times activation instead of contributions.

    Nothing is conserved where the operation is not linear.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> x = torch.tensor([3.0])
        >>> InputCAV(torch.square, rules={torch.square: GradientRule()}, normalize=None).attribute(x)   # x * 2x
        tensor([18.])
    """

    is_derivative: ClassVar[bool] = True

    def __call__(self, operation: Operation, /) -> Any:
        """The operation, differentiated as torch does."""
        return operation.value()


@dataclass(frozen=True, repr=False)
class StopRule(Rule):
    """Contributions end here: what the operation gave counts as a constant.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> score = lambda x: torch.tanh(x) + x
        >>> x = torch.tensor([1.0])
        >>> InputCAV(score, rules={torch.tanh: StopRule()}, normalize=None).attribute(x)
        tensor([1.])
    """

    def __call__(self, operation: Operation, /) -> Any:
        """The value as a constant."""
        return operation.value_as_constant()


@dataclass(frozen=True, repr=False)
class MeanSlopeRule(Rule):
    """One slope a channel for the activation that a global average pooling follows.

    The default passes a contribution on with each position's own slope ``f(z) / z``, so a position where a ReLU is off
    says nothing. Averaged over the positions that are pooled, ``c_z = c_y mean(f(z) / z)``, the pre-activation keeps
    its sign: a place where the feature is absent, ``z < 0``, speaks against. What the positions then carry less than
    the value counts as the constants'. At the pre-activation this is Grad-CAM without its ReLU. Activations that no
    global average pooling follows keep their default.

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
        """Whether the operation is an activation of one carrier."""
        return super().governs(operation) and len(operation.sources) == 1

    def __call__(self, operation: Operation, /) -> Any:
        """The default, between two places where slopes may be averaged."""
        carrier = operation.sources[0]
        pooled = Pooled(operation.save(carrier), operation.shares())
        averaged = with_backward(carrier.detach(), pooled.average, carrier)
        if operation.in_place:
            averaged = averaged.clone()
        output = operation.on({id(carrier): averaged}).by_default()
        output = with_backward(output.detach(), pooled.settle, output)
        operation.handoff = pooled
        return operation.args[0].copy_(output) if operation.in_place else output


class Pooled(Poolable):
    """An activation whose positions a global average pooling behind it may average.

    Args:
        before: the value of the pre-activation.
        shares: where the activation reports shares of constants.
    """

    def __init__(self, before: SavedValue, shares: OperationShares) -> None:
        self._before = before
        self._shares = shares
        self._noted: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        self._dims: tuple[int, ...] | None = None

    def note(self, coefficients: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Take note of the coefficients that come through a pooling over some dimensions."""
        self._noted.append((coefficients, dims))

    def settle(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """Behind the activation: average if all that comes to its output came through one pooling."""
        noted, self._noted = self._noted, []
        self._dims = noted[0][1] if len(noted) == 1 and is_same_memory(coefficients, noted[0][0]) else None
        return (coefficients,)

    def average(self, coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        """In front of the activation: each position's own coefficients, as averages over what was pooled."""
        if self._dims is None:
            return (coefficients,)
        averages = coefficients.mean(self._dims, keepdim=True).expand_as(coefficients)
        if self._shares.are_measured:
            self._shares.enter((self._before.value * (coefficients - averages)).sum(dtype=torch.float64))
        return (averages,)
