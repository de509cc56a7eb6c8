"""Which architectures are explained right: conservation, the exact map where it is known, the value, the time.

    python -m benchmarks.coverage --suite ops torchvision timm timm-sample transformers monai segmentation yolo detr
        [--only NAME ...] [--count 300] [--no-oracle] [--against captum zennit] [--part 1/2] [--json FILE] [--threads 1]

Every network is as its library makes it, but for random numbers in place of what is initialised to zeros or ones
(``randomise.py``), and runs in float64, the largest in float32. A case is right if

* the contributions of the inputs and the shares of all constants sum to the score (``delta``, of the score, below 1e-6,
  in float32 1e-3),
* the map equals the one that ``oracle.py`` finds by other means (``map``, the norm of the difference over that of the
  map, below 1e-6); where the oracle does not know an operation, this is left out and the table says so,
* the model's output is what it is without captum_cav (``value``).

``time`` is one attribution over one forward pass and gradient, once each: a rough number. With ``--against`` the same
inputs are explained by other libraries, with the rules of theirs that mean the same, and are held against the oracle.
Built networks are dropped as they are done with; the JSON file is written anew after each.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import field_models, rivals
from benchmarks.coverage.measure import Row, measure, shown
from benchmarks.coverage.problem import Problem
from captum_cav.errors import CAVError

Cases = Iterator[tuple[str, Callable[[], Problem]]]
_OF_SUITE = {
    "torchvision": "torchvision",
    "timm": "timm",
    "timm-sample": "timm",
    "transformers": "transformers",
    **field_models.PACKAGES,
}


def operations(only: list[str]) -> Iterator[Row]:
    """A function for each operation, against the same with its rule written out."""
    from benchmarks.coverage.operations import CASES, compare

    for name, (function, by_hand) in CASES.items():
        if only and not any(word in name for word in only):
            continue
        row = Row("ops", name)
        try:
            row.map, row.delta, row.value, row.mass = compare(function, by_hand)
        except CAVError as error:
            row.error = f"{type(error).__name__}: {error}"
        yield row


def networks(suite: str, options: argparse.Namespace) -> Iterator[Row]:
    """Each network of a suite in its turn."""
    first, parts = map(int, options.part.split("/"))
    for number, (name, build) in enumerate(_cases(suite, options.count)):
        if number % parts == first - 1 and (not options.only or any(word in name for word in options.only)):
            yield _built_and_measured(suite, name, build, options)
            gc.collect()


def _built_and_measured(suite: str, name: str, build: Callable[[], Problem], options: argparse.Namespace) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem = build()
        except Exception as error:  # noqa: BLE001 - the row says that it could not be built
            return Row(suite, name, error=f"not built: {type(error).__name__}: {error}".splitlines()[0][:300])
        return measure(suite, name, problem, options.against, not options.no_oracle)


def _cases(suite: str, count: int) -> Cases:
    if suite == "torchvision":
        from benchmarks.coverage import torchvision_models

        return torchvision_models.cases()
    if suite == "transformers":
        from benchmarks.coverage import transformers_models

        return transformers_models.cases()
    if suite in field_models.SUITES:
        return field_models.cases(suite)
    from benchmarks.coverage import timm_models

    return timm_models.families() if suite == "timm" else timm_models.sample(count)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    suites = ["ops", *_OF_SUITE]
    parser.add_argument("--suite", nargs="+", choices=suites, default=["ops", "torchvision"])
    parser.add_argument("--only", nargs="+", default=[], help="networks or operations whose name holds one of these")
    parser.add_argument("--count", type=int, default=300, help="how many networks timm-sample draws")
    parser.add_argument("--no-oracle", action="store_true", help="conservation and value alone: several times faster")
    parser.add_argument("--against", nargs="+", choices=sorted(rivals.MAPS), default=[])
    parser.add_argument("--part", default="1/1", help="2/3: every third network, from the second on")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    packages = ["captum_cav", "torch", *{_OF_SUITE[suite] for suite in options.suite if suite != "ops"}]
    packages += [name for name in options.against if name != "input_x_gradient"]
    report: dict[str, Any] = {
        "command": "python -m benchmarks.coverage " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in dict.fromkeys(packages)},
        },
        "rows": [],
    }
    rows: list[Row] = []
    for suite in options.suite:
        found = operations(options.only) if suite == "ops" else networks(suite, options)
        for row in found:
            rows.append(row)
            print(shown(row), flush=True)
            if options.json:
                report["rows"] = [asdict(one) for one in rows]
                options.json.write_text(json.dumps(report, indent=1))
    for suite in options.suite:
        of_suite = [row for row in rows if row.suite == suite]
        right = [row for row in of_suite if row.is_right]
        known = sum(row.map is not None for row in right)
        print(f"{suite}: {len(right)} of {len(of_suite)} right, {known} of them against an exact map")


if __name__ == "__main__":
    main()
