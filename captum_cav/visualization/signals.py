"""Contributions over time, and over time and frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_cav.maps import check_map, resize_map
from captum_cav.visualization.colours import (
    DIMMED,
    HEAT,
    NOTHING,
    SHARE,
    SIGNED,
    add_caption,
    add_colour_bar,
    add_note,
    amount,
    full_colour,
    in_full_colours,
    ink,
    new_figure,
    strength,
)


def show_series(
    signal: Any,
    ratios: Any,
    title: str = "",
    *,
    duration: float | None = None,
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    """Draw a signal over time, on red where it raised the score and on blue where it lowered it.

    Args:
        signal: shape (T,).
        ratios: shape (t,): the contribution ratio of each of t equal steps, as many as the layer has. Of a layer of
            shape (1, C, t) they are ``ratios[0].sum(0)``.
        title: what it shows, as the layer's name.
        duration: of the signal in seconds; None counts samples.
        unit: of the number of the full colour, which is in per cent where the unit begins with %.
        outlier_percentile: of the sizes that are not 0, the one from which on the colour is full.
        axes: figure and axes to draw on; a new figure if None.

    Returns:
        The figure and the axes; nothing is shown.

    Raises:
        InputError: for a signal or ratios that are not finite or have another shape.

    Example::

        >>> figure, axes = show_series(np.sin(np.arange(8)), [0.1, -0.3, 0.6, 0.0], "conv2", duration=2.0)
        >>> print(axes.get_title(), axes.get_xlabel(), sep="; ")
        conv2, 4 steps
        full colour: 59 % of the score; seconds
    """
    signal = check_map(signal, "signal", 1)
    ratios = check_map(ratios, title or "ratios", 1)
    full = full_colour(ratios.abs(), outlier_percentile)
    figure, axis = axes or _wide(2.4)
    end = len(signal) if duration is None else duration
    low, high = float(signal.min()), float(signal.max())
    room = 0.08 * (high - low) or 1.0
    axis.set_facecolor("white")
    axis.imshow(
        in_full_colours(ratios, full)[None].numpy(),
        cmap=SIGNED,
        vmin=-1,
        vmax=1,
        extent=(0, end, low - room, high + room),
        aspect="auto",
        interpolation="nearest",
    )
    axis.plot((np.arange(len(signal)) + 0.5) * (end / len(signal)), signal.numpy(), color="black", linewidth=1)
    axis.set_xlabel("samples" if duration is None else "seconds")
    _finish(figure, axis, True, title, f"{len(ratios)} steps", full, unit)
    return figure, axis


def show_spectrogram(
    spectrogram: Any,
    ratios: Any,
    title: str = "",
    *,
    signed: bool = True,
    duration: float | None = None,
    unit: str = SHARE,
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    """Draw contributions over a spectrogram, or over anything else that has a time and a frequency.

    Args:
        spectrogram: shape (F, T), the lowest frequency first; drawn in grey, time to the right, frequency upward. Of a
            network that takes (time, frequency), pass both maps transposed.
        ratios: shape (f, t): the contribution ratio of each place of the layer, on a grid of its own. Of a layer of
            shape (1, C, f, t) they are ``ratios[0].sum(0)``.
        title: what it shows, as the layer's name.
        signed: whether to show red and blue instead of heat, which is for what raised the score alone.
        duration: of the spectrogram in seconds; None counts frames.
        unit: of the number of the full colour, which is in per cent where the unit begins with %.
        outlier_percentile: of the strengths that are not 0, the one from which on the colour is full.
        axes: figure and axes to draw on; a new figure if None.

    Returns:
        The figure and the axes; nothing is shown.

    Raises:
        InputError: for a spectrogram or ratios that are not finite or have another shape.

    Example::

        >>> figure, axes = show_spectrogram(np.eye(64, 100), [[0.1, 0.4], [0.0, -0.1]], "conv5")
        >>> print(axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), sep="; ")
        conv5, 2 x 2
        full colour: 40 % of the score; frames; frequency bins
    """
    spectrogram = check_map(spectrogram, "spectrogram")
    ratios = check_map(ratios, title or "ratios")
    size = (spectrogram.shape[0], spectrogram.shape[1])
    laid = resize_map(ratios, size) * (spectrogram.numel() / ratios.numel())
    full = full_colour(strength(laid, signed), outlier_percentile)
    figure, axis = axes or _wide(3.2)
    place: dict[str, Any] = {
        "extent": (0, size[1] if duration is None else duration, 0, size[0]),
        "origin": "lower",
        "aspect": "auto",
    }
    low, high = spectrogram.min(), spectrogram.max()
    grey = ((spectrogram - low) / (high - low if high > low else 1.0)).numpy()
    # Red and blue are seen best on what is light, heat on what is dark.
    axis.imshow(1 - DIMMED * grey if signed else DIMMED * grey, cmap="gray", vmin=0, vmax=1, **place)
    colours, least = (SIGNED, -1) if signed else (HEAT, 0)
    axis.imshow(in_full_colours(laid, full).numpy(), cmap=colours, vmin=least, vmax=1, **place)
    axis.set_ylabel("frequency bins")
    axis.set_xlabel("frames" if duration is None else "seconds")
    _finish(figure, axis, signed, title, f"{ratios.shape[0]} x {ratios.shape[1]}", full, unit)
    return figure, axis


def _wide(height: float) -> tuple[Figure, Axes]:
    figure = new_figure(7, height)
    return figure, figure.add_subplot()


def _finish(figure: Figure, axis: Axes, signed: bool, title: str, grid: str, full: float, unit: str) -> None:
    """Caption, note and legend, in a colour that can be read on the figure."""
    colour = ink(figure.get_facecolor())
    add_caption(figure, axis, title, grid, amount(full, unit))
    axis.tick_params(colors=colour, labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=colour, fontsize=9)
    for spine in axis.spines.values():
        spine.set_edgecolor(colour)
    if not full:
        add_note(axis, NOTHING[signed])
    add_colour_bar(figure, [axis], signed)
