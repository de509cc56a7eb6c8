"""Products of several carriers.

A product has no equation in the paper. Where one factor is a *weight* (a gate, attention weights, the reciprocal of a
statistic) it is a coefficient like any other and the signal carries everything. Otherwise each of ``m`` factors
carries an ``m``-th: for ``y`` linear in each factor, ``sum_k x_k * dy/dx_k = m y``, so the gradient divided by ``m``
conserves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from captum_cav.errors import OptionError
from captum_cav.propagation.marks import map_tensors
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.surroundings import OwnFunction
from captum_cav.rules.activation import with_slopes
from captum_cav.rules.rule import Rule


class _Scaled(OwnFunction):
    """The value unchanged, its coefficient times a number, or times fixed numbers that broadcast."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
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
    return _multiplied(operation, weights if len(weights) < len(signals) else [])


def _multiplied(operation: Operation, constant: Sequence[torch.Tensor]) -> Any:
    """A product whose factors share alike, but for those that are held constant."""
    signals = operation.sources
    held = {id(tensor) for tensor in constant}
    # A factor that bypasses the layer takes its part all the same: a layer's map does not hang on what else is asked.
    factors = sum(id(t) not in held for t in signals)
    first = operation.args[0] if operation.in_place else None
    # Written over, the first factor is still needed: by the others' shares, or because it must not carry.
    overwritten = first is not None and (factors > 1 or id(first) in held)

    def factor(tensor: torch.Tensor) -> torch.Tensor:
        settled = operation.hold(tensor) if id(tensor) in held else tensor
        return settled.clone() if overwritten and tensor is first else settled

    kwargs = {key: map_tensors(factor, value) for key, value in operation.kwargs.items()}
    output = operation.function(*map_tensors(factor, operation.args), **kwargs)
    if factors > 1:
        output = _Scaled.apply(output, 1 / factors)
    return operation.args[0].copy_(output) if overwritten else output


def shared_matmul(a: torch.Tensor, b: torch.Tensor, shared: bool) -> torch.Tensor:
    """A matrix product of which both factors carry half where it is shared, else the one that depends on the inputs."""
    output = a @ b
    halved: torch.Tensor = _Scaled.apply(output, 0.5) if shared and output.requires_grad else output
    return halved


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
    """Norms, deviations, determinants: ``sum_i x_i * dy/dx_i = degree * y`` (Euler), so gradient / degree conserves."""
    x = operation.argument(0, "input")
    if len(operation.sources) > 1 or not operation.carries(x):
        return operation.gradient()
    degree = DEGREES[operation.name]
    if operation.name == "matrix_power":
        degree = operation.argument(1, "n")
    elif operation.name == "det":
        degree = x.shape[-1]
    if degree == 1:
        return operation.value()
    return _Scaled.apply(operation.value(), 1 / degree) if degree else operation.gradient()


def with_variance(operation: Operation) -> Any:
    """``var_mean``: the variance is of degree 2, the mean is linear."""
    variance, mean = operation.value()
    return _Scaled.apply(variance, 0.5), mean


def product_of_elements(operation: Operation) -> Any:
    """``prod``: each of ``n`` factors carries an ``n``-th."""
    output = operation.value()
    return _Scaled.apply(output, output.numel() / operation.argument(0, "input").numel())


def running_product(operation: Operation) -> Any:
    """``cumprod``: the ``k``-th product is of ``k`` factors, each of which carries a ``k``-th."""
    x, dim = operation.argument(0, "input"), operation.argument(1, "dim")
    counts = torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=x.dtype)
    shares = counts.reciprocal().reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    output = _Scaled.apply(
        operation.function(x.clone(), *operation.args[1:], **_without(operation.kwargs, "input")), shares
    )
    return operation.args[0].copy_(output) if operation.in_place else output


def solution(operation: Operation) -> Any:
    """``solve(A, B)``: as in a division, the matrix is held constant and the right-hand side carries."""
    a, b = operation.argument(0, "A"), operation.argument(1, "B")
    if not operation.depends_on_inputs(b):
        return _Scaled.apply(operation.value(), -1.0)  # homogeneous of degree -1 in the matrix
    a = operation.hold(a) if operation.depends_on_inputs(a) else a
    return operation.function(a, b, *operation.args[2:], **_without(operation.kwargs, "A", "B", "input"))


def cosine_similarity(operation: Operation) -> Any:
    """A product of two vectors over their norms, written out."""
    a, b, dim, epsilon = (
        operation.argument(place, name, default)
        for place, (name, default) in enumerate((("x1", None), ("x2", None), ("dim", 1), ("eps", 1e-8)))
    )

    def written_out() -> torch.Tensor:
        norms = [torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp(min=epsilon) for x in (a, b)]
        cosines: torch.Tensor = ((a / norms[0]) * (b / norms[1])).sum(dim)
        return cosines

    return operation.inside(written_out)


@dataclass(frozen=True, repr=False)
class ProductRule(Rule):
    """Products of two tensors that both depend on the inputs: elementwise, matrix, einsum.

    Args:
        share: who carries.
            ``"gates"``, the default of all products: a gate (the output of a sigmoid or softmax) is a constant,
            otherwise both factors share alike;
            ``"halves"``: both share alike, gates too;
            ``"first"``, ``"second"``: the signal takes all, the other factor is a constant;
            ``"magnitude"``: each by its absolute value, ``|a| / (|a| + |b|)``; elementwise products only.

    Source: Arras et al. 2017 (the signal takes all); Achtibat et al. 2024, proposition 3.2 (halves).

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> inputs = (torch.tensor([3.]), torch.tensor([1.]))
        >>> InputCAV(torch.mul, rules={torch.mul: ProductRule("magnitude")}).attribute(inputs)
        (tensor([0.7500]), tensor([0.2500]))
        >>> InputCAV(torch.mul, rules={torch.mul: ProductRule("second")}).attribute(inputs)
        (tensor([0.]), tensor([1.]))
    """

    share: Literal["gates", "halves", "first", "second", "magnitude"] = "gates"

    operations: ClassVar[frozenset[str] | None] = frozenset("mul matmul mm bmm mv dot inner outer ger einsum".split())

    def __post_init__(self) -> None:
        if self.share not in ("gates", "halves", "first", "second", "magnitude"):
            raise OptionError(f'share is {self.share!r}; expected "gates", "halves", "first", "second" or "magnitude".')

    def governs(self, operation: Operation) -> bool:
        """Whether two tensors that depend on the inputs are multiplied."""
        return super().governs(operation) and len(operation.sources) == 2

    def __call__(self, operation: Operation, /) -> Any:
        """The product, carried as the rule says."""
        first, second = operation.sources
        if self.share == "gates":
            return operation.by_default()
        if self.share == "magnitude":
            if operation.name != "mul":
                raise OptionError(f"{self!r} is for elementwise products; {operation.name!r} is none.")
            return _by_magnitude(operation, first, second)
        if first is second:  # a square: one tensor carries all in any case
            return _multiplied(operation, [])
        return _multiplied(operation, {"halves": [], "first": [second], "second": [first]}[self.share])


def _by_magnitude(operation: Operation, first: torch.Tensor, second: torch.Tensor) -> Any:
    a, b = first.detach().clone(), second.detach().clone()
    size = (a.abs() + b.abs()).clamp(min=torch.finfo(a.dtype).tiny)
    # c_a = y / a * |a| / (|a| + |b|) with y = a b.
    output = with_slopes(a * b, (first, second), (b * a.abs() / size, a * b.abs() / size))
    return operation.args[0].copy_(output) if operation.in_place else output


_PRODUCTS = """
    mul matmul rmatmul mm bmm mv dot inner outer ger vdot einsum tensordot kron chain_matmul linalg_multi_dot
    linalg_vecdot cross linalg_cross embedding_bag grouped_mm sparse_mm
""".split()
DEGREES = {
    **dict.fromkeys(
        """
        norm std std_mean linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm nuclear_norm
        linalg_svdvals linalg_eigvalsh
        """.split(),
        1,
    ),
    **dict.fromkeys(("var", "cov"), 2),
    **dict.fromkeys(("inverse", "pinverse", "linalg_pinv"), -1),
    # As many as the argument says, or the matrix has rows.
    **dict.fromkeys(("matrix_power", "det"), 0),
}

RULES: dict[str, Surrogate] = {
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(("div", "rdiv"), division),
    **dict.fromkeys(DEGREES, homogeneous),
    "var_mean": with_variance,
    "prod": product_of_elements,
    "cumprod": running_product,
    **dict.fromkeys(("linalg_solve", "linalg_solve_triangular"), solution),
    "cosine_similarity": cosine_similarity,
}
MAKING_WEIGHTS = frozenset(("inverse", "pinverse", "linalg_pinv"))
KEEPING_WEIGHTS = frozenset([*_PRODUCTS, "div", "rdiv", "prod", "cumprod", "std", "norm", "linalg_vector_norm"])
