"""Pictures of several classes in one grid. The map of a class should lie in the cells of this class."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch

from captum_cav import checks
from captum_cav.checks import check_count, check_maps, check_measured_model, check_module, check_pictures, check_targets
from captum_cav.errors import InputError, LayerError, ModelError, TargetError
from captum_cav.maps import MOST_DISTORTION, distortion
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Explain, classes, explained
from captum_cav.metrics.resolution import precise

_CELLS = 4


@measure(0.0, 1.0, "higher")
def grid_pointing(
    model: Any, inputs: torch.Tensor, target: Any, explain: Explain, *, seed: int = 0, batch_size: int = 8
) -> torch.Tensor:
    """The grid pointing game: which share of a map lies on the picture of its class, of four; higher is better.

    Each picture is put into a 2 x 2 grid, at a random place, with three other pictures of the batch. All four have
    different classes. The grid is explained for the class of the picture, and the share of the positive part in the
    cell of the picture is ``sum_{i in cell} max(a_i, 0) / sum_i max(a_i, 0)``. A random map has 1/4 on average.

    Args:
        model: a module or any callable. It must take pictures of twice the size, as fully convolutional networks do.
        inputs: pictures of shape (N, C, H, W), of at least four classes.
        target: the class of each picture, in any of Captum's forms. The network should be sure of the class.
        explain: takes the model, grids of shape (M, C, 2H, 2W) and a list of targets. Returns maps of shape (M, h, w)
            of any resolution, positive if the place raised the score.
        seed: the seed for the choice of the grids.
        batch_size: how many grids are explained at once.

    Returns:
        Shape (N,), from 0 to 1; 0 if nothing is positive. The value does not depend on the scale of a map.

    Raises:
        InputError: if shapes do not fit, values are not finite, or there are fewer than four classes.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Boehle, Fritz and Schiele, Convolutional Dynamic Alignment Networks for Interpretable Classifications, 2021.

    Example::

        >>> pictures = torch.arange(1., 5.).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
        >>> def where_it_is_as_bright(model, inputs, target):
        ...     return (inputs[:, 0] == torch.tensor(target)[:, None, None]).float()
        >>> grid_pointing(torch.nn.Identity(), pictures, [1, 2, 3, 4], where_it_is_as_bright)
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    check_measured_model(model)
    inputs, targets = _given(inputs, target)

    def companions(own: int, others: list[int]) -> list[int]:
        by_class = {targets[other]: other for other in others if targets[other] != targets[own]}
        return list(by_class.values())[: _CELLS - 1]

    grids = _compose(len(inputs), companions, "pictures of four different classes", seed)
    inside = [[one == own for one in grid] for own, grid in enumerate(grids)]
    return _pointed(model, inputs, grids, inside, targets, explain, batch_size)


@measure(0.0, 1.0, "higher")
def focus(
    model: Any, inputs: torch.Tensor, target: Any, explain: Explain, *, seed: int = 0, batch_size: int = 8
) -> torch.Tensor:
    """Which share of a map lies on the two pictures of its class in a mosaic of four; higher is better.

    Each picture is put into a 2 x 2 mosaic with another picture of its class and two pictures of other classes. The
    mosaic is explained for the class. The value is the share of the positive part on the two pictures of the class. A
    random map has 1/2 on average.

    Args:
        model, explain, seed, batch_size: as for :func:`grid_pointing`.
        inputs: pictures of shape (N, C, H, W), at least two of each class, and at least two of other classes.
        target: the class of each picture, in any of Captum's forms.

    Returns:
        Shape (N,), from 0 to 1; 0 if nothing is positive.

    Raises:
        InputError: if shapes do not fit, values are not finite, or there are too few pictures of a class.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Arias-Duart, Pares, Garcia-Gasulla and Gimenez-Abalos, Focus! Rating XAI Methods and Finding Biases, 2022.

    Example::

        >>> pictures = torch.tensor([1., 1., 2., 2.]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
        >>> def where_it_is_as_bright(model, inputs, target):
        ...     return (inputs[:, 0] == torch.tensor(target)[:, None, None]).float()
        >>> focus(torch.nn.Identity(), pictures, [1, 1, 2, 2], where_it_is_as_bright)
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    check_measured_model(model)
    inputs, targets = _given(inputs, target)

    def companions(own: int, others: list[int]) -> list[int]:
        same = [other for other in others if targets[other] == targets[own]]
        different = [other for other in others if targets[other] != targets[own]]
        return [*same[:1], *different[: _CELLS - 2]]

    grids = _compose(len(inputs), companions, "another picture of its class and two of other classes", seed)
    inside = [[targets[one] == targets[own] for one in grid] for own, grid in enumerate(grids)]
    return _pointed(model, inputs, grids, inside, targets, explain, batch_size)


@measure(0.0, 1.0, "higher")
def difull(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    target: Any,
    explain: Explain,
    *,
    layer: str | None = None,
    seed: int = 0,
    batch_size: int = 8,
) -> torch.Tensor:
    """Which share of a map lies on the only cell of a grid that the score depends on; higher is better.

    The grids are those of :func:`grid_pointing`, but the network runs on each cell separately, and the scores of all
    cells are put side by side (:func:`divide`). The score of a class in one cell depends only on this cell, so every
    contribution outside the cell is wrong. A random map has 1/4 on average. CAV and other methods that propagate the
    score backward have 1.

    Args:
        model: a module that returns scores of shape (N, classes).
        inputs: pictures of shape (N, C, H, W), at least four.
        target: the class of each picture, in any of Captum's forms.
        explain: takes a model, grids of shape (M, C, 2H, 2W) and a list of targets. Returns maps of shape (M, h, w).
            The model is :func:`divide` of your model. Its modules have the same names as in your model.
        layer: the name of the layer whose output ``explain`` explains. There the output has shape (M, C, 2h, 2w). None
            if ``explain`` explains the inputs.
        seed: the seed for the choice of the grids.
        batch_size: how many grids are explained at once.

    Returns:
        Shape (N,), from 0 to 1; 0 if nothing is positive.

    Raises:
        InputError: if shapes do not fit, values are not finite, or there are fewer than four pictures.
        CAVTypeError, LayerError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Rao, Boehle and Schiele, Towards Better Understanding Attribution Methods, 2022. In the paper the four
    pictures have four classes, and two of the cells are evaluated.

    Example::

        >>> from captum_cav import LayerCAV
        >>> _ = torch.manual_seed(2)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(18, 3)
        ... )
        >>> def relevance(model, inputs, target):
        ...     return LayerCAV(model, "1", normalize="abs").attribute(inputs, target).sum(1)
        >>> difull(net, torch.rand(4, 1, 5, 5), 1, relevance, layer="1")
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    inputs = check_pictures(inputs)
    divided = divide(model, layer)
    own, count = classes(model, inputs, check_targets(target, len(inputs)))
    grids = _compose(len(inputs), lambda _, others: others[: _CELLS - 1], "four pictures", seed)
    inside = [[one == own for one in grid] for own, grid in enumerate(grids)]
    heads = [cells.index(True) * count + one for cells, one in zip(inside, own, strict=True)]
    return _pointed(divided, inputs, grids, inside, heads, explain, batch_size)


def divide(model: torch.nn.Module, layer: str | None = None) -> torch.nn.Module:
    """Copy a model so that the copy takes 2 x 2 grids and runs each cell separately.

    Args:
        model: returns scores of shape (N, classes) for pictures of shape (N, C, H, W).
        layer: the name of a layer whose output of shape (4N, C, h, w) becomes grids of shape (N, C, 2h, 2w) for hooks.
            So attributions of this layer have the shape of the grids.

    Returns:
        The copy. It takes grids of shape (N, C, 2H, 2W) and returns scores of shape (N, 4 * classes). The score of
        class ``c`` in cell ``i`` is at ``i * classes + c``. The modules have the same names and types as in the model.

    Raises:
        LayerError: if the model has no such layer.
        CAVTypeError, ModelError: for a model that cannot be copied and changed.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())
        >>> divide(net)(torch.tensor([[[[1., 1., 2., 2.], [1., 1., 2., 2.], [3., 3., 4., 4.], [3., 3., 4., 4.]]]]))
        tensor([[1., 2., 3., 4.]])
    """
    divided = copy.deepcopy(check_module(model))
    if layer is not None:
        name, module = checks.find_layer(divided, layer)
        _lay_out(module, name)
    forward = _own_forward(divided)

    def run_cells(self: torch.nn.Module, grids: torch.Tensor) -> torch.Tensor:
        cells = _cut(grids)
        if layer is not None:
            self.get_submodule(layer).cell_size = cells.shape[2], cells.shape[3]  # type: ignore[assignment]
        return checks.check_output(forward(self, cells)).reshape(len(grids), -1)

    _become(divided, forward=run_cells)
    return divided


def _lay_out(module: torch.nn.Module, name: str) -> None:
    """Show the output of a module as a grid to hooks, and as cells to the caller of the module."""
    forward, call = _own_forward(module), type(module).__call__

    def tiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        cells = forward(self, *args, **kwargs)
        shape = tuple(cells.shape) if isinstance(cells, torch.Tensor) else None
        if shape is None or len(shape) != 4 or distortion(shape[2:], self.cell_size) > MOST_DISTORTION:
            given = f"a {type(cells).__name__}" if shape is None else f"shape {shape}"
            raise LayerError(
                f"layer {name} gives {given} for pictures of {' x '.join(map(str, self.cell_size))}; expected "
                "(N, C, h, w) of their proportions, which can be laid out as a grid."
            )
        return _tile(cells)

    # Hooks run inside __call__.
    _become(module, forward=tiled, __call__=lambda self, *args, **kwargs: _cut(call(self, *args, **kwargs)))


def _become(module: torch.nn.Module, **methods: Any) -> None:
    """Give methods to one module only, as :mod:`torch.nn.utils.parametrize` does. Copies of the module keep them."""
    base = type(module)
    module.__class__ = type(base.__name__, (base,), {"__module__": base.__module__, **methods})


def _own_forward(module: torch.nn.Module) -> Callable[..., Any]:
    if "forward" in vars(module):
        raise ModelError(
            f"forward of {type(module).__name__} was replaced on the object, so copies of it would run the original; "
            "define it in the class."
        )
    return type(module).forward


def shares_in_cells(maps: torch.Tensor) -> torch.Tensor:
    """The share of the positive part of a map in each cell of a 2 x 2 grid.

    Args:
        maps: shape (N, h, w). If a side is odd, one half of the middle counts for each of both cells. Interpolation
            would let positive and negative places cancel, and so prefer signed maps to maps without negative places.

    Returns:
        Shape (N, 4), in the order top left, top right, bottom left, bottom right. The shares add up to 1, or to 0 if
        nothing is positive.

    Raises:
        InputError: if maps have another shape, or are not finite.

    Example::

        >>> shares_in_cells(torch.tensor([[[1., 1., -9.], [1., 1., 0.], [0., 0., 0.]]]))
        tensor([[0.5625, 0.1875, 0.1875, 0.0625]], dtype=torch.float64)
    """
    maps = precise(check_maps(maps))
    height, width = maps.shape[1:]
    # Each place becomes 2 x 2 places, so that both cells get one half of a middle row or column.
    halves = maps.clamp(min=0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    cells = halves.reshape(len(maps), 2, height, 2, width).sum((2, 4)).flatten(1)
    total = cells.sum(1, keepdim=True)
    return torch.where(total > 0, cells / total, 0)


def _given(inputs: Any, target: Any) -> tuple[torch.Tensor, list[Any]]:
    inputs = check_pictures(inputs)
    targets = check_targets(target, len(inputs))
    if targets is None:
        raise TargetError("target is None; expected the class of each picture.")
    return inputs, targets


def _compose(
    examples: int, companions: Callable[[int, list[int]], list[int]], needed: str, seed: int
) -> list[list[int]]:
    """Choose for each example the four members of one grid: the example and three companions, in random order.

    ``companions`` takes an example and all other examples in random order, and returns three of these.
    """
    dice = random.Random(seed)  # noqa: S311
    grids = []
    for own in range(examples):
        others = dice.sample([other for other in range(examples) if other != own], examples - 1)
        chosen = [own, *companions(own, others)]
        if len(chosen) < _CELLS:
            raise InputError(f"example {own} cannot be put into a grid: it takes {needed}, of {examples} in the batch.")
        grids.append(dice.sample(chosen, _CELLS))
    return grids


def _pointed(
    model: Any,
    inputs: torch.Tensor,
    grids: list[list[int]],
    inside: list[list[bool]],
    targets: list[Any],
    explain: Explain,
    batch_size: int,
) -> torch.Tensor:
    """The share of the map of each grid that lies inside the marked cells."""
    check_count(batch_size, "batch_size")
    found = []
    for start in range(0, len(grids), batch_size):
        part = slice(start, start + batch_size)
        pictures = _tile(torch.stack([inputs[number] for grid in grids[part] for number in grid]))
        shares = shares_in_cells(explained(explain, model, pictures, targets[part]))
        found.append((shares * torch.tensor(inside[part], device=shares.device)).sum(1).clamp(max=1))
    return torch.cat(found)


def _tile(cells: torch.Tensor) -> torch.Tensor:
    """Put cells of shape (4N, C, H, W) together to grids of shape (N, C, 2H, 2W)."""
    count, channels, height, width = cells.shape
    grids = cells.reshape(count // _CELLS, 2, 2, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return grids.reshape(count // _CELLS, channels, 2 * height, 2 * width)


def _cut(grids: torch.Tensor) -> torch.Tensor:
    """Cut grids of shape (N, C, 2H, 2W) into cells of shape (4N, C, H, W)."""
    count, channels, height, width = grids.shape
    cells = grids.reshape(count, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(_CELLS * count, channels, height // 2, width // 2)
