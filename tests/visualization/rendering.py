"""What a figure looks like, in numbers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

GREY = np.full((32, 32, 3), 128, dtype=np.uint8)


def pixels_of(figure: Figure, axes: Axes) -> np.ndarray:
    """What is inside the axes as 64 x 64 RGB pixels, without anything around it."""
    figure.set_layout_engine("none")
    for other in figure.axes:
        if other is not axes:
            other.remove()
    axes.set_position((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_title("")
    figure.set_size_inches(1, 1)
    figure.set_dpi(64)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def levels_of(axes: Axes) -> np.ndarray:
    """The map that was drawn last, in units of the full colour."""
    image = axes.images[-1]
    return np.asarray(image.get_array()) / image.get_clim()[1]


def texts_of(figure: Figure) -> list[Text]:
    """Every text with something in it that is seen."""
    FigureCanvasAgg(figure).draw()
    off = [axes for axes in figure.axes if not axes.axison]
    unseen = {text for axes in off for axis in (axes.xaxis, axes.yaxis) for text in axis.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if text not in unseen]


def boxes_of(figure: Figure) -> dict[str, Bbox]:
    """Where each text is drawn, by its number and itself."""
    return {f"{number} {text.get_text()}": text.get_window_extent() for number, text in enumerate(texts_of(figure))}


def assert_fits(figure: Figure) -> None:
    """Nothing that is written leaves the figure or covers something else that is."""
    boxes = boxes_of(figure)
    for text, box in boxes.items():
        assert figure.bbox.x0 - 1 <= box.x0, f"{text!r} begins before the figure"
        assert box.x1 <= figure.bbox.x1 + 1, f"{text!r} ends behind the figure"
        assert figure.bbox.y0 - 1 <= box.y0, f"{text!r} lies under the figure"
        assert box.y1 <= figure.bbox.y1 + 1, f"{text!r} lies over the figure"
    for (text, box), (other, second) in combinations(boxes.items(), 2):
        assert not box.padded(-1).overlaps(second.padded(-1)), f"{text!r} covers {other!r}"
