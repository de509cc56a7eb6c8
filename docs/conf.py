"""Sphinx: the documentation as a site. ``make docs`` builds it into docs/_build.

Pages that stand elsewhere in the repository, such as the tutorials, are copied into docs/_pages first.
"""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import captum_cav

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = DOCS / "_pages"
#: What is copied, and keeps its place among the other files there.
COPIED = (
    *sorted(ROOT.glob("tutorials/*.ipynb")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
)

project = "captum_cav"
author = project_copyright = "the captum_cav developers"
version = release = captum_cav.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# docs/README.md is the table of contents for readers of the repository.
exclude_patterns = ["_build", "_templates", "README.md"]
templates_path = ["_templates"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"captum_cav {version}"
html_show_sourcelink = False
html_copy_source = False
# Both looks of the theme have a style for code of their own.
pygments_style, pygments_dark_style = "friendly", "monokai"

# The notebooks bring their outputs.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]

# A reference that leads nowhere is an error, unless it leads out of the package, where nothing can be looked up.
# How the package itself makes an Operation is nobody's concern, nor are private classes, type variables and aliases.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!captum_cav).*"),
    ("py:(class|mod)", r"captum_cav\.(propagation|operations)\b.*"),
    ("py:(class|obj)", r"captum_cav\..*\.(_\w+|[A-Z])"),
    ("py:class", r"captum_cav\.text\.reading\b.*"),
]

OTHER_PACKAGES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "captum": "https://captum.ai/api/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "PIL": "https://pillow.readthedocs.io/en/stable/",
}
_SECONDS = 5


def _is_reachable(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}objects.inv", timeout=_SECONDS):  # noqa: S310
            return True
    except OSError:
        return False


# Names of other packages are links where those can be reached. "sphinx-build -t offline" does not try.
intersphinx_mapping = (
    {}
    if tags.has("offline")  # type: ignore[name-defined]  # noqa: F821
    else {name: (address, None) for name, address in OTHER_PACKAGES.items() if _is_reachable(address)}
)


def _copy_pages() -> None:
    # Pages of names that are gone would stay.
    for made in (PAGES, DOCS / "api" / "generated"):
        shutil.rmtree(made, ignore_errors=True)
    for file in COPIED:
        target = PAGES / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _follow_links(app: Any, name: str, source: list[str]) -> None:
    """Let links between files of the repository lead to their pages. What has no page is named without a link."""
    path = Path(app.env.doc2path(name))
    # Pages and the files that they were copied from have the same links.
    original = ROOT / path.relative_to(PAGES) if path.is_relative_to(PAGES) else path

    def follow(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        file = (original.parent / target).resolve()
        if file.is_dir() and (file / "README.md").exists():
            file = file / "README.md"
        if file == ROOT / "tutorials" / "README.md":
            return f"[{text}](/tutorials.md)"
        if file in COPIED:
            return f"[{text}](/{(PAGES / file.relative_to(ROOT)).relative_to(DOCS)}{anchor})"
        if file.is_relative_to(DOCS) and file.suffix == ".md" and file.name != "README.md":
            return f"[{text}](/{file.relative_to(DOCS)}{anchor})"
        return text if file.is_relative_to(ROOT) and not file.is_relative_to(DOCS) else match[0]

    source[0] = re.sub(r"(?<!!)\[([^]\[]+)\]\((?!\w+:|#|/)([^)#\s]+)(#[^)]*)?\)", follow, source[0].replace("\r", ""))


def _skip_field(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave the fields of a named tuple out of its members, for its docstring describes them."""
    return True if type(value).__name__ == "_tuplegetter" else None


def _say_returns_in_words(app: Any, what: str, name: str, value: Any, options: Any, *signature: str | None) -> Any:
    """Leave "-> Any" out of a signature: what is returned depends on the arguments, and the docstring says how."""
    arguments, returns = signature
    return arguments, None if returns in ("Any", "~typing.Any") else returns


def setup(app: Any) -> None:
    """Called by Sphinx."""
    _copy_pages()
    # Overloads are for type checkers. Readers get one signature.
    ModuleAnalyzer.overloads = property(lambda analyzer: {}, lambda analyzer, found: None)  # type: ignore[assignment]
    app.connect("autodoc-skip-member", _skip_field)
    app.connect("autodoc-process-signature", _say_returns_in_words)
    app.connect("source-read", _follow_links)
