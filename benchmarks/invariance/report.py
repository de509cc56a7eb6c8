"""What was measured, as lines and as a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.invariance.measure import TOLERANCE, Deviation
from benchmarks.invariance.pair import RULES, Pair
from benchmarks.versions import versions_with

Measured = tuple[Pair, Sequence[Deviation]]

_HEAD = """# Implementation invariance

Two networks that compute the same function must get the same map, however they are written (Sundararajan et al. 2017).
`python -m benchmarks.invariance --table docs/invariance.md` measures this and writes this page.

Each pair is a function and a rewrite that gives the same numbers. Both stand between two linear layers. In float64, the
contributions of the inputs and of the first layer are compared under each preset, and so are the shares of constants.
The deviation is the largest difference, as a part of the largest value; up to {tolerance:.0e}, maps are equal. Where
one of the two is refused and the other one is not, the deviation is infinite. If presets follow a function in brackets,
the maps are compared under these presets only, because other presets have other rules for the rewrite.

A function that is written out has the rule of the fused function. So a rule for `torch.softmax` counts for exponentials
over their sum, too. A function of single elements is one activation, however many operations compute it. A number
inside belongs to the activation. What is added before the activation is a constant with a share of its own, as the bias
of a layer is. What a gate weighs: [gates](gates.md).
"""


def shown(pair: Pair, measured: Sequence[Deviation]) -> str:
    """A line about a pair."""
    if not measured:
        return f"-    {pair.group}: {pair.name}"
    worst = _worst(measured)
    word = "ok  " if worst.is_none else "open" if pair.undecidable else "FAIL"
    count = sum(not one.is_none for one in measured)
    where = "" if worst.is_none else f"  {worst.preset}, {worst.place}; {count} of {len(measured)} presets"
    return f"{word} {f'{pair.group}: {pair.name}':64} {worst.size:7.0e}{where}"


def written(found: Iterable[Measured]) -> str:
    """The page about all pairs."""
    rows = [(pair, measured) for pair, measured in found if measured]
    equal = [(pair, measured) for pair, measured in rows if _worst(measured).is_none]
    deviating = [(pair, measured) for pair, measured in rows if not _worst(measured).is_none]
    versions = ", ".join(f"{name} {version}" for name, version in versions_with("torch").items())
    lines = [
        _HEAD.format(tolerance=TOLERANCE),
        f"{len(rows)} pairs, of which {len(equal)} have equal maps under all presets of their row. With {versions}.",
        "",
    ]
    for title, reasons in (("What cannot be told apart", True), ("What is not recognised yet", False)):
        members = [row for row in deviating if bool(row[0].undecidable) == reasons]
        if members:
            lines += [f"## {title}", "", *_table(members, reasons), ""]
    lines += ["## What has equal maps", ""]
    for group, members_of_group in groupby(equal, lambda row: row[0].group):
        lines += [f"### {group.capitalize()}", "", *_lists(pair for pair, _ in members_of_group), ""]
    return "\n".join(lines)


def _table(rows: list[Measured], with_reasons: bool) -> list[str]:
    columns = ["function: rewrite", "worst deviation", "preset of the worst", "presets that deviate"]
    if with_reasons:
        columns.append("why")
    lines = [_row(columns), _row(["---"] * len(columns))]
    for pair, measured in rows:
        worst = _worst(measured)
        count = f"{sum(not one.is_none for one in measured)} of {len(measured)}"
        cells = [f"`{pair.name}`", f"{worst.size:.0e}", worst.preset, count]
        lines.append(_row([*cells, pair.undecidable] if with_reasons else cells))
    return lines


def _lists(pairs: Iterable[Pair]) -> Iterator[str]:
    """A line for each function, with its rewrites."""
    for (function, names), members in groupby(pairs, lambda pair: (pair.function_name, pair.presets)):
        presets = "" if set(names) == set(RULES) else f" ({', '.join(names)})"
        yield f"- {function}{presets}: {', '.join(f'`{pair.rewrite_name}`' for pair in members)}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _worst(measured: Sequence[Deviation]) -> Deviation:
    return max(measured, key=lambda one: one.size)
