"""Maps of layers: one layer, the layers of one class in a row, classes in rows and layers in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_cav.checks.options import as_list
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.maps import spatial_map
from captum_cav.visualization.colours import SHARE
from captum_cav.visualization.panels import Panel, Scale, as_pixels
from captum_cav.visualization.rows import show_rows


def show_layers(
    picture: Any,
    maps: Sequence[torch.Tensor],
    names: Sequence[str],
    title: str = "",
    *,
    signed: bool = False,
    scale: Scale = "each",
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw the maps of one class at several layers, in a row.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        maps: for each layer a map of shape (h, w), or the contributions of one sample as ``attribute`` returns them:
            shape (1, C, h, w), or another shape that :func:`spatial_map` takes.
        names: the names of the layers.
        title: the title of the whole figure, as the name of the class.
        signed: whether to show red and blue. Otherwise only what raised the score is shown, as heat.
        unit: the unit of the number that tells what the full colour stands for. A unit that begins with % shows the
            number in per cent.
        scale, outlier_percentile, axes: as for :func:`show_rows`.

    Returns:
        The figure and an array of axes, one for each layer. No window is opened.

    Raises:
        InputError, OptionError: as :func:`show_rows`.
        CAVTypeError: for a map that is no tensor.

    Example::

        >>> from captum_cav import LayerCAV
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.ReLU(), torch.nn.Flatten(),
        ...                             torch.nn.Linear(64, 2))
        >>> inputs = torch.rand(1, 3, 16, 16)
        >>> figure, axes = show_layers(inputs[0].permute(1, 2, 0), LayerCAV(model, ["1", "0"]).attribute(inputs, 0),
        ...                            ["1", "0"], "class 0", scale="all")
        >>> [one.get_title().strip() for one in axes]
        ['1, 4 x 4', '0, 4 x 4']
    """
    shown = as_pixels(picture)
    panels = layer_panels(as_list(maps, "maps"), as_list(names, "names"), shown, signed=signed, unit=unit)
    figure, grid = show_rows(
        shown, [("", panels)], title, scale=scale, outlier_percentile=outlier_percentile, axes=axes
    )
    return figure, grid[0]


def show_signed(
    picture: Any,
    ratios: torch.Tensor,
    title: str = "",
    *,
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    """Draw one map over the grey picture: red raised the score, blue lowered the score.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        ratios: a map or the contributions of a layer, as :func:`show_layers` takes them.
        title: what the map shows, as the name of the layer.
        unit, outlier_percentile: as for :func:`show_layers`.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError, OptionError, CAVTypeError: as :func:`show_layers`.

    Example::

        >>> figure, axes = show_signed(np.zeros((16, 16)), torch.tensor([[0.25, -0.5], [0.0, 0.125]]), "conv5")
        >>> print(axes.get_title())
        conv5, 2 x 2
        full colour: 50 % of the score
    """
    figure, (axis,) = show_layers(
        picture, [ratios], [title], signed=True, unit=unit, outlier_percentile=outlier_percentile, axes=axes
    )
    return figure, axis


def show_classes(
    picture: Any,
    maps: Sequence[Sequence[torch.Tensor]],
    classes: Sequence[str],
    layers: Sequence[str],
    title: str = "",
    *,
    signed: bool = False,
    scale: Scale = "each",
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw the maps of several classes: classes in rows and layers in columns.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        maps: for each class the maps of the layers as :func:`show_layers` takes them. This is what
            ``LayerCAV(model, layers).attribute_targets(inputs, targets)`` returns.
        classes: the names of the classes.
        layers: the names of the layers.
        title, signed, scale, unit, outlier_percentile, axes: as for :func:`show_layers`.

    Returns:
        The figure and an array of axes, one row for each class. No window is opened.

    Raises:
        InputError, OptionError, CAVTypeError: as :func:`show_layers`.

    Example::

        >>> maps = [[torch.eye(2), torch.eye(4)], [-torch.eye(2), torch.eye(4)]]
        >>> figure, axes = show_classes(np.zeros((16, 16)), maps, ["tabby", "boxer"], ["conv5", "conv4"])
        >>> [axis.get_ylabel() for axis in axes[:, 0]], axes[1, 0].texts[0].get_text()
        (['tabby', 'boxer'], 'nothing positive')
    """
    shown = as_pixels(picture)
    maps, classes, layers = as_list(maps, "maps"), as_list(classes, "classes"), as_list(layers, "layers")
    if len(maps) != len(classes):
        raise InputError(f"there are maps of {len(maps)} classes and {len(classes)} names; expected one name for each.")
    rows = [
        (name, layer_panels(of_class, layers, shown, signed=signed, unit=unit))
        for name, of_class in zip(classes, maps, strict=True)
    ]
    return show_rows(shown, rows, title, scale=scale, outlier_percentile=outlier_percentile, axes=axes)


def layer_panels(
    maps: Sequence[torch.Tensor], names: Sequence[str], picture: np.ndarray[Any, Any], **attributes: Any
) -> list[Panel]:
    """One panel for each layer.

    Args:
        maps: maps or contributions, as :func:`show_layers` takes them.
        names: the names of the layers.
        picture: shape (height, width, 3).
        attributes: the other attributes of :class:`Panel`, the same for all panels.

    Returns:
        The panels.

    Raises:
        CAVTypeError: for a map that is no tensor.
        InputError: for contributions of several samples or without a grid, and for a wrong number of names.
    """
    if len(maps) != len(names):
        raise InputError(f"there are {len(maps)} maps and {len(names)} names; expected one name for each map.")
    panels = []
    for ratios, name in zip(maps, names, strict=True):
        if not isinstance(ratios, torch.Tensor):
            raise CAVTypeError(f"the map {name!r} is a {type(ratios).__name__}; expected a tensor.")
        if ratios.dim() > 2:
            if len(ratios) != 1:
                raise InputError(
                    f"the map {name!r} has shape {tuple(ratios.shape)}, the contributions of {len(ratios)} samples; "
                    "pass those of one, as contributions[:1]."
                )
            ratios = spatial_map(ratios, (picture.shape[0], picture.shape[1]))[0]
        panels.append(Panel(name, ratios, **attributes))
    return panels
