"""Activations that a model writes out: functions of single elements, with numbers as their only constants.

Equation 7 gives the contribution of each output of an activation to its own input. How the activation is computed does
not matter. So ``2 * sigmoid(2 * x) - 1`` has the contributions of ``tanh(x)``: the numbers belong to the function, and
they have no shares of their own. A function ``k x + b`` is no activation. There ``b`` is a constant (equation 4).

As in :mod:`captum_cav.operations.written_out`, each function here takes an operation that is about to run. It leaves a
form on the output, or it returns the operation that passes contributions on to the beginning of the function.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import gates
from captum_cav.operations.elementwise import pass_through
from captum_cav.operations.forms import Form, Parts, Replays, What, chained, completed, form_of, leave, replay_of
from captum_cav.propagation.operation import Operation

_FORMS = frozenset(
    {
        What.AFFINE,
        What.ELEMENTWISE,
        What.EXPONENTIAL,
        What.ONE_PLUS_EXPONENTIAL,
        What.SIGMOID,
        What.LOG_SIGMOID,
        What.SQUARES,
    }
)


def activation(operation: Operation) -> Operation | None:
    """An activation between layers. What follows the activation does not belong to the activation.

    So the activation leaves no form of its own, unless it is a part of a function that began before: a number was
    added, as in a hard sigmoid, or another function of each element comes before.
    """
    x = operation.argument(0, "input")
    if form_of(operation, x) is None:
        return None
    found = function(operation)
    _, _, is_affine, is_shifted = base_of(operation, x)
    if is_affine and not is_shifted:
        operation.handoff = None
    return found


def function(operation: Operation) -> Operation | None:
    """A function of one tensor that is not ``k x + b``."""
    x = operation.argument(0, "input")
    if len(operation.sources) != 1 or operation.sources[0] is not x:
        return None
    base, replays, _, is_shifted = base_of(operation, x)
    # The rows of tanh and erf say that their output is bounded.
    bound = 1.0 if operation.spec.find_gate is gates.bounded else math.inf
    leave(operation, What.ELEMENTWISE, base, ((x, replays),), bound=bound)
    return _passing_to(operation, base, ((x, replays),)) if is_shifted else None


def scaled(operation: Operation, x: torch.Tensor, factor: float) -> None:
    """Leave the form of a tensor times a number."""
    base, replays, is_affine, is_shifted = base_of(operation, x)
    what = What.AFFINE if is_affine else What.ELEMENTWISE
    form = form_of(operation, x)
    bound = math.inf if form is None or not factor else form.bound * abs(factor)
    leave(operation, what, base, ((x, replays),), is_shifted=is_shifted, bound=bound)


def negative(operation: Operation) -> Operation | None:
    """``-x``."""
    scaled(operation, operation.argument(0, "input"), -1.0)
    return None


def shifted(operation: Operation, x: torch.Tensor) -> Operation | None:
    """A tensor plus a number. Behind an activation the number belongs to the activation."""
    base, replays, is_affine, _ = base_of(operation, x)
    if is_affine:
        dims = tuple(range(x.dim())) if replays is None else ()
        leave(operation, What.AFFINE, base, ((x, replays),), dims=dims, is_shifted=True)
        return None
    leave(operation, What.ELEMENTWISE, base, ((x, replays),))
    return _passing_to(operation, base, ((x, replays),))


def of_two(operation: Operation, a: torch.Tensor, b: torch.Tensor) -> Operation | None:
    """A sum, a difference, a product or a quotient of two functions of the same tensor."""
    base, of_a, _, a_is_shifted = base_of(operation, a)
    other, of_b, _, b_is_shifted = base_of(operation, b)
    if base is not other or a is b:
        return None
    parts = ((a, of_a), (b, of_b))
    leave(operation, What.ELEMENTWISE, base, parts)
    is_gated = operation.name in ("mul", "div") and operation.is_gate(a) != operation.is_gate(b)
    if operation.in_place or not is_gated:
        return _passing_to(operation, base, parts) if a_is_shifted or b_is_shifted else None
    of_gate, of_x = (of_a, of_b) if operation.is_gate(a) else (of_b, of_a)
    is_silu = isinstance(of_gate, Form) and of_gate.what is What.SIGMOID and not of_gate.is_reversed and of_x is None
    # As behind a fused activation, no form is left.
    operation.handoff = None
    return completed(operation, F.silu if is_silu else F.gelu, base, replay_of(operation, parts))


def base_of(operation: Operation, x: Any) -> tuple[Any, Replays | None, bool, bool]:
    """The tensor of whose elements a tensor is a function.

    Returns:
        The tensor before; the function, or None if both tensors are the same; whether the function is ``k x + b``;
        whether a number is added inside.
    """
    form = form_of(operation, x)
    if form is not None and form.of_elements is not None and form.of_elements.holds_for(x):
        form = form.of_elements
    if form is None or form.moves or form.what not in _FORMS:
        return x, None, True, False
    base, replays, is_affine, is_shifted = base_of(operation, form.before)
    function = form if replays is None else chained(replays, form)
    return base, function, is_affine and form.what is What.AFFINE, is_shifted or form.is_shifted


def _passing_to(operation: Operation, base: torch.Tensor, parts: Parts) -> Operation | None:
    """The operation, with contributions that pass to the beginning of the function."""
    found = completed(operation, None, base, replay_of(operation, parts), rule=pass_through)
    if found is not None:
        found.handoff = operation.handoff
    return found
