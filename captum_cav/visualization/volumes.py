"""Contributions of volumes, such as scans, and of videos: slices, frames, projections and animations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from captum_cav import checks
from captum_cav.errors import InputError, OptionError
from captum_cav.maps import check_map, on_host, resize_map
from captum_cav.tensors import as_tensor
from captum_cav.visualization.colours import (
    DIMMED,
    HEAT,
    NOTHING,
    SHARE,
    SIGNED,
    add_caption,
    add_colour_bar,
    add_note,
    amount,
    full_colour,
    in_full_colours,
    ink,
    new_figure,
    signed_amount,
    strength,
    wrapped,
)
from captum_cav.visualization.fonts import fit_fonts

#: The names of the dimensions of a volume.
DIMENSIONS = ("depth", "height", "width")
# Panels in one row of a strip, and the width of a panel in inches.
_COLUMNS, _SIDE = 4, 2.1
# The grey of black under a signed map. Scans are black where nothing is. Pale red and blue are hardly seen on black.
_BLACK = 0.3


def show_slices(
    volume: Any,
    ratios: Any,
    title: str = "",
    *,
    dim: int = 0,
    count: int = 8,
    signed: bool = True,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw a volume as a strip of slices, on red where it raised the score and on blue where it lowered the score.

    The slices are divided into ``count`` groups of neighbours. A panel shows the middle slice of a group in grey, and
    in colour the sum of the contributions of the whole group. So no contribution is left out. The number above a panel
    is the contribution of the group. All panels have the same scale of colours.

    Args:
        volume: shape (D, H, W), any finite numbers, or (D, H, W, 3) for colours, which are drawn in grey.
        ratios: shape (d, h, w), or the contributions of one sample as ``attribute`` returns them: shape
            (1, C, d, h, w). The grid may be coarser than that of the volume.
        title: the title of the whole figure, as the name of the layer.
        dim: the dimension of the volume that is cut: 0 for depth, 1 for height, 2 for width.
        count: how many panels there are; fewer if there are fewer slices.
        signed: whether to show red and blue. Otherwise only what raised the score is shown, as heat.
        spacing: the size of a voxel in each of the three dimensions, in any unit.
        unit: the unit of the numbers. A unit that begins with % shows the numbers in per cent.
        outlier_percentile: the colour is full from this percentile of the sizes of the contributions on; zeros do not
            count.
        axes: the figure and the axes to draw on, one for each panel; None makes a new figure.

    Returns:
        The figure and an array of axes, one for each panel. No window is opened.

    Raises:
        InputError: for a volume or a map of another shape, or with NaN; for a wrong number of axes.
        OptionError: for a ``dim``, ``count``, ``spacing`` or percentile that cannot be used.

    Example::

        >>> ratios = torch.zeros(4, 2, 2)
        >>> ratios[1, 0, 0], ratios[3, 1, 1] = 0.75, -0.25
        >>> figure, axes = show_slices(torch.rand(4, 8, 8), ratios, "conv3")
        >>> [axis.get_title().replace(chr(10), ": ") for axis in axes]
        ['slice 0: 0', 'slice 1: +75 %', 'slice 2: 0', 'slice 3: -25 %']
    """
    if dim not in range(3):
        raise OptionError(f"dim is {dim!r}; expected 0 (depth), 1 (height) or 2 (width).")
    checks.check_count(count, "count")
    aspect = _aspects(spacing)[dim]
    grey, density = _laid(volume, ratios, title)
    grey, density = np.moveaxis(grey, dim, 0), density.movedim(dim, 0)

    def name(first: int, last: int) -> str:
        return f"slice {first}" if first == last else f"slices {first} to {last}"

    return _strip(grey, density, title, count, name, aspect, signed, unit, outlier_percentile, axes)


def show_frames(
    video: Any,
    ratios: Any,
    title: str = "",
    *,
    count: int = 8,
    duration: float | None = None,
    signed: bool = True,
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw a video as a strip of frames, on red where it raised the score and on blue where it lowered the score.

    As in :func:`show_slices`, a panel shows the contributions of a group of neighbouring frames over the middle frame
    of the group, and the number above the panel is the contribution of the group.

    Args:
        video: shape (T, H, W), or (T, H, W, 3) for colours, which are drawn in grey; any finite numbers.
        ratios: shape (t, h, w), or the contributions of one sample, of shape (1, C, t, h, w).
        title, count, signed, unit, outlier_percentile, axes: as for :func:`show_slices`.
        duration: the length of the video in seconds; None numbers the frames.

    Returns:
        The figure and an array of axes, one for each panel. No window is opened.

    Raises:
        InputError, OptionError: as :func:`show_slices`.

    Example::

        >>> figure, axes = show_frames(torch.rand(6, 8, 8, 3), torch.full((1, 4, 3, 2, 2), 1 / 48), count=3, duration=3)
        >>> [axis.get_title().replace(chr(10), ": ") for axis in axes]
        ['0 to 1 s: +33 %', '1 to 2 s: +33 %', '2 to 3 s: +33 %']
    """
    checks.check_count(count, "count")
    grey, density = _laid(video, ratios, title)

    def name(first: int, last: int) -> str:
        if duration is not None:
            begin, end = (duration * frame / len(grey) for frame in (first, last + 1))
            return f"{begin:.3g} to {end:.3g} s"
        return f"frame {first}" if first == last else f"frames {first} to {last}"

    return _strip(grey, density, title, count, name, 1.0, signed, unit, outlier_percentile, axes)


def show_projections(
    volume: Any,
    ratios: Any,
    title: str = "",
    *,
    names: Sequence[str] = DIMENSIONS,
    signed: bool = True,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw a volume or a video from three sides: the contributions are summed along each dimension.

    Under the colours lies the mean of the volume along the same dimension, in grey. Each panel holds all contributions.
    All panels have the same scale of colours.

    Args:
        volume, ratios, title, signed, unit, outlier_percentile: as for :func:`show_slices`.
        names: of the three dimensions, as ``("time", "height", "width")`` for a video.
        spacing: the size of a voxel in each of the three dimensions, in any unit. For a video, the first number is the
            length that a frame gets.
        axes: the figure and the three axes to draw on; None makes a new figure.

    Returns:
        The figure and an array of three axes. No window is opened.

    Raises:
        InputError, OptionError: as :func:`show_slices`.

    Example::

        >>> figure, axes = show_projections(torch.rand(4, 8, 8), torch.full((2, 2, 2), 1 / 8), "conv3")
        >>> [axis.get_title() for axis in axes]
        ['sum along depth', 'sum along height', 'sum along width']
    """
    if len(names) != 3:
        raise OptionError(f"names holds {len(names)} names; expected three, one for each dimension of the volume.")
    aspects = _aspects(spacing)
    grey, laid = _laid(volume, ratios, title)
    sums = [laid.sum(dim) for dim in range(3)]
    densities = [one * one.numel() for one in sums]
    full = full_colour(torch.cat([strength(one, signed).flatten() for one in densities]), outlier_percentile)
    figure, panels = axes if axes is not None else _row(_sizes(densities, aspects), title)
    panels = _as_axes(panels, 3)
    colour = ink(figure.get_facecolor())
    for dim, (axis, density, aspect) in enumerate(zip(panels, densities, aspects, strict=True)):
        _draw(axis, grey.mean(dim), density, full, signed, aspect)
        add_caption(figure, axis, f"sum along {names[dim]}")
        down, right = (names[other] for other in range(3) if other != dim)
        axis.set_ylabel(f"\N{LEFTWARDS ARROW} {down}", fontsize=8, color=colour, parse_math=False)
        axis.set_xlabel(f"{right} \N{RIGHTWARDS ARROW}", fontsize=8, color=colour, parse_math=False)
    _add_legend(figure, panels, title if axes is None else "", full, signed, unit)
    for panel in panels:
        fit_fonts(panel)
    return figure, panels


def animate(
    video: Any,
    ratios: Any,
    title: str = "",
    *,
    word: str = "frame",
    frames_per_second: float = 5.0,
    signed: bool = True,
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
) -> FuncAnimation:
    """An animation of a video, or of the slices of a volume, with the contributions of each frame in colour.

    The number above the picture is the contribution of the frame. All frames have the same scale of colours.

    Args:
        video, ratios, title, signed, unit, outlier_percentile: as for :func:`show_frames`.
        word: what a frame is called, as "slice".
        frames_per_second: how fast the animation runs.

    Returns:
        The animation. ``animation.save("video.gif", writer="pillow")`` writes a file, and ``animation.to_jshtml()``
        gives a page for a notebook.

    Raises:
        InputError: as :func:`show_frames`.
        OptionError: for a speed that is not above 0.

    Example::

        >>> animation = animate(torch.rand(2, 8, 8), torch.full((2, 2, 2), 1 / 8), "conv3")
        >>> "<img" in animation.to_jshtml()
        True
    """
    if not frames_per_second > 0:
        raise OptionError(f"frames_per_second is {frames_per_second!r}; expected a number above 0.")
    grey, laid = _laid(video, ratios, title)
    densities = laid * laid[0].numel()
    full = full_colour(strength(densities, signed).flatten(), outlier_percentile)
    figure, (axis,) = _row([(1.6 * _SIDE, 1.6 * _SIDE * grey.shape[1] / grey.shape[2])], title)
    totals = laid.sum((1, 2)).tolist()
    below, above = _draw(axis, grey[0], densities[0], full, signed, 1.0)

    def draw(frame: int) -> tuple[AxesImage, AxesImage]:
        below.set_data(_on_paper(grey[frame], signed))
        above.set_data(in_full_colours(densities[frame], full).numpy())
        add_caption(figure, axis, f"{word} {frame}\n{signed_amount(totals[frame], unit)}")
        return below, above

    draw(0)
    _add_legend(figure, [axis], title, full, signed, unit)
    return FuncAnimation(figure, draw, frames=len(grey), interval=1000 / frames_per_second, blit=False)


def _laid(volume: Any, ratios: Any, title: str) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """A volume in grey from 0 to 1, and contributions on its grid, both of shape (D, H, W)."""
    values = on_host(as_tensor(volume), "the volume").double()
    if values.dim() == 4 and values.shape[3] == 3:
        values = values.mean(3)
    if values.dim() != 3:
        first = {1: "; pass volume[0]", 3: "; pass volume.permute(1, 2, 3, 0)"}
        how = first.get(values.shape[0], "") if values.dim() == 4 else ""
        raise InputError(f"the volume has shape {tuple(values.shape)}; expected (D, H, W) or (D, H, W, 3){how}.")
    values = check_map(values, "volume", 3)
    low, high = values.min(), values.max()
    grey = ((values - low) / (high - low if high > low else 1.0)).numpy()
    found = as_tensor(ratios)
    if found.dim() == 5:
        if len(found) != 1:
            raise InputError(
                f"the map {title!r} has shape {tuple(found.shape)}, the contributions of {len(found)} samples; pass "
                "those of one, as contributions[:1]."
            )
        found = found[0].sum(0)
    return grey, resize_map(check_map(found, title or "ratios", 3), values.shape)


def _aspects(spacing: Sequence[float]) -> list[float]:
    """For each dimension, the height of a pixel over its width in a picture along this dimension."""
    sizes = tuple(spacing)
    if len(sizes) != 3 or not all(0 < size < float("inf") for size in sizes):
        raise OptionError(f"spacing is {spacing!r}; expected three numbers above 0, the sizes of a voxel.")
    depth, height, width = sizes
    return [height / width, depth / width, depth / height]


def _strip(
    grey: np.ndarray[Any, Any],
    laid: torch.Tensor,
    title: str,
    count: int,
    name: Callable[[int, int], str],
    aspect: float,
    signed: bool,
    unit: str,
    percentile: float,
    axes: tuple[Figure, Any] | None,
) -> tuple[Figure, Any]:
    """Draw groups of neighbouring slices, cut along the first dimension; ``name`` gives the name of a group."""
    groups = np.array_split(np.arange(len(grey)), min(count, len(grey)))
    sums = [laid[group[0] : group[-1] + 1].sum(0) for group in groups]
    densities = [one * one.numel() for one in sums]
    full = full_colour(torch.cat([strength(one, signed).flatten() for one in densities]), percentile)
    figure, panels = axes if axes is not None else _grid(len(groups), grey.shape[1] / grey.shape[2] * aspect, title)
    panels = _as_axes(panels, len(groups))
    for axis, group, one, density in zip(panels, groups, sums, densities, strict=True):
        _draw(axis, grey[group[len(group) // 2]], density, full, signed, aspect)
        add_caption(figure, axis, f"{name(group[0], group[-1])}\n{signed_amount(float(one.sum()), unit)}")
    _add_legend(figure, panels, title if axes is None else "", full, signed, unit)
    for panel in panels:
        fit_fonts(panel)
    return figure, panels


def _draw(
    axis: Axes, grey: np.ndarray[Any, Any], density: torch.Tensor, full: float, signed: bool, aspect: float
) -> tuple[AxesImage, AxesImage]:
    """Draw a map over a picture in grey; returns both images."""
    axis.set_xticks([])
    axis.set_yticks([])
    below = axis.imshow(_on_paper(grey, signed), cmap="gray", vmin=0, vmax=1, aspect=aspect)
    colours, least = (SIGNED, -1) if signed else (HEAT, 0)
    levels = in_full_colours(density, full).numpy()
    above = axis.imshow(levels, cmap=colours, vmin=least, vmax=1, aspect=aspect)
    if not full:
        add_note(axis, NOTHING[signed])
    return below, above


def _on_paper(grey: np.ndarray[Any, Any], signed: bool) -> np.ndarray[Any, Any]:
    """A picture in grey as it lies under a map: never black under red and blue, never white under heat."""
    return _BLACK + (1 - _BLACK) * grey if signed else DIMMED * grey


def _add_legend(figure: Figure, panels: Sequence[Axes], title: str, full: float, signed: bool, unit: str) -> None:
    """Write the title of a figure, and draw the legend of its panels."""
    if title:
        text = wrapped(title, int(11 * figure.get_figwidth()))
        figure.suptitle(text, fontsize=12, color=ink(figure.get_facecolor()), parse_math=False)
    number = amount(full / 100, unit)
    add_colour_bar(figure, panels, signed, number and f"full colour:\n{number}\nper 1 % of a panel")


def _grid(count: int, slope: float, title: str) -> tuple[Figure, Any]:
    """A new figure with panels in rows, the last row filled up with nothing."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    height = min(max(_SIDE * slope, 0.8), 2 * _SIDE)
    figure = new_figure(_SIDE * columns + 1.2, (height + 0.5) * rows + (0.4 if title else 0))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in grid[count:]:
        axis.remove()
    return figure, grid[:count]


def _row(sizes: Sequence[tuple[float, float]], title: str) -> tuple[Figure, Any]:
    """A new figure with one row of panels of these widths and heights, in inches."""
    widths, heights = zip(*sizes, strict=True)
    figure = new_figure(sum(widths) + 1.4 + 0.2 * len(sizes), max(heights) + 0.7 + (0.4 if title else 0))
    return figure, figure.subplots(1, len(sizes), squeeze=False, width_ratios=widths)[0]


def _sizes(maps: Sequence[torch.Tensor], aspects: Sequence[float]) -> list[tuple[float, float]]:
    """The widths and heights of panels, in inches, whose longer side has the same length in all panels."""
    sizes = []
    for one, aspect in zip(maps, aspects, strict=True):
        height, width = one.shape[0] * aspect, one.shape[1]
        inches = 1.3 * _SIDE / max(height, width)
        sizes.append((max(width * inches, 1.2), max(height * inches, 0.8)))
    return sizes


def _as_axes(axes: Any, count: int) -> Any:
    """Axes of any arrangement as a row, of which there must be one for each panel."""
    row = np.asarray(axes, dtype=object).flatten()
    if row.size != count:
        raise InputError(f"axes holds {row.size} axes; expected {count}, one for each panel.")
    return row
