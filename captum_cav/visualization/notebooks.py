"""Figures in notebooks."""

from __future__ import annotations

import base64
import html
import io

from matplotlib.figure import Figure

# Pictures of a notebook are stored in it, so they are small.
_DPI = 70


def html_image(figure: Figure, text: str) -> str:
    """A figure as an element of HTML that holds its picture.

    Args:
        figure: the figure.
        text: what stands for the picture where it cannot be seen.

    Example::

        >>> html_image(Figure(figsize=(1, 1)), "nothing")[:46]
        '<img alt="nothing" src="data:image/png;base64,'
    """
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{encoded}">'
