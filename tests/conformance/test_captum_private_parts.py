"""The private parts of Captum that the package uses."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules

import captum_cav

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


PINNED = {
    ("captum._utils.common", "_select_targets"),
    ("captum._utils.gradient", "_verify_select_neuron"),
    ("captum.attr._utils", "lrp_rules"),
}


def captums_private_names(source: str) -> set[tuple[str, str]]:
    """What a module takes from Captum by a private name, as (module, name)."""
    tree = ast.parse(source)
    taken = set()
    for node in ast.walk(tree):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            found = [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found = [(node.value, "")]
        elif isinstance(node, ast.Attribute):
            found = [tuple(ast.unparse(node).rsplit(".", 1))]  # type: ignore[list-item]
        for module, name in found:
            parts = [*module.split("."), name]
            if parts[0] in ("captum", "captum_visualization", "captum_metrics") and any(
                part.startswith("_") for part in parts
            ):
                taken.add((module, name))
    return taken


@pytest.mark.parametrize(
    "source",
    [
        "from captum._utils.common import _run_forward",
        "import captum.attr._utils.lrp_rules",
        "from captum.attr import _core",
        "import captum\ncaptum._utils",
        "import importlib\nimportlib.import_module('captum._utils.common')",
    ],
)
def test_the_search_for_private_names_finds_them(source: str) -> None:
    assert captums_private_names(source)


def test_only_one_module_takes_private_parts_of_captum_and_they_are_pinned() -> None:
    root = Path(captum_cav.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    taken = {name: found for name, source in sources.items() if (found := captums_private_names(source))}
    assert taken == {"captum_internals.py": PINNED}


def test_the_private_parts_are_what_they_were() -> None:
    assert list(inspect.signature(_select_targets).parameters) == ["output", "target"]
    scores = torch.arange(6.0).reshape(2, 3)
    assert _select_targets(scores, 1).tolist() == [1.0, 4.0]
    assert _select_targets(scores, [(2,), (0,)]).tolist() == [2.0, 3.0]
    assert _select_targets(scores[:, 0], None).tolist() == [0.0, 3.0]

    assert list(inspect.signature(_verify_select_neuron).parameters) == ["layer_output", "selector"]
    assert _verify_select_neuron((scores,), 2).tolist() == [2.0, 5.0]
    assert _verify_select_neuron((scores,), (slice(0, 2),)).tolist() == [1.0, 7.0]

    for name in ("EpsilonRule", "GammaRule", "Alpha1_Beta0_Rule", "IdentityRule"):
        assert issubclass(getattr(lrp_rules, name), lrp_rules.PropagationRule)
    assert list(inspect.signature(lrp_rules.EpsilonRule).parameters) == ["epsilon"]
    assert lrp_rules.EpsilonRule(0.5).STABILITY_FACTOR == 0.5
    assert list(inspect.signature(lrp_rules.GammaRule).parameters) == ["gamma", "set_bias_to_zero"]
    gamma = lrp_rules.GammaRule(0.5, set_bias_to_zero=True)
    assert (gamma.gamma, gamma.set_bias_to_zero) == (0.5, True)
    assert lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True).set_bias_to_zero is True
