"""Rules that a user gives to activations, or to anything: pass on, differentiate, stop, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from captum_cav.propagation.account import Ledger
from captum_cav.propagation.kept import Kept, is_same
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.surroundings import OwnFunction
from captum_cav.rules import zero
from captum_cav.rules.activation import pass_on
from captum_cav.rules.linear import Poolable
from captum_cav.rules.rule import Rule


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
            found = zero.ratio(value, x)
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
        """The value, without a way back."""
        return operation.stopped()


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

    operations: ClassVar[frozenset[str] | None] = frozenset(
        "relu relu6 hardtanh leaky_relu rrelu prelu elu celu selu gelu silu hardswish mish softplus threshold".split()
    )

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is an activation of one carrier."""
        return super().governs(operation) and len(operation.sources) == 1

    def __call__(self, operation: Operation, /) -> Any:
        """The default, behind a place where slopes may be averaged."""
        carrier = operation.sources[0]
        pooled = Pooled(operation.keep(carrier), operation.ledger())
        averaged = _Averaged.apply(carrier, pooled)
        if operation.in_place:
            averaged = averaged.clone()
        output = _Arrived.apply(operation.on({id(carrier): averaged}).by_default(), pooled)
        operation.origin = pooled
        return operation.args[0].copy_(output) if operation.in_place else output


class Pooled(Poolable):
    """An activation between forward and backward pass, whose positions a pooling behind it may average."""

    def __init__(self, before: Kept, ledger: Ledger) -> None:
        self._before = before
        self._ledger = ledger
        self._noted: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        self._dims: tuple[int, ...] | None = None

    def note(self, coefficients: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Take note of the coefficients that come through a pooling over some dimensions."""
        self._noted.append((coefficients, dims))

    def settle(self, coefficients: torch.Tensor) -> None:
        """Average if all that came to the activation's output came through one pooling."""
        noted, self._noted = self._noted, []
        self._dims = noted[0][1] if len(noted) == 1 and is_same(coefficients, noted[0][0]) else None

    def average(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients of the pre-activation, each position's own, as averages over what was pooled."""
        if self._dims is None:
            return coefficients
        averages = coefficients.mean(self._dims, keepdim=True).expand_as(coefficients)
        if self._ledger.counts:
            self._ledger.enter((self._before.value * (coefficients - averages)).sum(dtype=torch.float64))
        return averages


class _Arrived(OwnFunction):
    """Identity behind the activation, where it is known whether to average."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, pooled: Pooled) -> torch.Tensor:
        ctx.pooled = pooled
        return y.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.pooled.settle(coefficients)
        return coefficients, None


class _Averaged(OwnFunction):
    """Identity in front of the activation, whose coefficients may be averaged."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pooled: Pooled) -> torch.Tensor:
        ctx.pooled = pooled
        return x.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.pooled.average(coefficients), None
