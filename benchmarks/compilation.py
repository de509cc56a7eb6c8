"""Does a replay have the bits of the attribution, on an input that was not recorded?

    python -m benchmarks.compilation [--suites torchvision timm transformers] [--presets paper gamma pinpoint]
        [--only NAME ...] [--count N] [--part 1/2] [--json FILE] [--threads 1]

The networks are those of ``benchmarks.coverage`` with their random parameters: all classifiers of torchvision and the
lightest families of timm, in float32, on the smallest pictures that they take; tiny models of transformers.
Contributions of the inputs are recorded for one input and one class, and replayed for another input and another class.
A row that was refused tells the reason. The JSON file is written anew after each row, and rows that stand in it are not
computed again.
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
from typing import Any

import torch
import torchvision

import captum_cav
from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import randomised
from benchmarks.versions import versions_with
from captum_cav import InputCAV
from captum_cav.errors import CAVError, InputError, RecordingError

SUITES = ("torchvision", "timm", "transformers")
PRESETS = ("paper", "gamma", "pinpoint")
_COUNTS = {"torchvision": 1000, "timm": 40, "transformers": 30}
#: Sides of pictures. The first one that a network takes is used.
_SIDES = (64, 96, 128, 160, 192, 224, 256, 299, 384)

Cases = Iterator[tuple[str, Callable[[], Problem]]]


@dataclass
class Row:
    """What came out for a network and a preset.

    Attributes:
        suite: where the network comes from.
        network: its name.
        preset: the rules.
        inputs: the shape of the inputs.
        outcome: "equal", "refused", "not explained" (by the attribution itself) or "not built".
        reason: why it is not equal.
        seconds: CPU seconds of the first call, which records.
    """

    suite: str
    network: str
    preset: str
    inputs: tuple[int, ...] = ()
    outcome: str = "equal"
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        reason = self.reason.replace("|", "\\|")
        shape = " x ".join(map(str, self.inputs))
        cells = [self.suite, self.network, self.preset, shape, self.outcome, reason, f"{self.seconds:.1f}"]
        return f"| {' | '.join(cells)} |"


def _of_torchvision(name: str) -> Problem:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        # These take one size. It is a multiple of their patches, which are 14, 16 or 32 pixels wide.
        options["image_size"] = 70 if name == "vit_h_14" else 64
    # Some heads are zeros, whose scores are 0.
    model = randomised(torchvision.models.get_model(name, weights=None, **options))
    side = options.get("image_size", 224)
    return _on_small_pictures(Problem(model, model, torch.empty(1, 3, side, side), 0))


def _on_small_pictures(problem: Problem) -> Problem:
    """The same network in float32, with a picture as small as the network takes."""
    problem.model.float()
    own = problem.inputs.shape[2]
    for side in (*(side for side in _SIDES if side < own), own):
        picture = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                scores = problem.score(picture)
        except Exception:
            if side == own:
                raise
            continue
        if bool(scores.isfinite().all()):
            return problem._replace(inputs=picture, target=int(scores.argmax(1)))
    raise InputError("no score is finite for any size of the picture")


def _smaller(build: Callable[[], Problem]) -> Problem:
    return _on_small_pictures(build())


def _count_parameters(name: str) -> int:
    count: int = torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"]
    return count


def _cases(suite: str) -> Cases:
    if suite != "torchvision":
        module = importlib.import_module(f"benchmarks.coverage.{suite}_models")
        if suite == "transformers":
            yield from module.cases()
            return
        for name, build in module.families():
            yield name, functools.partial(_smaller, build)
        return
    names = torchvision.models.list_models(module=torchvision.models)
    for name in sorted(names, key=_count_parameters):
        yield name, functools.partial(_of_torchvision, name)


def compared(suite: str, name: str, problem: Problem, preset: str) -> Row:
    """Record an attribution, and compare a replay on another input and another class with the attribution."""
    row = Row(suite, name, preset, tuple(problem.inputs.shape))
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


def rows(
    suites: Sequence[str],
    presets: Sequence[str],
    only: Sequence[str] = (),
    count: int = 0,
    part: str = "1/1",
    done: Sequence[Row] = (),
) -> Iterator[Row]:
    """Each network under each preset.

    Args:
        suites: some of ``SUITES``.
        presets: names of rules.
        only: parts of the names of networks; none for all networks.
        count: how many networks of each suite; 0 for the usual number.
        part: "2/3" for every third network, from the second on.
        done: rows that need not be computed again.
    """
    first, parts = map(int, part.split("/"))
    known = {(row.suite, row.network, row.preset) for row in done}
    for suite in suites:
        cases = itertools.islice(_cases(suite), count or _COUNTS[suite])
        for number, (name, build) in enumerate(cases):
            if number % parts != first - 1 or (only and not any(word in name for word in only)):
                continue
            left = [preset for preset in presets if (suite, name, preset) not in known]
            if not left or (suite, name, "") in known:
                continue
            try:
                problem = build()
            except Exception as error:  # noqa: BLE001 - the row says that it could not be built
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                yield Row(suite, name, "", outcome="not built", reason=reason)
                continue
            for preset in left:
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
    parser.add_argument("--json", type=Path, help="a file for all rows, written anew after each; its rows are kept")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    found = _read(options.json)
    print("| suite | network | preset | inputs | outcome | reason | recording, CPU seconds |")
    print("|---" * 7 + "|")
    for row in rows(options.suites, options.presets, options.only, options.count, options.part, found.copy()):
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


def _read(file: Path | None) -> list[Row]:
    """The rows of an earlier run."""
    if file is None or not file.exists():
        return []
    return [Row(**(row | {"inputs": tuple(row["inputs"])})) for row in json.loads(file.read_text())["rows"]]


if __name__ == "__main__":
    main()
