"""Layers at which a network is looked at, from the last feature layer toward the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from captum_cav.errors import InputError
from captum_cav.maps import picture_size_of, spatial_map

# Their members are the stages and the blocks of a network.
_CONTAINERS = (nn.Sequential, nn.ModuleList)


def find_depths(model: nn.Module, inputs: torch.Tensor, count: int) -> tuple[str, ...]:
    """Choose layers at which to look at a network: one for each resolution.

    The function runs the model once and takes layers that run exactly once and whose output is a grid over the picture.
    From each resolution it takes the last layer. A network with fewer resolutions than ``count``, as a vision
    transformer, also gets blocks from between these layers.

    Args:
        model: maps ``inputs`` to scores.
        inputs: shape (N, 3, H, W).
        count: how many layers.

    Returns:
        At most ``count`` qualified names, from the coarsest layer to the layer next to the input.

    Raises:
        InputError: if no layer gives a grid over the picture.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        >>> find_depths(model, torch.zeros(1, 3, 8, 8), 5)
        ('2', '1', '0')
    """
    size = picture_size_of(inputs)
    grids: dict[str, list[tuple[int, int]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                return
            try:
                # Only the shape matters. The model itself may watch what becomes of its tensors.
                grid = spatial_map(torch.empty(output.shape, device="meta"), size).shape[1:]
            except InputError:
                return
            grids.setdefault(name, []).append((grid[0], grid[1]))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: calls[0] for name, calls in grids.items() if len(calls) == 1 and min(calls[0]) > 1}
    if not once:
        raise InputError("no layer of the network gives maps that could be laid over a picture")
    # A dictionary keeps the order in which the layers ran. Of one resolution the outermost layer is taken, because an
    # inner layer may be only one branch of a block.
    order = list(once)
    last_of_each: dict[tuple[int, int], str] = {}
    for name, grid in once.items():
        if name.count(".") <= last_of_each.get(grid, name).count("."):
            last_of_each[grid] = name
    chosen = sorted(last_of_each.values(), key=order.index)[-count:]
    blocks = [name for name in order if type(model.get_submodule(name.rpartition(".")[0])) in _CONTAINERS]
    between = [name for name in blocks if name not in chosen]
    missing = min(count - len(chosen), len(between))
    chosen += [between[index * len(between) // missing] for index in range(missing)]
    return tuple(sorted(chosen, key=order.index, reverse=True))


def torchvision_depths(name: str, model: nn.Module) -> tuple[str, ...]:
    """The five layers of a model of torchvision.

    Args:
        name: torchvision's name of the model.
        model: the model.

    Returns:
        Qualified names, from the last feature layer toward the input; empty for models that are not listed here.
    """
    if isinstance(model, torchvision.models.VGG):
        pools = [f"features.{index}" for index, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return tuple(reversed(pools))
    if isinstance(model, torchvision.models.ResNet):
        return ("layer4", "layer3", "layer2", "layer1", "relu")
    if name == "squeezenet1_1":
        # SqueezeNet has four resolutions before the classifier, so two of the five layers have the same one.
        return ("features.12", "features.7", "features.4", "features.2", "features.1")
    return ()
