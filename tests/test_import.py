"""What is imported with a module, and what is not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import captum_cav


def loaded_with(module: str) -> set[str]:
    """The modules that are loaded after an import in a new process."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["captum_cav", "captum_cav.cli", "captum_cav.zoo"])
def test_what_only_names_things_loads_nothing_heavy(name: str) -> None:
    heavy = {"captum", "matplotlib", "numpy", "pandas", "PIL", "torch", "torchvision"}
    assert loaded_with(name).isdisjoint(heavy)


@pytest.mark.parametrize("name", ["ablation", "attribution", "maps", "metrics", "zoo.catalogue"])
def test_modules_that_do_not_draw_load_none_that_do(name: str) -> None:
    # Captum loads matplotlib itself as soon as captum.attr is imported.
    assert not any(module.startswith("captum_cav.visualization") for module in loaded_with(f"captum_cav.{name}"))


@pytest.mark.parametrize("name", ["maps", "zoo.catalogue"])
def test_modules_without_attributions_load_neither_captum_nor_matplotlib(name: str) -> None:
    assert loaded_with(f"captum_cav.{name}").isdisjoint({"captum", "matplotlib"})


def test_only_one_module_that_draws_runs_models() -> None:
    folder = Path(captum_cav.__file__).parent / "visualization"
    running = {
        file.stem
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        and any(f"{node.module}.{alias.name}".startswith("captum_cav.attribution") for alias in node.names)
    }
    assert running == {"differences"}


@pytest.mark.parametrize("name", captum_cav.__all__)
def test_public_names_are_found(name: str) -> None:
    assert getattr(captum_cav, name) is not None
    assert name in dir(captum_cav)


MODULES = [name for name in captum_cav.__all__ if isinstance(getattr(captum_cav, name), ModuleType)]


@pytest.mark.parametrize("name", MODULES)
def test_no_module_offers_what_it_imports_from_other_packages(name: str) -> None:
    module = getattr(captum_cav, name)
    offered = [getattr(module, one) for one in dir(module) if not one.startswith("_")]
    modules = [one.__name__ for one in offered if isinstance(one, ModuleType)]
    assert [one for one in modules if not one.startswith("captum_cav.")] == []
    assert set(getattr(module, "__all__", ())) <= set(dir(module))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CAV'"):
        captum_cav.CAV  # noqa: B018
