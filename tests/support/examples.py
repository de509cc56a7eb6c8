"""The Python that stands in pages of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def python_in(text: str) -> list[str]:
    """The blocks of Python in a text in Markdown."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def python_of(page: Path) -> list[str]:
    """The blocks of Python in a page of Markdown."""
    return python_in(page.read_text("utf-8"))


def run(page: Path, number: int) -> dict[str, Any]:
    """Run one block of a page, and return its names."""
    names: dict[str, Any] = {}
    exec(python_of(page)[number], names)  # noqa: S102
    return names
