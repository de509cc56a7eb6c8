"""The reference builds from the docstrings without a warning, holds every public name and says what they say."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import captum_cav
from captum_cav import ablation, comparison, errors, metrics, page, presets, rules, scores, visualization, zoo

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference as ``make docs`` builds it, from nothing."""
    built = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(built / "cache")]
    done = subprocess.run([*command, str(DOCS), str(built)], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return built


def test_the_reference_holds_every_public_name(reference: Path) -> None:
    inventory = (reference / "objects.inv").read_bytes().split(b"\n", 4)[4]  # behind four lines of comments
    documented = {line.split(" ", 1)[0] for line in zlib.decompress(inventory).decode().splitlines()}
    public = {f"captum_cav.{name}" for name in captum_cav.__all__}
    for module in (ablation, metrics, page, rules, scores, visualization, zoo):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    public |= {f"captum_cav.presets.{name}" for name in presets.NAMES}
    public |= {f"captum_cav.errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)}
    public |= {f"captum_cav.comparison.{name}" for name in set(comparison.__all__) - set(captum_cav.__all__)}
    assert public <= documented, sorted(public - documented)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        there = DOCS / file if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors_of(there), target


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ ([^`\n]+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_sentence_is_taken_for_a_type(reference: Path) -> None:
    """Google style reads ``Returns: what: more`` as a type and a description, and says nothing."""
    for built in (reference / "api").glob("*.html"):
        for field in re.findall(
            r"<dt class=.field-\w+.>(?:Return type|Type)<.*?<dd.*?</dd>", built.read_text(), re.DOTALL
        ):
            words = html.unescape(re.sub(r"<[^>]+>", "", field)).partition(":")[2]
            assert not re.search(r"\w \w", words), f"{built.stem}: write {words.strip()!r} without the colon behind it"
