"""benchmarks.invariance: networks that compute the same function get the same map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.invariance import __main__ as command
from benchmarks.invariance.measure import INPUTS, Explained, deviation, deviations
from benchmarks.invariance.pair import RULES, Pair, Spelling, family
from benchmarks.invariance.report import shown, written
from benchmarks.invariance.table import pairs

PAIRS = {pair.name: pair for pair in pairs()}
ALL = set(RULES)


def unexpected(pair: Pair, names: set[str]) -> list[str]:
    """What deviates under some presets although it is not undecidable."""
    measured = [] if pair.undecidable else deviations(pair, tuple(names))
    return [f"{one.preset}: {one.size:.1e}, {one.place}" for one in measured if not one.is_none]


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_function_has_the_same_map(name: str) -> None:
    assert unexpected(PAIRS[name], {"paper"}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_function_has_the_same_map_under_every_preset(name: str) -> None:
    assert unexpected(PAIRS[name], ALL - {"paper"}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if pair.undecidable])
def test_what_is_said_to_deviate_does(name: str) -> None:
    assert not all(one.is_none for one in deviations(PAIRS[name]))


def test_the_table_is_large_and_has_all_groups() -> None:
    assert len(PAIRS) >= 150
    groups = {pair.group for pair in PAIRS.values()}
    expected = (
        "attention norms softmax activations compositions pooling linear convolution residual recurrent wrappers roles"
    )
    assert groups == {*expected.split(), "squashed outputs"}
    assert {preset for pair in PAIRS.values() for preset in pair.presets} == set(RULES)


def pair_of(function: Callable[..., torch.Tensor], rewrite: Callable[..., torch.Tensor] | Spelling) -> Pair:
    (pair,) = family("planted", "function", function, {"rewrite": rewrite})
    return pair


def test_another_map_of_the_same_function_is_found() -> None:
    found = deviation(pair_of(F.silu, lambda x: F.silu(x).detach() + 0 * x), "paper")
    assert found.size > 0.1
    assert found.place == "map of the inputs"


def test_another_share_of_constants_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, ones = pair_of(F.relu, torch.relu), torch.ones(2, 3)

    def explained(spelling: Spelling, *_: object) -> Explained:
        return Explained(ones, {INPUTS: ones}, {INPUTS: torch.tensor([0.0, 0.5 * (spelling is pair.rewrite)])})

    monkeypatch.setattr("benchmarks.invariance.measure.explained", explained)
    assert deviation(pair, "paper") == ("paper", 0.5, "constants behind the inputs")


def test_a_rewrite_that_computes_something_else_is_no_rewrite() -> None:
    found = deviation(pair_of(F.relu, lambda x: F.relu(x) + 1e-6), "paper")
    assert (found.size, found.place) == (float("inf"), "the scores differ")


def test_a_rewrite_that_is_refused_deviates() -> None:
    found = deviation(pair_of(F.silu, lambda x: F.dropout(F.silu(x), 1e-30)), "paper")
    assert (found.size, found.place) == (float("inf"), "a map against ModelError")


def test_a_line_names_the_worst_preset() -> None:
    pair = pair_of(F.silu, lambda x: F.silu(x).detach() + 0 * x)
    line = shown(pair, deviations(pair, ("paper", "gamma")))
    assert line.startswith("FAIL planted: function: rewrite ")
    assert line.endswith("2 of 2 presets")
    assert shown(pair_of(F.relu, torch.relu), deviations(PAIRS["relu: torch.relu"], ("paper",))).startswith("ok   ")


def test_the_page_says_why_something_cannot_be_told_apart() -> None:
    (pair,) = family(
        "planted", "f", F.silu, {"a | b": lambda x: F.silu(x).detach() + 0 * x}, undecidable={"a | b": "no | trace"}
    )
    page = written([(pair, deviations(pair, ("paper",)))])
    assert "1 pairs, of which 0 have equal maps" in page
    assert "| `f: a \\| b` | 1e+00 | paper | 1 of 1 | no \\| trace |" in page


def test_the_command_measures_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, page = torch.get_num_threads(), tmp_path / "page.md"
    with pytest.raises(SystemExit, match="0"):
        command.main(
            [*"--preset paper gamma --threads".split(), str(threads), "--table", str(page), "--only", "relu6: clip"]
        )
    assert capsys.readouterr().out.splitlines()[-1] == "1 pairs, 0 deviate, 0 cannot be told apart"
    assert "- relu6: `clip`\n" in page.read_text()
