"""Products of several carriers.

A product has no equation in the paper. Where one factor is a *weight* (a gate, attention weights, the reciprocal of a
statistic) it is a coefficient like any other and the signal carries everything. Otherwise each of ``m`` factors
carries an ``m``-th: for ``y`` linear in each factor, ``sum_k x_k * dy/dx_k = m y``, so the gradient divided by ``m``
conserves.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.propagation.operation import Operation, Rule


class _Scaled(torch.autograd.Function):
    """The value unchanged, its coefficient times a number."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return coefficients * ctx.factor, None


def product(operation: Operation) -> Any:
    """Multiplications of any kind: elementwise, matrix, einsum, convolution with a computed kernel."""
    signals = operation.sources
    if len(signals) == 1:
        return operation.value()
    weights = [t for t in signals if operation.is_weight(t)]
    # A weight weighs whatever depends on the inputs, whether or not that carries contributions of a tapped layer.
    held = {id(t) for t in weights} if len(weights) < len(signals) else set()
    factors = sum(operation.carries(t) and id(t) not in held for t in signals)
    first = operation.args[0] if operation.in_place else None
    # Written over, the first factor is still needed: by the others' shares, or because it must not carry.
    overwritten = first is not None and (factors > 1 or id(first) in held)

    def factor(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value, is_first = (operation.hold(value) if id(value) in held else value), value is first
            return value.clone() if overwritten and is_first else value
        return type(value)(map(factor, value)) if type(value) in (tuple, list) else value

    args = tuple(map(factor, operation.args))
    output = operation.function(*args, **{key: factor(value) for key, value in operation.kwargs.items()})
    if factors > 1:
        output = _Scaled.apply(output, 1 / factors)
    return operation.args[0].copy_(output) if overwritten else output


def division(operation: Operation) -> Any:
    """``a / b``: what divides is a statistic, a weight; the numerator carries."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    if operation.name == "rdiv":
        return operation.inside(lambda: a.reciprocal() * b)
    if not operation.carries(b):
        return operation.value()
    if operation.depends_on_inputs(a):
        return operation.function(a, operation.hold(b), **_without(operation.kwargs, "input", "other"))
    if operation.kwargs.get("rounding_mode") is not None:
        return operation.gradient()
    # Written over, the constant is still needed: it is the slope.
    return operation.inside(lambda: b.reciprocal() * (a.clone() if operation.in_place else a))


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in names}


def homogeneous(operation: Operation) -> Any:
    """Norms, standard deviations, variances: ``sum_i x_i * dy/dx_i = degree * y`` (Euler), so gradient / degree."""
    output = operation.value()
    return _Scaled.apply(output, 0.5) if operation.name == "var" else output


_PRODUCTS = "mul matmul mm bmm mv dot inner outer ger vdot einsum tensordot kron chain_matmul linalg_multi_dot".split()
_DEGREE_ONE = "norm std linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm nuclear_norm".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(("div", "rdiv"), division),
    **dict.fromkeys([*_DEGREE_ONE, "var"], homogeneous),
}
KEEPING_WEIGHTS = frozenset([*_PRODUCTS, "div", "rdiv"])
