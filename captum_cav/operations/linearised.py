"""Smooth functions that are neither linear nor homogeneous nor elementwise. Each is linearised at its input.

``y = sum_i x_i dy/dx_i + remainder``. The derivative is the weight of a linear operation, and the remainder counts as a
constant. For log-sum-exp the derivative is the softmax, and the remainder is the entropy of the softmax.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations import written_out
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.tensors import map_tensors


def linearised(operation: Operation) -> Any:
    """The operation with its own gradient. The remainder of the linearisation counts as a constant."""
    # Computed before the value, because the operation may write over an argument.
    carried = _carried(operation) if operation.counts_constants else None
    finite = {id(x): _where_finite(x, x) for x in operation.sources if operation.carries(x)}
    output = operation.value() if operation.in_place else operation.on(finite).value()
    if carried is not None:
        operation.add_constant(output, output.detach() - carried)
    return output


def _where_finite(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A value that carries nothing where ``x`` is a mask of infinity. The derivative of some functions is NaN there."""
    return torch.where(x.detach().isfinite(), value, value.detach())


def _carried(operation: Operation) -> torch.Tensor:
    """``sum_i x_i dy/dx_i`` over all carriers: the derivative of the vector-Jacobian product by its vector.

    Torch cannot differentiate the backward pass of some operations. Then each output has a backward pass of its own.
    """
    leaves = {id(x): x.detach().clone().requires_grad_() for x in operation.sources if operation.carries(x)}

    def leaf_of(tensor: torch.Tensor) -> torch.Tensor:
        leaf = leaves.get(id(tensor))
        return tensor.detach().clone() if leaf is None else _where_finite(leaf, leaf.clone())

    kwargs = {key: map_tensors(leaf_of, value) for key, value in operation.kwargs.items()}
    value = operation.function(*map_tensors(leaf_of, operation.args), **kwargs)

    def product(vector: torch.Tensor, **options: bool) -> torch.Tensor:
        gradients = torch.autograd.grad(value, list(leaves.values()), vector, **options)
        values = [torch.nan_to_num(x.detach(), nan=0.0, posinf=0.0, neginf=0.0) for x in leaves.values()]
        parts = [(gradient * x).sum() for gradient, x in zip(gradients, values, strict=True)]
        return torch.stack(parts).sum()

    vector = torch.ones_like(value).requires_grad_()
    try:
        (carried,) = torch.autograd.grad(product(vector, create_graph=True), vector)
    except RuntimeError:
        units = torch.eye(value.numel(), dtype=value.dtype, device=value.device)
        carried = torch.stack([product(unit.reshape(value.shape), retain_graph=True) for unit in units])
    return carried.reshape(value.shape)


TABLE.register(
    "logsumexp|special_logsumexp",
    OperationSpec(rule=linearised, derivative=Derivative.ALWAYS, recognise=written_out.log_sum_exp),
)
TABLE.register(
    """
    logaddexp logaddexp2 logcumsumexp cdist pdist pairwise_distance dist hypot scatter_reduce index_reduce
    linalg_matrix_exp|matrix_exp multilabel_margin_loss
    """,
    OperationSpec(rule=linearised, derivative=Derivative.ALWAYS),
)
