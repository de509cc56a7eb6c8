"""The Python of the page about rules runs, and does what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_cav import LayerCAV, presets, rules
from tests.support.examples import python_of, run

PAGE = Path(__file__).parents[2] / "docs" / "choosing_rules.md"
OVERRIDES, OWN_RULE, NEW_MODEL = range(3)


def test_there_are_these_examples() -> None:
    assert len(python_of(PAGE)) == 3


def test_the_example_of_overrides_chooses_the_rules_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(PAGE, OVERRIDES)
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
    run(PAGE, NEW_MODEL)
    first, second, leak = capsys.readouterr().out.splitlines()
    assert first.startswith("ok: 3 operations, score ")
    assert second.startswith("NOT OK: 3 operations, score ")
    assert leak.strip().startswith("gelu in 1 (GradientRule()) leaves ")


def test_the_example_of_a_users_rule_adds_up() -> None:
    ratios = run(PAGE, OWN_RULE)["ratios"]
    assert ratios.shape == (1, 3)
    assert abs(float(ratios.sum()) - 1) < 1e-5


def test_the_page_names_every_preset_and_every_rule() -> None:
    text = PAGE.read_text()
    missing = [name for name in presets.NAMES if f"`{name}" not in text]
    bases = {"AffineRule", "FunctionRule", "Rule"}  # what rules of users begin with
    missing += [
        name for name in rules.__all__ if name.endswith("Rule") and name not in bases and f"`{name}" not in text
    ]
    assert not missing
