"""The reference builds from the docstrings without a warning, holds every public name and says what they say."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

import captum_cav
from captum_cav import (
    ablation,
    comparison,
    datasets,
    errors,
    memory,
    metrics,
    page,
    presets,
    rules,
    scores,
    text,
    visualization,
    zoo,
)
from captum_cav.commands import COMMANDS
from captum_cav.datasets import analysis, clusters, summary
from tests.support.examples import python_in

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it, from nothing and without a network. A warning is an error."""
    pytest.importorskip("furo", reason="needs the extra docs")
    pytest.importorskip("myst_nb", reason="needs the extra docs")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-t", "offline", "-b", "html"]
    done = subprocess.run(  # noqa: S603
        [*command, "-d", str(built / "cache"), str(DOCS), str(built)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return built


def public_names() -> set[str]:
    public = {f"captum_cav.{name}" for name in captum_cav.__all__}
    of_datasets = (datasets, analysis, clusters, summary)
    for module in (ablation, *of_datasets, memory, metrics, page, rules, scores, text, visualization, zoo):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    public |= {f"captum_cav.presets.{name}" for name in presets.NAMES}
    public |= {f"captum_cav.errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)}
    public |= {f"captum_cav.comparison.{name}" for name in set(comparison.__all__) - set(captum_cav.__all__)}
    # Names that two modules export have one place in the reference.
    return public - {f"captum_cav.text.{name}" for name in set(text.__all__) & set(captum_cav.__all__)}


@pytest.mark.slow
def test_the_reference_holds_every_public_name(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]  # behind four lines of comments
    documented = {line.split(" ", 1)[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert public_names() <= documented, sorted(public_names() - documented)


def test_the_pages_of_the_reference_name_every_public_name() -> None:
    """What :func:`test_the_reference_holds_every_public_name` sees in the built site, read off the sources."""
    named: set[str] = set()
    for source in (DOCS / "api").glob("*.rst"):
        lines = source.read_text().splitlines()
        module = "captum_cav"
        for line in lines:
            if directive := re.match(r"\.\. (currentmodule|automodule):: (\S+)", line):
                module = directive[2]
                named.add(module)
            elif re.fullmatch(r"   [\w.]+", line):
                named.add(f"{module}.{line.strip()}")
        if "   :members:" in lines:
            named |= {name for name in public_names() if name.rpartition(".")[0] == module}
    assert public_names() <= named, sorted(public_names() - named)


@pytest.mark.slow
def test_pages_have_a_readable_length_sources_and_search(site: Path) -> None:
    for built in (site / "api").rglob("*.html"):
        (content,) = re.findall(r"<article.*?</article>", built.read_text(), re.DOTALL)
        words = re.sub(r"<[^>]+>", " ", content).split()
        assert len(words) < 4000, f"{built.name} has {len(words)} words"
    layer = (site / "api" / "generated" / "captum_cav.LayerCAV.html").read_text()
    # Those of attribute() and attribute_targets(): one signature each, without the overloads.
    assert len(re.findall(r'sig-param"[^,]*>attribute_to_layer_input<', layer)) == 2
    assert not re.search(r'sig-return-typehint"><span class="pre">Any</span></span>', layer)
    assert "_modules/captum_cav/attribution/layer.html" in layer
    index = (site / "index.html").read_text()
    assert "theme-toggle" in index, "light and dark"
    assert 'action="search.html"' in index
    for name in ("troubleshooting", "quick_start", "tutorials", "limits"):
        assert f'href="{name}.html"' in index


@pytest.mark.slow
def test_tutorials_are_pages_with_their_pictures(site: Path) -> None:
    for notebook in (DOCS.parent / "tutorials").glob("*.ipynb"):
        assert "<img" in (site / "_pages" / "tutorials" / f"{notebook.stem}.html").read_text()
    assert "_pages/tutorials/05_is_the_explanation_true.html" in (site / "troubleshooting.html").read_text()


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_but_what_sets_formulas(site: Path) -> None:
    for built in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", built.read_text())
        assert [url for url in loaded if "/mathjax@" not in url] == [], built.name


def test_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (DOCS / "quick_start.md").read_text()
    first, second = python_in(source)
    exec(first, {})  # noqa: S102
    (shown,) = re.findall(r"```\n(the score.*?)```", source, re.DOTALL)
    assert capsys.readouterr().out.startswith(shown)
    assert {file.name for file in tmp_path.iterdir()} == {"contributions.png", "tabby.png"}
    names: dict[str, Any] = {}
    exec(second, names)  # noqa: S102
    assert [tuple(found.shape[1:]) for found in names["maps"]] == names["layers"].grids


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {page.stem for page in DOCS.glob("*.md")} - {"README", "index"}
    assert pages <= listed, f"name {sorted(pages - listed)} in a toctree of docs/index.md"
    assert {name for name in listed if "/" not in name} <= pages


def test_all_commands_are_on_their_page() -> None:
    source = (DOCS / "command_line.md").read_text()
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        assert f"captum-cav {name}" in source, name


def anchors_of(source: str) -> set[str]:
    headings = re.findall(r"^#+ ([^`\n]+)$", source, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = DOCS / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file.read_text()), target


@pytest.mark.slow
def test_no_sentence_is_taken_for_a_type(site: Path) -> None:
    """Google style reads ``Returns: what: more`` as a type and a description, and says nothing."""
    for built in (site / "api").rglob("*.html"):
        for field in re.findall(
            r"<dt class=.field-\w+.>(?:Return type|Type)<.*?<dd.*?</dd>", built.read_text(), re.DOTALL
        ):
            words = html.unescape(re.sub(r"<[^>]+>", "", field)).partition(":")[2]
            assert not re.search(r"\w \w", words), f"{built.stem}: write {words.strip()!r} without the colon behind it"
