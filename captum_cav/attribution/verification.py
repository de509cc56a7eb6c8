"""A test of a new model: does every operation pass on the contributions that it receives?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav import checks
from captum_cav.attribution.contributions import chosen_tap
from captum_cav.attribution.input_checks import check_arguments
from captum_cav.attribution.options import Output, Rules, check_options
from captum_cav.attribution.result_checks import refuse_independent
from captum_cav.attribution.scores import Score, SelectedScores, select_passed, select_target
from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.propagation import zeros
from captum_cav.propagation.forward import Forward, Request, names_in, random_state_kept, run
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.noted_tensors import noted_tensors
from captum_cav.propagation.operation import describe_rule
from captum_cav.propagation.records import Unknown
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.torch_internals import modules_of


@dataclass(frozen=True)
class Leak:
    """An operation whose contributions do not add up.

    Attributes:
        module: qualified name of the innermost module around the operation, or the type of the module if it has no
            name; empty if no module is around the operation.
        operation: the torch function.
        rule: the rule of the operation.
        residual: the contribution of the output minus the contributions of inputs and constants, divided by the
            absolute scores.
    """

    module: str
    operation: str
    rule: str
    residual: float


@dataclass(frozen=True)
class Overwritten:
    """An operation that takes a tensor into which the model wrote, while autograd did not record the write.

    Attributes:
        module, operation: of the operation, as for :class:`Leak`. Both are empty if the tensor is the model's output.
        residual: by how much the write changed the contributions of the tensor, divided by the absolute scores.
    """

    module: str
    operation: str
    residual: float


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`, which prints as a report.

    All shares are divided by the sum of the absolute scores of all samples. If all scores are 0, they are not divided.

    Attributes:
        score: the sum of the scores of all samples.
        delta: the part of the score that the inputs (or the layer) and constants leave unexplained. If paths to the
            score bypass the layer, ``delta`` contains their part.
        cancellation: the sum of the absolute contributions of the inputs (or the layer). 1 if all contributions have
            the same sign; large if positive and negative contributions cancel, which also costs digits.
        value: the largest difference between the output of the model (or a score that is a function) with captum_cav
            and without, divided by the largest output.
        operations: how many operations were compared.
        leaks: the operations that do not conserve contributions, the largest residual first.
        by_rules: the operations whose rule does not conserve contributions by intention, such as
            ``AttentionRule("all")``, the largest residual first. They are no fault.
        overwritten: the operations that take a tensor into which the model wrote, while autograd did not record that.
        lost: the part of ``delta`` that ``by_rules`` does not explain. None if a path to the score bypasses the layer,
            because then nobody can tell.
        adds_up: whether ``lost`` is 0, within ``tolerance`` of the largest sum of absolute contributions that is
            compared anywhere in the network. True if ``lost`` is None.
        as_one: the modules that are ruled as one operation. What happens inside is not compared.
        unknown: the operations without a rule, whose plain gradient was passed on.
        tolerance: the largest allowed difference, as a share of the numbers that are compared.
    """

    score: float
    delta: float
    cancellation: float
    value: float
    operations: int
    leaks: tuple[Leak, ...]
    by_rules: tuple[Leak, ...]
    overwritten: tuple[Overwritten, ...]
    lost: float | None
    adds_up: bool
    as_one: tuple[str, ...]
    unknown: tuple[Unknown, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the map and the output can be trusted as far as a comparison can tell.

        Every operation has a rule, conserves contributions or intends not to, and takes its inputs as the operations
        before made them. Contributions and constants add up to the score. The output of the model is unchanged.
        """
        faults = self.leaks or self.overwritten or self.unknown
        return not faults and self.adds_up and self.value <= self.tolerance

    def __str__(self) -> str:
        summary = (
            f"{'ok' if self.ok else 'NOT OK'}: {self.operations} operations, score {self.score:.4g}, of which "
            f"{self.delta:.1e} is unexplained; absolute contributions {self.cancellation:.1f} times that; the output "
            f"differs by {self.value:.1e}"
        )
        lines = [summary]
        lines += [f"  {_place(one)} ({one.rule}) leaves {one.residual:+.1e} of the score" for one in self.leaks]
        lines += [
            f"  {f'an input of {_place(one)}' if one.operation else 'the output of the model'} was written to through "
            f"detach(), .data or NumPy. Autograd does not record that, which leaves {one.residual:+.1e} of the score; "
            "write out of place, as h = 2 * h"
            for one in self.overwritten
        ]
        lines += [
            f"  {_place(one)} has no rule; define one, as rules={{{one.key}: {one.rule}}} where {one.when}"
            for one in self.unknown
        ]
        if not (self.adds_up or self.leaks or self.overwritten):
            inside = f", but nothing inside {', '.join(map(repr, self.as_one))} was compared" if self.as_one else ""
            lines.append(f"  {self.lost:+.1e} of the score is lost. No compared operation leaves that{inside}")
        lines += [
            f"  {_place(one)} ({one.rule}) leaves {one.residual:+.1e} of the score, as this rule intends"
            for one in self.by_rules
        ]
        return "\n".join(lines)

    __repr__ = __str__


def _place(one: Leak | Overwritten | Unknown) -> str:
    return f"{one.operation} in {one.module or 'no module'}"


@suspends_outer_attribution
def verify(
    forward_func: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    additional_forward_args: Any = None,
    *,
    layer: torch.nn.Module | str | None = None,
    rules: Rules = None,
    call: int | None = None,
    score: Score = "output",
    tolerance: float | None = None,
    output: Output = None,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
) -> Verification:
    """Compare, for each operation, the contribution of its output with the contributions of its inputs and constants.

    Run this first on a new model. Conservation alone does not make a map right, but an operation that does not conserve
    contributions is wrong, unless its rule intends that. ``verify`` takes about four times as long as an attribution,
    and more memory: it keeps copies of all activations.

    The result is not ok if

    - an operation leaves contributions over, and its rule does not intend that (``leaks``);
    - the model writes into a tensor in a way that autograd does not record (``overwritten``);
    - an operation has no rule (``unknown``);
    - contributions and constants do not add up to the score (``adds_up``), which also tells of a wrong rule for a whole
      module;
    - the output of the model is another one with captum_cav (``value``).

    Args:
        forward_func, inputs, target, additional_forward_args: as for :meth:`captum_cav.LayerCAV.attribute`.
        layer: where the test begins, such as an embedding if the inputs are indices; None for the inputs.
        rules, call, score, output: as for :class:`captum_cav.LayerCAV`.
        tolerance: the largest allowed residual, as a share of the absolute contributions of an operation. By default
            the square root of the lowest precision in which the model computes: 3e-4 for float32.
        additional_forward_kwargs: as for :meth:`captum_cav.LayerCAV.attribute`.

    Returns:
        A :class:`Verification`, which prints as a report.

    Raises:
        CAVError: for a model that cannot be followed at all, as by :meth:`captum_cav.LayerCAV.attribute`.
        OptionError: for ``call`` without ``layer``.

    Source: Kakishita and Hattori, equations 3 and 4: the ratios of the inputs and constants of an output sum to 1.

    Example::

        >>> import torch
        >>> verify(lambda x: torch.special.i0(x.tanh()).sum(1), torch.ones(1, 2))  # doctest: +ELLIPSIS
        NOT OK: 3 operations, score 2.301, of which 7.3e-01 is unexplained; absolute contributions 0.3 times that; ...
          special_i0 in no module (gradient) leaves +7.3e-01 of the score
          special_i0 in no module has no rule; define one, as rules={torch.special.i0: rules.pass_through} where y_i ...
    """
    model = checks.check_model(forward_func)
    name, sites = "the inputs", []
    if layer is not None:
        name, module = checks.find_layer(model, layer)
        sites = [Site(module, False)]
    call = checks.check_call(call)
    if call is not None and layer is None:
        raise OptionError(f"call is {call} without a layer; expected layer=, whose call is meant.")
    options = check_options(model, rules, score=score, output=output)
    arguments = check_arguments(
        model,
        inputs,
        additional_forward_args,
        [target],
        additional_forward_kwargs,
        inputs_are_explained=layer is None,
    )
    if layer is None:
        checks.check_floating(arguments.inputs, arguments.names)
    called = arguments.called(model)
    passed = run(
        model,
        arguments.inputs,
        checks.copied(arguments.additional),
        sites,
        Request(
            table=TABLE,
            rules=options.rules,
            called=called,
            scored=options.scored(called),
            on_unknown="note",
            tap_inputs=layer is None,
            with_shares=True,
            audited=True,
        ),
    )
    chosen = chosen_tap(passed, 0, name, call) if sites else 0
    selected = select_passed(passed, arguments.targets[0], options.score, [chosen])
    name = f"layer {name}" if sites else name
    if not selected.values.requires_grad:
        refuse_independent(name, passed.trace.weighed)
    made = passed.trace.snapshots.values_of(selected.output)
    unrecorded = torch.zeros_like(selected.values, requires_grad=False)
    if made is not None:
        unrecorded = selected.values.detach() - select_target(made, arguments.targets[0], options.score).values
    found = _audit(passed, selected, chosen, name)
    with torch.no_grad(), random_state_kept(arguments.inputs), noted_tensors(modules_of(model), passed.trace.run):
        plain = options.scored(called)(*checks.copied(arguments.inputs), *checks.copied(arguments.additional))
    return _report(model, passed, selected, *found, unrecorded, plain, chosen, tolerance)


def _report(
    model: Callable[..., Any],
    passed: Forward,
    selected: SelectedScores,
    unexplained: torch.Tensor,
    absolute: torch.Tensor,
    size: torch.Tensor,
    unrecorded: torch.Tensor,
    plain: torch.Tensor,
    chosen: int,
    tolerance: float | None,
) -> Verification:
    """The result, read on the host. Nothing before this function waits for the device.

    Args:
        model: the model, for the names of modules.
        passed: what the forward pass left; each operation was audited.
        selected: the scores that are explained.
        unexplained, absolute, size: what :func:`_audit` returns.
        unrecorded: shape (N,), by how much writes that autograd did not record changed each score.
        plain: the output of the model without captum_cav.
        chosen: the index of the explained tap.
        tolerance: as for :func:`verify`.
    """
    checks.check_finite_results("the score is", selected.values, model, passed.rerun)
    trace = passed.trace
    assert trace.audited is not None
    values = selected.values.detach()
    if tolerance is None:
        precisions = [torch.finfo(values.dtype).eps, *(one.precision for one in trace.audited)]
        tolerance = max(precisions) ** 0.5
    total = float(values.abs().sum(dtype=torch.float64))
    unit = total or 1.0
    names_of = names_in(model)

    def name(module: torch.nn.Module | None) -> str:
        return "" if module is None else next(iter(names_of(module)), "") or type(module).__name__

    leaks: list[Leak] = []
    by_rules: list[Leak] = []
    overwritten: list[Overwritten] = []
    intended, largest, compared = 0.0, float(size), 0
    for one in trace.audited:
        residual, bound = float(one.residual), float(one.size)
        rewritten = float(one.rewritten_size)
        if rewritten and not rewritten <= tolerance * bound:
            overwritten.append(Overwritten(name(one.module), one.operation, float(one.rewritten) / unit))
        intends = not getattr(one.rule, "is_conserving", True)
        # A rule that intends a leak may leave it between the operations into which it decomposes its own.
        if one.is_module or (one.is_decomposed and not intends):
            continue
        compared += isinstance(one.size, torch.Tensor)
        leak = Leak(name(one.module), one.operation, describe_rule(one.rule), residual / unit)
        if intends and math.isfinite(residual):
            intended += residual
            if abs(residual) > tolerance * (total or bound):
                by_rules.append(leak)
            continue
        largest = max(largest, bound)
        if not abs(residual) <= tolerance * bound:
            leaks.append(leak)
    if not float(unrecorded.abs().sum(dtype=torch.float64)) <= tolerance * total:
        overwritten.append(Overwritten("", "", float(unrecorded.sum(dtype=torch.float64)) / unit))
    is_bypassed = bool(trace.bypassed >> chosen & 1)
    lost = float(unexplained) - intended
    return Verification(
        score=float(values.sum(dtype=torch.float64)),
        delta=float(unexplained) / unit,
        cancellation=float(absolute) / unit,
        value=_difference(plain, passed.output.detach()),
        operations=compared,
        leaks=tuple(sorted(leaks, key=_by_size)),
        by_rules=tuple(sorted(by_rules, key=_by_size)),
        overwritten=tuple(overwritten),
        lost=None if is_bypassed else lost / unit,
        adds_up=is_bypassed or abs(lost) <= tolerance * largest,
        as_one=tuple(dict.fromkeys(name(one.module) for one in trace.audited if one.is_module)),
        unknown=tuple(dict.fromkeys(trace.unknown)),
        tolerance=tolerance,
    )


def _by_size(leak: Leak) -> tuple[bool, float]:
    """Sorts NaN first, then the largest residual."""
    return not math.isnan(leak.residual), -abs(leak.residual)


def _audit(
    passed: Forward, selected: SelectedScores, chosen: int, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A backward pass in which each operation is compared.

    Args:
        passed: what the forward pass left; it measures the shares of constants and audits each operation.
        selected: the scores that are explained.
        chosen: the index of the explained tap.
        name: what is explained, for messages.

    Returns:
        Three float64 scalars: the part of the sum of the scores that the contributions of the inputs (or the layer) and
        the constants leave unexplained; the sum of the absolute contributions; and the sum of the absolute
        contributions, scores and shares of constants.
    """
    values = selected.values.detach()
    (found,) = passed.coefficients(selected.values, torch.ones_like(values), [chosen], False)
    if all(coefficient is None for coefficient in found):
        refuse_independent(name, passed.trace.weighed)
    shares = passed.trace.shares
    constants = [share.abs().to(values.device) for share in shares.since(0)]
    size = sum(constants, values.abs().sum(dtype=torch.float64))
    unexplained = (values - selected.constants).sum(dtype=torch.float64)
    unexplained = unexplained - shares.settle([1 << chosen], values.device)[0]
    absolute = torch.zeros_like(unexplained)
    for value, coefficient in zip(passed.trace.taps[chosen].values, found, strict=True):
        if coefficient is not None:
            contributions = zeros.contributions(value, coefficient, shares.zeros_carry)
            unexplained = unexplained - contributions.sum(dtype=torch.float64)
            absolute = absolute + contributions.abs().sum(dtype=torch.float64)
    return unexplained, absolute, size + absolute


def _difference(plain: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference between two outputs of the model, divided by the largest finite number of the first."""
    is_same = (plain == found) | (plain.isnan() & found.isnan())
    largest = plain.masked_fill(~plain.isfinite(), 0.0).abs().max()
    return float((plain - found).masked_fill(is_same, 0.0).abs().max()) / (float(largest) or 1.0)
