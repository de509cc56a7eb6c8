"""``make gpu``: its commands are right, and no step outlives its time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.cost import __main__ as cost


def test_all_steps_together_take_less_than_eight_minutes(tmp_path: Path) -> None:
    assert sum(step.limit for step in gpu.steps("cuda", ["resnet50"], [1], tmp_path).values()) < 480


@pytest.mark.parametrize("name", ["layers", "input"])
def test_each_step_measures_rows_that_exist(name: str, tmp_path: Path) -> None:
    command = gpu.steps("cuda", ["resnet50", "vit_b_16", "mobilenet_v2"], [1, 64], tmp_path)[name].command
    patterns = command[command.index("--rows") + 1 : command.index("--device")]
    rows = cost._chosen(patterns, torch.device("cuda"))
    assert {str(row) for row in rows} == set(patterns)
    assert len(rows) == 6


def test_a_step_that_fails_or_takes_too_long_is_ended_and_named() -> None:
    failing = gpu.Step(["-c", "raise SystemExit(3)"], 60)
    gpu.run(failing)
    assert (failing.status, failing.failed) == (3, ["exit status 3"])
    # The process has a child of its own, which must end too.
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    slow = gpu.Step(["-c", code], 0.5)
    start = time.monotonic()
    gpu.run(slow)
    assert (slow.status, slow.failed) == (None, ["took longer than 0.5 seconds"])
    assert time.monotonic() - start < 30


def test_failed_tests_and_failed_measurements_are_read(tmp_path: Path) -> None:
    chosen = gpu.steps("cuda", ["resnet50"], [1], tmp_path)
    cache = tmp_path / "pytest" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps({"tests/gpu/test_values.py::test_one": True}))
    cells = {
        "ours": {"reason": "OutOfMemoryError: 80 GB\nmore"},
        "zennit": {"reason": "refuses"},
        "floor": {"reason": ""},
    }
    (tmp_path / "cost_layers.json").write_text(json.dumps({"rows": {"resnet50/1/layers": cells}}))
    for name, step in chosen.items():
        gpu.read_results(name, step, tmp_path)
    assert chosen["suite"].failed == ["tests/gpu/test_values.py::test_one"]
    assert chosen["layers"].failed == ["resnet50/1/layers, ours: OutOfMemoryError: 80 GB"]
    assert chosen["input"].failed == []
