"""Coloured text in notebooks, and one page that shows where each generated word came from."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captum_cav.errors import InputError
from captum_cav.page import fill_page
from captum_cav.text.reading import Reading, Result, read
from captum_cav.text.words import Word, visible
from captum_cav.visualization.colours import SHARE, amount, full_colour, in_full_colours, ink, on_white, signed_amount

# How many outputs a notebook shows one by one. A page shows all.
_MOST_OUTPUTS = 40
# The names of the parts of a text, for people.
_PARTS = {"prompt": "prompt", "output": "output", "source": "source", "first": "first text", "second": "second text"}


def coloured_text(result: Result, *, joined: bool = True) -> str:
    """HTML with coloured words, for notebooks: red raised the score and blue lowered the score.

    First come the contributions to all outputs together. The contributions to each output open at a click. No script
    runs, and all texts are escaped.

    Args:
        result: of an attribution.
        joined: whether subwords are joined to words.

    Returns:
        HTML.

    Raises:
        InputError: if a contribution is not finite.
    """
    reading = read(result, joined=joined)
    unit = SHARE if result.normalize else "in units of the score"
    _check_finite(reading.contributions)
    parts = [_paragraphs(reading, reading.contributions.sum(0), unit, "all outputs together")]
    if len(reading.outputs) > 1:
        for output, values in list(zip(reading.outputs, reading.contributions, strict=True))[:_MOST_OUTPUTS]:
            name = f"{visible(output.text)} (score {output.score:.4g})"
            body = _paragraphs(reading, values, unit, "")
            parts.append(f"<details><summary>{html.escape(name)}</summary>{body}</details>")
        left = len(reading.outputs) - _MOST_OUTPUTS
        if left > 0:
            parts.append(f"<p>{left} more outputs are not shown here.</p>")
    style = "background:#fff;color:#000;padding:.6em .8em;line-height:1.9;font-family:system-ui,sans-serif"
    return f'<div style="{style}">{"".join(parts)}</div>'


def _paragraphs(reading: Reading, values: torch.Tensor, unit: str, title: str) -> str:
    """One paragraph for each part of the text, and a line that says what the colours stand for."""
    full = full_colour(values.abs(), 100.0)
    levels = in_full_colours(values, full).tolist()
    lines = []
    for name, part in reading.segments.items():
        words = "".join(
            _coloured(reading.words[index], levels[index], signed_amount(float(values[index]), unit)) for index in part
        )
        lines.append(
            f'<div dir="auto" style="white-space:pre-wrap"><small style="color:#555">{_PARTS.get(name, name)}: </small>'
            f"{words}</div>"
        )
    number = amount(full, unit)
    legend = f"red raised the score, blue lowered the score{f'; full colour: {number}' if number else ''}"
    caption = html.escape(f"{title}; {legend}" if title else legend)
    return f'{"".join(lines)}<small style="color:#555">{caption}</small>'


def _coloured(word: Word, level: float, number: str) -> str:
    box = on_white(level)
    colour = "".join(f"{round(255 * part):02x}" for part in box)
    style = f"background:#{colour};color:{ink(box)};border-radius:3px;padding:0 2px"
    style += ";opacity:.55" if word.special else ""
    space = " " if word.spaced else ""
    text = word.text if word.text.strip() and word.text.isprintable() else visible(word.text)
    end = "\n" if "\n" in word.text else ""
    return f'{space}<span title="{html.escape(number)}" style="{style}">{html.escape(text)}</span>{end}'


def write_page(
    path: str | os.PathLike[str], results: Result | Sequence[Any], title: str = "Where the text came from"
) -> None:
    """Write a page that shows, for each output, which words gave it its score.

    The page needs only a browser and loads nothing from elsewhere. Whoever points at a word of the output, or moves to
    it with the arrow keys, sees its sources.

    Args:
        path: the HTML file to write.
        results: of one or of several attributions.
        title: the title of the page.

    Raises:
        InputError: if there is no result, or a contribution is not finite.
        OSError: if the file cannot be written.
    """
    several: list[Any] = list(results) if isinstance(results, (list, tuple)) else [results]
    if not several:
        raise InputError("results is empty; expected at least one result of an attribution.")
    page = fill_page("text.html", title, {"title": title, "texts": [_entry(result) for result in several]})
    Path(path).write_text(page, encoding="utf-8")


def _entry(result: Result) -> dict[str, Any]:
    """What the page shows of one result: its words and its tokens."""
    return {
        "layer": result.layer,
        "shares": result.normalize is not None,
        "words": _level(read(result)),
        "tokens": _level(read(result, joined=False)),
    }


def _level(reading: Reading) -> dict[str, Any]:
    _check_finite(reading.contributions)
    return {
        "parts": [
            {"name": _PARTS.get(name, name), "start": part.start, "stop": part.stop}
            for name, part in reading.segments.items()
        ],
        "words": [
            {
                "text": word.text if word.text.strip() and word.text.isprintable() else visible(word.text),
                "spaced": word.spaced,
                "special": word.special,
                "ends": "\n" in word.text,
            }
            for word in reading.words
        ],
        "outputs": [
            {
                "text": visible(output.text),
                "column": output.column,
                "score": _short(output.score),
                "constants": _short(output.constants),
                "unexplained": _short(output.unexplained),
                "own": _short(output.own),
                "probability": None if output.probability is None else _short(output.probability),
                "against": output.against,
                "contributions": [_short(value) for value in values.tolist()],
            }
            for output, values in zip(reading.outputs, reading.contributions, strict=True)
        ],
    }


def _check_finite(values: torch.Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise InputError(
            "a contribution is not finite, as where a score is 0; expected finite numbers. Attribute with "
            "normalize=None, in units of the score."
        )


def _short(number: float) -> float:
    """A number with six digits, so that the page stays small."""
    return float(f"{number:.6g}")
