"""Choosing rules on several networks at once: leave one network out, choose on the others, report on the one left out.

What is best on one network often fails on another. So each candidate of ``benchmarks.candidates`` is measured by
``benchmarks.causes`` on the "choose" photographs of all networks. For each network the candidate is taken that is best
on the *other* networks, and what counts is how it does on the "report" photographs of the network itself, against
``pinpoint`` on the same photographs.

Best is the highest mean of the three agreements with the effects (own class, absent classes, interaction), over all
depths below the last activation and over networks. All candidates are shown, also those that failed.

    python -m benchmarks.causes --cache FOLDER --methods search --split choose --against gamma=1 --json CHOOSE.json
    python -m benchmarks.causes --cache FOLDER --methods search --split report --against gamma=1 --json REPORT.json
    python -m benchmarks.choosing CHOOSE.json REPORT.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.candidates import SEARCH
from benchmarks.causes import TITLES
from benchmarks.networks import DEPTHS

PRESENT = SEARCH[0]
MEASURES = TITLES[:3]


def by_photograph(network: Mapping[str, Any], candidate: str, title: str, depths: Sequence[str]) -> dict[str, float]:
    """The mean of a measure over depths, for each photograph.

    Args:
        network: of a network, what ``benchmarks.causes`` wrote.
        candidate: a row of the table.
        title: of the table.
        depths: of which the mean is taken.

    Returns:
        The means by the name of the photograph.
    """
    columns = [network["tables"][title][candidate][depth]["by_photograph"] for depth in depths]
    names = [name for name in columns[0] if all(name in column for column in columns)]
    return {name: statistics.fmean(column[name] for column in columns) for name in names}


def differences(network: Mapping[str, Any], name: str, candidate: str, title: str) -> list[float]:
    """By how much a candidate is better than ``pinpoint`` on each photograph, below the last activation."""
    # The first two depths are before and behind the last activation.
    own, present = (by_photograph(network, one, title, DEPTHS[name][2:]) for one in (candidate, PRESENT))
    return [own[photograph] - present[photograph] for photograph in own if photograph in present]


def advantage(networks: Mapping[str, Any], names: Iterable[str], candidate: str) -> float:
    """How much better than ``pinpoint`` a candidate is on some networks, each of which counts the same."""
    return statistics.fmean(
        statistics.fmean(differences(networks[name], name, candidate, title)) for name in names for title in MEASURES
    )


def shown(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.3f} ± {error:.3f}"


def whole_search(networks: Mapping[str, Any]) -> str:
    """All candidates on all networks, as a table: the difference to ``pinpoint`` of each agreement."""
    names = list(networks)
    lines = [f"| own; absent; interaction | {' | '.join(names)} | mean of all |", "|---" * (len(names) + 2) + "|"]
    for candidate in SEARCH[1:]:
        cells = []
        for name in names:
            means = [statistics.fmean(differences(networks[name], name, candidate, title)) for title in MEASURES]
            cells.append("; ".join(f"{mean:+.2f}" for mean in means))
        lines.append(f"| {candidate} | {' | '.join(cells)} | {advantage(networks, names, candidate):+.3f} |")
    return "\n".join(lines)


def left_out(choose: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """For each network: what is best on the others, and how that does on the network itself, as a table."""
    lines = [
        f"| left out | chosen on the others | {' | '.join(MEASURES)} | photographs |",
        "|---" * (len(MEASURES) + 3) + "|",
    ]
    for name in report:
        others = [other for other in choose if other != name]
        best = max(SEARCH, key=lambda candidate: advantage(choose, others, candidate))
        values = [differences(report[name], name, best, title) for title in MEASURES]
        lines.append(f"| {name} | {best} | {' | '.join(map(shown, values))} | {len(values[0])} |")
    return "\n".join(lines)


def main() -> None:
    """Read two files of ``benchmarks.causes`` and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choose", type=Path, help="what benchmarks.causes --split choose wrote")
    parser.add_argument("report", type=Path, help="what benchmarks.causes --split report wrote")
    options = parser.parse_args()
    choose, report = (json.loads(path.read_text())["networks"] for path in (options.choose, options.report))
    counts = ", ".join(f"{name} {len(found['photographs'])}" for name, found in choose.items())
    print(f"Difference to pinpoint on the photographs to choose on ({counts}):\n\n{whole_search(choose)}")
    print(f"\nDifference to pinpoint on the photographs to report:\n\n{left_out(choose, report)}")


if __name__ == "__main__":
    main()
