"""Colour maps, the numbers that the colours stand for, and the texts around a map.

Colour-blind people can read both colour maps. In the heat map the brightness grows with the contribution. Red and blue
differ in every common kind of colour blindness. Each figure sets its background and the colour of its text, so figures
are readable in a dark notebook.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure

from captum_cav.errors import OptionError

# Where a map is zero, the colour is transparent and the picture is visible.
HEAT = ListedColormap(
    [(*colormaps["inferno"](0.45 + 0.55 * level)[:3], min(0.8, 2 * level)) for level in np.linspace(0, 1, 256)],
    "cav_heat",
)
SIGNED = LinearSegmentedColormap.from_list(
    "cav_signed",
    [(0.0, 0.2, 0.9, 1.0), (0.4, 0.6, 1.0, 0.55), (1, 1, 1, 0), (1.0, 0.5, 0.4, 0.55), (0.85, 0.0, 0.0, 1.0)],
)
# The brightness of the picture under a heat map. The picture is darkened, so that bright means heat.
DIMMED = 0.55
# The note on a map without any colour, for heat maps (False) and for signed maps (True).
NOTHING = {False: "nothing positive", True: "nothing but zeros"}
# What both ends of the colours mean, and the unit of the numbers, by default.
ENDS = ("lowered\nthe score", "raised\nthe score")
SHARE = "% of the score"


def strength(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """How strong the colour of each value is: in a signed map its size, in a heat map its positive part."""
    return values.abs() if signed else values.clamp(min=0)


def full_colour(strengths: torch.Tensor, percentile: float) -> float:
    """The strength from which on the colour is full: a percentile of the strengths without the zeros.

    Args:
        strengths: any shape, none negative.
        percentile: above 0 and at most 100. All strengths above the percentile get the full colour, so a single outlier
            does not make all other places pale.

    Returns:
        The strength, or 0 if all strengths are 0.

    Raises:
        OptionError: for another percentile.
    """
    if not 0 < percentile <= 100:
        raise OptionError(f"outlier_percentile is {percentile!r}; expected a number above 0 and up to 100.")
    present = strengths[strengths > 0].double().numpy()
    return float(np.percentile(present, percentile)) if len(present) else 0.0


def in_full_colours(values: torch.Tensor, full: float) -> torch.Tensor:
    """Values in units of the full colour, from -1 to 1; in double precision, so that tiny numbers do not vanish."""
    return (values.double() / (full or 1.0)).clamp(-1, 1)


def add_caption(figure: Figure, axis: Axes, title: str, grid: str = "", number: str | None = None) -> None:
    """Write above a map: its title, the size of its grid and, on the next line, what the full colour stands for.

    Args:
        figure: the figure of the axes.
        axis: the axes of the map.
        title: what the map shows, as the name of the layer.
        grid: the size of the grid, as "7 x 7"; empty for a picture without a map.
        number: what the full colour stands for; an empty text leaves the line blank, None leaves the line out.
    """
    points = axis.bbox.width * 72 / figure.get_dpi()
    letters = max(int(points / _NAME_LETTER), 8)
    text = wrapped(title, letters)
    if grid:
        joint = ", " if len(f"{text}, {grid}".split("\n")[-1]) <= letters else "\n"
        text = f"{text}{joint}{grid}" if title else grid
    if number is not None:
        text += "\n" + wrapped(number and f"full colour: {number}", max(int(points / _LETTER), 8))
    axis.set_title(text, fontsize=9, color=ink(figure.get_facecolor()), parse_math=False)


# The mean width of a letter of a caption, in points. Names of layers have many wide letters.
_LETTER, _NAME_LETTER = 4.4, 5.1


def wrapped(text: str, letters: int) -> str:
    """Break a text into lines: after a space or a sign within a name if possible, else after ``letters`` letters."""
    lines = []
    for line in text.split("\n"):
        rest = ""
        for piece in re.findall(rf"[^ ._/-]{{1,{letters}}}[ ._/-]*|[ ._/-]+", line):
            if rest and len((rest + piece).rstrip()) > letters:
                lines.append(rest.rstrip())
                rest = ""
            rest += piece
        lines.append(rest.rstrip())
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """A number with its unit: 0.12 with ``% of the score`` gives ``12 % of the score``. No unit gives no text."""
    return f"{_short(100 * value if unit.startswith('%') else value)} {unit}" if value and unit else ""


def signed_amount(value: float, unit: str) -> str:
    """A short number with its sign: +12 % for 0.12 with ``% of the score``, -1.2 with another unit, 0 for 0."""
    per_cent = unit.startswith("%")
    number = _short(100 * value if per_cent else value)
    if number == "0":
        return number
    return f"{'+' if value > 0 else ''}{number}{' %' if per_cent else ''}"


def _short(number: float) -> str:
    """A short form with two digits: 1200, 12, 1.2, 0.012, 1e-4."""
    rounded = float(f"{number:.1e}")
    if rounded and not 0.01 <= abs(rounded) < 1e5:
        digits, exponent = f"{number:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{rounded:g}"


def new_figure(width: float, height: float) -> Figure:
    """A figure that looks the same on a light page and on a dark page; ``width`` and ``height`` are in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def ink(background: Any) -> str:
    """The colour of text on a background: black on a light background, white on a dark background."""
    red, green, blue = (part**2.2 for part in to_rgb(background))
    # At this luminance the contrast to black and the contrast to white are equal (contrast ratio of WCAG).
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def on_white(level: float) -> tuple[float, float, float]:
    """The colour of a signed level from -1 to 1 on white paper."""
    red, green, blue, opacity = SIGNED((level + 1) / 2)
    return (1 - opacity * (1 - red), 1 - opacity * (1 - green), 1 - opacity * (1 - blue))


def add_note(axis: Axes, note: str) -> None:
    """Write into the middle of axes why there is no colour."""
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", fontsize=9, color="black", bbox=box)


def add_colour_bar(
    figure: Figure,
    axes: Sequence[Axes],
    signed: bool,
    number: str = "",
    ends: tuple[str, str] = ENDS,
) -> None:
    """Draw a legend of the colours to the right of some axes.

    Args:
        figure: the figure of the axes.
        axes: the axes that the legend explains.
        signed: whether the maps are signed maps or heat maps.
        number: what the full colour stands for, if all axes share one scale.
        ends: what the lower end and the upper end of the colours mean.
    """
    colour = ink(figure.get_facecolor())
    levels = Normalize(-1 if signed else 0, 1)
    colours = ScalarMappable(levels, SIGNED if signed else HEAT)
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.8, pad=0.01, panchor=False)
    low, high = (wrapped(end, 16) for end in ends)
    ticks = {-1.0: low, 0.0: "0", 1.0: high} if signed else {0.0: "0", 1.0: high}
    bar.set_ticks(list(ticks), labels=list(ticks.values()), fontsize=8, color=colour, parse_math=False)
    bar.set_label(number, fontsize=8, color=colour, parse_math=False)
    bar.ax.tick_params(color=colour)
    bar.ax.set_facecolor("white" if signed else str(DIMMED / 2))
    bar.outline.set(edgecolor=colour)
