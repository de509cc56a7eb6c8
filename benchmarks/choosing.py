"""Choosing rules on several networks at once: leave one network out, choose on the others, report on the one left out.

What is best on one network often fails on another. So each candidate of ``benchmarks.candidates`` is measured by
``benchmarks.causes`` on the "choose" photographs of all networks. For each network the candidate is taken that is best
on the *other* networks, and what counts is how it does on the "report" photographs of the network itself, against
``pinpoint`` on the same photographs.

Best is the highest mean of the three agreements with the effects (own class, absent classes, interaction), over all
depths below the last activation and over networks. All candidates are shown, also those that failed.

Cells of 4 x 4 are too coarse to show whether a map is right at the pixels. So candidates whose maps do not point at the
right photograph of a grid (``benchmarks.localization``) are named with ``--excluded``: shown, but never chosen.

    python -m benchmarks.causes --cache FOLDER --methods search --split choose --json CHOOSE.json
    python -m benchmarks.causes --cache FOLDER --methods search --split report --json REPORT.json
    python -m benchmarks.choosing CHOOSE.json REPORT.json [--excluded CANDIDATE ...]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.candidates import SEARCH
from benchmarks.causes import TITLES
from benchmarks.networks import DEPTHS
from benchmarks.tables import of_search

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


def whole_search(networks: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Of all candidates on all networks: the mean difference to ``pinpoint`` of each agreement."""
    return {
        candidate: {
            name: [round(statistics.fmean(differences(found, name, candidate, title)), 4) for title in MEASURES]
            for name, found in networks.items()
        }
        for candidate in SEARCH[1:]
    }


def left_out(
    choose: Mapping[str, Any], report: Mapping[str, Any], excluded: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """For each network: what is best on the others, and how that does on the network itself.

    Args:
        choose: what was measured to choose on.
        report: what was measured to report, at least of the candidates that are chosen.
        excluded: candidates that are not chosen.

    Returns:
        Of each network the candidate, the number of photographs, and of each agreement the mean difference to
        ``pinpoint`` with its standard error.

    Raises:
        SystemExit: if the chosen candidate is not in the report.
    """
    found = {}
    candidates = [candidate for candidate in SEARCH if candidate not in excluded]
    for name, network in report.items():
        others = [other for other in choose if other != name]
        best = max(candidates, key=lambda candidate: advantage(choose, others, candidate))
        if best not in network["tables"][MEASURES[0]]:
            raise SystemExit(f"{best} is chosen for {name}; measure {best!r} on the photographs to report, too")
        values = [differences(network, name, best, title) for title in MEASURES]
        found[name] = {"chosen": best, "photographs": len(values[0]), "differences": [summary(one) for one in values]}
    return found


def summary(values: Sequence[float]) -> list[float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return [round(statistics.fmean(values), 4), round(error, 4)]


def main() -> None:
    """Read two files of ``benchmarks.causes``, print both tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choose", type=Path, help="what benchmarks.causes --split choose wrote")
    parser.add_argument("report", type=Path, help="what benchmarks.causes --split report wrote")
    parser.add_argument("--excluded", nargs="+", default=[], choices=SEARCH, metavar="CANDIDATE", help="never chosen")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    files = {name: json.loads(getattr(options, name).read_text()) for name in ("choose", "report")}
    choose, report = (files[name]["networks"] for name in files)
    found = {
        "command": shlex.join(["python", "-m", "benchmarks.choosing", *sys.argv[1:]]),
        "measured by": [one["command"] for one in files.values()],
        "seed": files["choose"]["seed"],
        "measures": MEASURES,
        "photographs": {name: len(one["photographs"]) for name, one in choose.items()},
        "search": whole_search(choose),
        "excluded": options.excluded,
        "left out": left_out(choose, report, options.excluded),
    }
    print("\n".join(of_search(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
