"""Pictures of contributions: where the score of a class came from.

Over a picture there are two looks, both from the paper. A heat map shows the positive contributions (figure 6). A
signed map shows in red what raised the score and in blue what lowered the score (figure 7). :func:`show_layers`,
:func:`show_signed` and :func:`show_classes` draw maps; :func:`show_map` and :func:`show_rows` draw any panels.
:func:`show_difference` also runs the attribution: it draws what raised the score of one class more than the score of
another class. :func:`show_tokens`, :func:`show_series` and :func:`show_spectrogram` draw the contributions of words,
signals and spectrograms. :func:`show_slices`, :func:`show_projections`, :func:`show_frames` and :func:`animate` draw
those of volumes and videos, and :func:`show_features` those of the columns of a table.

Each function returns the figure and the axes, and opens no window. Each function draws on axes of yours if you pass
some.
"""

from __future__ import annotations

from captum_cav.maps import resize_map, spatial_map
from captum_cav.visualization.differences import show_difference
from captum_cav.visualization.features import show_features
from captum_cav.visualization.layers import show_classes, show_layers, show_signed
from captum_cav.visualization.panels import Panel
from captum_cav.visualization.rows import show_map, show_rows
from captum_cav.visualization.signals import show_series, show_spectrogram
from captum_cav.visualization.tokens import show_tokens
from captum_cav.visualization.volumes import animate, show_frames, show_projections, show_slices

__all__ = [
    "Panel",
    "animate",
    "resize_map",
    "show_classes",
    "show_difference",
    "show_features",
    "show_frames",
    "show_layers",
    "show_map",
    "show_projections",
    "show_rows",
    "show_series",
    "show_signed",
    "show_slices",
    "show_spectrogram",
    "show_tokens",
    "spatial_map",
]
