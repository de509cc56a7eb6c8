"""Activations that a model writes out: functions of single elements, with numbers as their only constants.

Equation 7 gives the contribution of each output of an activation to its own input. How the activation is computed does
not matter. So ``2 * sigmoid(2 * x) - 1`` has the contributions of ``tanh(x)``: the numbers belong to the function, and
they have no shares of their own. A function ``k x + b`` is no activation. There ``b`` is a constant (equation 4), as
the bias of a layer is, also if an activation follows. The one exception is the hard sigmoid, ``clip(x + 3, 0, 6)``.

As in :mod:`captum_cav.operations.written_out`, each function here takes an operation that is about to run. It leaves a
form on the output, or it returns the operation that passes contributions on to the beginning of the function.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn import functional as F

from captum_cav.operations import gates
from captum_cav.operations.elementwise import pass_through
from captum_cav.operations.forms import Form, Parts, Replays, What, chained, completed, form_of, leave, replay_of
from captum_cav.operations.surrogates import with_late_slope
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.traits import Trait

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


class Step(NamedTuple):
    """A tensor on the way back from a tensor to the beginning of the function that made it.

    Attributes:
        tensor: the tensor on the way.
        replays: computes the last tensor from this one. None for the last tensor itself.
        form: the form of the tensor behind this one, in terms of this one. None for the last tensor.
        is_affine: whether the last tensor is ``k x + b`` of this one.
        is_shifted: whether a number is added between this tensor and the last one, before any other function.
    """

    tensor: Any
    replays: Replays | None = None
    form: Form | None = None
    is_affine: bool = True
    is_shifted: bool = False


#: A factor of a product, as a step of the way to the tensor of which both factors are functions.
Factor: TypeAlias = tuple[torch.Tensor, Step]


def activation(operation: Operation) -> Operation | None:
    """An activation between layers. What follows the activation does not belong to the activation.

    So the activation leaves a form that only the other half of a hard sigmoid reads, a gate of its own input, and the
    sum of two activations of the same tensor.
    """
    x = operation.argument(0, "input")
    if form_of(operation, x) is None or not _is_of_one(operation, x):
        return None
    beginning = _beginning_of_hard_sigmoid(operation, x)
    if beginning is not None:
        leave(operation, What.ELEMENTWISE, beginning.tensor, ((x, beginning.replays),))
        return _passing_to(operation, F.hardsigmoid, beginning.tensor, ((x, beginning.replays),))
    earliest = steps_of(operation, x)[-1]
    if earliest.is_shifted or not earliest.is_affine:
        _leave(operation, What.ACTIVATION, x)
    return None


def function(operation: Operation) -> Operation | None:
    """A function of one tensor that is not ``k x + b``."""
    x = operation.argument(0, "input")
    if _is_of_one(operation, x):
        # The rows of tanh and erf say that their output is bounded.
        bound = 1.0 if operation.spec.find_gate is gates.bounded else math.inf
        _leave(operation, What.ELEMENTWISE, x, bound=bound)
    return None


def scaled(operation: Operation, x: torch.Tensor, factor: float) -> None:
    """Leave the form of a tensor times a number."""
    form = form_of(operation, x)
    bound = math.inf if form is None or not factor else form.bound * abs(factor)
    _leave(operation, What.AFFINE, x, bound=bound)


def negative(operation: Operation) -> Operation | None:
    """``-x``."""
    scaled(operation, operation.argument(0, "input"), -1.0)
    return None


def shifted(operation: Operation, x: torch.Tensor) -> Operation | None:
    """A tensor plus a number. Behind an activation the number belongs to the activation."""
    inside = next((step for step in steps_of(operation, x) if not step.is_affine), None)
    if inside is None:
        dims = () if operation.in_place else tuple(range(x.dim()))
        _leave(operation, What.AFFINE, x, dims=dims, is_shifted=True)
        return None
    _leave(operation, What.ELEMENTWISE, x, is_shifted=True)
    return _passing_to(operation, None, inside.tensor, ((x, inside.replays),))


def of_two(operation: Operation, a: torch.Tensor, b: torch.Tensor) -> Operation | None:
    """A sum, a difference, a product or a quotient of two functions of the same tensor."""
    if a is b:
        return None
    is_product = operation.name in ("mul", "div")
    whole, met = _meeting(operation, a, b, through_activations=True), _meeting(operation, a, b)
    if whole is None:
        return None
    parts = ((a, whole[0].replays), (b, whole[1].replays))
    if is_product and not operation.in_place and (gated := _gated(operation, (a, whole[0]), (b, whole[1]))):
        (_, of_x), (_, of_gate) = gated
        form = of_gate.replays
        is_silu = isinstance(form, Form) and form.what is What.SIGMOID and not form.is_reversed
        fused = F.silu if is_silu and of_x.replays is None else F.gelu
        # As behind a fused activation, no form is left.
        return completed(operation, fused, of_x.tensor, replay_of(operation, parts), rule=_rule_of(operation, *gated))
    if met is None and not is_product and _are_activations(operation, a, b):
        return _passing_to(operation, None, whole[0].tensor, parts)
    if met is not None and not (met[0].is_shifted or met[1].is_shifted):
        is_affine = not is_product and met[0].is_affine and met[1].is_affine
        parts = ((a, met[0].replays), (b, met[1].replays))
        leave(operation, What.AFFINE if is_affine else What.ELEMENTWISE, met[0].tensor, parts)
    return None


def steps_of(operation: Operation, x: Any, through_activations: bool = False) -> list[Step]:
    """The tensors of whose elements a tensor is a function, from the tensor itself to the earliest of them.

    Args:
        operation: an operation that takes the tensor.
        x: the tensor.
        through_activations: whether to go on before an activation between layers.
    """
    steps = [Step(x)]
    while True:
        last = steps[-1]
        form = form_of(operation, last.tensor)
        if form is not None and form.of_elements is not None and form.of_elements.holds_for(last.tensor):
            form = form.of_elements
        is_one = form is not None and (form.what in _FORMS or (through_activations and form.what is What.ACTIVATION))
        if form is None or not is_one or form.moves:
            return steps
        is_affine = form.what is What.AFFINE
        steps.append(
            Step(
                form.before,
                chained(form, last.replays),
                form,
                last.is_affine and is_affine,
                is_affine and (form.is_shifted or last.is_shifted),
            )
        )


def _is_of_one(operation: Operation, x: torch.Tensor) -> bool:
    """Whether nothing but the tensor depends on the inputs."""
    return len(operation.sources) == 1 and operation.sources[0] is x


def _beginning_of_hard_sigmoid(operation: Operation, x: torch.Tensor) -> Step | None:
    """The tensor ``x`` of ``clip(x + 3, 0, 6)``, if an activation is the last bound of it. None otherwise."""
    traits, find_gate = operation.traits_of(x), operation.spec.find_gate
    if Trait.SHIFTED_UP not in traits:
        return None
    if find_gate is None:
        is_last_bound = operation.name == "relu" and Trait.CAPPED in traits
    else:
        is_last_bound = Trait.GATE in find_gate(operation, traits)
    steps = steps_of(operation, x, through_activations=True) if is_last_bound else []
    return next((step for step in steps if step.form is not None and step.form.is_shifted), None)


def _leave(operation: Operation, what: What, x: torch.Tensor, **more: Any) -> None:
    """Leave a form in terms of the tensor that an operation takes, or of an earlier one if that is overwritten."""
    if not operation.in_place:
        leave(operation, what, x, ((x, None),), **more)
        return
    steps = steps_of(operation, x)
    if len(steps) > 1 and not steps[1].is_shifted:
        what = What.ELEMENTWISE if what is What.AFFINE and not steps[1].is_affine else what
        leave(operation, what, steps[1].tensor, ((x, steps[1].replays),), **more)


def _meeting(
    operation: Operation, a: torch.Tensor, b: torch.Tensor, through_activations: bool = False
) -> tuple[Step, Step] | None:
    """The latest tensor of which both of two tensors are functions, as a step of each. None if there is none."""
    of_b = {id(step.tensor): step for step in reversed(steps_of(operation, b, through_activations))}
    for step in steps_of(operation, a, through_activations):
        if id(step.tensor) in of_b:
            return step, of_b[id(step.tensor)]
    return None


def _are_activations(operation: Operation, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both tensors are activations of shifted tensors, as in softshrink: ``relu(x - 1) - relu(-x - 1)``."""
    beginnings = [steps_of(operation, tensor)[-1].tensor for tensor in (a, b)]
    return all(form_of(operation, tensor, What.ACTIVATION) is not None for tensor in beginnings)


def _gated(operation: Operation, a: Factor, b: Factor) -> tuple[Factor, Factor] | None:
    """The factor ``k x`` of an activation ``k x * gate(x)``, and its gate. None for another product."""
    for factor, gate in ((a, b), (b, a)) if operation.name == "mul" else ((a, b),):
        is_multiple = factor[1].is_affine and not factor[1].is_shifted
        is_gate = operation.is_gate(gate[0]) and not gate[1].is_affine
        if is_multiple and is_gate and (not operation.is_gate(factor[0]) or _is_made_gate(operation, *gate)):
            return factor, gate
    return None


def _rule_of(operation: Operation, factor: Factor, gate: Factor) -> Surrogate:
    """The default rule of ``k x * gate(x)``. The ratio is ``k * gate(x)``, also where ``x`` is 0."""
    saved, of_x = operation.save(gate[0].detach()), factor[1]
    multiple = None if of_x.replays is None else of_x.replays.replay()

    def rule(activation: Operation) -> Any:
        carrier = activation.argument(0, "input")
        one = torch.ones((), dtype=carrier.dtype, device=carrier.device)
        scale = one if multiple is None else multiple(one)

        def slope() -> torch.Tensor:
            return saved.value * scale if operation.name == "mul" else scale / saved.value

        return with_late_slope(carrier, activation.evaluate(carrier.detach()), slope)

    rule.__name__ = "pass_through"
    return rule


def _is_made_gate(operation: Operation, gate: torch.Tensor, beginning: Step) -> bool:
    """Whether a gate of a gate is a function such as a sigmoid, and not a power of the first gate."""
    for step in steps_of(operation, gate, through_activations=True):
        form = step.form
        if form is not None and form.what is not What.AFFINE and not form.is_shifted:
            return form.what is What.SIGMOID or not (form.what is What.SQUARES or form.is_of_two)
        if step.tensor is beginning.tensor:
            break
    return False


def _passing_to(operation: Operation, fused: Any, beginning: torch.Tensor, parts: Parts) -> Operation | None:
    """The operation, with contributions that pass to the beginning of the function."""
    rule = pass_through if fused is None else None
    found = completed(operation, fused, beginning, replay_of(operation, parts), rule=rule)
    if found is not None:
        found.handoff = operation.handoff
    return found
