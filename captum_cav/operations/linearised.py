"""Smooth functions that are neither linear nor homogeneous nor elementwise. Each is linearised at its input.

``y = sum_i x_i dy/dx_i + remainder``. The derivative is the weight of a linear operation, and the remainder counts as a
constant. For log-sum-exp the derivative is the softmax, and the remainder is the entropy of the softmax.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations import written_out
from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Derivative, Operation, OperationSpec
from captum_cav.tensors import map_tensors


def linearised(operation: Operation) -> Any:
    """The operation with its own gradient. The remainder of the linearisation counts as a constant."""
    # Computed before the value, because the operation may write over an argument.
    carried = _carried(operation) if operation.counts_constants else None
    output = operation.value()
    if carried is not None:
        operation.add_constant(output, output.detach() - carried)
    return output


def _carried(operation: Operation) -> torch.Tensor:
    """``sum_i x_i dy/dx_i`` over all carriers: the derivative of the vector-Jacobian product by its vector."""
    leaves = {id(x): x.detach().clone().requires_grad_() for x in operation.sources if operation.carries(x)}

    def leaf_of(tensor: torch.Tensor) -> torch.Tensor:
        return (leaves[id(tensor)] if id(tensor) in leaves else tensor.detach()).clone()

    kwargs = {key: map_tensors(leaf_of, value) for key, value in operation.kwargs.items()}
    value = operation.function(*map_tensors(leaf_of, operation.args), **kwargs)
    vector = torch.ones_like(value).requires_grad_()
    products = torch.autograd.grad(value, list(leaves.values()), vector, create_graph=True)
    total = torch.stack([(product * x.detach()).sum() for product, x in zip(products, leaves.values(), strict=True)])
    (carried,) = torch.autograd.grad(total.sum(), vector)
    return carried


TABLE.register(
    "logsumexp|special_logsumexp",
    OperationSpec(rule=linearised, derivative=Derivative.ALWAYS, recognise=written_out.log_sum_exp),
)
TABLE.register(
    """
    logaddexp logaddexp2 logcumsumexp cdist pdist pairwise_distance dist hypot
    scatter_reduce index_reduce linalg_matrix_exp|matrix_exp
    """,
    OperationSpec(rule=linearised, derivative=Derivative.ALWAYS),
)
