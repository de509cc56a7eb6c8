"""Pictures of contributions: where the score of a class came from.

Over a picture there are two looks, both of the paper: positive contributions as a heat map (figure 6), and what raised
the score in red, what lowered it in blue (figure 7). ``show_layers``, ``show_signed`` and ``show_classes`` draw them,
``show_difference`` what speaks for one class rather than another, ``show_map`` and ``show_rows`` any panels. Words,
signals over time and spectrograms have ``show_tokens``, ``show_series`` and ``show_spectrogram``.

Each of them returns the figure and the axes and shows nothing, and draws on axes of yours where you give some.
"""

from __future__ import annotations

from captum_cav.maps import resize_map, spatial_map
from captum_cav.visualization.pictures import (
    Panel,
    show_classes,
    show_difference,
    show_layers,
    show_map,
    show_rows,
    show_signed,
)
from captum_cav.visualization.signals import show_series, show_spectrogram
from captum_cav.visualization.tokens import show_tokens

__all__ = [
    "Panel",
    "resize_map",
    "show_classes",
    "show_difference",
    "show_layers",
    "show_map",
    "show_rows",
    "show_series",
    "show_signed",
    "show_spectrogram",
    "show_tokens",
    "spatial_map",
]
