"""Rules of elementwise functions: the contribution of each output goes to its own input only (equation 7).

In equation 7 ``beta = 1`` for ``i = j``, so ``c_x = c_y * y / x``. The slope is the ratio ``y / x``, not the
derivative. If ``f(0) = 0``, the ratio has a limit at 0. If the ratio has no limit (sigmoid, softplus, exp), an input of
value 0 cannot carry the contribution of ``f(0)``, which counts as a constant. The output of a bounded function for an
infinite input counts as a constant, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from captum_cav.errors import OptionError
from captum_cav.operations.surrogates import with_late_slope, written_over
from captum_cav.propagation.operation import Operation, Surrogate


def evaluated(
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


def of_one(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an activation with another argument, such as a bound or a slope, that depends on the inputs.

    Complex numbers are refused, too, because equation 7 is for real numbers.
    """

    @functools.wraps(rule)
    def checked(operation: Operation, *options: Any) -> Any:
        return operation.gradient() if _is_of_several(operation) else rule(operation, *options)

    return checked


def _is_of_several(operation: Operation) -> bool:
    """Whether an operation is no function of its first argument alone, or no function of real numbers."""
    (source, *others), x = operation.sources, operation.argument(0, "input")
    return bool(others) or source is not x or x.is_complex()


def limited(limit: float) -> Surrogate:
    """Rule of a function with ``f(0) = 0``: pass-through.

    Args:
        limit: the limit of ``f(x) / x`` at 0.
    """

    def limited_at_zero(ratio: torch.Tensor) -> torch.Tensor:
        return ratio.nan_to_num_(nan=limit, posinf=0.0, neginf=0.0)

    @of_one
    def rule(operation: Operation) -> Any:
        carrier, x, value = evaluated(operation)
        if operation.in_place:
            output = written_over(carrier, limited_at_zero(value / x))
        else:
            evaluate, saved = operation.evaluator(), operation.save(x)

            def slope() -> torch.Tensor:
                return limited_at_zero(evaluate(saved.value).div_(saved.value))

            output = with_late_slope(carrier, value, slope)
        return with_constant(operation, output, value, x.isinf)

    rule.__name__ = "pass_through"
    return rule


def pass_on(operation: Operation, slope_of: Callable[[torch.Tensor, torch.Tensor], tuple[Any, Any]]) -> Any:
    """Pass-through with a given slope.

    Args:
        operation: an elementwise operation.
        slope_of: takes the operation's value and input. Gives the slope, and where the value counts as a constant.

    Raises:
        OptionError: for an operation of several tensors, and for one whose output has another shape than its input.
    """
    if _is_of_several(operation):
        count = len(operation.sources)
        taken = "complex numbers" if count == 1 else f"{count} tensors that depend on the inputs"
        raise OptionError(
            f"pass_through is for functions of one tensor of real numbers; {operation.name!r}{operation.where} takes "
            f"{taken}. Use rules.linear where y is linear in its inputs, or a rule of your own."
        )
    carrier, x, value = evaluated(operation)
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
    return with_constant(operation, output, value, lambda: slope_of(value, x)[1] | x.isinf())


def with_constant(
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


#: Pass-through as a default rule. An operation of several tensors has no rule then, and is no error of the user.
passed_through = of_one(pass_through)
