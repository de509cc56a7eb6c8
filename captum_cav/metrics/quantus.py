"""Attributions of captum_cav and of Captum as explanation functions of Quantus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from captum_cav.errors import CAVTypeError
from captum_cav.maps import resize_map, spatial_map

Explanations = npt.NDArray[Any]


def quantus_explain_func(factory: Callable[[Any], Any], **options: Any) -> Callable[..., Explanations]:
    """Make a function that metrics of Quantus take as ``explain_func``, for maps of any layer.

    Contributions are summed over channels and brought to the size of the pictures. Each map keeps its sum. Some metrics
    of Quantus change a copy of the model, so each model that Quantus passes gets a new attribution.

    Args:
        factory: makes an attribution for a model, as
            ``lambda model: LayerCAV(model, "features.12", normalize="abs")`` or ``captum.attr.Saliency``. Pass layers
            by name, or take them from the model that the function gets.
        options: further arguments of the method ``attribute`` of the attribution.

    Returns:
        A function of ``model``, ``inputs`` of shape (N, C, H, W) and ``targets`` of shape (N,), which returns maps of
        shape (N, 1, H, W). Inputs, targets and maps are arrays of numpy. The function ignores the other arguments of
        Quantus, as the device.

    Raises:
        CAVTypeError: if ``factory`` is no function. The returned function raises this error if the attribution gives
            several maps.
        InputError: the returned function raises this error if a layer has no places to lay over the pictures.

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
        like = next(model.parameters(), torch.empty(0))
        pictures = torch.as_tensor(np.asarray(inputs)).to(like)
        found = factory(model).attribute(pictures, target=np.asarray(targets).tolist(), **options)
        if not isinstance(found, torch.Tensor):
            raise CAVTypeError(f"the attribution gave a {type(found).__name__}; expected one map, of one layer.")
        size = pictures.shape[2], pictures.shape[3]
        maps: Explanations = resize_map(spatial_map(found.detach(), size), size)[:, None].cpu().numpy()
        return maps

    return explain
