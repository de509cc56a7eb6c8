"""Elementwise activations: the contribution of each output goes to its own input only (equation 7).

In equation 7 ``beta = 1`` for ``i = j``, so ``c_x = c_y * y / x``. The slope is the ratio ``y / x``, not the
derivative. If ``f(0) = 0``, the ratio has a limit at 0. If the ratio has no limit (sigmoid, softplus, exp), an input of
value 0 cannot carry the contribution of ``f(0)``, which counts as a constant. The output of a bounded function for an
infinite input counts as a constant, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from captum_cav.errors import OptionError
from captum_cav.operations import gates, guards, written_norms, written_out
from captum_cav.operations.forms import What
from captum_cav.operations.surrogates import with_late_slope, with_slopes, written_over
from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Derivative, Kind, Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import Trait


def _evaluate(
    operation: Operation, keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evaluate an activation.

    Args:
        operation: the activation.
        keep: computes what is needed of the input's value, before the operation may overwrite it.

    Returns:
        The carrier, the result of ``keep``, and the activation's value. The last two have no graph.
    """
    carrier = operation.argument(0, "input")
    x = carrier.detach()
    before = keep(x)
    if operation.in_place and before is x:
        before = x.clone()
    return carrier, before, operation.evaluate(x)


def _of_one(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an activation with another argument, such as a bound or a slope, that depends on the inputs.

    Complex numbers are refused, too, because equation 7 is for real numbers.
    """

    @functools.wraps(rule)
    def checked(operation: Operation, *options: Any) -> Any:
        (source, *others), x = operation.sources, operation.argument(0, "input")
        return operation.gradient() if others or source is not x or x.is_complex() else rule(operation, *options)

    return checked


def limited(limit: float) -> Surrogate:
    """Rule of a function with ``f(0) = 0``: pass-through.

    Args:
        limit: the limit of ``f(x) / x`` at 0.
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
    """Pass-through with a given slope.

    Args:
        operation: an elementwise operation.
        slope_of: takes the operation's value and input. Gives the slope, and where the value counts as a constant.

    Raises:
        OptionError: for an operation whose output has another shape than its input.
    """
    carrier, x, value = _evaluate(operation)
    if not isinstance(value, torch.Tensor) or value.shape != x.shape:
        result = tuple(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise OptionError(
            f"pass_through is for elementwise operations; {operation.name!r} made {result} of {tuple(x.shape)}. Use "
            "rules.linear where y is linear in its input, or a rule of your own."
        )
    if operation.in_place:
        output = written_over(carrier, slope_of(value, x)[0])
    else:
        saved = operation.save(value), operation.save(x)
        output = with_late_slope(carrier, value, lambda: slope_of(*(item.value for item in saved))[0])
    return _with_constant(operation, output, value, lambda: slope_of(value, x)[1] | x.isinf())


def _with_constant(
    operation: Operation, output: torch.Tensor, value: torch.Tensor, is_constant: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The output of an activation, after its constants are reported.

    Args:
        operation: the activation.
        output: its output.
        value: its value.
        is_constant: gives where the value counts as a constant.
    """
    if operation.counts_constants:
        operation.add_constant(output, torch.where(is_constant(), value, 0.0))
    return output


def pass_through(operation: Operation) -> Any:
    """Pass-through for any elementwise function: each output's contribution goes to its own input.

    Inputs below the machine epsilon carry nothing. The function's value there counts as a constant.

    Args:
        operation: an elementwise operation.

    Returns:
        The operation's value as a surrogate.

    Raises:
        OptionError: for an operation whose output has another shape than its input.

    Source: Kakishita and Hattori, equation 7.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> InputCAV(torch.special.i0, rules={torch.special.i0: rules.pass_through}).attribute(torch.tensor([2.0]))
        tensor([1.])
    """

    def slope(value: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_constant = x.abs() < torch.finfo(x.dtype).eps
        # The model may mask a value that is not finite, such as the logarithm of a negative number. 0 * NaN is NaN.
        return torch.div(value, x).masked_fill_(is_constant, 0.0).nan_to_num_(0.0, 0.0, 0.0), is_constant

    return pass_on(operation, slope)


@_of_one
def saturated(operation: Operation) -> Any:
    """ReLU6, and hardtanh with the lower bound 0. The slope is 0 below 0, 1 up to the bound, and then bound / x."""
    _note_rectifier(operation)
    carrier, positive, value = _evaluate(operation, lambda x: x.clamp(min=torch.finfo(x.dtype).tiny))
    slope = torch.div(value, positive, out=positive)
    output = written_over(carrier, slope) if operation.in_place else with_slopes(value, [carrier], [slope])
    return _with_constant(operation, output, value, lambda: slope == 0)


def hardtanh(operation: Operation) -> Any:
    """Hardtanh: like ReLU6 if its lower bound is 0. Otherwise pass-through, with limit 1 if 0 is between the bounds."""
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
    """Functions that are linear on both sides of 0 (leaky ReLU, absolute value): the gradient is the ratio."""
    return operation.value()


def absolute(operation: Operation) -> Any:
    """Absolute value: linear on both sides of 0. For complex numbers it is homogeneous, so the gradient conserves."""
    is_complex = operation.argument(0, "input").is_complex()
    return operation.value() if is_complex else through_zero(operation)


def relu(operation: Operation) -> Any:
    """ReLU: the gradient is the ratio. Where the input is below 0, nothing passes."""
    _note_rectifier(operation)
    return operation.value()


def _note_rectifier(operation: Operation) -> None:
    """Tell the operation before that this one gives 0 where its input is below 0."""
    before = operation.handoff_of(operation.argument(0, "input"))
    if before is not None:
        before.rectifiers += 1


def power(operation: Operation) -> Any:
    """``x ** n``: pass-through. ``n ** x`` is decomposed into an exponential."""
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
    """``a * sigmoid(b)`` with ``a`` and ``b`` the two halves of the input, decomposed. The sigmoid is a gate."""
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
_SOFTMAX = _POSITIVE_GATE | Trait.WEIGHTS


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
        recognise=written_out.each_element_again,
    ),
)
TABLE.register(
    "hardtanh",
    OperationSpec(
        rule=hardtanh,
        kind=Kind.ACTIVATION,
        find_gate=gates.clipped(_hardtanh_bounds),
        recognise=written_out.each_element_again,
    ),
)
TABLE.register("leaky_relu prelu|_prelu_kernel", _piecewise_linear(through_zero))
TABLE.register("rrelu", _piecewise_linear(through_zero, guard=guards.rrelu))
TABLE.register("elu celu", _limited(1.0, kind=Kind.ACTIVATION))
TABLE.register("selu", _limited(1.0507009873554805 * 1.6732632423543772, kind=Kind.ACTIVATION))
TABLE.register("gelu hardswish", _limited(0.5, kind=Kind.ACTIVATION))
TABLE.register("silu", OperationSpec(rule=silu, kind=Kind.ACTIVATION))
TABLE.register("mish", _limited(math.tanh(math.log(2.0)), kind=Kind.ACTIVATION))
TABLE.register("softplus", _passed(kind=Kind.ACTIVATION, makes=_POSITIVE_GATE, recognise=written_out.each_element))
TABLE.register("threshold|_threshold", _passed(kind=Kind.ACTIVATION))

# With a limit of f(x) / x at 0.
TABLE.register("tanh", _limited(1.0, find_gate=gates.bounded, recognise=written_out.each_element_again))
TABLE.register(
    "erf|special_erf",
    _limited(2.0 / math.sqrt(math.pi), find_gate=gates.bounded, recognise=written_out.each_element_again),
)
TABLE.register(
    """
    softsign sin tan sinh asin|arcsin atan|arctan asinh|arcsinh atanh|arctanh expm1|special_expm1
    nan_to_num
    """,
    _limited(1.0),
)
TABLE.register("log1p|special_log1p", _limited(1.0, recognise=written_out.logarithm_of_one_more))
TABLE.register("erfinv|special_erfinv", _limited(math.sqrt(math.pi) / 2.0))
_ROOT = {"keeps": Trait.GATE, "makes": Trait.NONNEGATIVE}
TABLE.register("square", _limited(0.0, recognise=written_out.square, **_ROOT))
TABLE.register("sqrt", _limited(0.0, recognise=written_norms.root, **_ROOT))
# Near 0 these are 0. Some of them are steps: the whole contribution of a rounded value goes to its input.
TABLE.register("tanhshrink softshrink round|special_round trunc|fix", _limited(0.0))

# Without a limit at 0. Sigmoids, exponentials and steps are gates: positive factors that weigh another factor.
TABLE.register("hardsigmoid special_ndtr", _passed(makes=_POSITIVE_GATE, recognise=written_out.each_element_again))
TABLE.register("exp2|special_exp2 heaviside", _passed(makes=_POSITIVE_GATE))
TABLE.register("exp", _passed(makes=_POSITIVE_GATE, recognise=written_out.exponential))
TABLE.register("sigmoid|special_expit", _passed(makes=_POSITIVE_GATE, recognise=written_out.squashes(What.SIGMOID)))
TABLE.register(
    "softmax|_softmax|special_softmax",
    _passed(makes=_SOFTMAX, kind=Kind.ATTENTION, recognise=written_out.squashes(What.SOFTMAX)),
)
TABLE.register(
    "softmin",
    _passed(makes=_SOFTMAX, recognise=written_out.squashes(What.SOFTMAX, is_reversed=True)),
)
TABLE.register("reciprocal rsqrt", _passed(makes=Trait.GATE | Trait.RECIPROCAL, recognise=written_out.reciprocal))
TABLE.register("rpow sign|sgn", _passed(makes=Trait.GATE))
TABLE.register("cosh", _passed(makes=Trait.NONNEGATIVE))
TABLE.register(
    "clamp clip", _passed(keeps=Trait.GATE, find_gate=gates.clipped(_clamp_bounds), recognise=written_out.at_least)
)
TABLE.register("clamp_min", _passed(keeps=Trait.GATE, recognise=written_out.at_least))
TABLE.register("clamp_max", _passed(keeps=Trait.GATE))
TABLE.register(
    """
    cos acos|arccos acosh|arccosh log2 log10 erfc|special_erfc sinc|special_sinc
    logit|special_logit lgamma|special_gammaln digamma|special_digamma|special_psi special_log_ndtr special_entr
    floor ceil frac copysign ldexp fmod remainder|mod|imod
    floor_divide|floordiv|ifloordiv atan2|arctan2 special_erfcx mvlgamma|special_multigammaln
    """,
    _passed(),
)

TABLE.register("log", _passed(recognise=written_out.logarithm))
TABLE.register("logsigmoid log_sigmoid", _passed(recognise=written_out.squashes(What.LOG_SIGMOID)))
TABLE.register(
    "log_softmax|_log_softmax|special_log_softmax", _passed(recognise=written_out.squashes(What.LOG_SOFTMAX))
)

# Functions with other rules.
TABLE.register("hardshrink", OperationSpec(rule=through_zero, derivative=Derivative.ALWAYS))
TABLE.register("abs|absolute", OperationSpec(rule=absolute, derivative=Derivative.ALWAYS, makes=Trait.NONNEGATIVE))
TABLE.register(
    "pow|ipow",
    OperationSpec(rule=power, keeps=Trait.GATE, find_gate=gates.reciprocal_power, recognise=written_out.power),
)
TABLE.register("float_power", OperationSpec(rule=power, find_gate=gates.reciprocal_power, recognise=written_out.power))
TABLE.register("glu", OperationSpec(rule=glu, keeps=Trait.GATE))
TABLE.register("xlogy|special_xlogy", OperationSpec(rule=logarithm_of_factor))
