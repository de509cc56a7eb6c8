"""Colours, and the numbers that they stand for.

Both colour maps were chosen for eyes that take red for green: in the heat map brightness grows with the contribution,
and red and blue differ in every common kind of colour blindness. Figures state their own background and the colour of
their text, so that they can be read in a dark notebook.
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

# Where a map is zero, what lies beneath shows through.
HEAT = ListedColormap(
    [(*colormaps["inferno"](0.45 + 0.55 * level)[:3], min(0.8, 2 * level)) for level in np.linspace(0, 1, 256)],
    "cav_heat",
)
SIGNED = LinearSegmentedColormap.from_list(
    "cav_signed",
    [(0.0, 0.2, 0.9, 1.0), (0.4, 0.6, 1.0, 0.55), (1, 1, 1, 0), (1.0, 0.5, 0.4, 0.55), (0.85, 0.0, 0.0, 1.0)],
)
# How bright a picture stays under a heat map, so that what is bright is heat.
DIMMED = 0.55
# What a map without any colour says, by whether both signs were asked for.
NOTHING = {False: "nothing positive", True: "nothing but zeros"}
# What the two ends of the colours mean, and what is counted, unless a map says otherwise.
ENDS = ("lowered\nthe score", "raised\nthe score")
SHARE = "% of the score"


def strength(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """How much colour values ask for: their size, or what is positive of them."""
    return values.abs() if signed else values.clamp(min=0)


def full_colour(strengths: torch.Tensor, percentile: float) -> float:
    """The strength from which on the colour is full: a percentile of those that are not 0, or 0 where all are.

    Args:
        strengths: any shape, none negative.
        percentile: above 0, at most 100. What lies above it shares the full colour, so that one outlier does not dim
            all others.
    """
    if not 0 < percentile <= 100:
        raise OptionError(f"outlier_percentile is {percentile!r}; expected a number above 0 and up to 100.")
    present = strengths[strengths > 0].double().numpy()
    return float(np.percentile(present, percentile)) if len(present) else 0.0


def in_full_colours(values: torch.Tensor, full: float) -> torch.Tensor:
    """Values in units of the full colour, from -1 to 1; in double precision, as the least of numbers divide there."""
    return (values.double() / (full or 1.0)).clamp(-1, 1)


def add_caption(figure: Figure, axis: Axes, title: str, grid: str = "", number: str | None = None) -> None:
    """Write above a map what it shows and how finely and, on a line of its own, what the full colour stands for.

    Args:
        figure, axis: where.
        title: what it shows, as the layer's name.
        grid: how many places it has; empty for what is no map.
        number: what the full colour stands for; empty to leave that line blank, None to leave it out.
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


# How wide a letter of a caption is on average, in points; names are full of wide ones.
_LETTER, _NAME_LETTER = 4.4, 5.1


def wrapped(text: str, letters: int) -> str:
    """Text in lines of at most so many letters, broken behind spaces and the signs in names, and where it must be."""
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
    """A number with its unit: 0.12 in the unit ``% of the score`` is ``12 % of the score``; without one, nothing."""
    return f"{_short(100 * value if unit.startswith('%') else value)} {unit}" if value and unit else ""


def _short(number: float) -> str:
    """Two digits, in a form that fits above a map: 1200, 12, 1.2, 0.012, 1e-4."""
    rounded = float(f"{number:.1e}")
    if rounded and not 0.01 <= abs(rounded) < 1e5:
        digits, exponent = f"{number:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{rounded:g}"


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches that looks the same on a light and on a dark page."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def ink(background: Any) -> str:
    """The colour of text that can be read on a background: black on a light one, white on a dark one."""
    red, green, blue = (part**2.2 for part in to_rgb(background))
    # The luminance at which black and white stand out as well as each other (WCAG's contrast ratio).
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def on_white(level: float) -> tuple[float, float, float]:
    """The colour of a signed level from -1 to 1 on white paper."""
    red, green, blue, opacity = SIGNED((level + 1) / 2)
    return (1 - opacity * (1 - red), 1 - opacity * (1 - green), 1 - opacity * (1 - blue))


def add_note(axis: Axes, note: str) -> None:
    """Write across axes why no colour is seen there."""
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", fontsize=9, color="black", bbox=box)


def add_colour_bar(
    figure: Figure,
    axes: Sequence[Axes],
    signed: bool,
    number: str = "",
    ends: tuple[str, str] = ENDS,
) -> None:
    """Explain the colours of some axes beside them.

    Args:
        figure, axes: where.
        signed: which of the two colour maps.
        number: what the full colour stands for, where it is the same on all of them.
        ends: what the lower and the upper end mean.
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
