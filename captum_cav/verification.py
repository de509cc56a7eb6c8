"""What to run first on a new model: does every operation pass on what it is given?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav.attribution import InputCAV, LayerCAV, Rules
from captum_cav.propagation.forward import names_in
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.operation import describe_rule
from captum_cav.propagation.records import Unknown
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.scores import Score
from captum_cav.tensors import tensors_in
from captum_cav.torch_internals import tree_map


@dataclass(frozen=True)
class Leak:
    """An operation whose contributions do not add up.

    Attributes:
        module: qualified name of the innermost module that it ran in, or its type where it has no name; empty outside.
        operation: the torch function.
        rule: its rule.
        residual: what its output contributed, less what its inputs and constants did, over the score.
    """

    module: str
    operation: str
    rule: str
    residual: float


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found; prints itself.

    Attributes:
        score: the sum of the scores of all samples.
        delta: what inputs (or layer) and constants leave of it, over the score. Where a layer does not cut the network,
            what bypasses it.
        cancellation: the sum of the absolute contributions of inputs (or layer) over the absolute score: 1 where all
            agree in sign, large where what raised the score and what lowered it cancel, and take digits with them.
        value: the largest difference between the model's output and what it is without captum_cav, over the largest
            output.
        operations: how many operations were compared.
        leaks: those that do not conserve, the largest residual first.
        unknown: those without a rule, whose plain gradient was passed on.
        tolerance: what a difference may be, of what is compared.
    """

    score: float
    delta: float
    cancellation: float
    value: float
    operations: int
    leaks: tuple[Leak, ...]
    unknown: tuple[Unknown, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every operation has a rule and conserves, and the model computes what it computes without."""
        return not self.leaks and not self.unknown and self.value <= self.tolerance

    def __str__(self) -> str:
        summary = (
            f"{'ok' if self.ok else 'NOT OK'}: {self.operations} operations, score {self.score:.4g}, of which "
            f"{self.delta:.1e} is unexplained; absolute contributions {self.cancellation:.1f} times that; the output "
            f"differs by {self.value:.1e}"
        )
        lines = [summary]
        lines += [
            f"  {leak.operation} in {leak.module or 'no module'} ({leak.rule}) leaves {leak.residual:+.1e} of the score"
            for leak in self.leaks
        ]
        lines += [
            f"  {one.operation} in {one.module or 'no module'} has no rule; define one, as "
            f"rules={{{one.key}: rules.pass_through}} where y_i comes from x_i alone"
            for one in self.unknown
        ]
        return "\n".join(lines)

    __repr__ = __str__


@suspends_outer_attribution
def verify(
    forward_func: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    additional_forward_args: Any = None,
    *,
    layer: torch.nn.Module | str | None = None,
    rules: Rules = None,
    score: Score = "output",
    tolerance: float | None = None,
) -> Verification:
    """Compare, for each operation of a model, what its output contributed with what its inputs and constants did.

    What to run first on a new model. Conservation is not all that makes a map right, but an operation that breaks it
    is wrong. It takes about three times as long as an attribution, and twice the memory.

    Args:
        forward_func, inputs, target, additional_forward_args: as for :meth:`captum_cav.LayerCAV.attribute`.
        layer: where to begin, an embedding say where the inputs are indices; None for the inputs themselves.
        rules, score: as for :class:`captum_cav.LayerCAV`.
        tolerance: what may be left, of the absolute contributions of an operation; by default the square root of the
            precision of the scores, 3e-4 in float32.

    Returns:
        A :class:`Verification`, which prints itself.

    Raises:
        CAVError: where the model cannot be followed at all, as by :meth:`captum_cav.LayerCAV.attribute`.

    Source: the paper's equations 3 and 4, by which the ratios to each output and that of its constants sum to 1.

    Example::

        >>> import torch
        >>> verify(lambda x: torch.special.i0(x.tanh()).sum(1), torch.ones(1, 2))  # doctest: +ELLIPSIS
        NOT OK: 3 operations, score 2.301, of which 7.3e-01 is unexplained; absolute contributions 0.3 times that; ...
          special_i0 in no module (gradient) leaves +7.3e-01 of the score
          special_i0 in no module has no rule; define one, as rules={torch.special.i0: rules.pass_through} where y_i ...
    """
    attribution: InputCAV | LayerCAV
    if layer is None:
        attribution = InputCAV(forward_func, rules=rules, score=score)
        sites = []
    else:
        attribution = LayerCAV(forward_func, layer, rules=rules, score=score)
        sites = [Site(attribution.layer, False)]
    passed, values, left, absolute = attribution.audited(inputs, target, additional_forward_args, sites, layer is None)
    assert passed.trace.audited is not None
    if tolerance is None:
        tolerance = torch.finfo(values.dtype).eps ** 0.5
    total = float(values.abs().sum(dtype=torch.float64))
    names_of = names_in(attribution.forward_func)

    def name(module: torch.nn.Module | None) -> str:
        return "" if module is None else next(iter(names_of(module)), "") or type(module).__name__

    leaks = [
        Leak(
            name(one.module),
            one.operation,
            describe_rule(one.rule),
            one.residual / total,
        )
        for one in passed.trace.audited
        if not abs(one.residual) <= tolerance * one.size
    ]
    return Verification(
        score=float(values.sum(dtype=torch.float64)),
        delta=float(left) / total,
        cancellation=float(absolute) / total,
        value=_difference(attribution, inputs, additional_forward_args, passed.output),
        operations=len(passed.trace.audited),
        leaks=tuple(sorted(leaks, key=lambda leak: -abs(leak.residual))),
        unknown=tuple(dict.fromkeys(passed.trace.unknown)),
        tolerance=tolerance,
    )


def _difference(attribution: InputCAV | LayerCAV, inputs: Any, additional: Any, found: Any) -> float:
    """How far the model's output is from what it is without captum_cav, over the largest output."""
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    args = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)
    more = additional if isinstance(additional, tuple) else () if additional is None else (additional,)
    with torch.no_grad():
        plain = attribution.forward_func(*args, *more)
    pairs = [(one, other.detach()) for one, other in zip(tensors_in(plain), tensors_in(found), strict=True)]
    largest = max(float(one.abs().max()) for one, _ in pairs)
    return max(float((one - other).abs().max()) for one, other in pairs) / (largest or 1.0)
