"""Signals over time and spectrograms: what lies where, and in which colour."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captum_cav.errors import InputError
from captum_cav.visualization import resize_map, show_series, show_spectrogram
from tests.visualization.rendering import assert_fits, levels_of, pixels_of, texts_of


def test_a_signal_lies_on_the_colours_of_its_steps() -> None:
    signal = np.linspace(-3, 5, 12)
    figure, axes = show_series(signal, torch.tensor([0.2, 0.0, -0.2, 0.05]), "conv3")
    np.testing.assert_allclose(levels_of(axes), [[1, 0, -1, 0.25]])
    assert axes.images[0].get_extent()[:2] == [0, 12], "three samples a step"
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), np.arange(12) + 0.5)
    np.testing.assert_allclose(line.get_ydata(), signal)
    low, high = axes.get_ylim()
    assert low < -3 < 5 < high
    assert axes.get_title() == "conv3, 4 steps\nfull colour: 20 % of the score"
    assert axes.get_xlabel() == "samples"
    line.remove()
    pixels = pixels_of(figure, axes)
    assert pixels[32, 8].tolist() == [216, 0, 0]
    assert pixels[32, 24].min() > 250
    assert pixels[32, 40].tolist() == [0, 51, 229]


def test_time_is_in_seconds_where_the_duration_is_known() -> None:
    _, axes = show_series(np.zeros(8), np.ones(4), duration=2.0, unit="score points")
    np.testing.assert_allclose(axes.lines[0].get_xdata(), (np.arange(8) + 0.5) / 4)
    assert axes.get_xlabel() == "seconds"
    assert axes.get_xlim() == (0, 2)
    assert axes.get_title() == "4 steps\nfull colour: 1 score points"
    _, axes = show_spectrogram(np.zeros((4, 8)), np.ones((2, 2)), duration=2.0)
    assert axes.get_xlabel() == "seconds"
    assert axes.get_xlim() == (0, 2)
    assert axes.get_ylim() == (0, 4)


@pytest.mark.parametrize("signed", [True, False])
def test_a_spectrogram_has_low_frequencies_below_and_time_to_the_right(signed: bool) -> None:
    ratios = torch.tensor([[0.4, 0.0, 0.0, -0.4], [0.0, 0.0, 0.0, 0.0]])
    figure, axes = show_spectrogram(np.eye(2, 4), ratios, "conv5", signed=signed)
    assert axes.get_title() == "conv5, 2 x 4\nfull colour: 40 % of the score"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("frames", "frequency bins")
    pixels = pixels_of(figure, axes)
    raised, lowered, silent = pixels[48, 8], pixels[48, 56], pixels[16, 40]
    if signed:
        assert raised.tolist() == [216, 0, 0]
        assert lowered.tolist() == [0, 51, 229]
        assert silent.min() > 250, "on white paper"
    else:
        assert raised.mean() > 150
        assert lowered.max() == 0, "neither loud nor in favour"
    # The second row is the upper one, and its second frame is loud.
    loud = pixels[16, 24]
    assert loud == pytest.approx(255 * (0.45 if signed else 0.55), abs=3)


def test_ratios_are_laid_on_the_spectrograms_grid_and_counted_in_their_own_cells() -> None:
    ratios = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    _, axes = show_spectrogram(torch.rand(9, 20), ratios, outlier_percentile=100)
    laid = resize_map(ratios, (9, 20)) * 12
    np.testing.assert_allclose(levels_of(axes), laid / laid.abs().max(), atol=1e-6)
    assert float(laid.abs().max()) == pytest.approx(1.94, abs=0.01)
    assert axes.get_title() == "3 x 5\nfull colour: 190 % of the score"


def everything(ratios: Any, **options: Any) -> list[tuple[Figure, Any]]:
    ratios = torch.as_tensor(ratios)
    return [
        show_series(torch.zeros(6), ratios[0], **options),
        show_spectrogram(torch.zeros(2, 3), ratios, **options),
    ]


def test_a_map_of_zeros_is_blank_and_says_so() -> None:
    for _, axes in everything(torch.zeros(2, 3)):
        assert [text.get_text() for text in axes.texts] == ["nothing but zeros"]
        assert not levels_of(axes).any()
    _, axes = show_spectrogram(torch.zeros(2, 3), -torch.ones(2, 3), signed=False)
    assert [text.get_text() for text in axes.texts] == ["nothing positive"]


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_figures_are_dark_on_light_in_every_notebook(style: str) -> None:
    with plt.style.context(style):
        drawn = everything(torch.eye(2, 3), title="layer")
    for figure, axes in drawn:
        assert figure.get_facecolor() == (1, 1, 1, 1)
        assert {text.get_color() for text in texts_of(figure)} == {"black"}
        assert {spine.get_edgecolor() for spine in axes.spines.values()} == {(0, 0, 0, 1)}


def test_on_a_users_dark_figure_text_is_white_and_the_signal_black_on_white() -> None:
    figure = Figure(facecolor="#202020")
    axes = figure.subplots()
    axes.set_facecolor("black")
    assert show_series(np.arange(4.0), np.ones(2), "layer", axes=(figure, axes)) == (figure, axes)
    assert {text.get_color() for text in texts_of(figure)} == {"white"}
    assert axes.lines[0].get_color() == "black"
    assert axes.get_facecolor() == (1, 1, 1, 1)


def test_long_names_fit() -> None:
    name = "wav2vec2.encoder.layers.11.feed_forward.intermediate_dense.with.some.more.to.fill.the.line.and.another.one"
    for figure, _ in everything(torch.randn(2, 3), title=name):
        assert_fits(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: show_series(np.zeros((1, 4)), np.ones(2)), "the map 'signal' has shape (1, 4); expected (n,)"),
        (lambda: show_series([0.0, np.inf], np.ones(2)), "the map 'signal' holds NaN or infinity in 1 of 2 places"),
        (
            lambda: show_series(np.zeros(4), [np.nan, 1], "conv"),
            "the map 'conv' holds NaN or infinity in 1 of 2 places",
        ),
        (lambda: show_spectrogram(np.zeros(4), np.eye(2)), "the map 'spectrogram' has shape (4,); expected (h, w)"),
        (lambda: show_spectrogram(np.eye(2), np.zeros((1, 2, 2)), "conv"), "the map 'conv' has shape (1, 2, 2); exp"),
    ],
    ids=["signal of two dimensions", "infinite signal", "NaN", "flat spectrogram", "batch"],
)
def test_what_cannot_be_drawn_is_refused(draw: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        draw()
    assert str(caught.value).startswith(message)
