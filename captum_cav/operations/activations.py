"""Activations and other elementwise functions: their rows, and the rules of those that need a rule of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import gates, guards, written_activations, written_norms, written_out
from captum_cav.operations.elementwise import evaluated, limited, of_one, passed_through, with_constant
from captum_cav.operations.forms import What, form_of
from captum_cav.operations.surrogates import with_slopes, written_over
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative, Kind
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import FACTOR, Trait
from captum_cav.tensors import as_tensor


@of_one
def saturated(operation: Operation) -> Any:
    """ReLU6, and hardtanh with the lower bound 0. The slope is 0 below 0, 1 up to the bound, and then bound / x."""
    _note_rectifier(operation)
    carrier, positive, value = evaluated(operation, lambda x: x.clamp(min=torch.finfo(x.dtype).tiny))
    slope = torch.div(value, positive, out=positive)
    output = written_over(carrier, slope) if operation.in_place else with_slopes(value, [carrier], [slope])
    return with_constant(operation, output, value, lambda: slope == 0)


def hardtanh(operation: Operation) -> Any:
    """Hardtanh: like ReLU6 if its lower bound is 0. Otherwise pass-through, with limit 1 if 0 is between the bounds."""
    low, high = _hardtanh_bounds(operation)
    if low == 0:
        return saturated(operation)
    return (limited(1.0) if low < 0 < high else passed_through)(operation)


def clamp(operation: Operation) -> Any:
    """Clamp: a ReLU if its lower bound is 0, and hardtanh between two numbers. Otherwise pass-through."""
    x, (low, high) = operation.argument(0, "input"), _clamp_bounds(operation)
    if high is None and _is_relu(operation, x, low):
        return operation.decompose(torch.relu, x)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
        return operation.decompose(F.hardtanh, x, low, high)
    return passed_through(operation)


def clamp_from_below(operation: Operation) -> Any:
    """``clamp_min``: a ReLU if the bound is 0. Otherwise pass-through."""
    x, low = operation.argument(0, "input"), operation.argument(1, "min")
    return operation.decompose(torch.relu, x) if _is_relu(operation, x, low) else passed_through(operation)


def _is_relu(operation: Operation, x: Any, low: Any) -> bool:
    """Whether a lower bound makes a ReLU. It may also keep a statistic from getting negative, or bound exponentials."""
    form = form_of(operation, x)
    return isinstance(low, (int, float)) and low == 0 and (form is None or form.what in _OF_ELEMENTS)


@of_one
def silu(operation: Operation) -> Any:
    """SiLU: ``x * sigmoid(x)``, whose ratio is the sigmoid. Torch differentiates this product without any Python."""
    carrier = operation.argument(0, "input")
    slope = torch.sigmoid(carrier.detach())
    return carrier.mul_(slope) if operation.in_place else carrier * slope


@of_one
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
        return passed_through(operation)
    is_number = isinstance(x, (int, float))
    # A number stays on the host: a copy to the device would make the host wait.
    base = as_tensor(x, dtype=torch.float64 if is_number else exponent.dtype)
    if operation.depends_on_inputs(x) or operation.in_place or not bool((base > 0).all()):
        return operation.gradient()
    factor = math.log(x) if is_number else base.log()
    return operation.decompose(lambda: (exponent * factor).exp())


def numbers_only(operation: Operation) -> Any:
    """``nan_to_num``: numbers pass. What replaces NaN or infinity is a constant."""
    is_constant = ~operation.argument(0, "input").detach().isfinite() if operation.counts_constants else None
    output = operation.value()
    if is_constant is not None:
        operation.add_constant(output, torch.where(is_constant, output.detach(), 0.0))
    return output


def reversed_power(operation: Operation) -> Any:
    """``number ** x``, decomposed into an exponential."""
    exponent, base = operation.argument(0, "input"), operation.argument(1, "other")
    return operation.decompose(torch.pow, base, exponent)


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
    return operation.decompose(lambda: a * as_tensor(b).log())


_OF_ELEMENTS = frozenset({What.AFFINE, What.ELEMENTWISE, What.ACTIVATION})
_hardtanh_bounds = gates.bounds_of("min_val", "max_val", -1.0, 1.0)
_clamp_bounds = gates.bounds_of("min", "max", None, None)
_POSITIVE_GATE = Trait.GATE | Trait.NONNEGATIVE | Trait.SQUASHED
_SOFTMAX = _POSITIVE_GATE | Trait.WEIGHTS


def _elementwise(rule: Surrogate, **more: Any) -> OperationSpec:
    is_activation = "kind" in more or more.get("derivative") is Derivative.ALWAYS
    recognise = written_activations.activation if is_activation else written_activations.function
    return OperationSpec(rule=rule, **{"recognise": recognise, **more})


def _limited(limit: float, **more: Any) -> OperationSpec:
    return _elementwise(limited(limit), **more)


def _passed(**more: Any) -> OperationSpec:
    return _elementwise(passed_through, **more)


def _piecewise_linear(rule: Surrogate, **more: Any) -> OperationSpec:
    return _elementwise(rule, kind=Kind.ACTIVATION, derivative=Derivative.ALWAYS, **more)


# Activations between layers, in the order in which presets print them.
TABLE.register("relu", _piecewise_linear(relu, is_as_is=True, keeps=FACTOR | Trait.SHIFTED_UP, makes=Trait.NONNEGATIVE))
TABLE.register(
    "relu6",
    _elementwise(
        saturated,
        kind=Kind.ACTIVATION,
        keeps=FACTOR,
        makes=Trait.NONNEGATIVE,
        find_gate=gates.clipped(lambda operation: (0, 6)),
    ),
)
TABLE.register(
    "hardtanh",
    _elementwise(
        hardtanh,
        kind=Kind.ACTIVATION,
        keeps=FACTOR,
        find_gate=gates.clipped(_hardtanh_bounds),
    ),
)
TABLE.register("leaky_relu prelu|_prelu_kernel", _piecewise_linear(through_zero, keeps=FACTOR))
TABLE.register("rrelu", _piecewise_linear(through_zero, keeps=FACTOR, guard=guards.rrelu))
TABLE.register("elu celu", _limited(1.0, kind=Kind.ACTIVATION))
TABLE.register("selu", _limited(1.0507009873554805 * 1.6732632423543772, kind=Kind.ACTIVATION))
TABLE.register("gelu hardswish", _limited(0.5, kind=Kind.ACTIVATION))
TABLE.register("silu", _elementwise(silu, kind=Kind.ACTIVATION))
TABLE.register("mish", _limited(math.tanh(math.log(2.0)), kind=Kind.ACTIVATION))
TABLE.register("softplus", _passed(kind=Kind.ACTIVATION, makes=_POSITIVE_GATE, recognise=written_activations.function))
TABLE.register("threshold|_threshold", _passed(kind=Kind.ACTIVATION, keeps=FACTOR))

# With a limit of f(x) / x at 0.
TABLE.register("tanh", _limited(1.0, find_gate=gates.bounded))
TABLE.register(
    "erf|special_erf",
    _limited(2.0 / math.sqrt(math.pi), find_gate=gates.bounded),
)
TABLE.register(
    """
    softsign sin tan sinh asin|arcsin atan|arctan asinh|arcsinh atanh|arctanh expm1|special_expm1
    """,
    _limited(1.0),
)
TABLE.register("log1p|special_log1p", _limited(1.0, keeps=Trait.SQUASHED, recognise=written_out.logarithm_of_one_more))
TABLE.register("erfinv|special_erfinv", _limited(math.sqrt(math.pi) / 2.0))
_ROOT = {"keeps": Trait.GATE, "makes": Trait.NONNEGATIVE}
TABLE.register("square", _limited(0.0, recognise=written_out.square, **_ROOT))
TABLE.register("sqrt", _limited(0.0, recognise=written_norms.root, **_ROOT))
# Near 0 these are 0. Some of them are steps: the whole contribution of a rounded value goes to its input.
TABLE.register("tanhshrink softshrink round|special_round trunc|fix", _limited(0.0))

# Without a limit at 0. Sigmoids, exponentials and steps are gates: positive factors that weigh another factor.
TABLE.register("hardsigmoid special_ndtr", _passed(makes=_POSITIVE_GATE))
TABLE.register("exp2|special_exp2 heaviside", _passed(makes=_POSITIVE_GATE))
TABLE.register("exp", _passed(makes=_POSITIVE_GATE, recognise=written_out.exponential))
TABLE.register("sigmoid|special_expit", _passed(makes=_POSITIVE_GATE, recognise=written_out.squashes(What.SIGMOID)))
TABLE.register(
    "softmax|_softmax|special_softmax",
    _passed(makes=_SOFTMAX, kind=Kind.ATTENTION, recognise=written_out.squashes(What.SOFTMAX)),
)
TABLE.register("softmin", OperationSpec(rule=Operation.decompose_body))
TABLE.register("reciprocal rsqrt", _passed(makes=Trait.GATE | Trait.RECIPROCAL, recognise=written_out.reciprocal))
TABLE.register("sign|sgn", _passed(makes=Trait.GATE))
TABLE.register("cosh", _passed(makes=Trait.NONNEGATIVE))
TABLE.register(
    "clamp clip",
    OperationSpec(rule=clamp, keeps=FACTOR, find_gate=gates.clipped(_clamp_bounds), recognise=written_out.bounded),
)
TABLE.register(
    "clamp_min",
    OperationSpec(
        rule=clamp_from_below,
        keeps=FACTOR,
        find_gate=gates.clipped(gates.lower_bound),
        recognise=written_out.bounded,
    ),
)
TABLE.register(
    "clamp_max",
    _passed(keeps=FACTOR, find_gate=gates.clipped(gates.upper_bound), recognise=written_out.bounded),
)
TABLE.register(
    """
    cos acos|arccos acosh|arccosh log2 log10 erfc|special_erfc sinc|special_sinc
    logit|special_logit lgamma|special_gammaln digamma|special_digamma|special_psi special_entr
    floor ceil frac copysign ldexp fmod remainder|mod|imod
    floor_divide|floordiv|ifloordiv atan2|arctan2 special_erfcx mvlgamma|special_multigammaln
    """,
    _passed(),
)

TABLE.register("log", _passed(keeps=Trait.SQUASHED, recognise=written_out.logarithm))
TABLE.register("special_log_ndtr", _passed(makes=Trait.SQUASHED))
TABLE.register(
    "logsigmoid log_sigmoid", _passed(makes=Trait.SQUASHED, recognise=written_out.squashes(What.LOG_SIGMOID))
)
TABLE.register(
    "log_softmax|_log_softmax|special_log_softmax",
    _passed(makes=Trait.SQUASHED, recognise=written_out.squashes(What.LOG_SOFTMAX)),
)

# Functions with other rules.
TABLE.register("rpow", OperationSpec(rule=reversed_power))
TABLE.register("hardshrink", _elementwise(through_zero, derivative=Derivative.ALWAYS, keeps=FACTOR))
TABLE.register(
    "abs|absolute", _elementwise(absolute, derivative=Derivative.ALWAYS, keeps=FACTOR, makes=Trait.NONNEGATIVE)
)
TABLE.register(
    "pow|ipow",
    OperationSpec(rule=power, keeps=Trait.GATE, find_gate=gates.reciprocal_power, recognise=written_out.power),
)
TABLE.register("float_power", OperationSpec(rule=power, find_gate=gates.reciprocal_power, recognise=written_out.power))
TABLE.register("nan_to_num", OperationSpec(rule=numbers_only, derivative=Derivative.ALWAYS, keeps=FACTOR))
TABLE.register("glu", OperationSpec(rule=glu, keeps=Trait.GATE))
TABLE.register("xlogy|special_xlogy", OperationSpec(rule=logarithm_of_factor))
