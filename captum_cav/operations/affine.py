"""Affine operations: convolutions, linear layers and products with a weight (equations 1-4 and 9).

For ``y = W x + b`` the shares ``x_i w_ji / y_j``, chained by equation 5, are ``x * (W^T c_y)``, which is autograd's
own gradient. The bias is one more input, always 1. Its share is a share of constants. Functions that multiply and also
add a tensor, such as ``addcmul``, are decomposed into a product and a sum.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.operations.pooled import note_average
from captum_cav.operations.products import product
from captum_cav.operations.table import TABLE
from captum_cav.operations.weighing import weighed_by_batch_index, weighed_in_batches, weighed_in_bilinear
from captum_cav.propagation.kinds import Derivative, Kind
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import tensors_in

Sum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class AffineView(NamedTuple):
    """An operation as an affine one: ``sum(x, weight) + bias``.

    Attributes:
        x: the input.
        weight: the weight.
        bias: the bias. Broadcasts to the output's shape. None for no bias.
        sum: the operation without its bias, as a function of an input and a weight.
        scaled: takes the weight and one factor for each channel of the output. Gives the weight times these factors.
            None if the channels are not dimension 1 of the output, so that no batch norm can be folded in.
        channels: the dimension of ``x`` that is multiplied with the weight's dimension 1. None if there is none.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    sum: Sum
    scaled: Sum | None = None
    channels: int | None = None


# Convolutions and linear layers -------------------------------------------------------------------------------------


def affine(spatial: int) -> Surrogate:
    """Rule of a convolution or a linear layer: a product of input and weight, plus a bias that counts as a constant.

    Args:
        spatial: the number of dimensions behind the channels.
    """
    ones = [1] * spatial

    def rule(operation: Operation) -> Any:
        bias = operation.argument(2, "bias")
        if bias is None:
            return product(operation)
        x, weight = operation.argument(0, "input"), operation.argument(1, "weight")
        if len(operation.sources) > 1:
            options = {key: value for key, value in operation.kwargs.items() if key not in ("input", "weight", "bias")}
            return operation.decompose(
                lambda: operation.function(x, weight, None, *operation.args[3:], **options) + bias.reshape(-1, *ones)
            )
        note_average(operation, x)
        output = operation.value()
        if not operation.depends_on_inputs(bias):
            operation.add_constant(output, bias.reshape(-1, *ones))
        return output

    rule.__name__ = "affine"
    return rule


def _view_layer(operation: Operation, spatial: int, sum_: Sum | None, scaled: Sum | None) -> AffineView | None:
    (x,) = operation.sources
    if operation.argument(0, "input") is not x:
        return None
    function, settings = operation.function, operation.args[3:]
    options = {key: value for key, value in operation.kwargs.items() if key not in ("input", "weight", "bias")}
    bias = operation.argument(2, "bias")
    return AffineView(
        x,
        operation.argument(1, "weight"),
        None if bias is None else bias.reshape(-1, *[1] * spatial),
        sum_ or (lambda x, weight: function(x, weight, None, *settings, **options)),
        scaled,
    )


def _view_linear(operation: Operation) -> AffineView | None:
    """A linear layer. If its outputs are dimension 1, a batch norm behind it can be folded in."""
    if len(operation.sources) != 1:
        return None
    is_matrix = operation.sources[0].dim() == 2
    return _view_layer(operation, 0, F.linear, _scale_outputs if is_matrix else None)


def _view_convolution(spatial: int) -> Callable[[Operation], AffineView | None]:
    def view(operation: Operation) -> AffineView | None:
        if len(operation.sources) != 1:
            return None
        affine_view = _view_layer(operation, spatial, None, _scale_outputs)
        has_one_group = operation.argument(6, "groups", 1) == 1
        return affine_view._replace(channels=-spatial - 1) if affine_view is not None and has_one_group else affine_view

    return view


def _view_transposed_convolution(spatial: int) -> Callable[[Operation], AffineView | None]:
    def view(operation: Operation) -> AffineView | None:
        if len(operation.sources) != 1:
            return None
        groups = operation.argument(6, "groups", 1)

        def scaled(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            # The weight has shape (inputs, outputs of one group, ...). The inputs of a group follow one another.
            per_group = weight.reshape(groups, -1, *weight.shape[1:])
            return (per_group * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)

        return _view_layer(operation, spatial, None, scaled)

    return view


def _scale_outputs(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))


# Products with a weight ---------------------------------------------------------------------------------------------


def _view_product(operation: Operation) -> AffineView | None:
    """A product of a carrier and a weight, in either order."""
    operands = [value for value in (*operation.args, *operation.kwargs.values()) if isinstance(value, torch.Tensor)]
    if len(operation.sources) != 1 or len(operands) != 2 or operation.in_place or operation.weighs_constants:
        return None
    (x,), function = operation.sources, operation.function
    equation = [value for value in operation.args if not isinstance(value, torch.Tensor)]  # Only einsum has one.
    if operands[0] is x:
        return AffineView(x, operands[1], None, lambda x, weight: function(*equation, x, weight))
    return AffineView(x, operands[0], None, lambda x, weight: function(*equation, weight, x))


def _view_einsum(operation: Operation) -> AffineView | None:
    """An einsum of two tensors, with its equation as one string. Without a sum it is an elementwise product."""
    equation = [value for value in operation.args if not isinstance(value, torch.Tensor)]
    is_string = len(equation) == 1 and isinstance(equation[0], str)
    return _view_product(operation) if is_string and _sums(equation[0]) else None


def _sums(equation: str) -> bool:
    """Whether an einsum sums over a dimension: whether one of its letters is not in the output."""
    operands, arrow, output = equation.partition("->")
    letters = [letter for letter in operands if letter.isalpha()]
    return any((letter not in output) if arrow else letters.count(letter) > 1 for letter in letters)


def contraction(operation: Operation) -> Any:
    """``tensordot``, ``inner`` and ``dot``: a product with a weight is decomposed into an einsum, which has a row."""
    a, b = operation.argument(0, "input"), operation.argument(1, "other")
    if len(operation.sources) != 1 or a is None or b is None:
        return product(operation)
    dims = operation.argument(2, "dims", 2) if operation.name == "tensordot" else 1
    if operation.name == "inner" and a.dim() and b.dim():
        dims = [a.dim() - 1], [b.dim() - 1]
    of_a, of_b = (range(a.dim() - dims, a.dim()), range(dims)) if isinstance(dims, int) else dims
    letters = iter(string.ascii_letters)
    for_a = [next(letters) for _ in range(a.dim())]
    for_b = [next(letters) for _ in range(b.dim())]
    for one, other in zip(of_a, of_b, strict=True):
        for_b[other] = for_a[one]
    output = [letter for letter in (*for_a, *for_b) if (letter in for_a) is not (letter in for_b)]
    return operation.decompose(torch.einsum, f"{''.join(for_a)},{''.join(for_b)}->{''.join(output)}", a, b)


def chain(operation: Operation) -> Any:
    """A product of several matrices, of which one depends on the inputs, decomposed into products of two matrices."""
    matrices = tensors_in(list(operation.args))
    if len(operation.sources) != 1:
        return product(operation)
    return operation.decompose(functools.reduce, torch.matmul, matrices)


def added_product(names: tuple[str, str, str], multiply: Sum = torch.matmul) -> Surrogate:
    """Rule of ``beta * input + alpha * (a @ b)``, decomposed.

    Args:
        names: the names of the three arguments.
        multiply: computes the product.
    """

    def rule(operation: Operation) -> Any:
        added, a, b = (operation.argument(position, name) for position, name in enumerate(names))
        beta, alpha = operation.kwargs.get("beta", 1), operation.kwargs.get("alpha", 1)
        return operation.decompose(lambda: _times(added, beta) + _times(multiply(a, b), alpha))

    rule.__name__ = "addmm"
    return rule


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1 else x * factor


def _view_added_product(names: tuple[str, str, str]) -> Callable[[Operation], AffineView | None]:
    def view(operation: Operation) -> AffineView | None:
        if len(operation.sources) != 1:
            return None
        (x,) = operation.sources
        added, a, b = (operation.argument(position, name) for position, name in enumerate(names))
        beta, alpha = operation.kwargs.get("beta", 1), operation.kwargs.get("alpha", 1)
        if added is x:
            return None
        if a is x:
            return AffineView(x, b * alpha, added * beta, torch.matmul)
        return AffineView(x, a * alpha, added * beta, lambda x, weight: torch.matmul(weight, x))

    return view


# Others, decomposed -------------------------------------------------------------------------------------------------


def time_first_convolution(operation: Operation) -> Any:
    """``conv_tbc``: a convolution of (time, batch, channels), decomposed into one of (batch, channels, time)."""
    x, weight, bias, padding = (
        operation.argument(place, name, 0) for place, name in enumerate(("input", "weight", "bias", "pad"))
    )
    return operation.decompose(
        lambda: F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=padding).permute(2, 0, 1)
    )


def bilinear(operation: Operation) -> Any:
    """``torch.nn.Bilinear``: a product of three factors, and a bias."""
    x1, x2, weight, bias = (
        operation.argument(position, name) for position, name in enumerate(("input1", "input2", "weight", "bias"))
    )
    if bias is None:
        return product(operation)
    return operation.decompose(lambda: F.bilinear(x1, x2, weight) + bias)


def addcmul(operation: Operation) -> Any:
    """``input + value * a * b``, decomposed."""
    added, a, b, value = _three_tensors(operation)
    return operation.decompose(lambda: added + value * (a * b))


def addcdiv(operation: Operation) -> Any:
    """``input + value * a / b``, decomposed."""
    added, a, b, value = _three_tensors(operation)
    return operation.decompose(lambda: added + value * (a / b))


def _three_tensors(operation: Operation) -> tuple[Any, Any, Any, Any]:
    added, a, b = (operation.argument(i, name) for i, name in enumerate(("input", "tensor1", "tensor2")))
    return added, a, b, operation.kwargs.get("value", 1)


def lerp(operation: Operation) -> Any:
    """``start + weight * (end - start)``, decomposed."""
    start, end, weight = (operation.argument(i, name) for i, name in enumerate(("input", "end", "weight")))
    return operation.decompose(lambda: start + weight * (end - start))


def _layer(spatial: int, view: Callable[[Operation], AffineView | None], kind: Kind) -> OperationSpec:
    return OperationSpec(
        rule=affine(spatial),
        is_as_is=True,
        derivative=Derivative.OF_ONE_TENSOR,
        keeps=Trait.GATE,
        has_weights=True,
        kind=kind,
        view_as_affine=view,
    )


def _matmul(
    view: Callable[[Operation], AffineView | None], weighs_constants: Callable[[Operation], bool]
) -> OperationSpec:
    return OperationSpec(
        rule=product,
        is_as_is=True,
        derivative=Derivative.OF_ONE_TENSOR,
        keeps=Trait.GATE,
        has_weights=True,
        kind=Kind.DENSE | Kind.PRODUCT,
        weighs_constants=weighs_constants,
        view_as_affine=view,
    )


def _added(names: tuple[str, str, str]) -> OperationSpec:
    return OperationSpec(
        rule=added_product(names),
        keeps=Trait.GATE,
        has_weights=True,
        kind=Kind.DENSE,
        view_as_affine=_view_added_product(names),
    )


# In the order in which presets print them.
TABLE.register("conv1d", _layer(1, _view_convolution(1), Kind.CONVOLUTION))
TABLE.register("conv2d", _layer(2, _view_convolution(2), Kind.CONVOLUTION))
TABLE.register("conv3d", _layer(3, _view_convolution(3), Kind.CONVOLUTION))
TABLE.register("conv_transpose1d", _layer(1, _view_transposed_convolution(1), Kind.CONVOLUTION))
TABLE.register("conv_transpose2d", _layer(2, _view_transposed_convolution(2), Kind.CONVOLUTION))
TABLE.register("conv_transpose3d", _layer(3, _view_transposed_convolution(3), Kind.CONVOLUTION))
TABLE.register("linear", _layer(0, _view_linear, Kind.DENSE))
TABLE.register("matmul|imatmul|linalg_matmul mm|spmm|dsmm bmm mv", _matmul(_view_product, weighed_in_batches))
TABLE.register("addmm", _added(("input", "mat1", "mat2")))
TABLE.register("addmv", _added(("input", "mat", "vec")))
TABLE.register("einsum", _matmul(_view_einsum, weighed_by_batch_index))
# What is added to products of batches is a mask of attention more often than a bias, so it is no part of a layer.
TABLE.register(
    "baddbmm",
    OperationSpec(
        rule=added_product(("input", "batch1", "batch2")), keeps=Trait.GATE, weighs_constants=weighed_in_batches
    ),
)
TABLE.register("dot inner", OperationSpec(rule=contraction, keeps=Trait.GATE, kind=Kind.PRODUCT))
TABLE.register("tensordot", OperationSpec(rule=contraction, keeps=Trait.GATE))
TABLE.register("chain_matmul linalg_multi_dot", OperationSpec(rule=chain, keeps=Trait.GATE))
TABLE.register("addr", OperationSpec(rule=added_product(("input", "vec1", "vec2"), torch.outer), keeps=Trait.GATE))
TABLE.register(
    "addbmm",
    OperationSpec(
        rule=added_product(("input", "batch1", "batch2"), lambda a, b: torch.matmul(a, b).sum(0)),
        keeps=Trait.GATE,
        weighs_constants=weighed_in_batches,
    ),
)
TABLE.register("addcmul", OperationSpec(rule=addcmul))
TABLE.register("addcdiv", OperationSpec(rule=addcdiv))
TABLE.register(
    "bilinear",
    OperationSpec(rule=bilinear, keeps=Trait.GATE, has_weights=True, weighs_constants=weighed_in_bilinear),
)
TABLE.register("conv_tbc", OperationSpec(rule=time_first_convolution))
TABLE.register("lerp", OperationSpec(rule=lerp, keeps=Trait.GATE))
