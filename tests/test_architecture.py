"""The architecture of the package: which room may import which, read off the sources with ``ast``.

Imports inside functions and under ``TYPE_CHECKING`` count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import captum_cav

ROOT = Path(captum_cav.__file__).parent
MOST_LINES = 500
#: A room imports only from rooms further up, and from other rooms on its own line if it does not get back from there.
ORDER = """
    errors version suggestions memory tables process_settings
    tensors torch_internals captum_internals torch_graphs
    checks
    propagation
    operations
    rules
    presets scores
    attribution
    compilation
    maps visualization metrics ablation zoo depths
    comparison single_image page reproduction text datasets explanation patching inseq
    commands
    cli
    __main__
"""
LEVELS = {room: level for level, line in enumerate(ORDER.split("\n")) for room in line.split()}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
GATEWAY = "captum_cav"  # The package's own names, which it imports when somebody asks for them.


def imports_of(module: str, source: str, known: Mapping[str, object]) -> Iterator[str]:
    """The modules of the package that a module imports; a package stands for its ``__init__``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif node.module in known:
                    yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (name for name in known if f"'{name}'" in ast.unparse(node))


IMPORTS = {
    module: set(imports_of(module, source, SOURCES)) - {module, GATEWAY}
    for module, source in SOURCES.items()
    if module != GATEWAY
}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, each sorted."""

    def reached_from(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for node in graph.get(waiting.pop(), ()):
                if node not in found:
                    found.add(node)
                    waiting.append(node)
        return found

    reach = {node: reached_from(node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach.get(other, ()))) for node in graph}
    return [list(group) for group in sorted(groups) if group]


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_the_search_for_circular_imports_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_imports_in_functions_and_for_types_are_found() -> None:
    source = """
from typing import TYPE_CHECKING
import importlib
if TYPE_CHECKING:
    from captum_cav.rules import affine
def late():
    from captum_cav import presets
    importlib.import_module("captum_cav.zoo")
"""
    known = dict.fromkeys(["captum_cav.rules", "captum_cav.rules.affine", "captum_cav.presets", "captum_cav.zoo"])
    assert set(imports_of("x", source, known)) == {"captum_cav.rules.affine", "captum_cav.presets", "captum_cav.zoo"}


def test_every_part_of_the_package_has_its_place() -> None:
    assert {room_of(module) for module in IMPORTS} == set(LEVELS)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_run_in_one_direction(module: str) -> None:
    level = LEVELS[room_of(module)]
    against = {other for other in IMPORTS[module] if LEVELS[room_of(other)] > level}
    assert not against, f"{module} imports from rooms that stand behind it"


def test_no_circle_of_files() -> None:
    assert circles(IMPORTS) == []


def test_no_circle_of_folders() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        room = room_of(module)
        rooms.setdefault(room, set()).update(room_of(other) for other in imported if room_of(other) != room)
    assert circles(rooms) == []


def test_the_engine_is_given_its_table() -> None:
    assert {room_of(other) for name in IMPORTS if room_of(name) == "propagation" for other in IMPORTS[name]} <= {
        "errors",
        "process_settings",
        "suggestions",
        "tensors",
        "torch_internals",
        "checks",
        "propagation",
    }


def test_no_module_is_hidden_behind_a_function_of_its_name() -> None:
    hidden = []
    for module, source in SOURCES.items():
        siblings = {name.rpartition(".")[2] for name in SOURCES if name.rpartition(".")[0] == module}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{module}."):
                hidden += [f"{module}.{alias.name}" for alias in node.names if alias.name in siblings]
    assert hidden == []


@pytest.mark.parametrize("module", SOURCES)
def test_no_file_is_too_long(module: str) -> None:
    assert SOURCES[module].count("\n") <= MOST_LINES


#: What makes tensors of nothing but numbers of Python.
FACTORIES = set("arange as_tensor empty eye full linspace ones rand randint randn randperm tensor zeros".split())


def without_device(source: str) -> list[str]:
    """The calls that make a tensor on the default device of torch."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and all(keyword.arg != "device" for keyword in node.keywords)
    ]


def test_the_search_for_tensors_on_the_default_device_finds_them() -> None:
    assert without_device("x = torch.zeros(2)\ny = f(torch.arange(3, device=x.device))") == ["torch.zeros(2)"]


@pytest.mark.parametrize("module", SOURCES)
def test_no_tensor_is_made_on_the_default_device(module: str) -> None:
    """A user may set that device to a GPU (``torch.set_default_device``), while numbers are wanted on the host."""
    assert without_device(SOURCES[module]) == []
