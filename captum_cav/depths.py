"""Layers at which a network is looked at, from the last feature layer toward the input."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_cav import checks
from captum_cav.errors import InputError
from captum_cav.maps import picture_size_of, spatial_map

__all__ = ["LayerList", "layers"]

# Their members are the stages and the blocks of a network.
_CONTAINERS = (nn.Sequential, nn.ModuleList)
# Grids whose sides differ by less than this factor count as one resolution. Poolings and strides halve the sides;
# padding, and convolutions without padding, change them by a few places.
_SAME_RESOLUTION = 1.5


@dataclass(frozen=True)
class _Layer:
    """A layer whose output is a grid over the picture.

    Attributes:
        name: the qualified name.
        kind: the name of the class of the module.
        shape: the shape of the output.
        grid: (height, width) of the grid, in places.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def nesting(self) -> int:
        """How many modules the layer is inside of."""
        return self.name.count(".")


class LayerList(list[str]):
    """The qualified names of layers, from the last layer toward the input. The list prints as a table.

    Args:
        rows: the layers.
    """

    def __init__(self, rows: Iterable[_Layer]) -> None:
        self._layers = tuple(rows)
        super().__init__(layer.name for layer in self._layers)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(height, width) of the grid of each layer, in places."""
        return [layer.grid for layer in self._layers]

    def _cells(self) -> list[tuple[str, ...]]:
        rows = [
            (layer.name, layer.kind, " x ".join(map(str, layer.shape)), f"{layer.grid[0]} x {layer.grid[1]}")
            for layer in self._layers
        ]
        return [("layer", "module", "shape", "places"), *rows]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        )

    def _repr_html_(self) -> str:
        head, *rows = self._cells()

        def line(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def layers(model: nn.Module, inputs: torch.Tensor, count: int = 5) -> LayerList:
    """Choose layers at which to look at a network: the outputs of its stages, or of blocks between them.

    The function runs the model once. It takes layers that run exactly once, whose output is a grid over the picture,
    and whose places reach the score. Modules that compute nothing, as padding, dropout and identities, are left out.
    From each resolution it takes the last layer. A network with fewer resolutions than ``count``, as a vision
    transformer, also gets blocks from between these layers.

    Args:
        model: maps ``inputs`` to scores; in evaluation mode.
        inputs: shape (N, 3, H, W).
        count: how many layers, at least 1.

    Returns:
        At most ``count`` qualified names, from the coarsest layer to the layer next to the input. They print as a table
        with the shapes, and can be passed to :class:`captum_cav.LayerCAV` as they are.

    Raises:
        InputError: if no layer gives a grid over the picture.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        >>> names = layers(model.eval(), torch.zeros(1, 3, 8, 8))
        >>> list(names)
        ['2', '1', '0']
        >>> print(names)
        layer  module     shape          places
        2      MaxPool2d  1 x 4 x 3 x 3  3 x 3
        1      ReLU       1 x 4 x 6 x 6  6 x 6
        0      Conv2d     1 x 4 x 6 x 6  6 x 6
    """
    checks.check_count(count, "count")
    candidates = _candidates(model, inputs)
    if not candidates:
        raise InputError("no layer of the network gives maps that could be laid over a picture")
    # Of one resolution the outermost layer is taken, because an inner layer may be only one branch of a block.
    stages: list[list[_Layer]] = []
    for layer in candidates:
        for stage in stages:
            if _is_same_resolution(stage[0].grid, layer.grid):
                stage.append(layer)
                break
        else:
            stages.append([layer])
    outermost = [min(reversed(stage), key=lambda layer: layer.nesting) for stage in stages]
    order = candidates.index
    chosen = sorted(outermost, key=order)[-count:]
    between = _blocks(model, [layer for layer in candidates if layer not in chosen], count - len(chosen))
    # Evenly spaced, up to the last of them.
    missing = min(count - len(chosen), len(between))
    chosen += [between[math.ceil((index + 1) * len(between) / missing) - 1] for index in range(missing)]
    return LayerList(sorted(chosen, key=order, reverse=True))


def _is_same_resolution(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(max(a, b) < _SAME_RESOLUTION * min(a, b) for a, b in zip(one, other, strict=True))


def _blocks(model: nn.Module, candidates: list[_Layer], count: int) -> list[_Layer]:
    """Those of some layers that are blocks: members of a container that lie in no other such member.

    A network of few blocks gets single operations too.
    """
    members = [layer for layer in candidates if isinstance(_parent(model, layer.name), _CONTAINERS)]
    names = {layer.name for layer in members if any(model.get_submodule(layer.name).children())}
    blocks = [layer for layer in members if layer.name in names and not _is_inside(layer.name, names)]
    if len(blocks) >= count:
        return blocks
    return [layer for layer in members if layer in blocks or not _is_inside(layer.name, names)]


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _is_inside(name: str, others: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in others for length in range(1, len(parts)))


def _candidates(model: nn.Module, inputs: torch.Tensor) -> list[_Layer]:
    """The layers that can be chosen, in the order in which they ran."""
    size = picture_size_of(inputs)
    before: dict[str, Any] = {}
    outputs: dict[str, list[torch.Tensor]] = {}
    idle: set[str] = set()

    def enter(name: str, args: Any) -> None:
        # An operation that works in place changes its input, so a copy is kept until the operation is done.
        before[name] = args[0].detach().clone() if args and isinstance(args[0], torch.Tensor) else None

    def leave(name: str, output: Any) -> None:
        entered = before.pop(name, None)
        if not isinstance(output, torch.Tensor):
            return
        outputs.setdefault(name, []).append(output)
        if entered is not None and _computes_nothing(entered, output):
            idle.add(name)

    handles = []
    for name, module in model.named_modules():
        if name:
            if not [*module.children(), *module.parameters()]:
                handles.append(module.register_forward_pre_hook(lambda _, args, name=name: enter(name, args)))
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: leave(name, output)))
    try:
        with torch.enable_grad():
            scores = model(inputs.detach().clone().requires_grad_(inputs.is_floating_point()))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, calls in outputs.items():
        if len(calls) == 1 and name not in idle and (grid := _grid(calls[0].shape, size)) is not None:
            kind = type(model.get_submodule(name)).__name__
            found.append((_Layer(name, kind, tuple(calls[0].shape), grid), calls[0]))
    # A container hands on the output of its last member, so only the last to end of those is taken.
    found = list({id(output): (layer, output) for layer, output in found}.values())
    silent = _without_effect(scores, [output for _, output in found], size)
    return [layer for number, (layer, _) in enumerate(found) if number not in silent]


def _grid(shape: torch.Size, size: tuple[int, int]) -> tuple[int, int] | None:
    """The (height, width) of a grid over the picture with more than one row and column; None if there is none."""
    try:
        # Only the shape matters.
        grid = spatial_map(torch.empty(shape, device="meta"), size).shape[1:]
    except InputError:
        return None
    return (grid[0], grid[1]) if min(grid) > 1 else None


def _computes_nothing(entered: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether an operation without parameters left its input as it is, or only put places around it."""
    if entered.shape == output.shape:
        return bool(torch.equal(entered, output))
    larger = [now - then for then, now in zip(entered.shape, output.shape, strict=False)]
    if entered.dim() != output.dim() or any(larger[:-2]) or min(larger) < 0:
        return False
    rows, columns = entered.shape[-2:]
    return any(
        torch.equal(output[..., top : top + rows, left : left + columns], entered)
        for top in range(larger[-2] + 1)
        for left in range(larger[-1] + 1)
    )


def _without_effect(scores: Any, outputs: list[torch.Tensor], size: tuple[int, int]) -> set[int]:
    """The numbers of the outputs of which at most one place reaches the scores.

    If the score of a transformer is read off a class token, these are the other tokens behind the last attention.
    """
    if not isinstance(scores, torch.Tensor) or not scores.requires_grad:
        return set()
    followed = [(number, output) for number, output in enumerate(outputs) if output.requires_grad]
    if not followed:
        return set()
    try:
        # A sum over the classes can be constant, as that of probabilities.
        best = scores.flatten(1).amax(1).sum() if scores.dim() > 1 else scores.sum()
        gradients = torch.autograd.grad(best, [output for _, output in followed], allow_unused=True)
    except RuntimeError:
        # The model works in place in a way that its gradient cannot be computed. Then nothing is known.
        return set()
    silent = {
        number
        for (number, _), gradient in zip(followed, gradients, strict=True)
        if gradient is None or int((spatial_map(gradient.abs(), size) > 0).sum(dim=(1, 2)).max()) < 2
    }
    # Of a network whose last layer is all zeros, as before its training, no place reaches the score.
    return silent if len(silent) < len(outputs) else set()
