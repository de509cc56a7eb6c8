"""Samples at computed places: the sampled values carry contributions, and the places are constants.

Grids, offsets, boxes and angles choose and weigh the values, as attention weights do.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.tensors import map_tensors


def first_carries(operation: Operation) -> Any:
    """The first argument carries everything. All other arguments are constants."""
    x = operation.argument(0, "input")
    if not operation.carries(x):
        for place in operation.sources:
            operation.detach(place)
        return operation.value().detach()

    def operand(tensor: torch.Tensor) -> torch.Tensor:
        return operation.detach(tensor) if tensor is not x and operation.depends_on_inputs(tensor) else tensor

    kwargs = {key: map_tensors(operand, value) for key, value in operation.kwargs.items()}
    return operation.function(*map_tensors(operand, operation.args), **kwargs)


def deformable_convolution(operation: Operation) -> Any:
    """Deformable convolution: the input carries contributions. Offsets, mask and bias are constants."""
    _, weight, _, _, bias = operation.args[:5]
    if operation.carries(weight) or operation.carries(bias):
        return operation.gradient()
    output = first_carries(operation)
    operation.add_constant(output, bias.reshape(-1, 1, 1))
    return output


TABLE.register(
    "grid_sample|grid_sampler|grid_sampler_2d|grid_sampler_3d polar roi_align roi_pool ps_roi_align ps_roi_pool",
    OperationSpec(rule=first_carries),
)
TABLE.register("deform_conv2d", OperationSpec(rule=deformable_convolution))
