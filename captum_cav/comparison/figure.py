"""The figure of a comparison: methods in rows, layers in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_cav.comparison.methods import CONTROLS, INPUT
from captum_cav.visualization import Panel, show_rows
from captum_cav.visualization.colours import ENDS, SHARE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_cav.comparison.report import Comparison

_FEWEST_COLUMNS = 4


def draw(comparison: Comparison, example: int, picture: Any, title: str | None) -> Figure:
    """Draw the maps of one example; see :meth:`captum_cav.Comparison.figure`."""
    settings = comparison.settings
    mine = [row for row in comparison.rows if row.example == example and row.method not in CONTROLS]
    layers_of: dict[str, list[str]] = {}
    for row in mine:
        if (row.method, row.layer) in comparison.raw:
            layers_of.setdefault(row.method, []).append(row.layer)
    of_layers = {method: layers for method, layers in layers_of.items() if layers != [INPUT]}
    layers = list(dict.fromkeys(layer for those in of_layers.values() for layer in those))
    columns = max(len(layers), _FEWEST_COLUMNS)

    def panel(method: str, layer: str, name: str) -> Panel:
        if layer not in layers_of[method]:
            return Panel(f"{name}: no map", None)
        signed = method not in settings.unsigned
        return Panel(
            name,
            comparison.raw[method, layer][example],
            signed,
            SHARE if method in settings.shares else "",
            ENDS if signed else ("", "the score is\nsensitive to"),
        )

    rows: list[tuple[str, Sequence[Panel]]] = []
    first = [Panel("the input", None)]
    for signed, label in ((True, "at the input"), (False, "at the input,\nwithout a sign")):
        of_input = [method for method in layers_of if method not in of_layers]
        panels = [panel(method, INPUT, method) for method in of_input if (method not in settings.unsigned) == signed]
        if panels:
            panels, first = [*first, *panels], []
        rows += [(label, panels[start : start + columns]) for start in range(0, len(panels), columns)]
    rows += [(method, [panel(method, layer, layer) for layer in layers]) for method in of_layers]
    missing = [method for method in dict.fromkeys(row.method for row in mine) if method not in layers_of]
    target = "" if mine[0].target is None else f" of target {mine[0].target}"
    title = title or f"What raised (red) and lowered (blue) the score {mine[0].score:.4g}{target}"
    figure, _ = show_rows(picture, rows, f"{title} (no map: {', '.join(missing)})" if missing else title)
    return figure
