"""Products of several carriers, divisions and homogeneous functions.

The paper has no equation for a product. If one factor is a *gate* (a sigmoid, attention weights, the reciprocal of a
statistic), it is a constant, and the other factor carries everything. If the other factor is a constant, the product is
a constant, too, unless that factor is a layer's weight (see :mod:`captum_cav.operations.weighing`). Otherwise each of
``m`` factors carries the ``m``-th part. Because ``y`` is linear in each factor, ``sum_k x_k * dy/dx_k = m y``. So the
gradient divided by ``m`` conserves contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_cav.operations import written_norms, written_out
from captum_cav.operations.folding import factor_folded
from captum_cav.operations.pooled import hand_on, note_average
from captum_cav.operations.surrogates import scaled, with_backward
from captum_cav.operations.table import TABLE
from captum_cav.operations.weighing import weighed_by_element, weighed_in_batches
from captum_cav.propagation.kinds import Derivative, Kind, Numbers
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import FACTOR, Trait
from captum_cav.tensors import map_tensors


def product(operation: Operation) -> Any:
    """Products of any kind: elementwise products, matrix products, einsum, convolutions with a computed kernel.

    A gate is a constant. The other factors that depend on the inputs share equally. Among gates, a reciprocal is a
    constant first, because the product is a division, and then a softmax. If a gate weighs nothing but constants, the
    product is a constant, too.

    Args:
        operation: a product.

    Returns:
        The operation's value as a surrogate.

    Source: Arras et al. 2017 (gates); Achtibat et al. 2024, proposition 3.2 (equal shares).

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> inputs = (torch.tensor([3.]), torch.tensor([1.]))
        >>> InputCAV(torch.mul, rules={torch.mul: rules.product}).attribute(inputs)
        (tensor([0.5000]), tensor([0.5000]))
    """
    if len(operation.sources) == 1:
        if operation.weighs_constants:
            return operation.value_as_weighed_constant()
        if operation.name != "mul":
            note_average(operation, operation.sources[0])
            return operation.value()
        hand_on(operation, operation.sources[0])
        output = factor_folded(operation)
        return operation.value() if output is None else output
    # A gate is a constant even if the other factors bypass the tapped layer.
    carriers = operation.sources
    for weighs in (operation.is_reciprocal, operation.is_softmax, operation.is_gate):
        if len(carriers) > 1:
            carriers = [factor for factor in carriers if not weighs(factor)] or carriers
    kept = list(map(id, carriers))
    return multiplied(operation, [factor for factor in operation.sources if id(factor) not in kept])


def multiplied(operation: Operation, constant: Sequence[torch.Tensor]) -> Any:
    """A product whose factors share equally, except for the factors that are constants.

    Args:
        operation: the product.
        constant: the factors that are constants.
    """
    constants = list(map(id, constant))
    # A factor that bypasses the layer takes its part, too. So a layer's map does not depend on the other
    # explained layers.
    factors = len([tensor for tensor in operation.sources if id(tensor) not in constants])
    first = operation.args[0] if operation.in_place else None
    # The operation writes over the first factor. Its old value is still needed for the shares of the other factors, and
    # a constant must not become a carrier.
    overwritten = first is not None and (factors > 1 or id(first) in constants)

    def factor(tensor: torch.Tensor) -> torch.Tensor:
        operand = operation.detach(tensor) if id(tensor) in constants else tensor
        return operand.clone() if overwritten and tensor is first else operand

    kwargs = operation.kwargs and {key: map_tensors(factor, value) for key, value in operation.kwargs.items()}
    output = operation.function(*map_tensors(factor, operation.args), **kwargs)
    if factors > 1:
        output = scaled(output, 1 / factors)
    return operation.args[0].copy_(output) if overwritten else output


def division(operation: Operation) -> Any:
    """``a / b``: the divisor is a statistic and counts as a constant. The numerator carries everything."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    if not operation.carries(b):
        hand_on(operation, a)
        is_scale = len(operation.sources) == 1 and operation.kwargs.get("rounding_mode") is None
        output = factor_folded(operation) if is_scale else None
        return operation.value() if output is None else output
    if operation.depends_on_inputs(a):
        if written_out.is_exponential(operation, b) and not operation.in_place:
            # The reciprocal of an exponential, or of 1 plus an exponential, is a gate. Like any gate, it may carry.
            output = operation.decompose(lambda: a * b.reciprocal())
            return with_backward(operation.plain_value(), lambda coefficients: (coefficients,), output)
        return operation.function(a, operation.detach(b), **_without(operation.kwargs, "input", "other"))
    if operation.kwargs.get("rounding_mode") is not None:
        return operation.gradient()
    # The operation writes over the constant, but the constant is still needed as the slope.
    return operation.decompose(lambda: b.reciprocal() * (a.clone() if operation.in_place else a))


def reversed_division(operation: Operation) -> Any:
    """``number / a``, decomposed: the reciprocal of ``a`` times a number."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    return operation.decompose(lambda: a.reciprocal() * b)


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in names}


def homogeneous(degree: Callable[[Operation, torch.Tensor], float]) -> Surrogate:
    """Rule of a homogeneous function: gradient / degree.

    By Euler's theorem ``sum_i x_i * dy/dx_i = degree * y``, so the gradient divided by the degree conserves.

    Args:
        degree: takes an operation and its first argument, and gives the degree. 0 if the rule does not apply.
    """

    def rule(operation: Operation) -> Any:
        x = operation.argument(0, "input")
        if len(operation.sources) > 1 or not operation.carries(x):
            return operation.gradient()
        exponent = degree(operation, x)
        if exponent == 1:
            return operation.value()
        return scaled(operation.value(), 1 / exponent) if exponent else operation.gradient()

    rule.__name__ = "homogeneous"
    return rule


def with_variance(operation: Operation) -> Any:
    """``var_mean``: the variance is of degree 2, the mean is linear."""
    variance, mean = operation.value()
    return scaled(variance, 0.5), mean


def product_of_elements(operation: Operation) -> Any:
    """``prod``: each of ``n`` factors carries the ``n``-th part."""
    output = operation.value()
    return scaled(output, output.numel() / operation.argument(0, "input").numel())


def running_product(operation: Operation) -> Any:
    """``cumprod``: the ``k``-th product has ``k`` factors. Each of them carries the ``k``-th part."""
    x, dim = operation.argument(0, "input"), operation.argument(1, "dim")
    counts = torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=x.dtype)
    shares = counts.reciprocal().reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    products = operation.function(x.clone(), *operation.args[1:], **_without(operation.kwargs, "input"))
    output = scaled(products, shares)
    return operation.args[0].copy_(output) if operation.in_place else output


def solution(operation: Operation) -> Any:
    """``solve(A, B)``: as in a division, the matrix is a constant. The right-hand side carries everything."""
    a, b = operation.argument(0, "A"), operation.argument(1, "B")
    if not operation.depends_on_inputs(b):
        return scaled(operation.value(), -1.0)  # The solution is homogeneous of degree -1 in the matrix.
    a = operation.detach(a) if operation.depends_on_inputs(a) else a
    return operation.function(a, b, *operation.args[2:], **_without(operation.kwargs, "A", "B", "input"))


def cosine_similarity(operation: Operation) -> Any:
    """The product of two vectors divided by their norms, decomposed."""
    a, b, dim, epsilon = (
        operation.argument(place, name, default)
        for place, (name, default) in enumerate((("x1", None), ("x2", None), ("dim", 1), ("eps", 1e-8)))
    )

    def cosines() -> torch.Tensor:
        norms = [torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp(min=epsilon) for x in (a, b)]
        similarity: torch.Tensor = ((a / norms[0]) * (b / norms[1])).sum(dim)
        return similarity

    return operation.decompose(cosines)


def _product(**more: Any) -> OperationSpec:
    return OperationSpec(rule=product, is_as_is=True, derivative=Derivative.OF_ONE_TENSOR, **{"keeps": FACTOR, **more})


def _of_degree(degree: float, **more: Any) -> OperationSpec:
    derivative = Derivative.ALWAYS if degree == 1 else Derivative.NEVER
    return OperationSpec(rule=homogeneous(lambda operation, x: degree), derivative=derivative, **more)


TABLE.register(
    "mul|multiply|rmul|imul",
    _product(
        keeps=FACTOR | Trait.ACTIVATED,
        keeps_without_constants=Trait.NONNEGATIVE,
        numbers=Numbers.OPERANDS,
        kind=Kind.PRODUCT,
        recognise=written_out.product,
        weighs_constants=weighed_by_element,
    ),
)
TABLE.register("outer ger", _product(kind=Kind.PRODUCT))
TABLE.register(
    """
    embedding_bag|_embedding_bag|_embedding_bag_forward_only grouped_mm|_grouped_mm
    sparse_mm|_sparse_mm|smm|hsmm|hspmm
    """,
    _product(has_weights=True),
)
TABLE.register("vdot kron", _product())
TABLE.register("rmatmul", _product(has_weights=True, weighs_constants=weighed_in_batches))
TABLE.register("linalg_vecdot cross linalg_cross", _product(weighs_constants=weighed_by_element))
TABLE.register(
    "div|truediv|true_divide|divide|itruediv|idiv",
    OperationSpec(
        rule=division,
        derivative=Derivative.OF_ONE_TENSOR,
        keeps=FACTOR | Trait.ACTIVATED,
        recognise=written_out.quotient,
    ),
)
TABLE.register("rdiv|rtruediv", OperationSpec(recognise=written_out.one_over, rule=reversed_division, keeps=Trait.GATE))
TABLE.register("norm", _of_degree(1, keeps=Trait.GATE, recognise=written_norms.size("p")))
TABLE.register("linalg_vector_norm", _of_degree(1, keeps=Trait.GATE, recognise=written_norms.size("ord")))
TABLE.register("std", _of_degree(1, keeps=Trait.GATE, recognise=written_norms.spread))
TABLE.register(
    "std_mean linalg_norm linalg_matrix_norm frobenius_norm nuclear_norm linalg_svdvals linalg_eigvalsh",
    _of_degree(1),
)
TABLE.register("var", _of_degree(2, recognise=written_norms.spread))
TABLE.register("cov", _of_degree(2))
TABLE.register("inverse|linalg_inv pinverse linalg_pinv", _of_degree(-1, makes=Trait.GATE))
TABLE.register(
    "matrix_power|linalg_matrix_power",
    OperationSpec(rule=homogeneous(lambda operation, x: int(operation.argument(1, "n")))),
)
TABLE.register("det|linalg_det", OperationSpec(rule=homogeneous(lambda operation, x: x.shape[-1])))
TABLE.register("var_mean", OperationSpec(rule=with_variance))
TABLE.register("prod", OperationSpec(rule=product_of_elements, keeps=Trait.GATE))
TABLE.register("cumprod", OperationSpec(rule=running_product, keeps=Trait.GATE))
TABLE.register("linalg_solve linalg_solve_triangular", OperationSpec(rule=solution))
TABLE.register("cosine_similarity", OperationSpec(rule=cosine_similarity))
