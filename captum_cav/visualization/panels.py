"""One map over the picture: what a panel shows, the scale of its colours, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from captum_cav.errors import InputError, OptionError
from captum_cav.maps import check_map, on_host, resize_map
from captum_cav.tensors import as_tensor
from captum_cav.visualization.colours import (
    DIMMED,
    ENDS,
    HEAT,
    NOTHING,
    SHARE,
    SIGNED,
    add_caption,
    add_note,
    amount,
    full_colour,
    in_full_colours,
    strength,
)

#: Which maps share one scale of colours.
Scale: TypeAlias = Literal["each", "row", "all"]
# Captum searches the threshold for outliers in rounded sums, and does not find the threshold of 0 per cent.
_NO_OUTLIERS = 1e-6
# The longer side of a drawn picture, in pixels. A panel is a few inches wide, so more pixels would not be seen.
_MOST_PIXELS = 1024


@dataclass(frozen=True)
class Panel:
    """One map over the picture, or the picture alone.

    Attributes:
        title: what the panel shows, as the name of the layer.
        ratios: shape (h, w): the contribution ratio of each place, positive if the place raised the score; None for the
            picture alone.
        signed: whether to show red and blue over the grey picture (figure 7 of the paper). Otherwise the positive
            contributions are shown as heat (figure 6).
        unit: the unit of the number above the map, which tells what the full colour stands for. A unit that begins with
            % shows the number in per cent. An empty unit leaves the number out.
        ends: what the lower end and the upper end of the colours mean, for the legend.
    """

    title: str
    ratios: torch.Tensor | None
    signed: bool = False
    unit: str = SHARE
    ends: tuple[str, str] = ENDS


class ScaledPanel(NamedTuple):
    """A panel, its map at the size of the picture, and the scale of its colours.

    Attributes:
        panel: the panel.
        density: shape (height, width) of the picture: at each pixel, the sum that the map would have if every pixel
            were like this one. So the mean of the density is the sum of the map, on every grid, and the maps of
            different layers can be compared. None for the picture alone.
        full: the density that gets the full colour.
    """

    panel: Panel
    density: torch.Tensor | None
    full: float


def scale_panels(
    rows: Sequence[Sequence[Panel]], size: tuple[int, int], scale: Scale, percentile: float
) -> list[list[ScaledPanel]]:
    """Bring the maps of panels to the size of the picture, and find the scale of their colours.

    Args:
        rows: the panels of each row.
        size: (height, width) of the picture.
        scale: which maps share one scale of colours.
        percentile: as ``outlier_percentile`` of :func:`captum_cav.visualization.show_rows`.

    Returns:
        The panels in the same rows.

    Raises:
        InputError: for a map that cannot be drawn.
        OptionError: for an unknown scale or percentile.
    """
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
            ScaledPanel(panel, densities.get((row, column)), full.get(groups[row, column], 0.0))
            for column, panel in enumerate(of_row)
        ]
        for row, of_row in enumerate(rows)
    ]


def draw_panel(
    picture: np.ndarray[Any, Any], scaled: ScaledPanel, figure: Figure, axis: Axes, *, numbered: bool
) -> None:
    """Draw a map over the picture, and its title above.

    Args:
        picture: shape (height, width, 3), uint8.
        scaled: what to draw.
        figure: the figure of the axes.
        axis: the axes to draw on.
        numbered: whether the title tells what the full colour stands for: the contribution of one cell.
    """
    panel, density, full = scaled
    axis.set_xticks([])
    axis.set_yticks([])
    if panel.ratios is None or density is None:
        axis.imshow(picture)
        add_caption(figure, axis, panel.title, number="" if numbered else None)
        return
    height, width = as_tensor(panel.ratios).shape
    number = amount(full / (height * width), panel.unit) if numbered else None
    add_caption(figure, axis, panel.title, f"{height} x {width}", number)
    axis.imshow(picture.mean(2) * (1 if panel.signed else DIMMED), cmap="gray", vmin=0, vmax=255)
    levels = in_full_colours(density, full).numpy()
    most = float(strength(as_tensor(levels), panel.signed).max())
    if most == 0:
        add_note(axis, NOTHING[panel.signed])
        return
    captum_visualization.visualize_image_attr(
        (levels / most)[..., None],  # Captum 0.8 asks for an axis of channels.
        method="heat_map",
        sign="all" if panel.signed else "positive",
        plt_fig_axis=(figure, axis),
        outlier_perc=_NO_OUTLIERS,
        cmap=SIGNED if panel.signed else HEAT,
        use_pyplot=False,
    )
    # Captum gives the full colour to the largest value. On a shared scale the largest value may have less.
    axis.images[-1].set_clim(-1 / most if panel.signed else 0, 1 / most)


def as_pixels(picture: Any) -> np.ndarray[Any, Any]:
    """The pixels of a picture that is drawn.

    Args:
        picture: a PIL image, or an array or a tensor (height, width), (height, width, 1) or (height, width, 3) of uint8
            or of numbers from 0 to 1.

    Returns:
        Shape (height, width, 3), uint8. A very large picture is made smaller.

    Raises:
        InputError: for another shape or other numbers.
    """
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
    if isinstance(picture, torch.Tensor):
        picture = on_host(picture, "the picture")
        # numpy has no numbers of less precision, but for float16.
        picture = picture.float() if picture.is_floating_point() and picture.itemsize < 4 else picture
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
