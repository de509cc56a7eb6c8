"""The tables of ``benchmarks/README.md``, from the files that the benchmarks wrote.

    python -m benchmarks.tables

writes them anew between their marks. A test sees that they are what this makes of the files.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost.rows import FLOOR, FLOOR_INDUCTOR, FLOOR_REPLAY, INDUCTOR, OURS, REPLAY
from benchmarks.networks import DEPTHS
from captum_cav.comparison.methods import CONTROLS

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
_NETWORKS = {
    "squeezenet1_1": "SqueezeNet 1.1",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_lite1": "EfficientNet-Lite1",
    "efficientnet_lite2": "EfficientNet-Lite2",
    "mobilenet_v2_dogs": "MobileNetV2 for dogs",
    "vgg16_features": "VGG-16 features",
}
#: The rows of benchmarks.localization for what the network itself does.
OWN = ("the network", "the network, by log odds")
# Networks without batch norm.
_PLAIN = ("squeezenet1_1", "vgg16_features")
# What is recommended for networks with convolutions.
_RECOMMENDED = "absolute_epsilon_flat"
_MORE = ", more than cav:pinpoint"
_MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Titles of tables in which less is better.
_LOW = ("Deletion", "Absolute")


def made(name: str) -> str:
    """The text of one mark.

    Args:
        name: ``localization:NETWORK`` or ``faithfulness:NETWORK``; ``grids:NETWORK`` for grid pointing beside what the
            network itself does; ``causes:NETWORK`` for the agreement with measured effects, ``causes:all`` for that of
            all networks together, ``causes:recommended`` for the recommended preset; ``search:all`` for the rules that
            were searched among; ``price:NETWORK`` for what each method costs; ``cost:layers`` for our own price at all
            depths of all networks, ``cost:kinds`` for all else; ``compiled:BACKEND`` for compiled calls,
            ``replays:bits`` and ``replays:refused`` for the bits of replays; ``sentences:all``, ``text:all`` and
            ``patching:MODEL`` for language.

    Returns:
        Markdown.
    """
    benchmark, _, what = name.partition(":")
    if benchmark == "price":
        return "\n".join(["", *_prices(what), "", ""])
    if benchmark == "cost":
        report = _read("cost_cpu")
        table = _all_depths(report) if what == "layers" else _kinds(report)
        lines = [*table, "", f"{report['device']}, torch {report['versions']['torch']}. {report['note']}"]
    elif benchmark == "compiled":
        report = _read(f"compiled_{what}")
        lines = [*of_compiled(report["rows"]), "", f"{report['device']}, {report['threads']} threads, torch"]
        lines[-1] += f" {report['versions']['torch']}. {report.get('note', '')}".rstrip()
    elif benchmark == "replays":
        report = _read("replays")
        lines = of_replays(report["rows"]) if what == "bits" else refused_replays(report["rows"])
    elif benchmark == "sentences":
        report = _read("sentences")
        lines = of_sentences(report)
    elif name == "causes:all":
        read = {one: _read(f"causes_{one}") for one in DEPTHS if (RESULTS / f"causes_{one}.json").exists()}
        networks = {one: report["networks"][one] for one, report in read.items()}
        return "\n".join(["", *of_all_causes(networks), "", ""])
    elif name == "causes:recommended":
        report = _read("causes_recommended")
        lines = of_recommended(report["networks"])
    elif benchmark == "search":
        report = _read("search")
        lines = of_search(report)
    elif benchmark == "text":
        report = _read("text")
        lines = of_text(report)
    elif benchmark == "patching":
        report = _read("patching")
        lines = of_patching(report["models"][what])
    else:
        report = _read(f"{benchmark}_{what}")
        make = _causes if benchmark == "causes" else _by_depth
        lines = list(make(report["networks"][what], what))
    return "\n".join(["", f"    {report['command']}", "", *lines, "", ""])


def of_sentences(report: dict[str, Any]) -> list[str]:
    """The results of :mod:`benchmarks.sentences` as a table, the best gap first."""
    found, seconds = report["results"], report["seconds"]
    names = {"gap": "gap ↑", "deletion": "deletion ↓", "insertion": "insertion ↑", "effects": "effects ↑"}
    heads = [f"{shown}, {way}" for way in found for shown in names.values()]
    lines = [f"| method | {' | '.join(heads)} | ms |", "|---" * (2 + len(heads)) + "|"]
    methods = list(found["mask"]["gap"])
    rows: dict[str, list[str]] = {}
    for method in sorted(methods, key=lambda method: -sum(found[way]["gap"][method]["mean"] for way in found)):
        cells = [found[way][name][method]["mean"] for way in found for name in names]
        rows.setdefault(" | ".join(f"{cell:.3f}" for cell in cells), []).append(method)
    for shown, same in rows.items():
        times = [1000 * seconds[method]["mean"] for method in same]
        span = dict.fromkeys(f"{time:.0f}" for time in (min(times), max(times)))
        lines.append(f"| {', '.join(same)} | {shown} | {' to '.join(span)} |")
    ceilings = [found[way]["effects"]["effects"]["mean"] for way in found]
    empty = [f"- | - | - | {ceiling:.3f}" for ceiling in ceilings]
    lines.append(f"| the most that noise leaves | {' | '.join(empty)} | - |")
    errors = [found[way][name][method]["error"] for way in found for name in ("gap", "effects") for method in methods]
    counted = f"{report['sentences']} sentences; standard errors of gaps and of effects up to {max(errors):.3f}."
    return [*lines, "", counted]


def of_search(found: dict[str, Any]) -> list[str]:
    """What :mod:`benchmarks.choosing` found, as two tables: the search, and what is chosen without each network."""
    counts = found["photographs"]
    heads = [f"{_NETWORKS[name]}, {count}" for name, count in counts.items()]
    lines = [f"| own; absent; interaction | {' | '.join(heads)} | mean |", "|---" * (len(heads) + 2) + "|"]
    means = {
        candidate: statistics.fmean(number for numbers in rows.values() for number in numbers)
        for candidate, rows in found["search"].items()
    }
    for candidate in sorted(means, key=lambda candidate: -means[candidate]):
        cells = ["; ".join(f"{number:+.2f}" for number in numbers) for numbers in found["search"][candidate].values()]
        lines.append(f"| {candidate} | {' | '.join(cells)} | {means[candidate]:+.3f} |")
    measures = [title.partition(":")[0] for title in found["measures"]]
    lines += [
        "",
        f"| left out | chosen on the others | {' | '.join(measures)} | photographs |",
        "|---" * (len(measures) + 3) + "|",
    ]
    for name, row in found["left out"].items():
        cells = [f"{mean:+.3f} ± {error:.3f}" for mean, error in row["differences"]]
        lines.append(f"| {_NETWORKS[name]} | {row['chosen']} | {' | '.join(cells)} | {row['photographs']} |")
    if found["excluded"]:
        lines += ["", f"Never chosen, because these maps point badly: {', '.join(found['excluded'])}."]
    return lines


def of_text(report: dict[str, Any]) -> list[str]:
    """The results of :mod:`benchmarks.text` as a table: seconds, and parts of the seconds of the single calls."""
    seconds: dict[str, dict[str, float]] = {}
    for row in report["rows"]:
        if "seconds" in row:
            seconds.setdefault(row["model"], {})[row["method"]] = row["seconds"]
    single = next(method for method in next(iter(seconds.values())) if method.endswith("single calls"))
    lines = [f"| seconds (part of {single}) | {' | '.join(seconds)} |", "|---" * (1 + len(seconds)) + "|"]
    for method in next(iter(seconds.values())):
        cells = [f"{found[method]:.2f} ({found[method] / found[single]:.2f})" for found in seconds.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    of_half = [f"{row['correlation']:.4f} ({row['model']})" for row in report["rows"] if "correlation" in row]
    return [*lines, "", f"Maps of bfloat16 correlate with those of float32 with {', '.join(of_half)}."]


def of_patching(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The correlations of one model of :mod:`benchmarks.patching` as a table."""
    first = next(iter(found.values()))
    rows = {
        "attribution patching (gradients)": [of_kind["gradient"] for of_kind in first.values()],
        **{
            f"relevance patching, `{rules}`": [of_kind["relevance"] for of_kind in of_kinds.values()]
            for rules, of_kinds in found.items()
        },
    }
    lines = [f"| estimate | {' | '.join(first)} |", "|---" * (1 + len(first)) + "|"]
    return lines + [f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |" for name, cells in rows.items()]


def of_compiled(rows: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Ours and the floor, as they are and compiled, over the floor; and how many operations they call.

    Args:
        rows: of the file of :mod:`benchmarks.cost`.
    """
    known = [OURS, REPLAY, FLOOR_REPLAY, INDUCTOR, FLOOR_INDUCTOR]
    columns = [name for name in known if any(name in cells for cells in rows.values())]
    counted = [name for name in (FLOOR, OURS, REPLAY) if any(name in cells for cells in rows.values())]
    heads = ["network, batch", "floor, s", *columns, f"operations: {' / '.join(counted)}"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    refused = []
    for row, cells in rows.items():
        network, batch, kind = row.split("/")
        asked = f"{network}, {batch}" if kind == "layers" else f"{network}, {batch}, {kind}"
        shown = [_ratio(cells.get(name, {}), quartiles=True) for name in columns]
        count = " / ".join(str(cells.get(name, {}).get("operations") or "-") for name in counted)
        lines.append(f"| {asked} | {cells[FLOOR]['seconds'][1]:.3f} | {' | '.join(shown)} | {count} |")
        reasons = {name: cell["reason"] for name, cell in cells.items() if name in columns and cell["reason"]}
        refused += [f"{row}, {name}: {reason.splitlines()[0]}" for name, reason in reasons.items()]
    return [*lines, *(line for reason in refused for line in ("", reason))]


def of_replays(rows: list[dict[str, Any]]) -> list[str]:
    """How many replays of :mod:`benchmarks.compilation` have the bits of the attribution, for each suite and preset."""
    presets = list(dict.fromkeys(row["preset"] for row in rows if row["preset"]))
    heads = ["networks of", "number", *presets, "refused, or not explained"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        of_suite = [row for row in rows if row["suite"] == suite]
        cells = []
        for preset in presets:
            outcomes = [row["outcome"] for row in of_suite if row["preset"] == preset]
            tried = [outcome for outcome in outcomes if outcome in ("equal", "different")]
            cells.append(f"{tried.count('equal')} of {len(tried)} equal")
        left = {row["network"] for row in of_suite if row["outcome"] not in ("equal", "different")}
        count = len({row["network"] for row in of_suite})
        lines.append(f"| {suite} | {count} | {' | '.join(cells)} | {len(left)} |")
    return lines


def refused_replays(rows: list[dict[str, Any]]) -> list[str]:
    """What :mod:`benchmarks.compilation` could not compare, and what is not equal, with the reasons."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["outcome"] != "equal":
            cells = (row["suite"], row["network"], row["outcome"], row["reason"].replace("|", "\\|"))
            found.setdefault(cells, []).append(row["preset"])
    lines = ["| networks of | network | rules | outcome | reason |", "|---" * 5 + "|"]
    for (suite, network, outcome, reason), presets in found.items():
        lines.append(f"| {suite} | {network} | {', '.join(filter(None, presets))} | {outcome} | {reason} |")
    return lines


def written(text: str) -> str:
    """A text with all its marked tables made anew."""
    return _MARKED.sub(lambda found: found[1] + made(found[2]) + found[3], text)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _by_depth(found: dict[str, Any], network: str) -> Iterator[str]:
    """A table for each measure: methods by depths."""
    for title, results in found["tables"].items():
        depths = max((list(columns) for columns in results.values()), key=len)
        means = {
            method: [columns.get(depth, {}).get("mean") for depth in depths] for method, columns in results.items()
        }
        best = [_best(means, column, title.startswith(_LOW)) for column in range(len(depths))]
        rows: dict[tuple[str, ...], list[str]] = {}
        for method, numbers in means.items():
            shown = tuple(_shown(number, top) for number, top in zip(numbers, best, strict=True))
            rows.setdefault(shown, []).append(method)
        yield f"| {title} | {' | '.join(depths)} |"
        yield "|---" * (len(depths) + 1) + "|"
        yield from (f"| {', '.join(methods)} | {' | '.join(shown)} |" for shown, methods in rows.items())
        errors = [cell["error"] for columns in results.values() for cell in columns.values() if cell["error"]]
        yield ""
        middle = statistics.median(errors)
        yield f"{_NETWORKS[network]}; standard errors up to {max(errors):.2f}, half of them below {middle:.2f}."
        yield ""
    yield f"{len(found['photographs'])} photographs."
    for method, reason in found["refused"].items():
        yield f"Not `{method}`: {reason}"


def _causes(found: dict[str, Any], network: str) -> Iterator[str]:
    """The agreement of each method with the effects, below the last activation and at the input."""
    tables = found["tables"]
    # What is behind a ", " tells more of the title; tables of differences have no column of their own.
    measures = [title for title in tables if ", more than " not in title and not title.startswith("Seconds")]
    difference = next(title for title in tables if title.startswith("Own class, more than "))
    depths = [depth for depth in DEPTHS[network][2:] if depth in (DEPTHS[network][2], "input")]
    count = len(found["photographs"])
    titles = [f"{title.partition(':')[0]}: {' / '.join(depths)}" for title in measures]
    yield f"| {_NETWORKS[network]}, {count} photographs | {' | '.join(titles)} | {difference}: input | seconds |"
    yield "|---" * (len(measures) + 3) + "|"
    for method in tables[measures[0]]:
        cells = [
            " / ".join(_mean(tables[title][method].get(depth)) for depth in depths).replace("- / ", "")
            for title in measures
        ]
        more = tables[difference].get(method, {}).get("input")
        shown = f"{more['mean']:+.2f} ± {more['error']:.2f}" if more and more["error"] is not None else "-"
        seconds = tables["Seconds of the processor"].get(method, {}).get("all")
        yield f"| {method} | {' | '.join(cells)} | {shown} | {_mean(seconds)} |"


def of_all_causes(networks: dict[str, dict[str, Any]]) -> list[str]:
    """The differences to ``pinpoint`` of all networks together, as means over depths below the last activation.

    Args:
        networks: of each network, what :mod:`benchmarks.causes` found. All methods count that all networks have.

    Returns:
        A table: of each method the differences on the networks with batch norm, and on those without.
    """
    kinds = {
        "batch norm": [name for name in networks if name not in _PLAIN],
        "no batch norm": [name for name in networks if name in _PLAIN],
    }
    tables = {name: found["tables"] for name, found in networks.items()}
    titles = [title for title in next(iter(tables.values())) if title.endswith(_MORE)]
    shared = [
        method
        for method in next(iter(tables.values()))[titles[0]]
        if all(method in of_network[titles[0]] for of_network in tables.values())
    ]
    heads = [f"{title.removesuffix(_MORE)}: {kind}" for kind in kinds for title in titles]
    lines = [f"| more than `pinpoint` | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    rows = {}
    for method in shared:
        values = [
            [one for name in names for one in _over_depths(tables[name][title][method], DEPTHS[name][2:])]
            for names in kinds.values()
            for title in titles
        ]
        rows[method] = values
    for method, values in sorted(rows.items(), key=lambda row: -statistics.fmean(row[1][0])):
        lines.append(f"| {method} | {' | '.join(map(_with_error, values))} |")
    counts = [f"{_NETWORKS[name]} {len(networks[name]['photographs'])}" for names in kinds.values() for name in names]
    return [*lines, "", f"Photographs: {', '.join(counts)}."]


def of_recommended(networks: dict[str, dict[str, Any]]) -> list[str]:
    """The differences of the recommended preset to ``pinpoint`` on each network, as :func:`of_all_causes` has them."""
    titles = [title for title in next(iter(networks.values()))["tables"] if title.endswith(_MORE)]
    measures = [title.removesuffix(_MORE) for title in titles]
    lines = [f"| `{_RECOMMENDED}` more than `pinpoint` | {' | '.join(measures)} | photographs |"]
    lines.append("|---" * (2 + len(titles)) + "|")
    values = {
        name: [_over_depths(found["tables"][title][f"cav:{_RECOMMENDED}"], DEPTHS[name][2:]) for title in titles]
        for name, found in networks.items()
    }
    with_norm = [[one for name in values if name not in _PLAIN for one in values[name][k]] for k in range(len(titles))]
    for name, row in {
        **{_NETWORKS[name]: row for name, row in values.items()},
        "all with batch norm": with_norm,
    }.items():
        lines.append(f"| {name} | {' | '.join(map(_with_error, row))} | {len(row[0])} |")
    return lines


def _with_error(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):+.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def _over_depths(columns: dict[str, Any], depths: Sequence[str]) -> list[float]:
    """Of each photograph, the mean over those of the depths that there are."""
    found = [columns[depth]["by_photograph"] for depth in depths if depth in columns]
    return [statistics.fmean(one[name] for one in found) for name in found[0] if all(name in one for one in found)]


def _mean(cell: dict[str, Any] | None) -> str:
    return f"{cell['mean']:.2f}" if cell and cell["mean"] is not None else "-"


def _best(means: dict[str, list[float | None]], column: int, low: bool) -> str:
    numbers = [row[column] for method, row in means.items() if method not in (*CONTROLS, *OWN)]
    known = [number for number in numbers if number is not None]
    return f"{min(known) if low else max(known):.2f}"


def _shown(number: float | None, best: str) -> str:
    if number is None:
        return "-"
    text = f"{number:.2f}"
    return f"**{text}**" if text == best else text


def _prices(network: str) -> Iterator[str]:
    """Seconds and passes of each method at some layers."""
    with (RESULTS / f"price_{network}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] not in CONTROLS]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    yield f"| {_NETWORKS[network]}: seconds (passes forward + backward) | {' | '.join(layers)} |"
    yield "|---" * (len(layers) + 1) + "|"
    for method in dict.fromkeys(row["method"] for row in rows):
        found = {row["layer"]: row for row in rows if row["method"] == method}
        yield f"| {method} | {' | '.join(_price(found.get(layer)) for layer in layers)} |"


def _price(row: dict[str, str] | None) -> str:
    if row is None or not row["seconds"]:
        return "-"
    return f"{float(row['seconds']):.3f} ({float(row['forwards']):.0f} + {float(row['backwards']):.0f})"


def _all_depths(report: dict[str, Any]) -> Iterator[str]:
    """Ours and the others against the floor, for all depths of each network."""
    yield "| network, batch | floor, s | forward only | ours | LayerLRP | gradient x activation | MiB: floor / ours |"
    yield "|---" * 7 + "|"
    for row, cells in report["rows"].items():
        if row.endswith("/layers"):
            network, batch, _ = row.split("/")
            others = (cells.get(f"Captum {name}", {}) for name in ("LayerLRP", "LayerGradientXActivation"))
            yield " | ".join(
                [
                    f"| {network}, {batch}",
                    f"{cells['floor']['seconds'][1]:.3f}",
                    _ratio(cells["forward only"]),
                    _ratio(cells["ours"], quartiles=True),
                    *map(_ratio, others),
                    f"{_mebibytes(cells['floor'])} / {_mebibytes(cells['ours'])} |",
                ]
            )


def _kinds(report: dict[str, Any]) -> Iterator[str]:
    """What else was asked for."""
    yield "| row | floor, s | ours | others | MiB: floor / forward only / ours |"
    yield "|---" * 5 + "|"
    for row, cells in report["rows"].items():
        if row != "dispatch" and not row.endswith("/layers"):
            others = [name for name in cells if name not in ("floor", "forward only", "ours") and cells[name]["ratio"]]
            peaks = [_mebibytes(cells[name]) for name in ("floor", "forward only", "ours")]
            yield (
                " | ".join(
                    [
                        f"| {row}",
                        f"{cells['floor']['seconds'][1]:.3f}",
                        _ratio(cells["ours"], quartiles=True),
                        "; ".join(f"{name} {_ratio(cells[name])}" for name in others),
                        " / ".join(peaks) if any(peak != "-" for peak in peaks) else "",
                    ]
                )
                + " |"
            )


def _ratio(cell: dict[str, Any], quartiles: bool = False) -> str:
    if not cell.get("ratio"):
        return "-"
    low, middle, high = cell["ratio"]
    return f"{middle:.2f} ({low:.2f}-{high:.2f})" if quartiles else f"{middle:.2f}"


def _mebibytes(cell: dict[str, Any]) -> str:
    value = cell.get("mebibytes")
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
