"""benchmarks.choosing: what is chosen without a network, and the differences on the same photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import choosing, tables
from benchmarks.candidates import SEARCH
from benchmarks.networks import DEPTHS

NAMES = ("squeezenet1_1", "efficientnet_lite0", "efficientnet_lite1")


def measured(better: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Two photographs for each network; all candidates have .2 and .4, and some have more below the last activation."""

    def cell(name: str, candidate: str, place: int) -> dict[str, Any]:
        more = better.get(name, {}).get(candidate, 0.0) if place >= 2 else 5.0
        return {"by_photograph": {"a": 0.2 + more, "b": 0.4 + more}}

    return {
        name: {
            "photographs": ["a", "b"],
            "tables": {
                title: {one: {d: cell(name, one, place) for place, d in enumerate(DEPTHS[name])} for one in SEARCH}
                for title in choosing.MEASURES
            },
        }
        for name in NAMES
    }


def test_each_network_gets_what_is_best_on_the_others() -> None:
    """gamma=4 is best by far on SqueezeNet, which alone must not decide for itself."""
    choose = measured(
        {
            NAMES[0]: {"gamma=4": 0.9, "absolute=1": 0.1},
            NAMES[1]: {"gamma=4": -0.3, "absolute=1": 0.1},
            NAMES[2]: {"gamma=4": -0.3, "absolute=1": 0.1},
        }
    )
    report = measured({NAMES[0]: {"absolute=1": -0.05}, NAMES[1]: {"gamma=4": -0.2}})
    found = choosing.left_out(choose, report)
    assert [found[name]["chosen"] for name in NAMES] == ["absolute=1", "gamma=4", "gamma=4"]
    assert [found[name]["differences"][0] for name in NAMES] == [[-0.05, 0.0], [-0.2, 0.0], [0.0, 0.0]]
    assert {row["photographs"] for row in found.values()} == {2}
    without = choosing.left_out(choose, report, excluded=["gamma=4"])
    assert {row["chosen"] for row in without.values()} == {"absolute=1"}
    del report[NAMES[0]]["tables"][choosing.MEASURES[0]]["absolute=1"]
    with pytest.raises(SystemExit, match=f"absolute=1 is chosen for {NAMES[0]}; measure 'absolute=1'"):
        choosing.left_out(choose, report)


def test_the_whole_search_shows_every_candidate() -> None:
    found = choosing.whole_search(measured({NAMES[1]: {"absolute=1": 0.3}}))
    assert list(found) == list(SEARCH[1:])
    assert found["absolute=1"] == {NAMES[0]: [0.0] * 3, NAMES[1]: [0.3] * 3, NAMES[2]: [0.0] * 3}
    assert {
        number for name in SEARCH[1:] if name != "absolute=1" for row in found[name].values() for number in row
    } == {0}


def test_the_tables_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    better = {name: {"absolute=1": 0.1} for name in NAMES}
    better |= {NAMES[0]: {"absolute=1": 0.1, "gamma=4": 0.9}}
    for name in ("choose", "report"):
        text = json.dumps({"networks": measured(better), "command": f"to {name}", "seed": 2})
        (tmp_path / f"{name}.json").write_text(text)
    files = [str(tmp_path / f"{name}.json") for name in ("choose", "report", "found")]
    monkeypatch.setattr(
        "sys.argv", ["choosing", *files[:2], "--excluded", "absolute=0.3", "gamma=4", "--json", files[2]]
    )
    choosing.main()
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "| own; absent; interaction | SqueezeNet 1.1, 2 | EfficientNet-Lite0, 2 | EfficientNet-Lite1, 2 | mean |"
    )
    assert lines[3] == f"| absolute=1 | {' | '.join(['+0.10; +0.10; +0.10'] * 3)} | +0.100 |"
    assert lines[-2:] == ["", "Never chosen, because these maps point badly: absolute=0.3, gamma=4."]
    assert lines[-3] == f"| EfficientNet-Lite1 | absolute=1 | {' | '.join(['+0.100 ± 0.000'] * 3)} | 2 |"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["measured by"] == ["to choose", "to report"]
    assert "\n".join(tables.of_search(found)) == "\n".join(lines)


def test_only_photographs_that_all_depths_have_are_compared() -> None:
    found = measured({})[NAMES[0]]
    del found["tables"][choosing.MEASURES[0]][SEARCH[1]]["input"]["by_photograph"]["a"]
    name, title = NAMES[0], choosing.MEASURES[0]
    assert choosing.by_photograph(found, SEARCH[1], title, DEPTHS[name][2:]) == pytest.approx({"b": 0.4})
    assert len(choosing.differences(found, name, SEARCH[1], title)) == 1
