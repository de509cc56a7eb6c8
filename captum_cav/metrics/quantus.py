"""Attributions of captum_cav and of Captum as explanation functions of Quantus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from captum_cav.errors import CAVTypeError, InputError
from captum_cav.maps import resize_map, spatial_map

Explanations = npt.NDArray[Any]


def quantus_explain_func(factory: Callable[[Any], Any], **options: Any) -> Callable[..., Explanations]:
    """Make a function that metrics of Quantus take as ``explain_func``, for maps of any layer.

    Contributions are summed over channels and brought to the size of the pictures or to the length of the series. Each
    map keeps its sum. Some metrics of Quantus change a copy of the model, so each model that Quantus passes gets a new
    attribution.

    Args:
        factory: makes an attribution for a model, as
            ``lambda model: LayerCAV(model, "features.12", normalize="abs")`` or ``captum.attr.Saliency``. Pass layers
            by name, or take them from the model that the function gets.
        options: further arguments of the method ``attribute`` of the attribution.

    Returns:
        A function of ``model``, ``inputs`` and ``targets`` of shape (N,), which returns maps. Inputs, targets and maps
        are arrays of numpy. Pictures of shape (N, C, H, W) have maps of shape (N, 1, H, W), series of shape (N, C, T)
        have maps of shape (N, 1, T), and tables of shape (N, F) have maps of this shape. The function ignores the other
        arguments of Quantus, as the device.

    Raises:
        CAVTypeError: if ``factory`` is no function. The returned function raises this error if the attribution gives
            several maps.
        InputError: the returned function raises this error for inputs of another shape, and if a layer has no places to
            lay over the inputs.

    Quantus (Hedstroem et al., Quantus: An Explainable AI Toolkit for Responsible Evaluation of Neural Network
    Explanations and Beyond, 2023) comes with ``pip install "captum_cav[quantus]"``.

    Example::

        >>> from captum_cav import InputCAV
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> net[1].weight.data = torch.tensor([[0., 1., 2., 3.], [0., 0., 0., 1.]])
        >>> explain = quantus_explain_func(lambda model: InputCAV(model, normalize=None))
        >>> explain(net, np.ones((1, 1, 2, 2), dtype=np.float32), np.array([0]), device="cpu").tolist()
        [[[[0.0, 1.0], [2.0, 3.0]]]]

    A metric of Quantus is then ``quantus.Sparseness()(model=net, x_batch=x, y_batch=y, explain_func=explain)``.
    """
    if not callable(factory):
        raise CAVTypeError(
            f"factory is a {type(factory).__name__}; expected a function that makes an attribution for a model, as "
            'lambda model: LayerCAV(model, "features.12", normalize="abs").'
        )

    def explain(model: torch.nn.Module, inputs: Explanations, targets: Explanations, **_: Any) -> Explanations:
        like = next(model.parameters(), torch.empty(0, device="cpu"))
        pictures = torch.as_tensor(np.asarray(inputs), device="cpu").to(like)
        found = factory(model).attribute(pictures, target=np.asarray(targets).tolist(), **options)
        if not isinstance(found, torch.Tensor):
            raise CAVTypeError(f"the attribution gave a {type(found).__name__}; expected one map, of one layer.")
        maps: Explanations = _laid_over(found.detach(), tuple(pictures.shape)).cpu().numpy()
        return maps

    return explain


def _laid_over(attributions: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Attributions as Quantus takes them, for inputs of a shape."""
    if len(shape) == 4:
        return resize_map(spatial_map(attributions, shape[2:]), shape[2:])[:, None]
    if len(shape) == 3 and attributions.dim() == 3:
        return resize_map(attributions.sum(1, keepdim=True), (1, shape[2]))
    if len(shape) == 2 and tuple(attributions.shape) == shape:
        return attributions
    raise InputError(
        f"attributions of shape {tuple(attributions.shape)} cannot be laid over inputs of shape {shape}; expected "
        "pictures (N, C, H, W), series (N, C, T) with attributions (N, channels, steps), or a table (N, F) with "
        "attributions of its shape, as InputCAV gives them."
    )
