"""Fonts for letters that the font of matplotlib does not have, such as those of Chinese."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from matplotlib import font_manager


def families_for(texts: Iterable[str]) -> list[str]:
    """The families of fonts that draw some texts: the usual family, and installed ones for the letters it lacks.

    Args:
        texts: what will be drawn.

    Returns:
        Names of families, for ``set_fontfamily``. If no installed font has a letter, matplotlib warns when it draws it.

    Example::

        >>> len(families_for(["cat", "été"]))
        1
    """
    usual = font_manager.FontProperties()
    missing = frozenset("".join(texts)) - _letters_of(font_manager.findfont(usual))
    return [usual.get_name(), *_families_with(frozenset(letter for letter in missing if letter.isprintable()))]


@functools.lru_cache(maxsize=256)
def _letters_of(file: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(file).get_charmap()))


@functools.lru_cache(maxsize=64)
def _families_with(missing: frozenset[str]) -> tuple[str, ...]:
    """Families of installed fonts. Each has some of the missing letters that the families before it lack."""
    found: list[str] = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style, font.weight != 400, font.name)):
        if not missing:
            break
        if font.style != "normal" or font.name.startswith("Last Resort"):
            continue
        new = missing & _letters_of(font.fname)
        if new:
            found.append(font.name)
            missing -= new
    return tuple(found)
