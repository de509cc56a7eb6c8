"""Panels in a figure: one panel, or panels in rows and columns with labels and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_cav.errors import InputError
from captum_cav.visualization.colours import add_colour_bar, amount, ink, new_figure, wrapped
from captum_cav.visualization.fonts import fit_fonts
from captum_cav.visualization.panels import Panel, Scale, as_pixels, draw_panel, scale_panels

# The height of one line of a caption, in inches.
_CAPTION_LINE = 0.15
# The mean width of one letter of the label of a row, in points.
_BOLD_LETTER = 6.5


def show_map(
    picture: Any, panel: Panel, axes: tuple[Figure, Axes] | None = None, *, outlier_percentile: float = 99.0
) -> tuple[Figure, Axes]:
    """Draw one map over the picture, without a legend.

    Args:
        picture: an RGB picture, as :func:`show_rows` takes it.
        panel: what to draw.
        axes: the figure and the axes to draw on; None makes a new figure.
        outlier_percentile: as for :func:`show_rows`.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError: for a picture or a map that cannot be drawn, for example because of NaN.

    Example::

        >>> import torch
        >>> picture = np.full((32, 32, 3), 128, dtype=np.uint8)
        >>> figure, axes = show_map(picture, Panel("layer4", torch.tensor([[0.5, -0.1], [0.4, 0.2]]), signed=True))
        >>> print(axes.get_title())
        layer4, 2 x 2
        full colour: 50 % of the score
    """
    shown = as_pixels(picture)
    ((scaled,),) = scale_panels([[panel]], (shown.shape[0], shown.shape[1]), "each", outlier_percentile)
    figure, grid = _grid(axes, 1, 1, shown)
    draw_panel(shown, scaled, figure, grid[0, 0], numbered=True)
    fit_fonts(grid[0, 0])
    return figure, grid[0, 0]


def show_rows(
    picture: Any,
    rows: Sequence[tuple[str, Sequence[Panel]]],
    title: str = "",
    *,
    scale: Scale = "each",
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw rows of maps. Each row has a label at its left and a legend of the colours at its right.

    Args:
        picture: an RGB picture: a PIL image, or (height, width), (height, width, 1) or (height, width, 3) of uint8 or
            of numbers from 0 to 1.
        rows: for each row a label, as the name of a class, and the panels.
        title: the title of the whole figure.
        scale: which maps share one scale of colours. With ``"each"`` every map has a scale of its own, and a number
            above the map tells what the full colour stands for: the contribution of one cell. With ``"row"`` the maps
            of a row share one scale, with ``"all"`` all maps do. The number then stands in the legend and is the
            contribution of one hundredth of the picture, because the cells may differ in size. Maps with different
            units never share a scale.
        outlier_percentile: above 0 and at most 100. The colour is full from this percentile on. The percentile is taken
            over the sizes of the contributions (in a heat map: over the positive contributions) without the zeros.
        axes: the figure and the axes, one for each panel, as ``plt.subplots(rows, columns)`` returns them; None makes a
            new figure.

    Returns:
        The figure and an array of axes with one row for each row. No window is opened.

    Raises:
        InputError: for a picture or a map that cannot be drawn, for example because of NaN; if there is nothing to
            draw; for a wrong number of axes.
        OptionError: for an unknown scale or percentile.

    Example::

        >>> import torch
        >>> picture = np.zeros((16, 16, 3), dtype=np.uint8)
        >>> maps = [Panel("a", torch.eye(2)), Panel("b", torch.eye(4))]
        >>> figure, axes = show_rows(picture, [("tabby", maps), ("boxer", maps)], scale="row")
        >>> axes.shape
        (2, 2)
    """
    shown = as_pixels(picture)
    columns = max((len(panels) for _, panels in rows), default=0)
    if not columns:
        raise InputError("there are no panels to draw; expected at least one map.")
    scaled = scale_panels([panels for _, panels in rows], (shown.shape[0], shown.shape[1]), scale, outlier_percentile)
    figure, grid = _grid(axes, len(rows), columns, shown)
    colour = ink(figure.get_facecolor())
    title = wrapped(title, int(11 * figure.get_figwidth()))
    if title:
        figure.suptitle(title, fontsize=12, color=colour, parse_math=False)
    for axes_of_row, of_row, (label, _) in zip(grid, scaled, rows, strict=True):
        # All captions of a row have a line for the number if one has a number, so that all begin at one height.
        numbered = scale == "each" and any(one.density is not None and one.panel.unit for one in of_row)
        for axis, one in zip(axes_of_row, of_row, strict=False):
            draw_panel(shown, one, figure, axis, numbered=numbered)
        for axis in axes_of_row[len(of_row) :]:
            axis.axis("off")
        letters = max(int(axes_of_row[0].bbox.height * 72 / figure.get_dpi() / _BOLD_LETTER), 8)
        axes_of_row[0].set_ylabel(
            wrapped(label, letters), fontsize=10, fontweight="bold", color=colour, parse_math=False
        )
        with_map = [one for one in of_row if one.density is not None]
        if with_map:
            # The last panel, because the first one may have no unit, as that of Grad-CAM.
            panel, _, full = with_map[-1]
            number = "" if scale == "each" else amount(full / 100, panel.unit)
            add_colour_bar(
                figure,
                axes_of_row,
                panel.signed,
                number and f"full colour:\n{number}\nper 1 % of the picture",
                panel.ends,
            )
    if axes is None:
        fit_fonts(figure)
        _make_room(figure, grid, title)
    else:
        for axis in grid.flat:
            fit_fonts(axis)
    return figure, grid


def _grid(
    axes: tuple[Figure, Any] | None, rows: int, columns: int, picture: np.ndarray[Any, Any]
) -> tuple[Figure, Any]:
    """The given axes as an array of rows and columns, or the axes of a new figure of a suitable size."""
    if axes is not None:
        figure, given = axes
        grid = np.asarray(given, dtype=object)
        if grid.size != rows * columns:
            raise InputError(
                f"axes holds {grid.size} axes; expected {rows} x {columns}, one for each panel, as "
                f"plt.subplots({rows}, {columns}) returns them."
            )
        return figure, grid.reshape(rows, columns)
    side = min(max(8 / max(rows, columns), 2.1), 4.0)
    slope = picture.shape[0] / picture.shape[1]
    width = max(side / max(slope, 1), 2.0)
    height = max(min(width * slope, side), 1.4)
    page = (width * columns + 1.0, (height + 0.5) * rows)
    figure = new_figure(*page)
    # This is about where the layout will put the axes. The captions need to know how many letters fit there.
    about = {
        "left": 0.3 / page[0],
        "right": 1 - 0.9 / page[0],
        "wspace": 0.02,
        "bottom": 0.0,
        "top": height * (1.2 * rows - 0.2) / page[1],
    }
    # A picture that is smaller than its axes stays in the corner next to its title and its label.
    corner = {"anchor": "NW"}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=about, subplot_kw=corner)


def _make_room(figure: Figure, grid: np.ndarray[Any, Any], title: str) -> None:
    """Make a new figure higher by the lines of its title and of its captions, beyond one line a caption."""
    lines = sum(max(axis.get_title().count("\n") for axis in of_row) - 1 for of_row in grid)
    lines += 2 * (title.count("\n") + 1) if title else 0
    figure.set_figheight(figure.get_figheight() + _CAPTION_LINE * lines)
