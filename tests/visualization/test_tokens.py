"""Tokens in lines, on boxes of their colours."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from captum_cav.errors import InputError, OptionError
from captum_cav.visualization import show_tokens
from tests.visualization.rendering import assert_fits

WORDS = "The film is not at all bad , although its first half hour drags on like a wet Sunday in November .".split()


def colours_of(axes: Axes) -> list[tuple[float, float, float]]:
    """The colour behind each text that has one."""
    return [to_rgb(text.get_bbox_patch().get_facecolor()) for text in axes.texts if text.get_bbox_patch()]


def lines_of(axes: Axes) -> list[str]:
    """What is read line by line, the legend too."""
    lines: dict[float, list[str]] = {}
    for text in axes.texts:
        lines.setdefault(-round(text.get_position()[1], 3), []).append(text.get_text())
    return [" ".join(words) for _, words in sorted(lines.items())]


def assert_readable(figure: Figure, axes: Axes) -> None:
    """No box covers another, none leaves the axes, and they stand in the order of reading."""
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_bbox_patch() or text).get_window_extent() for text in axes.texts]
    for number, box in enumerate(boxes):
        assert axes.bbox.x0 - 1 <= box.x0, number
        assert box.x1 <= axes.bbox.x1 + 1, number
        assert axes.bbox.y0 - 1 <= box.y0, number
        assert box.y1 <= axes.bbox.y1 + 1, number
        assert not any(box.padded(-0.5).overlaps(other.padded(-0.5)) for other in boxes[number + 1 :]), number
    for box, following in pairwise(boxes):
        assert following.x0 > box.x0 or following.y1 < box.y0 + 1


def test_red_raised_and_blue_lowered_the_score() -> None:
    _, axes = show_tokens(["a", "b", "c", "d"], torch.tensor([0.5, -0.5, 0.0, 0.1]))
    raised, lowered, nothing, little, low_end, high_end = colours_of(axes)
    assert raised == high_end == pytest.approx((0.85, 0, 0), abs=0.01)
    assert lowered == low_end == pytest.approx((0, 0.2, 0.9), abs=0.01)
    assert nothing == pytest.approx((1, 1, 1), abs=0.01)
    assert little[0] > little[1] > raised[1]
    assert [text.get_color() for text in axes.texts] == ["white", "white", "black", "black", "white", "white", "black"]
    assert axes.texts[-1].get_text() == "full colour: 50 % of the score"


def test_an_outlier_may_be_cut_and_a_unit_given() -> None:
    ratios = np.array([0.01] * 99 + [1.0])
    _, axes = show_tokens(["x"] * 100, ratios, outlier_percentile=90, unit="score points")
    assert axes.texts[-1].get_text() == "full colour: 0.01 score points"
    assert len(set(colours_of(axes)[:100])) == 1
    with pytest.raises(OptionError, match=r"^outlier_percentile is 0; expected a number above 0 and up to 100"):
        show_tokens(["x"], [1.0], outlier_percentile=0)


@pytest.mark.parametrize("words", [WORDS, WORDS * 12, list("Zweiundvierzig ist die Antwort ") * 8, ["x"]], ids=len)
def test_tokens_are_broken_into_lines_that_fit(words: list[str]) -> None:
    ratios = np.random.default_rng(0).normal(size=len(words))
    figure, axes = show_tokens(words, ratios, "review")
    assert_readable(figure, axes)
    assert [text.get_text().replace("␣", " ") for text in axes.texts[:-3]] == words
    assert all(text.get_fontsize() == 11 for text in axes.texts)
    assert lines_of(axes)[-1].startswith("lowered the score raised the score full colour: ")


def test_a_long_title_and_a_long_token_fit() -> None:
    title = "What a network with a name that is rather long reads out of a review that is rather long as well, " * 2
    figure, axes = show_tokens(["a", "https://" + 20 * "long/", "b"], np.ones(3), title)
    assert_fits(figure)
    assert_readable(figure, axes)
    assert axes.texts[0].get_fontsize() < 11


def test_a_line_break_in_a_token_breaks_the_line() -> None:
    _, axes = show_tokens(["one", "\n", "two", "three\n", "four"], np.ones(5))
    assert lines_of(axes)[:-1] == ["one ↵", "two three↵", "four"]


def test_what_cannot_be_seen_is_shown_by_signs_and_nothing_is_tex() -> None:
    tokens = [" a", "b ", "  ", "", "c d", "\te", "$x^2$", r"$\bad{", "_", "\x00", "\ud800", "é"]
    figure, axes = show_tokens(tokens, np.ones(len(tokens)), r"$\bad{ $")
    assert [text.get_text() for text in axes.texts[: len(tokens)]] == [
        *["␣a", "b␣", "␣␣", "", "c d", "⇥e", "$x^2$", r"$\bad{", "_", r"\x00", r"\ud800", "é"]
    ]
    figure.savefig(io.BytesIO())
    assert not any(text.get_parse_math() for text in [*axes.texts, axes._left_title])


def test_a_map_of_zeros_is_named_as_such() -> None:
    _, axes = show_tokens(["a", "b"], [0, 0])
    assert axes.texts[-1].get_text() == "nothing but zeros"
    assert colours_of(axes)[:2] == [pytest.approx((1, 1, 1), abs=0.01)] * 2


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_on_given_axes_letters_get_as_small_as_they_must(layout: str | None) -> None:
    figure, (upper, lower) = plt.subplots(2, figsize=(4, 5), layout=layout)
    try:
        drawn, axes = show_tokens(WORDS * 2, np.ones(2 * len(WORDS)), "review", axes=(figure, upper))
        assert (drawn, axes) == (figure, upper)
        show_tokens(WORDS[:3], np.ones(3), axes=(figure, lower))
        assert_readable(figure, upper)
        assert_readable(figure, lower)
        assert_fits(figure)
        assert 5 <= upper.texts[0].get_fontsize() < 11
        assert lower.texts[0].get_fontsize() == 11
        assert figure.get_size_inches().tolist() == [4, 5]
    finally:
        plt.close(figure)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_the_page_is_white_in_every_notebook(style: str) -> None:
    with plt.style.context(style):
        figure, axes = show_tokens(["a"], [0.0], "title")
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert [text.get_color() for text in (axes._left_title, *axes.texts)] == [
        "black",
        "black",
        "white",
        "white",
        "black",
    ]


def test_on_a_users_dark_figure_text_without_a_box_is_white() -> None:
    figure = Figure(facecolor="#202020")
    _, axes = show_tokens(["a"], [0.0], "title", axes=(figure, figure.subplots()))
    assert [text.get_color() for text in (axes._left_title, *axes.texts)] == [
        "white",
        "black",
        "white",
        "white",
        "white",
    ]


@pytest.mark.parametrize(
    ("tokens", "ratios", "message"),
    [
        (["a"], [1.0, 2.0], "there are 1 tokens and 2 ratios; expected one ratio for each token."),
        ([], [], "the map 'ratios' has shape (0,); expected (n,), one number a place"),
        (["a", "b"], [1.0, float("nan")], "the map 'ratios' holds NaN or infinity in 1 of 2 places"),
        (["a"], [[1.0]], "the map 'ratios' has shape (1, 1); expected (n,), one number a place"),
    ],
    ids=["count", "none", "NaN", "shape"],
)
def test_what_cannot_be_drawn_is_refused(tokens: list[str], ratios: list[float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        show_tokens(tokens, ratios)
    assert str(caught.value).startswith(message)
