"""Names of classes that the usual font cannot write."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from captum_cav.visualization import Panel, fonts, show_features, show_rows, show_tokens

CAT = "\N{CJK UNIFIED IDEOGRAPH-732B}"
PICTURE = np.full((16, 16, 3), 90, np.uint8)
ROWS = [(f"{CAT} cat", [Panel(f"layer {CAT}", torch.eye(2), signed=True)])]


@pytest.fixture(autouse=True)
def no_cache() -> None:
    fonts._families_with.cache_clear()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def draw_quietly(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path)


def test_letters_that_no_font_has_become_question_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [one for one in entries if one.name == "DejaVu Sans"])
    figure, _ = show_rows(PICTURE, ROWS, f"what is {CAT}?")
    draw_quietly(figure, tmp_path / "rows.png")
    assert any("\ufffd cat" in text for text in texts(figure))
    for drawn, _ in (
        show_tokens(["one", CAT], torch.tensor([0.5, -0.5])),
        show_features([CAT, "two"], torch.tensor([0.5, -0.5])),
    ):
        draw_quietly(drawn, tmp_path / "other.png")


def test_a_second_font_writes_what_the_usual_one_lacks(tmp_path: Path) -> None:
    """Of the fonts that come with matplotlib, STIX has this letter and DejaVu Sans has not."""
    dejavu, stix = (
        fonts._letters(font_manager.findfont(name, fallback_to_default=False))
        for name in ("DejaVu Sans", "STIXGeneral")
    )
    letter = min(stix - dejavu)
    figure, _ = show_rows(PICTURE, [(letter, [Panel("layer", torch.eye(2))])])
    draw_quietly(figure, tmp_path / "rows.png")
    (written,) = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() == letter]
    assert len(written.get_fontfamily()) > 1


def test_the_texts_of_other_axes_stay_as_they_are() -> None:
    figure = Figure()
    ours, theirs = figure.subplots(1, 2)
    theirs.set_title(CAT)
    show_rows(PICTURE, ROWS, axes=(figure, ours))
    assert theirs.get_title() == CAT
