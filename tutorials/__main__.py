"""``python -m tutorials`` runs the tutorials and writes their notebooks, with outputs, and the pictures of README.md.

A tutorial is written in its ``.py`` file, in jupytext's percent format: cells begin with ``# %%``. The ``.ipynb`` beside
it is made of that file, here alone, and the picture is what its cell with ``tags=["picture"]`` shows::

    make tutorials                # all of them
    python -m tutorials 01 04     # those whose names begin so
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
PICTURE_TAG = "picture"
# Of a picture in README.md, in pixels.
_PICTURE_SIZE = (560, 320)
_JPEG_QUALITY = 85
# Of the pictures in a notebook, so that it stays below 400 kB: the width in pixels, and the quality.
_WIDEST, _NOTEBOOK_QUALITY = 800, 55
# Seconds that a cell may take before it counts as hung.
_HUNG = 300
# Captum's progress bars ask for ipywidgets, which come with Jupyter, but not with the kernel alone that runs here.
_NO_WIDGETS = "ignore:IProgress not found"


def sources(prefixes: list[str] | None = None) -> list[Path]:
    """The tutorials in their order, or those whose names begin with one of some prefixes."""
    found = sorted(HERE.glob("[0-9]*.py"))
    return found if not prefixes else [path for path in found if path.name.startswith(tuple(prefixes))]


def read(source: Path) -> NotebookNode:
    """A tutorial as a notebook without outputs, the same whenever it is read."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    notebook.metadata = NotebookNode(
        jupytext={"formats": "ipynb,py:percent"},
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook in a fresh kernel, whose working directory is a folder, and keep its outputs in it.

    Raises:
        CellExecutionError: a cell raised; the message shows the cell.
    """
    metadata = notebook.metadata.copy()
    client = NotebookClient(
        notebook,
        timeout=_HUNG,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "PYTHONWARNINGS": _NO_WIDGETS})
    # The kernel describes itself there, by the version at hand.
    notebook.metadata = metadata


def shrink_pictures(notebook: NotebookNode) -> None:
    """Keep each picture as a JPEG where that is smaller: photographs are, drawings of lines are not."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                picture = Image.open(io.BytesIO(base64.b64decode(png)))
                picture.thumbnail((_WIDEST, picture.height))
                jpeg = _as_jpeg(picture, _NOTEBOOK_QUALITY)
                if len(jpeg) < len(png) * 3 / 4:  # four letters for three bytes
                    output.data["image/jpeg"] = base64.b64encode(jpeg).decode()
                    del output.data["image/png"]


def picture_of(notebook: NotebookNode) -> Image.Image | None:
    """What the cell that is tagged shows, for README.md; None where no cell is tagged."""
    for cell in notebook.cells:
        if PICTURE_TAG in cell.metadata.get("tags", []):
            for output in cell.outputs:
                for kind in ("image/png", "image/jpeg"):
                    if kind in output.get("data", {}):
                        return Image.open(io.BytesIO(base64.b64decode(output.data[kind])))
    return None


def _as_jpeg(picture: Image.Image, quality: int = _JPEG_QUALITY) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "jpeg", quality=quality, optimize=True)
    return stream.getvalue()


def _write(source: Path) -> None:
    notebook = read(source)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    picture = picture_of(notebook)
    if picture is not None:
        picture.thumbnail(_PICTURE_SIZE)
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{source.stem}.jpg").write_bytes(_as_jpeg(picture))
    shrink_pictures(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tutorials", description="Run tutorials and write their notebooks.")
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX", help="of their names, as 01 (default: all)")
    chosen = sources(parser.parse_args().prefixes)
    if not chosen:
        parser.error("no tutorial's name begins so")
    for source in chosen:
        start = time.perf_counter()
        _write(source)
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
