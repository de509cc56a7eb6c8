"""Fonts for names that the usual font cannot write, such as Japanese names of classes."""

from __future__ import annotations

import functools

from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

# The font of last resort has a box for every letter, so it can write nothing.
_LAST_RESORT = "Last Resort"
_UNWRITABLE = "\N{REPLACEMENT CHARACTER}"


def fit_fonts(artist: Artist) -> None:
    """Give texts a second font where their own lacks letters. What no installed font can write becomes a question mark.

    Matplotlib would draw a box for each letter, and warn about each of them whenever the figure is drawn.

    Args:
        artist: a figure, or axes; all texts in it are looked at.
    """
    for text in artist.findobj(Text):
        assert isinstance(text, Text)
        missing = _missing(text.get_text(), text.get_fontproperties())
        if missing and (font := _font_with(missing)):
            text.set_fontfamily([*text.get_fontfamily(), font[0]])
        text.set_text(writable(text.get_text(), text.get_fontproperties()))


def writable(text: str, font: FontProperties | None = None) -> str:
    """A text in which what no installed font can write is a question mark.

    The labels of ticks need this before they are set, because matplotlib sets them anew when it draws.

    Args:
        text: the text.
        font: its font; None for the usual one.
    """
    missing = _missing(text, font or FontProperties())
    if missing and (other := _font_with(missing)):
        missing -= _letters(other[1])
    return "".join(_UNWRITABLE if letter in missing else letter for letter in text)


def _missing(text: str, font: FontProperties) -> frozenset[str]:
    """The letters of a text that a font lacks."""
    letters = frozenset(letter for letter in text if not letter.isascii())
    return letters - _letters(font_manager.findfont(font)) if letters else letters


@functools.cache
def _letters(file: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(file).get_charmap()))


@functools.cache
def _font_with(letters: frozenset[str]) -> tuple[str, str] | None:
    """The name and the file of an installed font that has the most of some letters; None if no font has any."""
    best: tuple[str, str] | None = None
    most = 0
    for entry in font_manager.fontManager.ttflist:
        if entry.name.startswith(_LAST_RESORT):
            continue
        try:
            found = len(letters & _letters(entry.fname))
        except (OSError, RuntimeError):  # a file that was removed, or that FreeType cannot read
            continue
        if found > most:
            best, most = (entry.name, entry.fname), found
        if most == len(letters):
            break
    return best
