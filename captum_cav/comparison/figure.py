"""The figure of a comparison: methods in rows, layers in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from captum_cav.comparison.methods import CONTROLS
from captum_cav.comparison.places import INPUT
from captum_cav.comparison.records import Place, Row, Settings
from captum_cav.errors import InputError
from captum_cav.visualization import Panel, show_rows, show_series, show_tokens
from captum_cav.visualization.colours import ENDS, SHARE, new_figure

# Of so many layers, the maps of one method fill a row.
_FEWEST_LAYERS = 3
# The columns of a figure whose rows are not the layers.
_COLUMNS = 4


def draw(
    rows: Sequence[Row],
    maps: Mapping[Place, torch.Tensor],
    settings: Settings,
    example: int,
    picture: Any,
    title: str | None,
) -> Figure:
    """Draw the maps of one example.

    Args:
        rows: the rows of the comparison.
        maps: by method and layer, maps of shape (N, h, w) as the methods returned them.
        settings: how they were made.
        example: the index of the example.
        picture: the picture under the maps, as :func:`captum_cav.visualization.show_rows` takes it.
        title: the title of the figure; None for one that names the score.

    Returns:
        The figure. No window is opened.
    """
    of_example = [row for row in rows if row.example == example and row.method not in CONTROLS]
    layers_of: dict[str, list[str]] = {}
    for row in of_example:
        if (row.method, row.layer) in maps:
            layers_of.setdefault(row.method, []).append(row.layer)
    layers = list(dict.fromkeys(layer for those in layers_of.values() for layer in those if layer != INPUT))
    # Methods have rows of their own if these are filled by the layers. Otherwise each layer has rows of all methods.
    methods_are_rows = len(layers) >= _FEWEST_LAYERS
    columns = len(layers) if methods_are_rows else _COLUMNS

    def panel(method: str, layer: str, name: str) -> Panel:
        if layer not in layers_of[method]:
            return Panel(f"{name}: no map", None)
        signed = method not in settings.unsigned
        return Panel(
            name,
            maps[method, layer][example],
            signed,
            SHARE if method in settings.shares else "",
            ENDS if signed else ("", "the score is\nsensitive to"),
        )

    panels_of_rows: list[tuple[str, Sequence[Panel]]] = []
    first = [Panel("the input", None)]
    for layer in [INPUT, *([] if methods_are_rows else layers)]:
        for signed, without in ((True, ""), (False, ",\nwithout a sign")):
            there = [
                panel(method, layer, method)
                for method, of_method in layers_of.items()
                if layer in of_method and (method not in settings.unsigned) == signed
            ]
            if there:
                there, first = [*first, *there], []
            label = f"at {'the ' if layer == INPUT else ''}{layer}{without}"
            panels_of_rows += [(label, there[start : start + columns]) for start in range(0, len(there), columns)]
    if methods_are_rows:
        panels_of_rows += [
            (method, [panel(method, layer, layer) for layer in layers])
            for method, of_method in layers_of.items()
            if of_method != [INPUT]
        ]
    missing = [method for method in dict.fromkeys(row.method for row in of_example) if method not in layers_of]
    return show_rows(picture, panels_of_rows, _titled(title, of_example[0], missing))[0]


def draw_sequences(
    rows: Sequence[Row],
    maps: Mapping[Place, torch.Tensor],
    settings: Settings,
    example: int,
    shown: Any,
    title: str | None,
) -> Figure:
    """Draw the maps of one sequence or signal, one below the other.

    Args:
        rows, settings, example, title: as for :func:`draw`.
        maps: by method and layer, maps of shape (N, t) as the methods returned them.
        shown: the words of the sequence, or the signal of shape (T,).

    Returns:
        The figure. No window is opened.

    Raises:
        InputError: for words that are not as many as the places of a map.
    """
    of_example = [row for row in rows if row.example == example and row.method not in CONTROLS]
    drawn = [(row.method, row.layer) for row in of_example if (row.method, row.layer) in maps]
    missing = [method for method in dict.fromkeys(row.method for row in of_example) if method not in dict(drawn)]
    is_text = isinstance(shown, Sequence) and all(isinstance(word, str) for word in shown)
    figure = new_figure(8, 0.5 + (0.95 if is_text else 2.2) * max(len(drawn), 1))
    figure.suptitle(_titled(title, of_example[0], missing), fontsize=11, color="black", parse_math=False)
    for number, (method, layer) in enumerate(drawn, 1):
        axis = figure.add_subplot(max(len(drawn), 1), 1, number)
        ratios = maps[method, layer][example]
        unit = SHARE if method in settings.shares else ""
        name = f"{method} at {layer}" + (" (without a sign)" if method in settings.unsigned else "")
        if is_text:
            if len(shown) != len(ratios):
                raise InputError(
                    f"{len(shown)} words were given, and the map of {name} has {len(ratios)} places; expected one word "
                    "for each place."
                )
            show_tokens(shown, ratios, name, unit=unit, axes=(figure, axis))
        else:
            show_series(shown, ratios, name, unit=unit, axes=(figure, axis))
    return figure


def _titled(title: str | None, row: Row, missing: Sequence[str]) -> str:
    """The title of a figure, with the names of the methods that have no map."""
    target = "" if row.target is None else f" of target {row.target}"
    title = title or f"What raised (red) and lowered (blue) the score {row.score:.4g}{target}"
    return f"{title} (no map: {', '.join(missing)})" if missing else title
