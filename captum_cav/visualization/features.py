"""Contributions of the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_cav import checks
from captum_cav.checks.options import as_list
from captum_cav.errors import InputError
from captum_cav.maps import check_map
from captum_cav.visualization.colours import (
    ENDS,
    NOTHING,
    SHARE,
    add_note,
    ink,
    new_figure,
    on_white,
    signed_amount,
    wrapped,
)
from captum_cav.visualization.fonts import fit_fonts, writable

# The longest line of a name, in letters, and the colour of the bar of the constants.
_NAME, _GREY = 28, "0.6"


def show_features(
    names: Sequence[str],
    ratios: Any,
    title: str = "",
    *,
    constants: float | None = None,
    most: int = 20,
    unit: str = SHARE,
    axes: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    """Draw the contributions of the columns of a table as bars: red raised the score, blue lowered the score.

    The largest bar stands on top. Features beyond the ``most`` largest are summed in one bar.

    Args:
        names: the names of the n features, as with their values: "age = 52".
        ratios: shape (n,): the contribution ratio of each feature, of one sample: ``contributions[0]``.
        title: what the figure shows, as the name of the class.
        constants: the share of biases and other constants, drawn in grey; None draws no such bar. For contributions and
            a ``delta`` of :class:`captum_cav.InputCAV` this share is ``1 - float(contributions[0].sum() + delta[0])``.
        most: how many features have a bar of their own.
        unit: the unit of the numbers. A unit that begins with % shows the numbers in per cent.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        CAVTypeError: for names that are no list.
        InputError: if the ratios are not finite or have another shape, or for a wrong number of names.
        OptionError: for a ``most`` that is not a positive integer.

    Example::

        >>> figure, axes = show_features(["age", "height", "weight"], [0.3, 0.0, -0.5], "risk", constants=1.2)
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['weight', 'age', 'height', 'constants']
        >>> [text.get_text() for text in axes.texts]
        ['-50 %', '+30 %', '0', '+120 %']
    """
    ratios = check_map(ratios, title or "ratios", 1)
    checks.check_count(most, "most")
    names = as_list(names, "names")
    if len(names) != len(ratios):
        raise InputError(f"there are {len(names)} names and {len(ratios)} ratios; expected one name for each feature.")
    order = ratios.abs().argsort(descending=True, stable=True).tolist()
    bars = [(str(names[index]), float(ratios[index])) for index in order[:most]]
    colours: list[Any] = [on_white(1.0 if value > 0 else -1.0) for _, value in bars]
    if order[most:]:
        others = float(ratios[order[most:]].sum())
        bars.append((f"{len(order) - most} others", others))
        colours.append(on_white(0.5 if others > 0 else -0.5))
    if constants is not None:
        (share,) = check_map(torch.tensor([constants], device="cpu"), "constants", 1).tolist()
        bars.append(("constants", share))
        colours.append(_GREY)
    figure, axis = axes or _page(len(bars), title)
    colour = ink(figure.get_facecolor())
    places, values = range(len(bars)), [value for _, value in bars]
    axis.barh(places, values, color=colours, height=0.7)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(
        places, labels=[writable(wrapped(name, _NAME)) for name, _ in bars], fontsize=8, color=colour, parse_math=False
    )
    axis.set_ylim(len(bars) - 0.4, -0.6)
    reach = max(map(abs, values)) or 1.0
    # Room for the numbers at the ends of the bars.
    axis.set_xlim(*(sign * reach * (1.35 if any(sign * value > 0 for value in values) else 0.15) for sign in (-1, 1)))
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            signed_amount(value, unit),
            (value, place),
            (4 if value >= 0 else -4, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=8,
        )
    if not any(values):
        add_note(axis, NOTHING[True])
    low, high = (end.replace("\n", " ") for end in ENDS)
    axis.set_xticks([])
    axis.set_xlabel(
        f"\N{LEFTWARDS ARROW} {low}    {high} \N{RIGHTWARDS ARROW}", fontsize=8, color=colour, parse_math=False
    )
    axis.set_facecolor("white")
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_edgecolor(colour)
    axis.tick_params(colors=colour, length=0)
    if title:
        axis.set_title(wrapped(title, 60), fontsize=10, color=colour, parse_math=False)
    fit_fonts(axis)
    return figure, axis


def _page(bars: int, title: str) -> tuple[Figure, Axes]:
    figure = new_figure(6.0, 0.27 * bars + 0.6 + (0.3 if title else 0))
    return figure, figure.add_subplot()
