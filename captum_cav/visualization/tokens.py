"""Contributions of words, characters and n-grams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from captum_cav.errors import InputError
from captum_cav.maps import check_map
from captum_cav.visualization.colours import (
    ENDS,
    NOTHING,
    SHARE,
    amount,
    full_colour,
    in_full_colours,
    ink,
    new_figure,
    on_white,
    wrapped,
)

# In points: the letters to begin with and the smallest, and the margin of the page.
_LARGEST, _SMALLEST = 11, 5
_MARGIN = 12
# In letters: the height of a line, and the space between two tokens.
_LINE = 1.9
_GAP = 0.85
# How wide a letter of the title is, in points.
_TITLE_LETTER = 5.3


def show_tokens(
    tokens: Sequence[str],
    ratios: Any,
    title: str = "",
    *,
    unit: str = SHARE,
    outlier_percentile: float = 100.0,
    axes: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    """Draw words, characters or n-grams on boxes: red where they raised the score, blue where they lowered it.

    Lines are broken to the width, and behind a token with a line break in it. Spaces at the ends of a token and
    characters that cannot be printed are shown by signs; nothing is read as TeX.

    Args:
        tokens: n strings in the order of reading.
        ratios: shape (n,): the contribution ratio of each token, positive where it raised the score. Of a layer of
            shape (1, n, C) they are ``ratios[0].sum(1)``.
        title: above the text.
        unit: of the number of the full colour, which is in per cent where the unit begins with %.
        outlier_percentile: of the sizes that are not 0, the one from which on the colour is full.
        axes: figure and axes to draw on, in letters as small as they must be; a new figure as high as the text if None.

    Returns:
        The figure and the axes; nothing is shown.

    Raises:
        InputError: if there are no tokens, not one ratio for each, or one that is not finite.

    Example::

        >>> figure, axes = show_tokens(["not", "a", "bad", "film"], [0.5, 0.0, -0.25, 0.1])
        >>> [text.get_text() for text in axes.texts]
        ['not', 'a', 'bad', 'film', 'lowered the score', 'raised the score', 'full colour: 50 % of the score']
    """
    ratios = check_map(ratios, title or "ratios", 1)
    if len(tokens) != len(ratios):
        raise InputError(f"there are {len(tokens)} tokens and {len(ratios)} ratios; expected one ratio for each token.")
    full = full_colour(ratios.abs(), outlier_percentile)
    legend = [end.replace("\n", " ") for end in ENDS]
    words = [*map(_printable, tokens), *legend, f"full colour: {amount(full, unit)}" if full else NOTHING[True]]
    figure, axis = axes or _page()
    points = 72 / figure.get_dpi()
    axis.axis("off")
    title = wrapped(title, max(int(axis.bbox.width * points / _TITLE_LETTER), 8))
    axis.set_title(title, loc="left", fontsize=10, color=ink(figure.get_facecolor()), parse_math=False)
    if axes is not None:
        figure.draw_without_rendering()  # lines are broken to the width that the layout gives
    width, height = axis.bbox.width * points, axis.bbox.height * points if axes else math.inf
    texts = _write(axis, words, [*in_full_colours(ratios, full).tolist(), -1.0, 1.0], ink(figure.get_facecolor()))
    ends = {index for index, token in enumerate(tokens) if "\n" in token} | {len(tokens) - 1}
    for size in range(_LARGEST, _SMALLEST - 1, -1):
        for text in texts:
            text.set_fontsize(size)
        widths = [text.get_window_extent().width * points for text in texts]
        places, lines = _in_lines(widths, _GAP * size, width, ends)
        needed = lines * _LINE * size
        if needed <= height and max(widths) + _GAP * size <= width:
            break
    for text, (x, line) in zip(texts, places, strict=True):
        text.set_position((x, -(line + 0.5) * _LINE * size))
    if axes is None:
        _fit(figure, axis, needed)
    return figure, axis


def _write(axis: Axes, words: Sequence[str], levels: Sequence[float], colour: str) -> list[Annotation]:
    """The words, on boxes of the colours of their levels as far as these go, then in a colour of their own.

    Their positions count in points from the upper left corner, so that no layout pushes them into each other.
    """
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
    texts = [axis.annotate(word, (0, 1), (0, 0), color=colour, parse_math=False, **place) for word in words]
    for text, level in zip(texts, levels, strict=False):
        box = on_white(level)
        text.set(color=ink(box), bbox={"boxstyle": "square,pad=0.2", "facecolor": box, "edgecolor": "none"})
    return texts


def _printable(token: str) -> str:
    """A token with signs for what would not be seen."""
    inner = token.strip(" ")
    before = len(token) - len(token.lstrip(" ")) if inner else 0
    after = len(token) - len(inner) - before
    signs = {"\n": "↵", "\t": "⇥"}
    seen = (c if c.isprintable() else signs.get(c, c.encode("unicode_escape").decode("ascii")) for c in inner)
    return "␣" * before + "".join(seen) + "␣" * after


def _in_lines(widths: Sequence[float], gap: float, width: float, ends: set[int]) -> tuple[list[tuple[float, int]], int]:
    """Where each token goes, as (x, number of its line), and how many lines that makes.

    Args:
        widths: of the tokens, in points.
        gap: between two tokens.
        width: of a line.
        ends: indices of the tokens behind which a new line begins.
    """
    places: list[tuple[float, int]] = []
    x, number = gap / 2, 0
    for index, own in enumerate(widths):
        if index and (index - 1 in ends or x + own + gap / 2 > width):
            x, number = gap / 2, number + 1
        places.append((x, number))
        x += own + gap
    return places, number + 1


def _page() -> tuple[Figure, Axes]:
    """A figure whose height is still open."""
    figure = new_figure(7, 1)
    figure.set_layout_engine("none")
    side = _MARGIN / (72 * figure.get_figwidth())
    return figure, figure.add_axes((side, 0, 1 - 2 * side, 1))


def _fit(figure: Figure, axis: Axes, height: float) -> None:
    """Make the page as high as its title and its text, of a height in points."""
    title = axis.get_title("left")
    above = _MARGIN * (title.count("\n") + 2 if title else 1)
    page = height + above + _MARGIN
    figure.set_figheight(page / 72)
    x, _, width, _ = axis.get_position().bounds
    axis.set_position((x, _MARGIN / page, width, height / page))
