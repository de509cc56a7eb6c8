"""Fonts for letters that the usual font cannot write, such as those of Japanese names of classes."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

# The font of last resort has a box for every letter, so it can write nothing.
_LAST_RESORT = "Last Resort"
_UNWRITABLE = "\N{REPLACEMENT CHARACTER}"


def fit_fonts(artist: Artist) -> None:
    """Give texts further fonts where their own lacks letters. What no installed font can write becomes a question mark.

    Matplotlib would draw a box for each letter, and warn about each of them whenever the figure is drawn.

    Args:
        artist: a figure, or axes; all texts in it are looked at.
    """
    for text in artist.findobj(Text):
        assert isinstance(text, Text)
        missing = _missing(text.get_text(), text.get_fontproperties())
        if missing and (families := _families_with(missing)):
            text.set_fontfamily([*text.get_fontfamily(), *families])
        text.set_text(writable(text.get_text(), text.get_fontproperties()))


def families_for(texts: Iterable[str]) -> list[str]:
    """The families of fonts that draw some texts: the usual family, and installed ones for the letters it lacks.

    Args:
        texts: what will be drawn.

    Returns:
        Names of families, for ``set_fontfamily``. Pass the texts through :func:`writable` before they are drawn.

    Example::

        >>> len(families_for(["cat", "été"]))
        1
    """
    usual = FontProperties()
    return [usual.get_name(), *_families_with(_missing("".join(texts), usual))]


def writable(text: str, font: FontProperties | None = None) -> str:
    """A text in which what no installed font can write is a question mark.

    The labels of ticks need this before they are set, because matplotlib sets them anew when it draws.

    Args:
        text: the text.
        font: its font; None for the usual one.
    """
    missing = _missing(text, font or FontProperties())
    if missing:
        missing -= frozenset().union(*(_letters(file) for file in _families_with(missing).values()))
    return "".join(_UNWRITABLE if letter in missing else letter for letter in text)


def _missing(text: str, font: FontProperties) -> frozenset[str]:
    """The letters of a text that a font lacks."""
    letters = frozenset(letter for letter in text if not letter.isascii())
    return letters - _letters(font_manager.findfont(font)) if letters else letters


@functools.cache
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # a file that was removed, or that FreeType cannot read
        return frozenset()


@functools.cache
def _families_with(missing: frozenset[str]) -> dict[str, str]:
    """Families of installed fonts, with their files. Each has some letters that the families before it lack."""
    found: dict[str, str] = {}
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style, font.weight != 400, font.name)):
        if not missing:
            break
        if font.style != "normal" or font.name.startswith(_LAST_RESORT):
            continue
        new = missing & _letters(font.fname)
        if new:
            found[font.name] = font.fname
            missing -= new
    return found
