"""benchmarks.choosing: what is chosen without a network, and the differences on the same photographs."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import choosing
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
    rows = choosing.left_out(choose, report).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["absolute=1", "gamma=4", "gamma=4"]
    assert [row.split(" | ")[2] for row in rows] == ["-0.050 ± 0.000", "-0.200 ± 0.000", "+0.000 ± 0.000"]
    assert rows[0].endswith("| 2 |")


def test_the_whole_search_shows_every_candidate() -> None:
    rows = choosing.whole_search(measured({NAMES[1]: {"absolute=1": 0.3}})).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {candidate}" for candidate in SEARCH[1:]]
    (row,) = (row for row in rows if row.startswith("| absolute=1 "))
    assert row.split(" | ")[1:] == ["+0.00; +0.00; +0.00", "+0.30; +0.30; +0.30", "+0.00; +0.00; +0.00", "+0.100 |"]


def test_only_photographs_that_all_depths_have_are_compared() -> None:
    found = measured({})[NAMES[0]]
    del found["tables"][choosing.MEASURES[0]][SEARCH[1]]["input"]["by_photograph"]["a"]
    name, title = NAMES[0], choosing.MEASURES[0]
    assert choosing.by_photograph(found, SEARCH[1], title, DEPTHS[name][2:]) == pytest.approx({"b": 0.4})
    assert len(choosing.differences(found, name, SEARCH[1], title)) == 1
