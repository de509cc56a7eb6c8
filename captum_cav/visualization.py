"""Pictures of contributions: where the score of a class came from, laid over the picture.

Two looks, both of the paper: positive contributions as a heat map over the picture (figure 6), and what raised the
score in red, what lowered it in blue, over the grey picture (figure 7). Captum's visualization draws each panel; here
maps are brought to the picture's size and to one stated scale, and panels are put side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import LayerAttribution
from captum.attr import visualization as captum_visualization
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from captum_cav.errors import InputError

# Where a map is zero the picture shows through.
_HEAT = ListedColormap(
    [(*colormaps["turbo"](level)[:3], min(0.75, 1.5 * level)) for level in np.linspace(0, 1, 256)], "cav_heat"
)
_SIGNED = LinearSegmentedColormap.from_list(
    "cav_signed",
    [(0.0, 0.2, 0.9, 1.0), (0.4, 0.6, 1.0, 0.55), (1, 1, 1, 0), (1.0, 0.5, 0.4, 0.55), (0.85, 0.0, 0.0, 1.0)],
)
# The largest per cent of cells share the full colour, so that one of them does not dim all others.
_FULL_COLOUR = 0.99


@dataclass(frozen=True)
class Panel:
    """One map over the picture.

    Attributes:
        title: what it shows, as the layer's name.
        ratios: shape (h, w): the contribution ratio of each place, positive where it raised the score; None for the
            picture alone.
        signed: whether to show red and blue over grey (figure 7) instead of heat over colour (figure 6).
        unit: what the number of the full colour is a share of; empty to leave the number out.
    """

    title: str
    ratios: torch.Tensor | None
    signed: bool = False
    unit: str = "of the score"


def spatial_map(attributions: torch.Tensor, picture_size: tuple[int, int]) -> torch.Tensor:
    """Contributions summed over channels: one number for each place of the layer (the paper's section 3.3).

    Args:
        attributions: shape (N, C, h, w), (N, h, w, C) or (N, tokens, C), the tokens a grid with any few class tokens
            before it.
        picture_size: (height, width) of the picture; the grid that has its proportions is taken.

    Returns:
        Shape (N, h, w).

    Raises:
        InputError: if the layer has no such grid.

    Example::

        >>> spatial_map(torch.ones(1, 3, 2, 2), (224, 224))
        tensor([[[3., 3.],
                 [3., 3.]]])
        >>> spatial_map(torch.ones(2, 1 + 14 * 14, 8), (224, 224)).shape   # a vision transformer's tokens
        torch.Size([2, 14, 14])
    """
    shape = tuple(attributions.shape)
    if attributions.dim() == 4:
        layouts = {1: shape[2:], 3: shape[1:3]}
        channels = min(layouts, key=lambda dim: _distortion(layouts[dim], picture_size))
        if _distortion(layouts[channels], picture_size) < _MOST_DISTORTION:
            return attributions.sum(channels)
    if attributions.dim() == 3:
        for extra in range(min(_MOST_EXTRA_TOKENS, shape[1] - 1)):
            height = round(math.sqrt((shape[1] - extra) * picture_size[0] / picture_size[1]))
            grid = (height, (shape[1] - extra) // max(height, 1))
            if grid[0] * grid[1] == shape[1] - extra and _distortion(grid, picture_size) < _MOST_DISTORTION:
                return attributions[:, extra:].sum(2).reshape(shape[0], *grid)
    raise InputError(
        f"contributions of shape {shape} have no places to lay over a picture of {picture_size[0]} x {picture_size[1]} "
        "pixels; expected (N, C, h, w), (N, h, w, C) or (N, tokens, C) with a grid of tokens."
    )


# How far a grid's proportions may be from the picture's: unpadded convolutions take as much from the shorter side.
_MOST_DISTORTION = math.log(1.25)
_MOST_EXTRA_TOKENS = 6


def _distortion(grid: Sequence[int], picture_size: tuple[int, int]) -> float:
    if min(grid) == 0:
        return math.inf
    return abs(math.log(grid[0] * picture_size[1] / (grid[1] * picture_size[0])))


def show_map(picture: Any, panel: Panel, axes: tuple[Figure, Axes] | None = None) -> tuple[Figure, Axes]:
    """Draw one map over the picture.

    Args:
        picture: an RGB picture, (height, width, 3) of uint8 or a PIL image.
        panel: what to draw.
        axes: figure and axes to draw on; a new figure if None.

    Returns:
        The figure and the axes; nothing is shown.

    Example::

        >>> picture = np.full((32, 32, 3), 128, dtype=np.uint8)
        >>> figure, axes = show_map(picture, Panel("layer4", torch.tensor([[0.5, -0.1], [0.4, 0.2]]), signed=True))
        >>> print(axes.get_title())
        layer4, 2 x 2
        full colour: 50 % of the score
    """
    picture = np.asarray(picture)
    if axes is None:
        new = Figure(figsize=(4, 4.4), layout="constrained")
        axes = new, new.add_subplot()
    figure, axis = axes
    axis.set_xticks([])
    axis.set_yticks([])
    if panel.ratios is None:
        axis.imshow(picture)
        axis.set_title(panel.title, fontsize=9, parse_math=False)
        return figure, axis
    if panel.signed:
        axis.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255)
    else:
        axis.imshow(picture)
    scaled, full = _scaled(panel, picture.shape[:2])
    if full > 0:
        captum_visualization.visualize_image_attr(
            scaled,
            method="heat_map",
            sign="all" if panel.signed else "positive",
            plt_fig_axis=axes,
            outlier_perc=0,
            cmap=_SIGNED if panel.signed else _HEAT,
            use_pyplot=False,
        )
    axis.set_title(_title(panel, full), fontsize=9, parse_math=False)
    return figure, axis


def show_rows(picture: Any, rows: Sequence[tuple[str, Sequence[Panel]]], title: str = "") -> tuple[Figure, Any]:
    """Draw rows of maps, each with its label before it and its colours explained behind it.

    Args:
        picture: an RGB picture, (height, width, 3) of uint8 or a PIL image.
        rows: for each row its label, as a class name, and its panels.
        title: of the whole figure.

    Returns:
        The figure and an array of axes, one row a row; nothing is shown.

    Example::

        >>> picture = np.zeros((16, 16, 3), dtype=np.uint8)
        >>> maps = [Panel("a", torch.eye(2)), Panel("b", torch.eye(4))]
        >>> figure, axes = show_rows(picture, [("tabby", maps), ("boxer", maps)])
        >>> axes.shape
        (2, 2)
    """
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.1 * columns + 1.0, 2.6 * len(rows)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, panels) in enumerate(rows):
        for axis, panel in zip(axes[row], panels, strict=False):
            show_map(picture, panel, (figure, axis))
        for axis in axes[row, len(panels) :]:
            axis.axis("off")
        axes[row, 0].set_ylabel(label, fontsize=10, fontweight="bold", parse_math=False)
        if panels[-1].ratios is not None:
            _add_colour_bar(figure, axes[row].tolist(), panels[-1].signed)
    return figure, axes


def _scaled(panel: Panel, size: tuple[int, int]) -> tuple[np.ndarray[Any, Any], float]:
    """The map at the picture's size in units of the full colour, and what the full colour stands for."""
    assert panel.ratios is not None
    ratios = panel.ratios.detach().float().cpu()
    resized: torch.Tensor = LayerAttribution.interpolate(ratios[None, None], size, "bilinear")[0, 0]
    strength = resized.abs() if panel.signed else resized.clamp(min=0)
    present = strength[strength > 0]
    if not len(present):
        return np.zeros(size), 0.0
    full = float(np.quantile(present.numpy(), _FULL_COLOUR))
    return (resized / full).clamp(-1, 1).numpy(), full


def _title(panel: Panel, full: float) -> str:
    assert panel.ratios is not None
    title = f"{panel.title}, {panel.ratios.shape[0]} x {panel.ratios.shape[1]}"
    if full == 0:
        return f"{title}\nnothing {'but zeros' if panel.signed else 'positive'}"
    return f"{title}\nfull colour: {_short(100 * full)} % {panel.unit}" if panel.unit else f"{title}\n"


def _short(number: float) -> str:
    """Two digits, in a form that fits above a panel: 12, 1.2, 0.012, 1e-4."""
    return f"{number:.2g}" if number == 0 or abs(number) >= 0.01 else f"{number:.0e}".replace("e-0", "e-")


def _add_colour_bar(figure: Figure, axes: list[Axes], signed: bool) -> None:
    levels = Normalize(-1 if signed else 0, 1)
    bar = figure.colorbar(ScalarMappable(levels, _SIGNED if signed else _HEAT), ax=axes, shrink=0.8, pad=0.01)
    if signed:
        bar.set_ticks([-1, 0, 1], labels=["lowered\nthe score", "0", "raised\nthe score"], fontsize=8)
    else:
        bar.set_ticks([0, 1], labels=["0", "raised\nthe score\nmost"], fontsize=8)
