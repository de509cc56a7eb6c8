"""Contributions over time, and contributions over time and frequency."""

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
from captum_cav.visualization.fonts import fit_fonts


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
    """Draw a signal over time, on red where the signal raised the score and on blue where it lowered the score.

    Args:
        signal: shape (T,).
        ratios: shape (t,): the contribution ratio of each of t equal steps; t is the length of the layer. For a layer
            of shape (1, C, t) pass ``ratios[0].sum(0)``.
        title: what the figure shows, as the name of the layer.
        duration: the length of the signal in seconds; None labels the axis in samples.
        unit: the unit of the number that tells what the full colour stands for. A unit that begins with % shows the
            number in per cent.
        outlier_percentile: the colour is full from this percentile of the sizes of the contributions on; zeros do not
            count.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError: if the signal or the ratios are not finite or have another shape.
        OptionError: for a percentile that is not above 0 and at most 100.

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
    fit_fonts(axis)
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
    """Draw contributions over a spectrogram, or over any other map of time and frequency.

    Args:
        spectrogram: shape (F, T), the lowest frequency first. The spectrogram is drawn in grey, with time to the right
            and frequency upward. If your network takes (time, frequency), pass both maps transposed.
        ratios: shape (f, t): the contribution ratio of each place of the layer; the grid may be coarser than that of
            the spectrogram. For a layer of shape (1, C, f, t) pass ``ratios[0].sum(0)``.
        title: what the figure shows, as the name of the layer.
        signed: whether to show red and blue. Otherwise only what raised the score is shown, as heat.
        duration: the length of the spectrogram in seconds; None labels the axis in frames.
        unit: the unit of the number that tells what the full colour stands for. A unit that begins with % shows the
            number in per cent.
        outlier_percentile: the colour is full from this percentile on. The percentile is taken over the sizes of the
            contributions (in a heat map: over the positive contributions) without the zeros.
        axes: the figure and the axes to draw on; None makes a new figure.

    Returns:
        The figure and the axes. No window is opened.

    Raises:
        InputError: if the spectrogram or the ratios are not finite or have another shape.
        OptionError: for a percentile that is not above 0 and at most 100.

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
    # Red and blue are seen best on a light picture, heat is seen best on a dark picture.
    axis.imshow(1 - DIMMED * grey if signed else DIMMED * grey, cmap="gray", vmin=0, vmax=1, **place)
    colours, least = (SIGNED, -1) if signed else (HEAT, 0)
    axis.imshow(in_full_colours(laid, full).numpy(), cmap=colours, vmin=least, vmax=1, **place)
    axis.set_ylabel("frequency bins")
    axis.set_xlabel("frames" if duration is None else "seconds")
    _finish(figure, axis, signed, title, f"{ratios.shape[0]} x {ratios.shape[1]}", full, unit)
    fit_fonts(axis)
    return figure, axis


def _wide(height: float) -> tuple[Figure, Axes]:
    figure = new_figure(7, height)
    return figure, figure.add_subplot()


def _finish(figure: Figure, axis: Axes, signed: bool, title: str, grid: str, full: float, unit: str) -> None:
    """Add the caption, the note and the legend, in a colour that is readable on the figure."""
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
