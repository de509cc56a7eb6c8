"""The README's Python runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs_and_conserves_as_it_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert [tuple(ratios.shape) for ratios in names["ratios"]] == [(1, 1280, 7, 7), (1, 112, 14, 14), (1, 40, 28, 28)]
    assert all(abs(float(delta)) < 1e-6 for delta in names["deltas"])


def test_files_that_it_points_to_are_there() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
    assert {"demo:", "test:"} <= {
        line.split()[0] for line in (root / "Makefile").read_text().splitlines() if line.split()
    }
