"""Samples at computed places: what is sampled carries, where it is sampled is a weight.

Grids, offsets, boxes and angles choose among the values and weigh them, as attention does.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.propagation.marks import map_tensors
from captum_cav.propagation.operation import Operation, Surrogate


def first_carries(operation: Operation) -> Any:
    """The first argument carries; all others that depend on the inputs are held constant."""
    x = operation.argument(0, "input")
    if not operation.carries(x):
        for place in operation.sources:
            operation.hold(place)
        return operation.value().detach()

    def settled(tensor: torch.Tensor) -> torch.Tensor:
        return operation.hold(tensor) if tensor is not x and operation.depends_on_inputs(tensor) else tensor

    kwargs = {key: map_tensors(settled, value) for key, value in operation.kwargs.items()}
    return operation.function(*map_tensors(settled, operation.args), **kwargs)


def deformable_convolution(operation: Operation) -> Any:
    """Deformable convolution: the input carries, offsets and mask are held; the bias has a share of its own."""
    _, weight, _, _, bias = operation.args[:5]
    if operation.carries(weight) or operation.carries(bias):
        return operation.gradient()
    output = first_carries(operation)
    operation.add_constant(output, bias.reshape(-1, 1, 1))
    return output


RULES: dict[str, Surrogate] = {
    **dict.fromkeys("grid_sample polar roi_align roi_pool ps_roi_align ps_roi_pool".split(), first_carries),
    "deform_conv2d": deformable_convolution,
}
