"""Contributions laid over a picture: one map, layers in a row, classes in rows, one class rather than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from captum_cav import checks, scores
from captum_cav.attribution import LayerCAV, Rules
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.maps import check_map, resize_map, spatial_map
from captum_cav.visualization.colours import (
    DIMMED,
    ENDS,
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
    strength,
    wrapped,
)

Scale: TypeAlias = Literal["each", "row", "all"]
# Captum's threshold for outliers is not found at 0 per cent where sums are rounded.
_NO_OUTLIERS = 1e-6
# Of a picture's longer side: a panel is a few inches wide.
_MOST_PIXELS = 1024
# How high a line of a caption is, in inches.
_CAPTION_LINE = 0.15
# How wide a letter of a row's label is, in points.
_BOLD_LETTER = 6.5


@dataclass(frozen=True)
class Panel:
    """One map over the picture.

    Attributes:
        title: what it shows, as the layer's name.
        ratios: shape (h, w): the contribution ratio of each place, positive where it raised the score; None for the
            picture alone.
        signed: whether to show red and blue over grey (figure 7) instead of what is positive as heat (figure 6).
        unit: of the number of the full colour, which is in per cent where the unit begins with %; empty to leave the
            number out.
        ends: what the lower and the upper end of the colours mean, for the legend.
    """

    title: str
    ratios: torch.Tensor | None
    signed: bool = False
    unit: str = SHARE
    ends: tuple[str, str] = ENDS


def show_map(
    picture: Any, panel: Panel, axes: tuple[Figure, Axes] | None = None, *, outlier_percentile: float = 99.0
) -> tuple[Figure, Axes]:
    """Draw one map over the picture, without a legend.

    Args:
        picture: an RGB picture, (height, width, 3) of uint8 or a PIL image; what :func:`show_rows` takes.
        panel: what to draw.
        axes: figure and axes to draw on; a new figure if None.
        outlier_percentile: as for :func:`show_rows`.

    Returns:
        The figure and the axes; nothing is shown.

    Raises:
        InputError: for a picture or a map that cannot be drawn, as one with NaN.

    Example::

        >>> picture = np.full((32, 32, 3), 128, dtype=np.uint8)
        >>> figure, axes = show_map(picture, Panel("layer4", torch.tensor([[0.5, -0.1], [0.4, 0.2]]), signed=True))
        >>> print(axes.get_title())
        layer4, 2 x 2
        full colour: 50 % of the score
    """
    shown = _as_rgb(picture)
    ((scaled,),) = _scaled([[panel]], (shown.shape[0], shown.shape[1]), "each", outlier_percentile)
    figure, grid = _grid(axes, 1, 1, shown)
    _draw(shown, scaled, (figure, grid[0, 0]), numbered=True)
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
    """Draw rows of maps, each with its label before it and its colours explained behind it.

    Args:
        picture: an RGB picture: a PIL image, or (height, width), (height, width, 1) or (height, width, 3) of uint8 or
            of numbers from 0 to 1.
        rows: for each row its label, as a class name, and its panels.
        title: of the whole figure.
        scale: which maps share one scale of colours: none (``"each"``), those of a ``"row"``, or ``"all"``. What the
            full colour stands for is written above a map with a scale of its own, as the share of one of its cells;
            beside maps that share one, as the share of a hundredth of the picture, for their cells may differ in size.
            Maps of different units never share a scale.
        outlier_percentile: of the strengths that are not 0 (sizes, or what is positive in a heat map), the one from
            which on the colour is full.
        axes: the figure and as many axes as rows times columns, as ``plt.subplots`` returns them; a new figure if None.

    Returns:
        The figure and an array of axes, one row a row; nothing is shown.

    Raises:
        InputError: for a picture or a map that cannot be drawn, as one with NaN; nothing to draw; other axes.
        OptionError: for an unknown scale or percentile.

    Example::

        >>> picture = np.zeros((16, 16, 3), dtype=np.uint8)
        >>> maps = [Panel("a", torch.eye(2)), Panel("b", torch.eye(4))]
        >>> figure, axes = show_rows(picture, [("tabby", maps), ("boxer", maps)], scale="row")
        >>> axes.shape
        (2, 2)
    """
    shown = _as_rgb(picture)
    columns = max((len(panels) for _, panels in rows), default=0)
    if not columns:
        raise InputError("there are no panels to draw; expected at least one map.")
    scaled = _scaled([panels for _, panels in rows], (shown.shape[0], shown.shape[1]), scale, outlier_percentile)
    figure, grid = _grid(axes, len(rows), columns, shown)
    colour = ink(figure.get_facecolor())
    title = wrapped(title, int(11 * figure.get_figwidth()))
    if title:
        figure.suptitle(title, fontsize=12, color=colour, parse_math=False)
    for axes_of_row, of_row, (label, _) in zip(grid, scaled, rows, strict=True):
        for axis, one in zip(axes_of_row, of_row, strict=False):
            _draw(shown, one, (figure, axis), numbered=scale == "each")
        for axis in axes_of_row[len(of_row) :]:
            axis.axis("off")
        letters = max(int(axes_of_row[0].bbox.height * 72 / figure.get_dpi() / _BOLD_LETTER), 8)
        axes_of_row[0].set_ylabel(
            wrapped(label, letters), fontsize=10, fontweight="bold", color=colour, parse_math=False
        )
        explained = [one for one in of_row if one.density is not None]
        if explained:
            # The last, for the number of the first may be left out, as that of Grad-CAM is.
            panel, _, full = explained[-1]
            number = "" if scale == "each" else amount(full / 100, panel.unit)
            add_colour_bar(
                figure,
                axes_of_row,
                panel.signed,
                number and f"full colour:\n{number}\nper 1 % of the picture",
                panel.ends,
            )
    if axes is None:
        _make_room(figure, grid, title)
    return figure, grid


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
    """Draw the maps of one class at several depths, in a row.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        maps: for each layer a map of shape (h, w), or the contributions of one sample as ``attribute`` returns them,
            (1, C, h, w) or whatever :func:`spatial_map` takes.
        names: of the layers.
        title: of the whole figure, as the class.
        signed: whether to show red and blue instead of heat, which is for what raised the score alone.
        unit: of the number of the full colour, which is in per cent where the unit begins with %.
        scale, outlier_percentile, axes: as for :func:`show_rows`.

    Returns:
        The figure and an array of axes, one for each layer; nothing is shown.

    Raises:
        InputError, OptionError: as :func:`show_rows`.

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
    shown = _as_rgb(picture)
    rows = [("", _panels(maps, names, shown, signed=signed, unit=unit))]
    figure, grid = show_rows(shown, rows, title, scale=scale, outlier_percentile=outlier_percentile, axes=axes)
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
    """Draw one map with what raised the score in red and what lowered it in blue, over the grey picture.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        ratios: a map or the contributions of a layer, as :func:`show_layers` takes them.
        title: what it shows, as the layer's name.
        unit, outlier_percentile: as for :func:`show_layers`.
        axes: figure and axes to draw on; a new figure if None.

    Returns:
        The figure and the axes; nothing is shown.

    Raises:
        InputError, OptionError: as :func:`show_rows`.

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
    """Draw classes in rows and depths in columns.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        maps: for each class the maps of its layers as :func:`show_layers` takes them: what
            ``LayerCAV(model, layers).attribute_targets(inputs, targets)`` returns.
        classes: names of the classes.
        layers: names of the layers.
        title, signed, scale, unit, outlier_percentile, axes: as for :func:`show_layers`.

    Returns:
        The figure and an array of axes, one row for each class; nothing is shown.

    Raises:
        InputError, OptionError: as :func:`show_rows`.

    Example::

        >>> maps = [[torch.eye(2), torch.eye(4)], [-torch.eye(2), torch.eye(4)]]
        >>> figure, axes = show_classes(np.zeros((16, 16)), maps, ["tabby", "boxer"], ["conv5", "conv4"])
        >>> [axis.get_ylabel() for axis in axes[:, 0]], axes[1, 0].texts[0].get_text()
        (['tabby', 'boxer'], 'nothing positive')
    """
    shown = _as_rgb(picture)
    if len(maps) != len(classes):
        raise InputError(f"there are maps of {len(maps)} classes and {len(classes)} names; expected one name for each.")
    rows = [
        (name, _panels(of_class, layers, shown, signed=signed, unit=unit))
        for name, of_class in zip(classes, maps, strict=True)
    ]
    return show_rows(shown, rows, title, scale=scale, outlier_percentile=outlier_percentile, axes=axes)


def show_difference(
    picture: Any,
    forward_func: Callable[..., Any],
    layer: torch.nn.Module | str | Sequence[torch.nn.Module | str],
    inputs: Any,
    targets: tuple[Any, Any],
    classes: tuple[str, str],
    *,
    rules: Rules = None,
    scale: Scale = "each",
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw what speaks for one class rather than for another: the contributions to the difference of their scores.

    They are computed, with the difference ``score_A - score_B`` as what is explained, in score points: what raises
    both scores alike cancels before it is followed back. Two maps of ratios could not be subtracted, for each is a
    share of a score of its own.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        forward_func, layer, rules: as for :class:`captum_cav.LayerCAV`. A rule for modules by name is not to be had
            here, as it is the difference that is explained; name their type or the modules themselves.
        inputs: of one sample, as ``attribute`` takes them.
        targets: A and B, each in any of Captum's forms.
        classes: their names, for the legend: red speaks for A, blue for B.
        scale, outlier_percentile, axes: as for :func:`show_rows`.

    Returns:
        The figure and an array of axes, one for each layer; nothing is shown.

    Raises:
        InputError, OptionError: as :func:`show_rows`.
        TargetError, LayerError, ModelError, CAVTypeError, UnsupportedOperationError: as ``LayerCAV.attribute``.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.ReLU(), torch.nn.Flatten(),
        ...                             torch.nn.Linear(64, 2))
        >>> inputs = torch.rand(1, 3, 16, 16)
        >>> figure, axes = show_difference(inputs[0].permute(1, 2, 0), model, "1", inputs, (0, 1), ("tabby", "boxer"))
        >>> [text.get_text() for text in figure.axes[-1].get_yticklabels()]
        ['for boxer', '0', 'for tabby']
    """
    shown = _as_rgb(picture)
    model = checks.check_model(forward_func)
    layers = [checks.find_layer(model, one)[1] for one in (layer if isinstance(layer, (list, tuple)) else [layer])]

    compared: list[torch.Tensor] = []

    def difference(*args: Any) -> torch.Tensor:
        output = checks.check_output(model(*args))
        first, second = (scores.select(output, target, "output")[0] for target in targets)
        compared[:] = first.detach(), second.detach()
        return first - second

    maps = LayerCAV(difference, layers, rules=rules, normalize=None).attribute(inputs)
    known = {module: name for name, module in model.named_modules()} if isinstance(model, torch.nn.Module) else {}
    names = [known.get(module, type(module).__name__) for module in layers]
    ends = (f"for {classes[1]}", f"for {classes[0]}")
    rows = [("", _panels(maps, names, shown, signed=True, unit="score points", ends=ends))]
    first, second = map(float, compared)
    title = f"What speaks for {classes[0]} (score {first:.2f}) rather than {classes[1]} ({second:.2f})"
    title = title if axes is None else ""
    figure, grid = show_rows(shown, rows, title, scale=scale, outlier_percentile=outlier_percentile, axes=axes)
    return figure, grid[0]


def _panels(
    maps: Sequence[torch.Tensor], names: Sequence[str], picture: np.ndarray[Any, Any], **attributes: Any
) -> list[Panel]:
    """A panel for each layer, of its map or of its contributions; they share the other attributes."""
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


class _Scaled(NamedTuple):
    """A panel and its map at the picture's size.

    Attributes:
        density: shape of the picture: for each pixel the sum of the map if it were like this everywhere. So the mean is
            the map's sum, however fine its grid, and depths can be compared. None for the picture alone.
        full: the density from which on the colour is full.
    """

    panel: Panel
    density: torch.Tensor | None
    full: float


def _scaled(
    rows: Sequence[Sequence[Panel]], size: tuple[int, int], scale: Scale, percentile: float
) -> list[list[_Scaled]]:
    if scale not in get_args(Scale):
        raise OptionError(f'scale is {scale!r}; expected "each", "row" or "all".')
    panels = {(row, column): panel for row, of_row in enumerate(rows) for column, panel in enumerate(of_row)}
    densities = {
        place: resize_map(check_map(panel.ratios, panel.title), size) * math.prod(size)
        for place, panel in panels.items()
        if panel.ratios is not None
    }
    groups = {
        place: {"each": place, "row": (place[0], panel.unit), "all": panel.unit}[scale]
        for place, panel in panels.items()
    }
    strengths: dict[Any, list[torch.Tensor]] = {}
    for place, density in densities.items():
        strengths.setdefault(groups[place], []).append(strength(density, panels[place].signed).flatten())
    full = {group: full_colour(torch.cat(of_group), percentile) for group, of_group in strengths.items()}
    return [
        [
            _Scaled(panel, densities.get((row, column)), full.get(groups[row, column], 0.0))
            for column, panel in enumerate(of_row)
        ]
        for row, of_row in enumerate(rows)
    ]


def _draw(picture: np.ndarray[Any, Any], scaled: _Scaled, axes: tuple[Figure, Axes], *, numbered: bool) -> None:
    """Draw a map over the picture, under its title.

    Args:
        picture: shape (height, width, 3), uint8.
        scaled: what to draw.
        axes: where.
        numbered: whether the title tells what the full colour stands for, as the share of one cell.
    """
    panel, density, full = scaled
    figure, axis = axes
    axis.set_xticks([])
    axis.set_yticks([])
    if panel.ratios is None or density is None:
        axis.imshow(picture)
        add_caption(figure, axis, panel.title)
        return
    height, width = panel.ratios.shape
    number = amount(full / (height * width), panel.unit) if numbered else None
    add_caption(figure, axis, panel.title, f"{height} x {width}", number)
    axis.imshow(picture.mean(2) * (1 if panel.signed else DIMMED), cmap="gray", vmin=0, vmax=255)
    levels = in_full_colours(density, full).numpy()
    most = float(strength(torch.as_tensor(levels), panel.signed).max())
    if most == 0:
        add_note(axis, NOTHING[panel.signed])
        return
    captum_visualization.visualize_image_attr(
        levels / most,
        method="heat_map",
        sign="all" if panel.signed else "positive",
        plt_fig_axis=axes,
        outlier_perc=_NO_OUTLIERS,
        cmap=SIGNED if panel.signed else HEAT,
        use_pyplot=False,
    )
    # Captum gives the largest value the full colour; where a scale is shared, it may not have it.
    axis.images[-1].set_clim(-1 / most if panel.signed else 0, 1 / most)


def _grid(
    axes: tuple[Figure, Any] | None, rows: int, columns: int, picture: np.ndarray[Any, Any]
) -> tuple[Figure, Any]:
    """The given axes as an array of rows and columns, or those of a new figure that suits so many pictures."""
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
    # About where the layout will put them, to know how many letters fit beside each.
    about = {
        "left": 0.3 / page[0],
        "right": 1 - 0.9 / page[0],
        "wspace": 0.02,
        "bottom": 0.0,
        "top": height * (1.2 * rows - 0.2) / page[1],
    }
    # Title and label stay where the layout leaves room for them, also where the picture takes less than its place.
    corner = {"anchor": "NW"}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=about, subplot_kw=corner)


def _make_room(figure: Figure, grid: np.ndarray[Any, Any], title: str) -> None:
    """Make a figure of ours higher by its title and by the lines of captions that were not reckoned with."""
    lines = sum(max(axis.get_title().count("\n") for axis in of_row) - 1 for of_row in grid)
    lines += 2 * (title.count("\n") + 1) if title else 0
    figure.set_figheight(figure.get_figheight() + _CAPTION_LINE * lines)


def _as_rgb(picture: Any) -> np.ndarray[Any, Any]:
    """A picture as (height, width, 3) of uint8."""
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    shape = pixels.shape
    if pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] == 1):
        pixels = np.repeat(pixels.reshape(*shape[:2], 1), 3, 2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        turned = "; of a tensor (3, height, width) pass tensor.permute(1, 2, 0)" if shape[:1] == (3,) else ""
        raise InputError(
            f"the picture has shape {shape}; expected (height, width, 3), (height, width) or a PIL image{turned}."
        )
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"the picture holds {pixels.dtype} from {low:.3g} to {high:.3g}; expected uint8, or numbers from 0 to "
                "1: pass the picture as it was before it was normalized."
            )
        pixels = np.round(255 * pixels).astype(np.uint8)
    if max(pixels.shape) > _MOST_PIXELS:
        smaller = Image.fromarray(pixels)
        smaller.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
        pixels = np.asarray(smaller)
    return pixels
