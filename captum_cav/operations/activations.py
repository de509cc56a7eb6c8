"""Elementwise activations: an output's contribution goes to its own input alone (equation 7).

``beta = 1`` for i = j means ``c_x = c_y * y / x``: not the derivative but the ratio. Where ``f(0) = 0`` the ratio has a
limit at 0. Where the ratio has no limit (sigmoid, softplus, exp) an input at 0 cannot carry what the function gave, and
``f(0)`` counts as a constant there. So does what a bounded function gives of an infinite input, because no finite ratio
reaches that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from captum_cav.errors import OptionError
from captum_cav.operations import gates, guards
from captum_cav.operations.surrogates import with_late_slope, with_slopes, written_over
from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Derivative, Kind, Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import Trait


def _evaluate(
    operation: Operation, keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The carrier, what ``keep`` makes of its value before, and the value after. The last two have no graph."""
    carrier = operation.argument(0, "input")
    x = carrier.detach()
    before = keep(x)
    if operation.in_place and before is x:
        before = x.clone()
    return carrier, before, operation.evaluate(x)


def _of_one(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an activation of which a bound or a slope depends on the inputs too.

    Complex numbers are refused as well: equation 7 is for real numbers.
    """

    @functools.wraps(rule)
    def checked(operation: Operation, *options: Any) -> Any:
        (source, *others), x = operation.sources, operation.argument(0, "input")
        return operation.gradient() if others or source is not x or x.is_complex() else rule(operation, *options)

    return checked


def limited(limit: float) -> Surrogate:
    """Pass-through for a function with ``f(0) = 0``.

    Args:
        limit: what ``f(x) / x`` tends to at 0.
    """

    def limited_at_zero(ratio: torch.Tensor) -> torch.Tensor:
        return ratio.nan_to_num_(nan=limit, posinf=0.0, neginf=0.0)

    @_of_one
    def rule(operation: Operation) -> Any:
        carrier, x, value = _evaluate(operation)
        if operation.in_place:
            output = written_over(carrier, limited_at_zero(value / x))
        else:
            evaluate, saved = operation.evaluator(), operation.save(x)

            def slope() -> torch.Tensor:
                return limited_at_zero(evaluate(saved.value).div_(saved.value))

            output = with_late_slope(carrier, value, slope)
        return _with_constant(operation, output, value, x.isinf)

    rule.__name__ = "pass_through"
    return rule


@_of_one
def pass_on(operation: Operation, slope_of: Callable[[torch.Tensor, torch.Tensor], tuple[Any, Any]]) -> Any:
    """Pass-through with a slope of the rule's own.

    Args:
        operation: an elementwise operation.
        slope_of: gives the slope for a value and its input, and where the value counts as a constant instead.
    """
    carrier, x, value = _evaluate(operation)
    if not isinstance(value, torch.Tensor) or value.shape != x.shape:
        made = tuple(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise OptionError(
            f"pass_through is for elementwise operations; {operation.name!r} made {made} of {tuple(x.shape)}. Use "
            "rules.linear where y is linear in its input, or a rule of your own."
        )
    if operation.in_place:
        output = written_over(carrier, slope_of(value, x)[0])
    else:
        saved = operation.save(value), operation.save(x)
        output = with_late_slope(carrier, value, lambda: slope_of(*(one.value for one in saved))[0])
    return _with_constant(operation, output, value, lambda: slope_of(value, x)[1] | x.isinf())


def _with_constant(
    operation: Operation, output: torch.Tensor, value: torch.Tensor, silent: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """An activation's output, whose value counts as a constant's wherever its input carries nothing."""
    if operation.counts_constants:
        operation.add_constant(output, torch.where(silent(), value, 0.0))
    return output


def pass_through(operation: Operation) -> Any:
    """Pass-through for any elementwise function, the paper's equation 7.

    Inputs nearer to 0 than the rounding of 1 carry nothing. What the function gives there counts as a constant.
    """

    def slope(value: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        silent = x.abs() < torch.finfo(x.dtype).eps
        # The model may mask out what is not finite (the logarithm of a negative number): 0 times NaN would be NaN.
        return torch.div(value, x).masked_fill_(silent, 0.0).nan_to_num_(0.0, 0.0, 0.0), silent

    return pass_on(operation, slope)


@_of_one
def saturated(operation: Operation) -> Any:
    """ReLU6 and hardtanh from 0 up: slope 1 until the bound, ``bound / x`` beyond, 0 below 0."""
    _note_rectifier(operation)
    carrier, positive, value = _evaluate(operation, lambda x: x.clamp(min=torch.finfo(x.dtype).tiny))
    slope = torch.div(value, positive, out=positive)
    output = written_over(carrier, slope) if operation.in_place else with_slopes(value, [carrier], [slope])
    return _with_constant(operation, output, value, lambda: slope == 0)


def hardtanh(operation: Operation) -> Any:
    """Hardtanh: as ReLU6 where its lower bound is 0; elsewhere pass-through, with limit 1 if 0 is within the bounds."""
    low, high = _hardtanh_bounds(operation)
    if low == 0:
        return saturated(operation)
    return (limited(1.0) if low < 0 < high else pass_through)(operation)


@_of_one
def silu(operation: Operation) -> Any:
    """SiLU: ``x * sigmoid(x)``, whose ratio is the sigmoid."""
    if operation.in_place:
        carrier, slope, _ = _evaluate(operation, torch.sigmoid)
        return written_over(carrier, slope)
    carrier, x, value = _evaluate(operation)
    saved = operation.save(x)
    return with_late_slope(carrier, value, lambda: torch.sigmoid(saved.value))


@_of_one
def through_zero(operation: Operation) -> Any:
    """Piecewise linear through 0 (leaky ReLU, absolute value): the gradient is the ratio."""
    return operation.value()


def absolute(operation: Operation) -> Any:
    """Absolute value: piecewise linear through 0; of a complex number homogeneous, so that the gradient conserves."""
    is_complex = operation.argument(0, "input").is_complex()
    return operation.value() if is_complex else through_zero(operation)


def relu(operation: Operation) -> Any:
    """ReLU: the gradient is the ratio. Where the input is below 0, nothing passes."""
    _note_rectifier(operation)
    return operation.value()


def _note_rectifier(operation: Operation) -> None:
    before = operation.handoff_of(operation.argument(0, "input"))
    if before is not None:
        before.rectifiers += 1


def power(operation: Operation) -> Any:
    """``x ** n``: pass-through. A negative power is a gate, as the reciprocal of a statistic is."""
    x, exponent = operation.argument(0, "input"), operation.argument(1, "exponent")
    if isinstance(exponent, (int, float)) and exponent > 0:
        return limited(1.0 if exponent == 1 else 0.0)(operation)
    if operation.carries(x):
        return pass_through(operation)
    # A number stays on the host: a copy to the device would make the host wait.
    base = torch.as_tensor(x, dtype=exponent.dtype)
    if operation.depends_on_inputs(x) or operation.in_place or not bool((base > 0).all()):
        return operation.gradient()
    return operation.decompose(lambda: (exponent * base.log()).exp())


def glu(operation: Operation) -> Any:
    """``a * sigmoid(b)`` of the two halves, decomposed: the sigmoid is a gate."""
    x, dim = operation.argument(0, "input"), operation.argument(1, "dim", -1)

    def gated() -> Any:
        signal, gate = x.chunk(2, dim)
        return signal * gate.sigmoid()

    return operation.decompose(gated)


def logarithm_of_factor(operation: Operation) -> Any:
    """``a * log(b)``, decomposed."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    return operation.decompose(lambda: a * torch.as_tensor(b).log())


_hardtanh_bounds = gates.bounds_of("min_val", "max_val", -1.0, 1.0)
_clamp_bounds = gates.bounds_of("min", "max", None, None)
_POSITIVE_GATE = Trait.GATE | Trait.NONNEGATIVE


def _limited(limit: float, **more: Any) -> OperationSpec:
    return OperationSpec(rule=limited(limit), **more)


def _passed(**more: Any) -> OperationSpec:
    return OperationSpec(rule=pass_through, **more)


def _piecewise_linear(rule: Surrogate, **more: Any) -> OperationSpec:
    return OperationSpec(rule=rule, kind=Kind.ACTIVATION, derivative=Derivative.ALWAYS, **more)


# Activations between layers, in the order in which presets print them.
TABLE.register("relu", _piecewise_linear(relu, is_as_is=True, keeps=Trait.GATE, makes=Trait.NONNEGATIVE))
TABLE.register(
    "relu6",
    OperationSpec(
        rule=saturated,
        kind=Kind.ACTIVATION,
        makes=Trait.NONNEGATIVE,
        find_gate=gates.clipped(lambda operation: (0, 6)),
    ),
)
TABLE.register(
    "hardtanh", OperationSpec(rule=hardtanh, kind=Kind.ACTIVATION, find_gate=gates.clipped(_hardtanh_bounds))
)
TABLE.register("leaky_relu prelu|_prelu_kernel", _piecewise_linear(through_zero))
TABLE.register("rrelu", _piecewise_linear(through_zero, guard=guards.rrelu))
TABLE.register("elu celu", _limited(1.0, kind=Kind.ACTIVATION))
TABLE.register("selu", _limited(1.0507009873554805 * 1.6732632423543772, kind=Kind.ACTIVATION))
TABLE.register("gelu hardswish", _limited(0.5, kind=Kind.ACTIVATION))
TABLE.register("silu", OperationSpec(rule=silu, kind=Kind.ACTIVATION))
TABLE.register("mish", _limited(math.tanh(math.log(2.0)), kind=Kind.ACTIVATION))
TABLE.register("softplus", _passed(kind=Kind.ACTIVATION, makes=_POSITIVE_GATE))
TABLE.register("threshold|_threshold", _passed(kind=Kind.ACTIVATION))

# With a limit of f(x) / x at 0.
TABLE.register("tanh", _limited(1.0, find_gate=gates.bounded))
TABLE.register("erf|special_erf", _limited(2.0 / math.sqrt(math.pi), find_gate=gates.bounded))
TABLE.register(
    """
    softsign sin tan sinh asin|arcsin atan|arctan asinh|arcsinh atanh|arctanh expm1|special_expm1 log1p|special_log1p
    nan_to_num
    """,
    _limited(1.0),
)
TABLE.register("special_i1", _limited(0.5))
TABLE.register("erfinv|special_erfinv", _limited(math.sqrt(math.pi) / 2.0))
TABLE.register("square sqrt", _limited(0.0, keeps=Trait.GATE, makes=Trait.NONNEGATIVE))
# Steps among them: what is rounded passes on all that the step made of it. Next to 0 that is 0.
TABLE.register("tanhshrink softshrink round|special_round trunc|fix", _limited(0.0))

# Without a limit at 0. Sigmoids, exponentials and steps are gates: positive factors of whatever they multiply.
TABLE.register(
    "sigmoid|special_expit hardsigmoid exp exp2|special_exp2 special_ndtr heaviside softmin",
    _passed(makes=_POSITIVE_GATE),
)
TABLE.register("softmax|_softmax|special_softmax", _passed(makes=_POSITIVE_GATE, kind=Kind.ATTENTION))
TABLE.register("reciprocal rsqrt rpow sign|sgn", _passed(makes=Trait.GATE))
TABLE.register("cosh", _passed(makes=Trait.NONNEGATIVE))
TABLE.register("clamp clip", _passed(keeps=Trait.GATE, find_gate=gates.clipped(_clamp_bounds)))
TABLE.register("clamp_min clamp_max", _passed(keeps=Trait.GATE))
TABLE.register(
    """
    logsigmoid log_sigmoid cos acos|arccos acosh|arccosh log log2 log10 erfc|special_erfc sinc|special_sinc
    logit|special_logit lgamma|special_gammaln digamma|special_digamma|special_psi special_log_ndtr special_entr
    log_softmax|_log_softmax|special_log_softmax floor ceil frac copysign ldexp fmod remainder|mod|imod
    floor_divide|floordiv|ifloordiv atan2|arctan2 special_erfcx
    """,
    _passed(),
)

# With rules of their own.
TABLE.register("hardshrink", OperationSpec(rule=through_zero, derivative=Derivative.ALWAYS))
TABLE.register("abs|absolute", OperationSpec(rule=absolute, derivative=Derivative.ALWAYS, makes=Trait.NONNEGATIVE))
TABLE.register("pow|ipow", OperationSpec(rule=power, keeps=Trait.GATE, find_gate=gates.reciprocal_power))
TABLE.register("float_power", OperationSpec(rule=power, find_gate=gates.reciprocal_power))
TABLE.register("glu", OperationSpec(rule=glu, keeps=Trait.GATE))
TABLE.register("xlogy|special_xlogy", OperationSpec(rule=logarithm_of_factor))
