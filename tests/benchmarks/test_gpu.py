"""``make gpu``: its commands are right, and no step outlives its time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.cost import __main__ as cost
from benchmarks.cost.rows import COMPILED, CUDA_GRAPH

REPORT = json.dumps(
    {"rows": {"resnet50/1/layers": {"floor": {"reason": ""}, CUDA_GRAPH: {"reason": "RecordingError: no\nmore"}}}}
)


def test_all_steps_together_take_less_than_ten_minutes(tmp_path: Path) -> None:
    # The starts of the processes, and the report, take some seconds more.
    assert sum(step.limit for step in gpu.steps("cuda", ["resnet50"], [1], tmp_path).values()) <= 580


def test_what_is_compiled_comes_last(tmp_path: Path) -> None:
    assert list(gpu.steps("cuda", ["resnet50"], [1], tmp_path)) == ["suite", "layers", "input", "compiled"]


@pytest.mark.parametrize("name", ["layers", "input"])
def test_each_step_measures_rows_that_exist(name: str, tmp_path: Path) -> None:
    command = gpu.steps("cuda", ["resnet50", "vit_b_16", "mobilenet_v2"], [1, 64], tmp_path)[name].command
    patterns = command[command.index("--rows") + 1 : command.index("--device")]
    rows = cost._chosen(patterns, torch.device("cuda"))
    assert {str(row) for row in rows} == set(patterns)
    assert len(rows) == 6
    assert command[-1] == "--compiled", "these steps compile nothing"


@pytest.mark.parametrize(("device", "backends"), [("cuda", ["replay", "cudagraphs"]), ("cpu", ["replay"])])
def test_two_networks_are_compiled(device: str, backends: list[str], tmp_path: Path) -> None:
    command = gpu.steps(device, ["resnet50", "vit_b_16", "mobilenet_v2"], [1, 64], tmp_path)["compiled"].command
    patterns = command[command.index("--rows") + 1 : command.index("--device")]
    assert patterns == [f"{network}/{batch}/layers" for network in ("resnet50", "vit_b_16") for batch in (1, 64)]
    assert {str(row) for row in cost._chosen(patterns, torch.device("cuda"))} == set(patterns)
    assert command[command.index("--compiled") + 1 :] == backends
    assert set(backends) <= set(COMPILED)
    # If none of the two is asked for, the networks that are asked for are compiled.
    (only,) = (step.command for name, step in gpu.steps(device, ["vgg16"], [1], tmp_path).items() if name == "compiled")
    assert "vgg16/1/layers" in only


def test_the_command_line_runs_all_steps_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second step fails and the third takes too long; the fourth runs, and the report has all."""

    def steps(device: str, networks: Sequence[str], batches: Sequence[int], folder: Path) -> dict[str, gpu.Step]:
        assert (device, list(networks), list(batches)) == ("cpu", ["resnet50"], [1, 8])
        written = f"import pathlib; pathlib.Path({str(folder / 'cost_compiled.json')!r}).write_text({REPORT!r})"
        return {
            "suite": gpu.Step(["-c", "pass"], 60),
            "layers": gpu.Step(["-c", "raise SystemExit(2)"], 60),
            "input": gpu.Step(["-c", "import time; time.sleep(60)"], 0.5),
            "compiled": gpu.Step(["-c", written], 60),
        }

    monkeypatch.setattr(gpu, "steps", steps)
    file = tmp_path / "report.json"
    arguments = ["--device", "cpu", "--networks", "resnet50", "--batches", "1", "8", "--json", str(file)]
    assert gpu.main(arguments) == 1
    found = json.loads(file.read_text())["steps"]
    assert [step["failed"] for step in found.values()] == [
        [],
        ["exit status 2"],
        ["took longer than 0.5 seconds"],
        ["resnet50/1/layers, ours, CUDA graph: RecordingError: no"],
    ]
    said = capsys.readouterr().out
    assert "compiled: 0 seconds, failed\n  resnet50/1/layers, ours, CUDA graph: RecordingError: no\n" in said


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
