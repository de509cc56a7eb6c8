"""Every tutorial runs in a fresh kernel; a failure shows its cell."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tutorial_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert any("assert" in cell.source for cell in notebook.cells), "a tutorial ends with checks on numbers"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()


def test_there_are_tutorials() -> None:
    assert TUTORIALS
