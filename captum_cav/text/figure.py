"""Figures of the contributions of words: the matrix, and the words with the colours of one output."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_cav.errors import InputError
from captum_cav.text.reading import Output, Reading, Result, read
from captum_cav.text.words import visible
from captum_cav.visualization import show_tokens
from captum_cav.visualization.colours import (
    SHARE,
    SIGNED,
    add_colour_bar,
    amount,
    full_colour,
    in_full_colours,
    ink,
    new_figure,
)
from captum_cav.visualization.fonts import families_for, writable

# The size of a cell of the matrix and the room for labels, in inches, and the longest figure.
_CELL, _LABELS, _LONGEST = 0.24, 1.9, 40.0
_IN_SCORE = "in units of the score"


def show_matrix(
    result: Result, title: str = "", *, joined: bool = True, axes: tuple[Figure, Axes] | None = None
) -> tuple[Figure, Axes]:
    """Draw the matrix: a row for each output, and a column for each word. Red raised the score of the output.

    Args:
        result: of an attribution.
        title: the title of the figure.
        joined: whether subwords are joined to words.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError: if a contribution is not finite.
    """
    reading = _finite(read(result, joined=joined))
    rows, columns = reading.contributions.shape
    width, height = (min(_CELL * count + _LABELS, _LONGEST) for count in (columns, rows))
    figure, axis = axes or _axes(max(width, 4.0) + 1.2, max(height, 2.4))
    full = full_colour(reading.contributions.abs(), 100.0)
    axis.imshow(
        in_full_colours(reading.contributions, full).numpy(),
        cmap=SIGNED,
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_facecolor("white")
    words = [writable(visible(word.text)) for word in reading.words]
    outputs = [writable(visible(output.text)) for output in reading.outputs]
    colour = ink(figure.get_facecolor())
    labels: dict[str, Any] = {
        "fontsize": 8,
        "color": colour,
        "parse_math": False,
        "fontfamily": families_for([*words, *outputs]),
    }
    axis.set_xticks(np.arange(columns), words, rotation=90, **labels)
    axis.set_yticks(np.arange(rows), outputs, **labels)
    axis.tick_params(length=0)
    for part in list(reading.segments.values())[:-1]:
        axis.axvline(part.stop - 0.5, color=colour, linewidth=0.8)
    axis.set_title(title or "Which words (columns) gave each output (rows) its score", fontsize=10, color=colour)
    unit = SHARE if result.normalize else _IN_SCORE
    add_colour_bar(figure, [axis], True, f"full colour: {amount(full, unit)}" if full else "")
    return figure, axis


def show_output(
    result: Result, output: int = 0, title: str = "", *, joined: bool = True, axes: tuple[Figure, Axes] | None = None
) -> tuple[Figure, Axes]:
    """Draw the words in front of one output, each in the colour of its contribution to the score of the output.

    Args:
        result: of an attribution.
        output: the number of the output; negative numbers count from the end.
        title: the title; empty for one that names the output and its score.
        joined: whether subwords are joined to words.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError: if there is no such output, or a contribution is not finite.
    """
    reading = _finite(read(result, joined=joined))
    count = len(reading.outputs)
    if not -count <= output < count:
        raise InputError(f"output is {output!r}; expected {-count} to {count - 1}, for one of {count} outputs.")
    chosen = reading.outputs[output]
    stop = len(reading.words) if chosen.column is None else max(chosen.column, 1)
    words = [visible(word.text) for word in reading.words[:stop]]
    unit = SHARE if result.normalize else _IN_SCORE
    return show_tokens(words, reading.contributions[output, :stop], title or _name(chosen), unit=unit, axes=axes)


def _name(output: Output) -> str:
    chance = "" if output.probability is None else f", probability {output.probability:.2g}"
    against = f", against {output.against}" if output.against else ""
    return f"“{visible(output.text)}”: score {output.score:.4g}{chance}{against}"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def _finite(reading: Reading) -> Reading:
    if not bool(reading.contributions.isfinite().all()):
        raise InputError(
            "a contribution is not finite, as where a score is 0; expected finite numbers. Attribute with "
            "normalize=None, in units of the score."
        )
    return reading
