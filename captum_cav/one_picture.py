"""What the commands and the page compute of one picture: scores, maps, Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from captum.attr import LayerGradCam

from captum_cav.errors import InputError
from captum_cav.maps import spatial_map


def scores_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The scores of one picture before softmax, shape (classes,), on the CPU."""
    with torch.no_grad():
        output: Any = model(inputs)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise InputError(f"the model returned {what}; expected scores of shape (1, classes)")
    return output[0].cpu()


def maps_of(explained: Iterable[Sequence[torch.Tensor]], inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """For each target and layer the map of its contributions, shape (h, w), on the CPU."""
    size = (inputs.shape[-2], inputs.shape[-1])
    return [[spatial_map(ratios, size)[0].cpu() for ratios in attributions] for attributions in explained]


def grad_cam(
    model: torch.nn.Module, layer: str, inputs: torch.Tensor, target: int, grid: torch.Size
) -> torch.Tensor | None:
    """Captum's Grad-CAM at a layer; None where the layer has no channels in dimension 1 to weigh."""
    cam = LayerGradCam(model, model.get_submodule(layer)).attribute(inputs, target, relu_attributions=True)
    return cam[0, 0].detach().cpu() if cam.dim() == 4 and cam.shape[2:] == grid else None
