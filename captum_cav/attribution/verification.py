"""A test of a new model: does every operation pass on the contributions that it receives?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav import checks
from captum_cav.attribution.input_checks import check_arguments
from captum_cav.attribution.options import Rules, check_options
from captum_cav.attribution.result_checks import refuse_independent
from captum_cav.attribution.scores import Score, SelectedScores, select_target
from captum_cav.operations import TABLE
from captum_cav.propagation import zeros
from captum_cav.propagation.forward import Forward, Request, names_in, run
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.propagation.operation import describe_rule
from captum_cav.propagation.records import Unknown
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.tensors import tensors_in


@dataclass(frozen=True)
class Leak:
    """An operation whose contributions do not add up.

    Attributes:
        module: qualified name of the innermost module around the operation, or the type of the module if it has no
            name; empty if no module is around the operation.
        operation: the torch function.
        rule: the rule of the operation.
        residual: the contribution of the output minus the contributions of inputs and constants, divided by the score.
    """

    module: str
    operation: str
    rule: str
    residual: float


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`, which prints as a report.

    Attributes:
        score: the sum of the scores of all samples.
        delta: the part of the score that the inputs (or the layer) and constants leave unexplained, divided by the
            score. If paths to the score bypass the layer, ``delta`` contains their part.
        cancellation: the sum of the absolute contributions of the inputs (or the layer), divided by the absolute score.
            1 if all contributions have the same sign; large if positive and negative contributions cancel, which also
            costs digits.
        value: the largest difference between the output of the model with captum_cav and without, divided by the
            largest output.
        operations: how many operations were compared.
        leaks: the operations that do not conserve contributions, the largest residual first.
        unknown: the operations without a rule, whose plain gradient was passed on.
        tolerance: the largest allowed difference, as a share of the numbers that are compared.
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
        """Whether every operation has a rule and conserves contributions, and the output of the model is unchanged."""
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
    """Compare, for each operation, the contribution of its output with the contributions of its inputs and constants.

    Run this first on a new model. Conservation alone does not make a map right, but an operation that does not conserve
    contributions is wrong. ``verify`` takes about three times as long as an attribution, and twice the memory.

    Args:
        forward_func, inputs, target, additional_forward_args: as for :meth:`captum_cav.LayerCAV.attribute`.
        layer: where the test begins, such as an embedding if the inputs are indices; None for the inputs.
        rules, score: as for :class:`captum_cav.LayerCAV`.
        tolerance: the largest allowed residual, as a share of the absolute contributions of an operation. By default
            the square root of the precision of the scores, which is 3e-4 in float32.

    Returns:
        A :class:`Verification`, which prints as a report.

    Raises:
        CAVError: for a model that cannot be followed at all, as by :meth:`captum_cav.LayerCAV.attribute`.

    Source: Kakishita and Hattori, equations 3 and 4: the ratios of the inputs and constants of an output sum to 1.

    Example::

        >>> import torch
        >>> verify(lambda x: torch.special.i0(x.tanh()).sum(1), torch.ones(1, 2))  # doctest: +ELLIPSIS
        NOT OK: 3 operations, score 2.301, of which 7.3e-01 is unexplained; absolute contributions 0.3 times that; ...
          special_i0 in no module (gradient) leaves +7.3e-01 of the score
          special_i0 in no module has no rule; define one, as rules={torch.special.i0: rules.pass_through} where y_i ...
    """
    model = checks.check_model(forward_func)
    sites = [] if layer is None else [Site(checks.find_layer(model, layer)[1], False)]
    options = check_options(model, rules, score=score)
    arguments = check_arguments(model, inputs, additional_forward_args, [target], inputs_are_explained=layer is None)
    passed = run(
        model,
        arguments.inputs,
        arguments.additional,
        sites,
        Request(
            table=TABLE,
            rules=options.rules,
            on_unknown="note",
            tap_inputs=layer is None,
            with_shares=True,
            audited=True,
        ),
    )
    with torch.enable_grad():
        selected = select_target(checks.check_output(passed.output), arguments.targets[0], score)
    if not selected.values.requires_grad:
        refuse_independent("what is explained")
    unexplained, absolute = _audit(passed, selected)
    with torch.no_grad(), noted_tensors(model, passed.trace.run):
        plain = model(*checks.copied(arguments.inputs), *arguments.additional)
    return _report(model, passed, selected, unexplained, absolute, plain, tolerance)


def _report(
    model: Callable[..., Any],
    passed: Forward,
    selected: SelectedScores,
    unexplained: torch.Tensor,
    absolute: torch.Tensor,
    plain: Any,
    tolerance: float | None,
) -> Verification:
    """The result, read on the host. Nothing before this function waits for the device.

    Args:
        model: the model, for the names of modules.
        passed: what the forward pass left; each operation was audited.
        selected: the scores that are explained.
        unexplained, absolute: what :func:`_audit` returns.
        plain: the output of the model without captum_cav.
        tolerance: as for :func:`verify`.
    """
    assert passed.trace.audited is not None
    values = selected.values.detach()
    if tolerance is None:
        tolerance = torch.finfo(values.dtype).eps ** 0.5
    total = float(values.abs().sum(dtype=torch.float64))
    names_of = names_in(model)

    def name(module: torch.nn.Module | None) -> str:
        return "" if module is None else next(iter(names_of(module)), "") or type(module).__name__

    leaks = [
        Leak(
            name(one.module),
            one.operation,
            describe_rule(one.rule),
            residual / total,
        )
        for one in passed.trace.audited
        for residual, size in [(float(one.residual), float(one.size))]
        if not abs(residual) <= tolerance * size
    ]
    return Verification(
        score=float(values.sum(dtype=torch.float64)),
        delta=float(unexplained) / total,
        cancellation=float(absolute) / total,
        value=_difference(plain, passed.output),
        operations=len(passed.trace.audited),
        leaks=tuple(sorted(leaks, key=lambda leak: -abs(leak.residual))),
        unknown=tuple(dict.fromkeys(passed.trace.unknown)),
        tolerance=tolerance,
    )


def _audit(passed: Forward, selected: SelectedScores) -> tuple[torch.Tensor, torch.Tensor]:
    """A backward pass in which each operation is compared.

    Args:
        passed: what the forward pass left; it measures the shares of constants and audits each operation.
        selected: the scores that are explained.

    Returns:
        Two float64 scalars: the part of the sum of the scores that the contributions of the inputs (or the layer) and
        the constants leave unexplained; and the sum of the absolute contributions.
    """
    values = selected.values.detach()
    found = passed.coefficients(selected.values, torch.ones_like(values), range(len(passed.trace.taps)), False)
    shares = passed.trace.shares.settle(len(passed.trace.taps), values.device)
    unexplained = (values - selected.constants).sum(dtype=torch.float64) - shares[0]
    absolute = torch.zeros_like(unexplained)
    for value, coefficient in zip(passed.trace.taps[0].values, found[0], strict=True):
        if coefficient is not None:
            contributions = zeros.contributions(value, coefficient, passed.trace.shares.zeros_carry)
            unexplained = unexplained - contributions.sum(dtype=torch.float64)
            absolute = absolute + contributions.abs().sum(dtype=torch.float64)
    return unexplained, absolute


def _difference(plain: Any, found: Any) -> float:
    """The largest difference between two outputs of the model, divided by the largest number of the first."""
    pairs = [(one, other.detach()) for one, other in zip(tensors_in(plain), tensors_in(found), strict=True)]
    largest = max(float(one.abs().max()) for one, _ in pairs)
    return max(float((one - other).abs().max()) for one, other in pairs) / (largest or 1.0)
