"""Normalisations: the statistic that divides is a constant, the mean is linear.

Batch norm in evaluation mode is linear as it stands; its shift is a constant with a share of its own. Layer norm and
RMS norm have a surrogate each; the others are written out in their terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.errors import OptionError
from captum_cav.propagation.account import Ledger
from captum_cav.propagation.kept import Kept
from captum_cav.propagation.marks import Origin
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.surroundings import OwnFunction
from captum_cav.rules.elementwise import PassThroughRule
from captum_cav.rules.rule import Rule


class _Standardised(OwnFunction):
    """A value ``(x - mean) * scale * weight`` over some last dimensions, with the scale held constant."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        evaluate: Callable[[], torch.Tensor],
        scale: torch.Tensor,
        weight: torch.Tensor | None,
        centred_dims: tuple[int, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(scale, weight)
        ctx.centred_dims = centred_dims
        return evaluate()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        scale, weight = ctx.saved_tensors
        # The scale is one number for all that is averaged over, so it may come after the mean.
        if weight is None or torch.is_grad_enabled():
            coefficients = coefficients if weight is None else coefficients * weight
            if ctx.centred_dims:
                coefficients = coefficients - coefficients.mean(ctx.centred_dims, keepdim=True)
            return coefficients * scale, None, None, None, None
        # Memory is dear: a fresh tensor costs as much as two passes over one.
        coefficients = coefficients * weight
        if ctx.centred_dims:
            coefficients -= coefficients.mean(ctx.centred_dims, keepdim=True)
        return coefficients.mul_(scale), None, None, None, None


def layer_norm(operation: Operation) -> Any:
    """Layer norm: centred over the last dimensions, over a deviation that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, bias = operation.argument(2, "weight"), operation.argument(3, "bias")
    epsilon = operation.argument(4, "eps", 1e-5)
    if operation.carries(weight) or operation.carries(bias):
        return operation.inside(lambda: _scaled_and_shifted(F.layer_norm(x, shape, eps=epsilon), weight, bias))
    value, _, scale = torch.native_layer_norm(x.detach(), shape, weight, bias, epsilon)
    output: torch.Tensor = _Standardised.apply(x, lambda: value, scale, weight, tuple(range(-len(shape), 0)))
    if bias is not None and not operation.depends_on_inputs(bias):
        operation.add_constant(output, bias)
    return output


def rms_norm(operation: Operation) -> Any:
    """RMS norm: over a root mean square that is a constant."""
    x, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight, epsilon = operation.argument(2, "weight"), operation.argument(3, "eps")
    if operation.carries(weight):
        return operation.inside(lambda: F.rms_norm(x, shape, eps=epsilon) * weight)
    dims = tuple(range(-len(shape), 0))
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    scale = torch.rsqrt(x.detach().square().mean(dims, keepdim=True) + epsilon)
    return _Standardised.apply(x, operation.value, scale, weight, ())


def statistics_and_affine(operation: Operation) -> tuple[Any, ...]:
    """Input, running mean and variance, weight and bias of batch and instance norm.

    ``torch.nn.functional`` and ``torch`` order them differently.
    """
    functional = isinstance(operation.function, FunctionType)
    if functional and len(operation.args) >= len(_NORM_ARGUMENTS):
        return operation.args[: len(_NORM_ARGUMENTS)]
    order = _NORM_ARGUMENTS if functional else ("input", "weight", "bias", "running_mean", "running_var")
    given = {name: operation.argument(position, name) for position, name in enumerate(order)}
    return tuple(given[name] for name in _NORM_ARGUMENTS)


class InferenceNorm(NamedTuple):
    """Batch norm with running statistics: ``scale * x + shift``, one number a channel, to broadcast to the input."""

    scale: torch.Tensor
    shift: torch.Tensor


def inference_norm(operation: Operation) -> InferenceNorm | None:
    """Batch norm as the affine operation it is in evaluation mode; None for what is none."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    if operation.argument(5, "training", False) or operation.carries(weight) or operation.carries(bias):
        return None
    scale = _scale(variance, weight, operation.argument(7, "eps", 1e-5))
    return InferenceNorm(_per_channel(scale, x), _per_channel(_shift(mean, scale, bias), x))


def _scale(variance: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    scale = torch.rsqrt(variance + epsilon)
    return scale if weight is None else scale * weight


def _shift(mean: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    shift = -mean * scale
    return shift if bias is None else shift + bias


class Foldable(Origin):
    """What an operation leaves for a batch norm right behind it: the two may be ruled as one.

    Attributes:
        ledger: the operation's own.
    """

    ledger: Ledger

    def can_fold(self, channels: int) -> bool:
        """Whether a batch norm over so many channels is taken in."""
        raise NotImplementedError

    def fold(self, pair: Folded) -> None:
        """Take it in."""
        raise NotImplementedError


class Handed(NamedTuple):
    """What a batch norm had in the backward pass, and what it would do by itself.

    Attributes:
        coefficients: of its output.
        passed: of its input.
        held: what its shift keeps, a float64 scalar; None where nobody asks.
    """

    coefficients: torch.Tensor
    passed: torch.Tensor
    held: torch.Tensor | None


class Folded(Origin):
    """A batch norm behind an operation that takes it in.

    In the backward pass it hands on what it would by itself, which is what a tap between the two reads; the operation
    before it asks for what the pair gave instead. Whatever else takes that operation's output is no part of the pair.
    Where nobody reads it, what is handed on only has to be known again.

    Attributes:
        output: what the pair gave.
        norm: the batch norm.
    """

    def __init__(
        self,
        output: Kept,
        norm: InferenceNorm,
        ledger: Ledger,
        is_seen: bool,
        by_itself: Callable[[torch.Tensor], Handed] | None,
    ) -> None:
        self.output = output
        self.norm = norm
        self._ledger = ledger
        self._is_read = is_seen or ledger.counts
        self._by_itself = by_itself
        self._handed: Handed | None = None

    def hand_on(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients of the operation before, by the norm itself."""
        if not self._is_read:
            handed = Handed(coefficients, coefficients, None)
        elif self._by_itself is not None:
            handed = self._by_itself(coefficients)
        else:
            handed = self._as_it_stands(coefficients)
        if handed.held is not None:
            self._ledger.enter(handed.held)
        self._handed = handed
        return handed.passed

    def ask(self) -> Handed | None:
        """What was handed on in this backward pass, once; None if nothing came through the norm."""
        handed, self._handed = self._handed, None
        return handed

    def _as_it_stands(self, coefficients: torch.Tensor) -> Handed:
        scale, shift = self.norm
        held = None
        if self._ledger.counts:
            held = (shift * coefficients.sum_to_size(shift.shape)).sum(dtype=torch.float64)
        return Handed(coefficients, coefficients * scale, held)


class _Folded(OwnFunction):
    """A batch norm's value, with the coefficients of a pair."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, pair: Folded) -> torch.Tensor:
        ctx.pair = pair
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.pair.hand_on(coefficients), None, None


def foldable_before(operation: Operation) -> Foldable | None:
    """What may take in a batch norm, if its input comes right from such an operation."""
    x = operation.argument(0, "input")
    before = operation.origin_of(x)
    return before if isinstance(before, Foldable) and before.can_fold(x.shape[1]) else None


def folded(
    operation: Operation,
    norm: InferenceNorm,
    before: Foldable,
    alone: Callable[[], Callable[[torch.Tensor], Handed]] | None = None,
) -> torch.Tensor:
    """A batch norm's value that the operation before it takes in.

    Args:
        operation: the batch norm.
        norm: the same as an affine operation.
        before: the operation before.
        alone: gives what it does in the backward pass by a rule of its own; None as it stands.
    """
    x = operation.argument(0, "input")
    with torch.no_grad():
        value = operation.value()
    ledger = operation.ledger()
    # A layer between the two was asked for.
    is_seen = ledger.taps != before.ledger.taps
    by_itself = alone() if is_seen and alone is not None else None
    pair = Folded(operation.keep(value), norm, ledger, is_seen, by_itself)
    before.fold(pair)
    operation.origin = pair
    output: torch.Tensor = _Folded.apply(x, value, pair)
    return output


class _AtRest(OwnFunction):
    """Batch norm with running statistics; what it scales by is worked out in the backward pass.

    Not torch's own gradient: on CPU it is wrong where the coefficients come in another memory layout than the input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        epsilon: float,
    ) -> torch.Tensor:
        ctx.scaled_by = variance, weight, epsilon
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon, True)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None]:
        scale = _per_channel(_scale(*ctx.scaled_by), coefficients)
        return coefficients * scale, None, None, None, None, None


def batch_norm(operation: Operation) -> Any:
    """Batch norm: linear with running statistics; with the batch's own (none are kept), as layer norm."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    epsilon = operation.argument(7, "eps", 1e-5)
    if operation.argument(5, "training", False):

        def of_the_batch() -> torch.Tensor:
            channels_first = x.transpose(0, 1)
            rows = channels_first.reshape(x.shape[1], -1)
            standard = F.layer_norm(rows, rows.shape[1:], eps=epsilon).reshape(channels_first.shape).transpose(0, 1)
            return _scaled_and_shifted(standard, _per_channel(weight, x), _per_channel(bias, x))

        return operation.inside(of_the_batch)
    if operation.carries(weight) or operation.carries(bias):
        return operation.inside(
            lambda: _scaled_and_shifted(
                F.batch_norm(x, mean, variance, eps=epsilon), _per_channel(weight, x), _per_channel(bias, x)
            )
        )
    before = foldable_before(operation)
    if before is not None:
        norm = inference_norm(operation)
        assert norm is not None
        return folded(operation, norm, before)
    output: torch.Tensor = _AtRest.apply(x, mean, variance, weight, bias, epsilon)
    if operation.counts_constants:
        shift = _per_channel(_shift(mean, _scale(variance, weight, epsilon), bias), x)
        operation.add_constant(output, shift)
    return output


def group_norm(operation: Operation) -> Any:
    """Group norm: layer norm of each group's values, written out."""
    x, groups, weight, bias = (
        operation.argument(position, name) for position, name in enumerate(("input", "num_groups", "weight", "bias"))
    )
    return operation.inside(_grouped, x, groups, weight, bias, operation.argument(4, "eps", 1e-5))


def instance_norm(operation: Operation) -> Any:
    """Instance norm: a group a channel, or batch norm where it uses running statistics."""
    x, mean, variance, weight, bias = statistics_and_affine(operation)
    epsilon = operation.argument(7, "eps", 1e-5)
    if not operation.argument(5, "use_input_stats", True):
        return operation.inside(F.batch_norm, x, mean, variance, weight, bias, eps=epsilon)
    return operation.inside(_grouped, x, x.shape[1], weight, bias, epsilon)


def renorm(operation: Operation) -> Any:
    """``torch.renorm``: slices along a dimension, scaled down by a norm that is a constant."""
    x, p, dim, most = (operation.argument(i, name) for i, name in enumerate(("input", "p", "dim", "maxnorm")))
    others = [other for other in range(x.dim()) if other != dim % x.dim()]
    norms = torch.linalg.vector_norm(x.detach(), p, others, keepdim=True)
    return operation.inside(torch.mul, x, torch.where(norms > most, most / (norms + 1e-7), 1.0))


def _grouped(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    rows = x.reshape(x.shape[0], groups, -1)
    standard = F.layer_norm(rows, rows.shape[2:], eps=epsilon).reshape(x.shape)
    return _scaled_and_shifted(standard, _per_channel(weight, x), _per_channel(bias, x))


def _per_channel(values: Any, x: torch.Tensor) -> Any:
    return None if values is None else values.reshape(-1, *[1] * (x.dim() - 2))


def _scaled_and_shifted(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


@dataclass(frozen=True, repr=False)
class NormRule(Rule):
    """Layer, RMS, group, instance and batch norms.

    Args:
        statistic: ``"constant"``, the default of all norms: what divides is a constant and the mean is linear;
            ``"identity"``: each output's contribution is that of its own input, ``R_i = R_j`` for i = j.

    Source: Ali et al. 2022 (constant); Achtibat et al. 2024, proposition 3.4 (identity).

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> score = lambda x: F.layer_norm(x, (2,))[:, 0]
        >>> x = torch.tensor([[3., 1.]])
        >>> InputCAV(score).attribute(x)
        tensor([[ 1.5000, -0.5000]])
        >>> InputCAV(score, rules={F.layer_norm: NormRule("identity")}).attribute(x)
        tensor([[1., -0.]])
    """

    statistic: Literal["constant", "identity"] = "constant"

    operations: ClassVar[frozenset[str] | None] = frozenset(
        "layer_norm rms_norm group_norm instance_norm batch_norm local_response_norm normalize".split()
    )

    def __post_init__(self) -> None:
        if self.statistic not in ("constant", "identity"):
            raise OptionError(f'statistic is {self.statistic!r}; expected "constant" or "identity".')

    def __call__(self, operation: Operation, /) -> Any:
        """The default, or pass-through."""
        return operation.by_default() if self.statistic == "constant" else PassThroughRule()(operation)


#: What is standardised is what it was: fused norms and those written out must agree.
KEEPING_WEIGHTS = frozenset("layer_norm rms_norm group_norm instance_norm batch_norm".split())
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias")

RULES: dict[str, Surrogate] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "renorm": renorm,
    # Their own Python bodies divide by a statistic, which the rule of division holds constant.
    **dict.fromkeys(("local_response_norm", "normalize"), Operation.reentered),
}
