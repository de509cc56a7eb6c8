"""What contributions cost in time and memory, against the bare price of one gradient.

    python -m benchmarks.cost [--rows 'vgg16/1/*' ...] [--device cpu] [--threads 0] [--seconds 2]
        [--memory none|ours|all] [--compiled replay inductor] [--json FILE]

A row is NETWORK/BATCH/KIND, or ``dispatch`` for the price of following one operation. Without ``--rows`` those are
measured that matter most, in about half an hour on two idle cores; ``--rows '*'`` takes hours. What the columns mean is
in ``benchmarks/README.md``. ``--compiled inductor`` takes minutes for each row; ``--compiled`` alone compiles nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost import dispatch
from benchmarks.cost.measure import GIVING_BACK, Cell, in_fresh_process
from benchmarks.cost.networks import NETWORKS
from benchmarks.cost.rows import (
    COMPILED,
    FLOOR,
    FORWARD,
    KINDS,
    MEMORY,
    OURS,
    REPLAY,
    Row,
    is_usual,
    peak_of,
    rows,
    time_row,
)
from benchmarks.versions import versions_with

_DISPATCH = "dispatch"
_PACKAGES = ("torch", "torchvision", "captum", "transformers", "zennit", "autolrp")
_OURS = (FORWARD, FLOOR, OURS)
_OF_COMPILERS = [name for names in COMPILED.values() for name in names]


def measured(row: Row, options: argparse.Namespace) -> dict[str, Cell]:
    """The cells of a row: times from one fresh process, each peak of memory from another."""
    try:
        cells = in_fresh_process(time_row, row, options.device, options.threads, options.seconds, options.compiled)
    except BrokenProcessPool:
        return {FLOOR: Cell(reason="the process was killed, for the memory it took perhaps")}
    if row.kind in MEMORY and options.memory != "none":
        for name, cell in cells.items():
            if not cell.reason and (options.memory == "all" or name in (*_OURS, REPLAY)):
                with _environment(GIVING_BACK):
                    cell.mebibytes = in_fresh_process(
                        peak_of, row, name, options.device, options.threads, options.compiled
                    )
    return cells


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def shown(row: Row, cells: Mapping[str, Cell]) -> str:
    """A line of the table."""
    floor = cells[FLOOR]
    others = [name for name in cells if name not in (*_OURS, *_OF_COMPILERS)]
    return " | ".join(
        [
            f"| {row}",
            _reason(floor) if floor.seconds is None else f"{floor.seconds.median:.4f}",
            *(_ratio(cells[name]) if name in cells else "" for name in (FORWARD, OURS)),
            "; ".join(f"{name}: {_ratio(cells[name])}" for name in _OF_COMPILERS if name in cells),
            "; ".join(f"{name}: {_ratio(cells[name])}" for name in others),
            " / ".join(str(cell.operations) for cell in cells.values() if cell.operations is not None),
            " / ".join(f"{cell.mebibytes:.1f}" for cell in cells.values() if cell.mebibytes is not None) + " |",
        ]
    )


def _ratio(cell: Cell) -> str:
    return _reason(cell) if cell.ratio is None else "{1:.3f} ({0:.3f}-{2:.3f})".format(*cell.ratio)


def _reason(cell: Cell) -> str:
    return cell.reason.splitlines()[0].replace("|", "\\|")[:60] if cell.reason else ""


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{models[0].partition(':')[2].strip() if models else platform.processor()}, {os.cpu_count()} cores"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _chosen(patterns: Sequence[str], device: torch.device) -> list[Row]:
    batches = (1, 8, 64) if device.type == "cuda" else (1, 8)
    known = list(rows(batches))
    if not patterns:
        return [row for row in known if is_usual(row)]
    return [row for row in known if any(fnmatch.fnmatch(str(row), pattern) for pattern in patterns)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=[], help="patterns, as 'vgg16/1/*', '*/8/last' or dispatch")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 for torch's own number")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a row; three are run in any case")
    parser.add_argument("--memory", choices=("none", "ours", "all"), default="ours", help="whose peaks to measure")
    parser.add_argument("--compiled", nargs="*", choices=tuple(COMPILED), default=["replay"], help="further columns")
    parser.add_argument("--json", type=Path, help="a file for all numbers, written anew after each row")
    options = parser.parse_args(arguments)
    chosen = _chosen(options.rows, options.device)
    with_dispatch = not options.rows or _DISPATCH in options.rows
    if not chosen and not with_dispatch:
        parser.error(f"no row matches; a row is NETWORK/BATCH/KIND of {', '.join(NETWORKS)}; and {', '.join(KINDS)}.")
    report: dict[str, Any] = {
        "command": "python -m benchmarks.cost " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "versions": versions_with(*_PACKAGES),
        "device": _device_name(options.device),
        "threads": options.threads or torch.get_num_threads(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "OMP_", "LD_P"))},
        "rows": {},
    }

    def note(key: str, value: object) -> None:
        report["rows"][key] = value
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")

    print(f"{report['device']}, {report['threads']} threads, torch {torch.__version__}")
    if chosen:
        print("\nMedian ratios to the floor (quartiles); aten operations of the floor, ours, and a replay; peak memory")
        print("of the floor, the forward pass, ours, a replay, others.\n")
        print("| row | floor, s | forward only | ours | compiled | others | operations | peak, MiB |")
        print("|---" * 8 + "|")
    for row in chosen:
        cells = measured(row, options)
        print(shown(row, cells), flush=True)
        note(str(row), {name: asdict(cell) for name, cell in cells.items()})
    if with_dispatch:
        _print_dispatch(in_fresh_process(dispatch.measure, options.device, options.threads), note)


def _print_dispatch(found: dispatch.Dispatch, note: Any) -> None:
    print("\n| operation | autograd, us | followed, us | for following it, us |\n|---|---|---|---|")
    for cost in (*found.operations, found.whole):
        print(f"| {cost.name} | {cost.plain:.1f} | {cost.ours:.1f} | {cost.ours - cost.plain:.1f} |")
    print(f"\n{found.whole.name}: {found.followed} operations met a rule.")
    note(_DISPATCH, found._asdict())


if __name__ == "__main__":
    main()
