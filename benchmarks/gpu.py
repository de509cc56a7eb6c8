"""The GPU suite and what contributions cost on a GPU, in less than ten minutes: ``make gpu``.

    python -m benchmarks.gpu [--device cuda] [--json gpu.json] [--networks NAME ...] [--batches N ...]

Four steps run one after another, each in its own process with a time limit: the tests marked ``gpu``, the cost of
several layers with peaks of memory, the cost of the inputs, and the cost of several layers if the attribution is
recorded, replayed and run as one CUDA graph. A step that fails or takes too long does not stop the next one. The JSON
file is written again after each step. The exit status is 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost.networks import NETWORKS
from benchmarks.cost.rows import CUDA_GRAPH, FLOOR, FORWARD, OURS, REPLAY
from benchmarks.versions import versions_with

_NETWORKS = ("resnet50", "vit_b_16", "mobilenet_v2")
# Of these, calls are compiled, which takes a while for each batch.
_COMPILED_NETWORKS = ("resnet50", "vit_b_16")
# What runs compiled calls, for each device.
_BACKENDS = {"cuda": ("replay", "cudagraphs"), "cpu": ("replay",)}
# The names of the files that the steps leave for the report, in the folder of a run.
_COST_FILE, _PYTEST_CACHE = "cost_{step}.json", "pytest"


@dataclass
class Step:
    """A step and what came of it.

    Attributes:
        command: what runs, without the interpreter.
        limit: the most seconds that the step may take.
        status: the exit status; None if the step took too long or has not run.
        seconds: how long the step took.
        failed: one line for each thing that failed.
        report: what the step measured.
    """

    command: list[str]
    limit: float
    status: int | None = None
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    report: Any = None


def steps(device: str, networks: Sequence[str], batches: Sequence[int], folder: Path) -> dict[str, Step]:
    """The steps by name, in their order. Together their limits are less than ten minutes.

    Args:
        device: "cuda", or "cpu" to see that the commands run.
        networks: names of networks of ``benchmarks.cost``.
        batches: numbers of pictures in a batch.
        folder: where the steps leave files for the report.
    """

    def cost(step: str, chosen: Sequence[str], kind: str, memory: str, backends: Sequence[str] = ()) -> list[str]:
        rows = [f"{network}/{batch}/{kind}" for network in chosen for batch in batches]
        file = folder / _COST_FILE.format(step=step)
        options = ["--device", device, "--seconds", "1", "--memory", memory, "--json", str(file)]
        return ["-m", "benchmarks.cost", "--rows", *rows, *options, "--compiled", *backends]

    # On the CPU the same tests run under the mark "slow".
    marked = ["-m", "gpu"] if device == "cuda" else ["-m", "slow", "-k", "test_precision"]
    compiled = [network for network in networks if network in _COMPILED_NETWORKS] or networks
    return {
        "suite": Step(["-m", "pytest", "tests/gpu", *marked, "-o", f"cache_dir={folder / _PYTEST_CACHE}"], 220),
        "layers": Step(cost("layers", networks, "layers", "ours"), 150),
        "input": Step(cost("input", networks, "input", "none"), 70),
        "compiled": Step(cost("compiled", compiled, "layers", "none", _BACKENDS[device]), 140),
    }


def run(step: Step) -> None:
    """Run a step, and note its status and its seconds. All of its processes end with it."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *step.command], start_new_session=True)  # noqa: S603
    try:
        step.status = process.wait(step.limit)
    except subprocess.TimeoutExpired:
        step.failed.append(f"took longer than {step.limit:g} seconds")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    step.seconds = round(time.monotonic() - start, 1)
    if step.status:
        step.failed.append(f"exit status {step.status}")


def read_results(name: str, step: Step, folder: Path) -> None:
    """Read the files that a step left, into its ``failed`` and ``report``."""
    if name == "suite":
        step.failed += list(_read(folder / _PYTEST_CACHE / "v" / "cache" / "lastfailed"))
    else:
        step.report = _read(folder / _COST_FILE.format(step=name))
        step.failed += _failed_cells(step.report.get("rows", {}))


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _failed_cells(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    # Other libraries do not have every network. What they refuse is in the report.
    for row, cells in rows.items():
        for column, cell in cells.items():
            if cell["reason"] and column in (FLOOR, FORWARD, OURS, REPLAY, CUDA_GRAPH):
                yield f"{row}, {column}: {cell['reason'].splitlines()[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if nothing failed, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), metavar="NAME", default=_NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", default=(1, 64))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    versions = versions_with("torch", "torchvision", "captum")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = steps(options.device, options.networks, options.batches, folder)
        for step_name, step in chosen.items():
            print(f"\n== {step_name}: python {' '.join(step.command)}", flush=True)
            run(step)
            read_results(step_name, step, folder)
            report = {
                "device": device,
                "versions": versions,
                "steps": {known: asdict(one) for known, one in chosen.items()},
            }
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{device}; all numbers: {options.json}")
    for step_name, step in chosen.items():
        print(f"{step_name}: {step.seconds:.0f} seconds, {'failed' if step.failed else 'nothing failed'}")
        print("".join(f"  {line}\n" for line in step.failed), end="")
    return int(any(step.failed for step in chosen.values()))


if __name__ == "__main__":
    sys.exit(main())
