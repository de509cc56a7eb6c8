"""Does a replay have the bits of the attribution, on an input that was not recorded?

    python -m benchmarks.compilation [--suites torchvision timm transformers] [--presets paper gamma pinpoint]
        [--only NAME ...] [--count N] [--part 1/2] [--json FILE] [--threads 1]

The networks are those of ``benchmarks.coverage`` with their random parameters: all classifiers of torchvision, on small
pictures and in float32; the lightest families of timm; tiny models of transformers. Contributions of the inputs are
recorded for one input and one class, and replayed for another input and another class. The JSON file is written anew
after each row. A row that was refused tells the reason.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision

import captum_cav
from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import randomised
from benchmarks.versions import versions_with
from captum_cav import InputCAV
from captum_cav.errors import CAVError, RecordingError

SUITES = ("torchvision", "timm", "transformers")
PRESETS = ("paper", "gamma", "pinpoint")
_COUNTS = {"torchvision": 1000, "timm": 40, "transformers": 30}
#: Sides of the pictures where a network of torchvision does not take 64 pixels.
_SIDES = {"inception_v3": 299, "googlenet": 64, "alexnet": 96, "vit": 224, "maxvit": 224}

Cases = Iterator[tuple[str, Callable[[], Problem]]]


@dataclass
class Row:
    """What came out for a network and a preset.

    Attributes:
        suite: where the network comes from.
        network: its name.
        preset: the rules.
        outcome: "equal", "refused", "not explained" (by the attribution itself) or "not built".
        reason: why it is not equal.
        seconds: CPU seconds of the first call, which records.
    """

    suite: str
    network: str
    preset: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        reason = self.reason.replace("|", "\\|")
        return f"| {self.suite} | {self.network} | {self.preset} | {self.outcome} | {reason} | {self.seconds:.1f} |"


def _of_torchvision(name: str) -> Problem:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # Some heads are zeros, whose scores are 0.
    model = randomised(torchvision.models.get_model(name, weights=None, **options)).float()
    side = next((side for word, side in _SIDES.items() if name.startswith(word)), 64)
    return Problem(model, model, torch.randn(1, 3, side, side), 1)


def _cases(suite: str) -> Cases:
    if suite != "torchvision":
        module = importlib.import_module(f"benchmarks.coverage.{suite}_models")
        found: Cases = module.families() if suite == "timm" else module.cases()
        return found
    names = torchvision.models.list_models(module=torchvision.models)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = {name: sum(p.numel() for p in torchvision.models.get_model(name).parameters()) for name in names}
    return ((name, functools.partial(_of_torchvision, name)) for name in sorted(names, key=sizes.__getitem__))


def compared(suite: str, name: str, problem: Problem, preset: str) -> Row:
    """Record an attribution, and compare a replay on another input and another class with the attribution."""
    row = Row(suite, name, preset, "equal")
    cav = InputCAV(problem.score, rules=preset)
    compiled = captum_cav.compile(cav)
    start = time.process_time()
    try:
        compiled.attribute(problem.inputs, problem.target)
        row.seconds = time.process_time() - start
        other = torch.randn(problem.inputs.shape, generator=torch.Generator().manual_seed(1)).to(problem.inputs)
        if not torch.equal(compiled.attribute(other, 0), cav.attribute(other, 0)):
            row.outcome, row.reason = "different", "the bits differ on another input"
    except RecordingError as error:
        row.outcome, row.reason = "refused", str(error).splitlines()[0]
    except CAVError as error:
        row.outcome, row.reason = "not explained", f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def rows(suites: Sequence[str], presets: Sequence[str], only: Sequence[str], count: int, part: str) -> Iterator[Row]:
    """Each network under each preset."""
    first, parts = map(int, part.split("/"))
    for suite in suites:
        cases = itertools.islice(_cases(suite), count or _COUNTS[suite])
        for number, (name, build) in enumerate(cases):
            if number % parts != first - 1 or (only and not any(word in name for word in only)):
                continue
            try:
                problem = build()
            except Exception as error:  # noqa: BLE001 - the row says that it could not be built
                yield Row(suite, name, "", "not built", f"{type(error).__name__}: {error}".splitlines()[0])
                continue
            for preset in presets:
                yield compared(suite, name, problem, preset)
            del problem
            gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compilation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--only", nargs="+", default=[], help="networks whose name holds one of these")
    parser.add_argument("--count", type=int, default=0, help="how many networks of each suite; 0 for the usual number")
    parser.add_argument("--part", default="1/1", help="2/3: every third network, from the second on")
    parser.add_argument("--json", type=Path, help="a file for all rows, written anew after each")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    found: list[Row] = []
    print("| suite | network | preset | outcome | reason | recording, CPU seconds |")
    print("|---" * 6 + "|")
    for row in rows(options.suites, options.presets, options.only, options.count, options.part):
        found.append(row)
        print(row, flush=True)
        if options.json:
            report = {
                "command": "python -m benchmarks.compilation " + " ".join(sys.argv[1:]),
                "versions": versions_with("torch", "torchvision", "timm", "transformers"),
                "rows": list(map(asdict, found)),
            }
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    for suite in options.suites:
        of_suite = [row for row in found if row.suite == suite]
        equal = sum(row.outcome == "equal" for row in of_suite)
        print(f"{suite}: {equal} of {len(of_suite)} have the same bits")


if __name__ == "__main__":
    main()
