"""What is published: declared dependencies, citation, changelog, the source distribution and the wheel."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import captum_cav

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: A method of a report, a command or a module of its own needs it, and says so where it is missing. Only type checkers
#: read typing_extensions, and they bring it.
OPTIONAL = {"h5py", "inseq", "pandas", "pyarrow", "ray", "scikit-learn", "scipy", "transformers", "typing_extensions"}


def imported_by(folder: Path) -> set[str]:
    """The distributions outside the standard library that the files in a folder import, at any place."""
    packages = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add(str(node.module).partition(".")[0])
    known = importlib.metadata.packages_distributions()
    outside = packages - set(sys.stdlib_module_names) - {"captum_cav"}
    return {name.lower() for package in outside for name in known.get(package, [package])}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert imported_by(ROOT / "captum_cav") == declared | OPTIONAL


def test_the_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {captum_cav.__version__}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation


def test_the_changelog_has_a_dated_section_for_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for heading in headings:
        assert re.fullmatch(r"\d+\.\d+\.\d+ \((unreleased, )?\d{4}-\d\d-\d\d\)", heading), heading
    assert headings[0].startswith(f"{captum_cav.__version__} (")
    assert not any("unreleased" in heading for heading in headings[1:])


@pytest.mark.skipif(not (ROOT / ".pre-commit-config.yaml").exists(), reason="not in the source distribution")
def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    entries = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    # The hooks get the names of changed files instead of the folder. Files that ruff excludes may be among them.
    assert [entry.replace(" --force-exclude", " .") for entry in entries] == re.findall(r"\$\(BIN\)/(.*)", recipe)


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints, which must succeed. It finds only what is installed for it or lies in the folder."""
    # Otherwise a new process would import captum_cav from this checkout.
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(  # noqa: S603
        [str(part) for part in command],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel, which is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def unpacked(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of the source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built[0]) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.mark.slow
def test_the_distributions_pass_the_check_of_the_package_index(built: tuple[Path, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built, folder=built[0].parent)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository: git ls-files")
def test_the_source_distribution_holds_the_repository(unpacked: Path) -> None:
    tracked = run("git", "ls-files", folder=ROOT).splitlines()
    expected = {name for name in tracked if not name.startswith(".") and (ROOT / name).exists()}
    found = {str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file()}
    added = {name for name in found if name in ("PKG-INFO", "setup.cfg") or name.startswith("captum_cav.egg-info/")}
    assert found - added == expected


@pytest.mark.slow
def test_the_tests_run_from_the_source_distribution(unpacked: Path) -> None:
    """All of them are collected. Those that read other files of the repository run."""
    collected = run(sys.executable, "-m", "pytest", "--collect-only", "-q", folder=unpacked, PYTHONPATH=str(unpacked))
    assert "tests/rules/test_affine_rules.py::" in collected
    assert "captum_cav/rules/affine.py::" in collected
    reading = ["tests/test_architecture.py", "tests/test_packaging.py", "tests/docs/test_readme.py"]
    reading += ["tests/benchmarks/test_tables.py", "tests/docs/test_troubleshooting.py"]
    run(sys.executable, "-m", "pytest", "-q", *reading, folder=unpacked, PYTHONPATH=str(unpacked))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        found = set(archive.namelist())
    folders = {name.partition("/")[0] for name in found}
    metadata = f"captum_cav-{captum_cav.__version__}.dist-info"
    assert folders == {"captum_cav", metadata}
    files = [file for file in (ROOT / "captum_cav").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {name for name in found if name.startswith("captum_cav/")} == {str(file.relative_to(ROOT)) for file in files}
    assert f"{metadata}/licenses/LICENSE" in found


@pytest.fixture
def large_folder() -> Iterator[Path]:
    """A folder that goes when the test ends, unlike tmp_path: torch takes gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(built: tuple[Path, Path], large_folder: Path) -> None:
    """With what pip installs for it, and nothing else; the newest torch comes along."""
    environment = large_folder / "environment"
    run(sys.executable, "-m", "venv", environment, folder=large_folder)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    run(binaries / "python", "-m", "pip", "install", "--quiet", built[1], folder=large_folder)
    run(binaries / "python", "-m", "pip", "check", folder=large_folder)
    assert run(binaries / "captum-cav", "--version", folder=large_folder) == f"captum-cav {captum_cav.__version__}\n"
    # Every module is imported, so that no import is missing among the dependencies. One registers ours in inseq.
    code = (
        "import importlib, pkgutil, captum_cav\n"
        "for module in pkgutil.walk_packages(captum_cav.__path__, 'captum_cav.'):\n"
        "    if not module.name.endswith(('__main__', '.inseq')):\n"
        "        importlib.import_module(module.name)\n"
        "print(captum_cav.__file__)\n"
        "from captum_cav import *"
    )
    assert run(binaries / "python", "-c", code, folder=large_folder).startswith(str(environment))
