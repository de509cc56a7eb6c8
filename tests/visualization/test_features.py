"""Bars of the columns of a table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from captum_cav.errors import InputError, OptionError
from captum_cav.visualization import show_features
from tests.visualization.rendering import assert_fits

RED, BLUE, GREY = "#d90000", "#0033e6", "#999999"
Bars = list[tuple[str, float, str, str]]


def bars_of(axes: object) -> Bars:
    """From the top: the name of each bar, its length, its number and its colour."""
    labels = [label.get_text() for label in axes.get_yticklabels()]  # type: ignore[attr-defined]
    patches, texts = axes.patches, [text.get_text() for text in axes.texts]  # type: ignore[attr-defined]
    return [
        (label, round(patch.get_width(), 6), text, to_hex(patch.get_facecolor()))
        for label, patch, text in zip(labels, patches, texts, strict=True)
    ]


def test_bars_are_sorted_coloured_and_numbered() -> None:
    figure, axes = show_features(["a", "b", "c"], torch.tensor([0.25, 0.0, -0.5]), "risk", constants=1.25)
    assert bars_of(axes)[:2] == [("c", -0.5, "-50 %", BLUE), ("a", 0.25, "+25 %", RED)]
    assert bars_of(axes)[2][:3] == ("b", 0.0, "0")
    assert bars_of(axes)[3] == ("constants", 1.25, "+120 %", GREY)
    top, bottom = (axes.patches[place].get_extents().y0 for place in (0, 3))
    assert top > bottom
    assert axes.get_title() == "risk"
    assert_fits(figure)


def test_small_features_are_summed() -> None:
    names = [f"a feature with a rather long name, number {index}" for index in range(30)]
    figure, axes = show_features(names, np.linspace(0.29, 0.0, 30), most=4, unit="score points", constants=-0.1)
    bars = bars_of(axes)
    assert [bar[1] for bar in bars] == pytest.approx([0.29, 0.28, 0.27, 0.26, 3.25, -0.1])
    assert [bar[2] for bar in bars[3:]] == ["+0.26", "+3.3", "-0.1"]
    assert bars[4][0] == "26 others"
    assert_fits(figure)


@pytest.mark.parametrize("ratios", [[0.0, 0.0], [0.5, 0.25], [-0.5, -0.25], [1e-9, -2e8]])
def test_every_number_fits(ratios: list[float]) -> None:
    figure, axes = show_features(["one", "$two$"], ratios)
    assert_fits(figure)
    assert any("zeros" in text.get_text() for text in axes.texts) == (not any(ratios))
    assert axes.get_yticklabels()[0].get_parse_math() is False


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="there are 1 names and 2 ratios; expected one name for each feature"):
        show_features(["a"], [0.1, 0.2])
    with pytest.raises(InputError, match=r"has shape \(1, 2\); expected \(n,\)"):
        show_features(["a", "b"], torch.ones(1, 2))
    with pytest.raises(InputError, match="'constants' holds NaN"):
        show_features(["a"], [0.1], constants=float("nan"))
    with pytest.raises(OptionError, match="most is 0"):
        show_features(["a"], [0.1], most=0)
