"""Elementwise activations: an output's contribution goes to its own input alone (equation 7).

``beta = 1`` for i = j means ``c_x = c_y * y / x``: not the derivative but the ratio. Where ``f(0) = 0`` the ratio has
a limit at 0. Where it has none (sigmoid, softplus, exp) an input at 0 cannot carry what it gave, and ``f(0)`` counts as
a constant there. So does what a bounded function gives of an infinite input, which no finite ratio reaches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_cav.errors import OptionError
from captum_cav.propagation.marks import BOUNDED, NONNEGATIVE, RAISED, WEIGHT
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.surroundings import OwnFunction


class _Activation(OwnFunction):
    """A value whose coefficient reaches the input times a slope."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, in_place: bool) -> torch.Tensor:
        ctx.save_for_backward(slope)
        if in_place:
            ctx.mark_dirty(x)
            return x
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return coefficients * slope, None, None, None


class _LateActivation(OwnFunction):
    """A value whose slope is worked out in the backward pass, so that the forward pass keeps no tensor of its own.

    The slope is not worked out for what only weighs, which the backward pass does not come to.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, slope: Callable[[], torch.Tensor]) -> torch.Tensor:
        ctx.slope = slope
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        slope = ctx.slope()
        # Memory is dear: a fresh tensor costs as much as two passes over one.
        return coefficients * slope if torch.is_grad_enabled() else slope.mul_(coefficients), None, None


def with_slope(x: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A value whose coefficient reaches ``x`` times a slope."""
    output: torch.Tensor = _Activation.apply(x, value, slope, False)
    return output


class _Sloped(OwnFunction):
    """A value whose coefficient reaches several inputs, each times its slope."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, slopes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*slopes)
        ctx.shapes = [x.shape for x in inputs]
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        return None, None, *((coefficients * slope).sum_to_size(shape) for slope, shape in found)


def with_slopes(value: torch.Tensor, inputs: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """A value whose coefficient reaches several inputs, which broadcast to its shape, each times its slope."""
    output: torch.Tensor = _Sloped.apply(value, slopes, *inputs)
    return output


def _evaluate(
    operation: Operation, keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The carrier, what ``keep`` makes of its value before, and the value after; the last two are no carriers."""
    carrier = operation.argument(0, "input")
    x = carrier.detach()
    before = keep(x)
    if operation.in_place and before is x:
        before = x.clone()
    return carrier, before, operation.evaluate(x)


def _of_one(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an activation of which more than the input depends on the inputs, as a computed bound or slope.

    Complex numbers are refused too: equation 7 is for real ones.
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
        output: torch.Tensor
        if operation.in_place:
            output = _Activation.apply(carrier, value, limited_at_zero(value / x), True)
        else:
            evaluate, kept = operation.evaluator(), operation.keep(x)

            def slope() -> torch.Tensor:
                return limited_at_zero(evaluate(kept.value).div_(kept.value))

            output = _LateActivation.apply(carrier, value, slope)
        return _with_constant(operation, output, value, x.isinf)

    rule.__name__ = "pass_through"
    return rule


@_of_one
def pass_on(operation: Operation, slope_of: Callable[[torch.Tensor, torch.Tensor], tuple[Any, Any]]) -> Any:
    """Pass-through with a slope of its own.

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
    output: torch.Tensor
    if operation.in_place:
        output = _Activation.apply(carrier, value, slope_of(value, x)[0], True)
    else:
        kept = operation.keep(value), operation.keep(x)
        output = _LateActivation.apply(carrier, value, lambda: slope_of(*(one.value for one in kept))[0])
    return _with_constant(operation, output, value, lambda: slope_of(value, x)[1] | x.isinf())


def _with_constant(
    operation: Operation, output: torch.Tensor, value: torch.Tensor, silent: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """An activation's output of which the value counts as a constant's where its input carries nothing."""
    if operation.counts_constants:
        operation.add_constant(output, torch.where(silent(), value, 0.0))
    return output


def pass_through(operation: Operation) -> Any:
    """Pass-through for any elementwise function, the paper's equation 7.

    Inputs nearer to 0 than the rounding of 1 carry nothing; what the function gives there counts as a constant.
    """

    def slope(value: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        silent = x.abs() < torch.finfo(x.dtype).eps
        # What is not finite may be masked out behind (the logarithm of a negative number): 0 times NaN would be NaN.
        return torch.div(value, x).masked_fill_(silent, 0.0).nan_to_num_(0.0, 0.0, 0.0), silent

    return pass_on(operation, slope)


@_of_one
def saturated(operation: Operation) -> Any:
    """ReLU6 and hardtanh from 0 up: slope 1 until the bound, ``bound / x`` beyond, 0 below 0."""
    _rectifies(operation)
    carrier, positive, value = _evaluate(operation, lambda x: x.clamp(min=torch.finfo(x.dtype).tiny))
    slope = torch.div(value, positive, out=positive)
    output = _Activation.apply(carrier, value, slope, operation.in_place)
    return _with_constant(operation, output, value, lambda: slope == 0)


def hardtanh(operation: Operation) -> Any:
    """Hardtanh: as ReLU6 where its lower bound is 0; elsewhere pass-through, with limit 1 if 0 is within the bounds."""
    low, high = operation.argument(1, "min_val", -1.0), operation.argument(2, "max_val", 1.0)
    if low == 0:
        return saturated(operation)
    return (limited(1.0) if low < 0 < high else pass_through)(operation)


@_of_one
def silu(operation: Operation) -> Any:
    """SiLU: ``x * sigmoid(x)``, whose ratio is the sigmoid."""
    if operation.in_place:
        carrier, slope, value = _evaluate(operation, torch.sigmoid)
        return _Activation.apply(carrier, value, slope, True)
    carrier, x, value = _evaluate(operation)
    kept = operation.keep(x)
    return _LateActivation.apply(carrier, value, lambda: torch.sigmoid(kept.value))


@_of_one
def through_zero(operation: Operation) -> Any:
    """Piecewise linear through 0 (leaky ReLU, absolute value): the gradient is the ratio."""
    return operation.value()


def absolute(operation: Operation) -> Any:
    """Absolute value: piecewise linear through 0; of a complex number homogeneous, and the gradient conserves."""
    complex_ = operation.argument(0, "input").is_complex()
    return operation.value() if complex_ else through_zero(operation)


def relu(operation: Operation) -> Any:
    """ReLU: the gradient is the ratio, and where the input is below 0 nothing comes through."""
    _rectifies(operation)
    return operation.value()


def _rectifies(operation: Operation) -> None:
    before = operation.origin_of(operation.argument(0, "input"))
    if before is not None:
        before.rectifiers += 1


def power(operation: Operation) -> Any:
    """``x ** n``: pass-through; a negative power is a weight, as the reciprocal of a statistic."""
    x, exponent = operation.argument(0, "input"), operation.argument(1, "exponent")
    if isinstance(exponent, (int, float)) and exponent > 0:
        return limited(1.0 if exponent == 1 else 0.0)(operation)
    if operation.carries(x):
        return pass_through(operation)
    base = torch.as_tensor(x, dtype=exponent.dtype, device=exponent.device)
    if operation.depends_on_inputs(x) or operation.in_place or not bool((base > 0).all()):
        return operation.gradient()
    return operation.inside(lambda: (exponent * base.log()).exp())


def glu(operation: Operation) -> Any:
    """``a * sigmoid(b)`` of the two halves, written out: the gate is a weight."""
    x, dim = operation.argument(0, "input"), operation.argument(1, "dim", -1)

    def written_out() -> Any:
        signal, gate = x.chunk(2, dim)
        return signal * gate.sigmoid()

    return operation.inside(written_out)


def logarithm_of_factor(operation: Operation) -> Any:
    """``a * log(b)``, written out."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    return operation.inside(lambda: a * torch.as_tensor(b).log())


# What f(x) / x tends to at 0.
_LIMITS: dict[str, float] = {
    "tanh": 1.0,
    "elu": 1.0,
    "celu": 1.0,
    "selu": 1.0507009873554805 * 1.6732632423543772,
    "gelu": 0.5,
    "hardswish": 0.5,
    "mish": math.tanh(math.log(2.0)),
    "softsign": 1.0,
    "tanhshrink": 0.0,
    "softshrink": 0.0,
    "square": 0.0,
    "sqrt": 0.0,
    "sin": 1.0,
    "tan": 1.0,
    "sinh": 1.0,
    "asin": 1.0,
    "atan": 1.0,
    "asinh": 1.0,
    "atanh": 1.0,
    "expm1": 1.0,
    "log1p": 1.0,
    "erf": 2.0 / math.sqrt(math.pi),
    "erfinv": math.sqrt(math.pi) / 2.0,
    "nan_to_num": 1.0,
    # Steps: what is rounded passes on all that comes of it; next to 0 they are 0.
    "round": 0.0,
    "trunc": 0.0,
}
# No limit at 0.
_PASSED: list[str] = """
    sigmoid hardsigmoid softplus logsigmoid log_sigmoid exp exp2 cos cosh acos acosh log log2 log10 erfc sinc logit
    lgamma digamma special_ndtr special_log_ndtr special_entr clamp clamp_min clamp_max clip threshold _threshold
    log_softmax softmax softmin reciprocal rsqrt rpow floor ceil frac sign heaviside copysign ldexp fmod remainder
    floor_divide atan2
""".split()
_THROUGH_ZERO: list[str] = "leaky_relu rrelu prelu _prelu_kernel hardshrink".split()

RULES: dict[str, Surrogate] = {
    **{name: limited(limit) for name, limit in _LIMITS.items()},
    **dict.fromkeys(_PASSED, pass_through),
    **dict.fromkeys(_THROUGH_ZERO, through_zero),
    "abs": absolute,
    "hardtanh": hardtanh,
    "relu": relu,
    "relu6": saturated,
    "silu": silu,
    **dict.fromkeys(("pow", "float_power"), power),
    "glu": glu,
    "xlogy": logarithm_of_factor,
}
#: Positive factors of whatever they are multiplied with: sigmoids, softmax, exponentials, reciprocals; and signs.
MAKING_WEIGHTS = frozenset(
    """
    sigmoid hardsigmoid softmax softmin reciprocal rsqrt exp exp2 rpow softplus special_ndtr sign heaviside
    """.split()
)
KEEPING_WEIGHTS = frozenset("relu glu clamp clamp_min clamp_max clip pow square sqrt".split())
#: Functions without values below 0.
MAKING_NONNEGATIVE = frozenset(
    """
    relu relu6 sigmoid hardsigmoid softplus softmax softmin exp exp2 abs square sqrt cosh special_ndtr heaviside
    """.split()
)


def written_gate(operation: Operation, x_traits: int) -> int:
    """What makes a sigmoid, written by hand of other functions, known as the weight that it is.

    ``1 + tanh(x)`` and ``1 + erf(x)`` are sigmoids of another width (GELU is often written with them); so is a tanh of
    what is not negative (Mish), and ``x + 3`` clipped between 0 and a number (hard sigmoid). A negative power is a
    reciprocal, and a number to the power of ``x`` an exponential.

    Args:
        operation: any operation.
        x_traits: traits of its first argument.

    Returns:
        Traits that its output has besides, see :mod:`captum_cav.propagation.marks`.
    """
    name = operation.name
    if name in ("pow", "float_power"):
        exponent = operation.argument(1, "exponent")
        if operation.depends_on_inputs(exponent):
            return WEIGHT * (not operation.depends_on_inputs(operation.argument(0, "input")))
        return WEIGHT * bool((torch.as_tensor(exponent) < 0).all())
    if name in ("tanh", "erf"):
        return WEIGHT if x_traits & NONNEGATIVE else BOUNDED
    if name == "add":
        (number,) = [value for value in operation.args[:2] if isinstance(value, (int, float))] or [0]
        return WEIGHT * (number >= 1 and bool(x_traits & BOUNDED)) | RAISED * (number > 0)
    if x_traits & RAISED and name in _CLIPPING:
        bounds = _CLIPPING[name](operation)
        return WEIGHT * (bounds[0] == 0 and bounds[1] is not None)
    return 0


def _bounds(low: str, high: str, by_default: Any) -> Callable[[Operation], tuple[Any, Any]]:
    return lambda operation: (operation.argument(1, low, by_default[0]), operation.argument(2, high, by_default[1]))


_CLIPPING: dict[str, Callable[[Operation], tuple[Any, Any]]] = {
    "relu6": lambda _: (0, 6),
    "hardtanh": _bounds("min_val", "max_val", (-1, 1)),
    "clamp": _bounds("min", "max", (None, None)),
    "clip": _bounds("min", "max", (None, None)),
}
#: What :func:`written_gate` looks at.
GATES = frozenset(["pow", "float_power", "tanh", "erf", "add", *_CLIPPING])
