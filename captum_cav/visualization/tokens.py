"""Contributions of words, characters and n-grams."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from captum_cav.checks.options import as_list
from captum_cav.errors import CAVTypeError, InputError
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
from captum_cav.visualization.fonts import families_for, writable

# The largest and the smallest size of the letters, and the margin of the page, in points.
_LARGEST, _SMALLEST = 11, 5
_MARGIN = 12
# The height of a line and the space between two tokens, in sizes of a letter.
_LINE = 1.9
_GAP = 0.85
# The mean width of a letter of the title, in points.
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
    """Draw words, characters or n-grams on coloured boxes: red raised the score, blue lowered the score.

    A line ends where the figure ends, and after a token that contains a line break. Signs stand for spaces at the ends
    of a token and for characters that cannot be printed. No text is read as TeX. If most letters belong to a script
    that is written from right to left, the lines run from right to left. Letters that the font lacks are drawn with
    another installed font.

    Args:
        tokens: n strings, in the order in which they are read.
        ratios: shape (n,): the contribution ratio of each token, positive if the token raised the score. For a layer of
            shape (1, n, C) pass ``ratios[0].sum(1)``.
        title: the title above the text.
        unit: the unit of the number that tells what the full colour stands for. A unit that begins with % shows the
            number in per cent.
        outlier_percentile: the colour is full from this percentile of the sizes of the contributions on; zeros do not
            count.
        axes: the figure and the axes to draw on; the letters are made small enough to fit. None makes a new figure as
            high as the text.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        CAVTypeError: for tokens that are no list of strings.
        InputError: if there are no tokens, if tokens and ratios differ in number, or if a ratio is not finite.
        OptionError: for a percentile that is not above 0 and at most 100.

    Example::

        >>> figure, axes = show_tokens(["not", "a", "bad", "film"], [0.5, 0.0, -0.25, 0.1])
        >>> [text.get_text() for text in axes.texts]
        ['not', 'a', 'bad', 'film', 'lowered the score', 'raised the score', 'full colour: 50 % of the score']
    """
    ratios = check_map(ratios, title or "ratios", 1)
    tokens = as_list(tokens, "tokens")
    wrong = [token for token in tokens if not isinstance(token, str)]
    if wrong:
        raise CAVTypeError(
            f"tokens holds {wrong[0]!r} ({type(wrong[0]).__name__}); expected strings, as "
            "tokenizer.convert_ids_to_tokens(ids) gives them."
        )
    if len(tokens) != len(ratios):
        raise InputError(f"there are {len(tokens)} tokens and {len(ratios)} ratios; expected one ratio for each token.")
    full = full_colour(ratios.abs(), outlier_percentile)
    legend = [end.replace("\n", " ") for end in ENDS]
    number = amount(full, unit)
    words = [
        *(writable(_printable(token)) for token in tokens),
        *legend,
        *([f"full colour: {number}"] if number else []),
    ]
    if not full:
        words.append(NOTHING[True])
    figure, axis = axes or _page()
    points = 72 / figure.get_dpi()
    axis.axis("off")
    title = wrapped(title, max(int(axis.bbox.width * points / _TITLE_LETTER), 8))
    axis.set_title(title, loc="left", fontsize=10, color=ink(figure.get_facecolor()), parse_math=False)
    if axes is not None:
        figure.draw_without_rendering()  # only the layout knows the width of the axes
    width, height = axis.bbox.width * points, axis.bbox.height * points if axes else math.inf
    levels = [*in_full_colours(ratios, full).tolist(), -1.0, 1.0]
    texts = _write(axis, words, levels, ink(figure.get_facecolor()))
    is_mirrored = _runs_from_right_to_left(tokens)
    ends = {index for index, token in enumerate(tokens) if "\n" in token} | {len(tokens) - 1}
    for size in range(_LARGEST, _SMALLEST - 1, -1):
        for text in texts:
            text.set_fontsize(size)
        widths = [text.get_window_extent().width * points for text in texts]
        places, lines = _in_lines(widths, _GAP * size, width, ends)
        needed = lines * _LINE * size
        if needed <= height and max(widths) + _GAP * size <= width:
            break
    for index, (text, (x, line)) in enumerate(zip(texts, places, strict=True)):
        if is_mirrored and index < len(tokens):
            x = width - x - widths[index]
        text.set_position((x, -(line + 0.5) * _LINE * size))
    if axes is None:
        _fit(figure, axis, needed)
    return figure, axis


def _runs_from_right_to_left(tokens: Sequence[str]) -> bool:
    directions = [unicodedata.bidirectional(letter) for token in tokens for letter in token]
    return sum(one in ("R", "AL") for one in directions) > directions.count("L")


def _write(axis: Axes, words: Sequence[str], levels: Sequence[float], colour: str) -> list[Annotation]:
    """Write the words. The first words get boxes in the colours of their levels; words without a level get no box.

    The positions are in points from the upper left corner, so no layout can push the words into each other.
    """
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
    place["fontfamily"] = families_for(words)
    texts = [axis.annotate(word, (0, 1), (0, 0), color=colour, parse_math=False, **place) for word in words]
    for text, level in zip(texts, levels, strict=False):
        box = on_white(level)
        text.set(color=ink(box), bbox={"boxstyle": "square,pad=0.2", "facecolor": box, "edgecolor": "none"})
    return texts


def _printable(token: str) -> str:
    """A token with signs for everything that would be invisible."""
    inner = token.strip(" ")
    before = len(token) - len(token.lstrip(" ")) if inner else 0
    after = len(token) - len(inner) - before
    signs = {"\n": "↵", "\t": "⇥"}
    seen = (c if c.isprintable() else signs.get(c, c.encode("unicode_escape").decode("ascii")) for c in inner)
    return "␣" * before + "".join(seen) + "␣" * after


def _in_lines(widths: Sequence[float], gap: float, width: float, ends: set[int]) -> tuple[list[tuple[float, int]], int]:
    """Arrange tokens in lines.

    Args:
        widths: the width of each token, in points.
        gap: the space between two tokens, in points.
        width: the width of a line, in points.
        ends: the indices of the tokens after which a new line begins.

    Returns:
        For each token (x, number of the line), and the number of lines.
    """
    places: list[tuple[float, int]] = []
    x, number = gap / 2, 0
    for index, token_width in enumerate(widths):
        if index and (index - 1 in ends or x + token_width + gap / 2 > width):
            x, number = gap / 2, number + 1
        places.append((x, number))
        x += token_width + gap
    return places, number + 1


def _page() -> tuple[Figure, Axes]:
    """A figure whose height will be set when the text is known."""
    figure = new_figure(7, 1)
    figure.set_layout_engine("none")
    side = _MARGIN / (72 * figure.get_figwidth())
    return figure, figure.add_axes((side, 0, 1 - 2 * side, 1))


def _fit(figure: Figure, axis: Axes, height: float) -> None:
    """Make the page as high as the title and the text together; ``height`` is that of the text, in points."""
    title = axis.get_title("left")
    above = _MARGIN * (title.count("\n") + 2 if title else 1)
    page = height + above + _MARGIN
    figure.set_figheight(page / 72)
    x, _, width, _ = axis.get_position().bounds
    axis.set_position((x, _MARGIN / page, width, height / page))
