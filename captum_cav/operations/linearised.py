"""Smooth functions that are neither linear, homogeneous nor elementwise: each is linearised where it is evaluated.

``y = sum_i x_i dy/dx_i + rest``: the derivative says what each input gave, as the weight of a linear operation would,
and the rest belongs to a constant. For log-sum-exp the derivative is the softmax, and the rest its entropy.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Derivative, Operation, OperationSpec
from captum_cav.tensors import map_tensors


def linearised(operation: Operation) -> Any:
    """The operation's own gradient. What the gradient leaves of the value is a constant."""
    # Before the value: the operation may write over an argument.
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
    (found,) = torch.autograd.grad(total.sum(), vector)
    return found


TABLE.register(
    """
    logsumexp|special_logsumexp logaddexp logaddexp2 logcumsumexp cdist pdist pairwise_distance dist hypot
    scatter_reduce index_reduce linalg_matrix_exp|matrix_exp
    """,
    OperationSpec(rule=linearised, derivative=Derivative.ALWAYS),
)
