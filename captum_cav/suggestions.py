"""Suggestions for misspelled names. This module loads nothing heavy, so the command line can use it at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelled name.

    Args:
        word: what was given.
        known: the names that exist.

    Returns:
        Text to append to a message, such as `` (did you mean 'a' or 'b'?)``; empty if no known name is similar.
    """
    near = difflib.get_close_matches(word, [name for name in known if name], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
