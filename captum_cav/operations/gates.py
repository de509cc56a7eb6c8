"""Gates that a model writes by hand, recognised by the traits of the tensors that an operation takes.

A sigmoid is a gate: it weighs the other factor of a product. ``1 + tanh(x)`` and ``0.5 + 0.5 * erf(x)`` are sigmoids of
another width. GELU is often written with them. The tanh of a tensor that is not negative is a gate (Mish). ``x + 3``
clipped between 0 and a number is a gate (hard sigmoid). A negative power is a reciprocal, and a number to the power of
``x`` is an exponential. Both are gates.

Each function here takes an operation and the traits of its first tensor. It returns the traits that the output has in
addition to the traits of the operation's row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from captum_cav.operations.forms import form_of
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import as_tensor

_SHIFTED_GATE = Trait.SHIFTED_UP | Trait.GATE | Trait.SQUASHED


def reciprocal_power(operation: Operation, traits: Trait) -> Trait:
    """``x ** -n`` is a reciprocal, and ``n ** x`` an exponential: both are gates."""
    exponent = operation.argument(1, "exponent")
    is_exponential = operation.depends_on_inputs(exponent)
    if is_exponential:
        is_gate = not operation.depends_on_inputs(operation.argument(0, "input"))
    else:
        is_gate = bool((as_tensor(exponent) < 0).all())
    if not is_gate:
        return Trait.NONE
    return Trait.GATE if is_exponential else Trait.GATE | Trait.RECIPROCAL


def bounded(operation: Operation, traits: Trait) -> Trait:
    """``tanh`` and ``erf`` lie between -1 and 1, and between 0 and 1 where their input is not negative."""
    return Trait.GATE if Trait.NONNEGATIVE in traits else Trait.BOUNDED


def shifted(operation: Operation, traits: Trait) -> Trait:
    """``x + number``: a gate if no value of ``x`` is below ``-number``; shifted up if the number is positive."""
    numbers = [value for value in operation.args[:2] if isinstance(value, (int, float))]
    number = 0.0 if not numbers else -numbers[0] if operation.name == "sub" else numbers[0]
    if number <= 0:
        return Trait.NONE
    form = form_of(operation, operation.sources[0])
    bound = form.bound if form is not None else 1.0 if Trait.BOUNDED in traits else math.inf
    return _SHIFTED_GATE if number >= bound else Trait.SHIFTED_UP


def clipped(bounds: Callable[[Operation], tuple[Any, Any]]) -> Callable[[Operation, Trait], Trait]:
    """A tensor that was shifted up and is now clipped between 0 and a number is a hard sigmoid.

    Whatever is clipped from below by a number that is not negative, has no value below 0 (``nn.ReLU6``).

    Both bounds may come in one operation, or each in an operation of its own. Exported graphs have two operations.

    Args:
        bounds: gives the lower and the upper bound of an operation. None for no bound.
    """

    def find_gate(operation: Operation, traits: Trait) -> Trait:
        low, high = bounds(operation)
        is_positive = isinstance(low, (int, float)) and low >= 0
        # If the upper bound is the smaller one, all values are the upper bound.
        is_above = is_positive and (high is None or (isinstance(high, (int, float)) and high >= low))
        sign = Trait.NONNEGATIVE if is_above else Trait.NONE
        if Trait.SHIFTED_UP not in traits or (low is not None and low != 0):
            return sign
        is_unbounded = high is None or (isinstance(high, float) and math.isinf(high))
        is_from_zero, is_capped = (
            low is not None or Trait.NONNEGATIVE in traits,
            not is_unbounded or Trait.CAPPED in traits,
        )
        if is_from_zero and is_capped:
            return Trait.GATE | Trait.SQUASHED
        return Trait.SHIFTED_UP | (Trait.NONNEGATIVE if is_from_zero else Trait.CAPPED)

    return find_gate


def lower_bound(operation: Operation) -> tuple[Any, Any]:
    """The bounds of an operation that clips from below. The bound is the second argument."""
    return operation.argument(1, "min"), None


def upper_bound(operation: Operation) -> tuple[Any, Any]:
    """The bounds of an operation that clips from above. The bound is the second argument."""
    return None, operation.argument(1, "max")


def bounds_of(
    low: str, high: str, low_default: float | None, high_default: float | None
) -> Callable[[Operation], tuple[Any, Any]]:
    """Reads the bounds of a clipping operation from its second and third argument.

    Args:
        low, high: the names of these arguments.
        low_default, high_default: the bounds where the arguments are left out.
    """
    return lambda operation: (operation.argument(1, low, low_default), operation.argument(2, high, high_default))
