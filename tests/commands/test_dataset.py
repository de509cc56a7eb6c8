"""``captum-cav dataset``, as a user runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from captum_cav import LayerCAV, cli, datasets, zoo
from captum_cav.commands import names
from captum_cav.compilation import compiled, repeated
from captum_cav.compilation.compiled import Compiled
from captum_cav.datasets import shards
from captum_cav.datasets.jobs import KEEP
from tests.compilation.test_fused import off_by
from tests.datasets import jobs

_OWN = """
from captum_cav.zoo import Network
from tests.datasets import jobs

def make():
    return Network("small", jobs.network(), jobs.preprocess, lambda picture: picture, ("a", "b", "c"))
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the module of a small network and a folder of pictures."""
    (tmp_path / "own_small.py").write_text(_OWN)
    jobs.write_pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*more: str, output: str = "out") -> list[str]:
    sizes = ["--batch-size", "2", "--shard-size", "4", "--workers", "0"]
    options = ["--model", "own_small:make", "--layers", "4,1", "--output", output, "--device", "cpu"]
    return ["dataset", "pictures", *options, *sizes, *more]


def test_rows_and_maps_are_those_of_the_attribution(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("--target", "label", "--dtype", "float32")) == 0
    said = capsys.readouterr()
    assert said.out.startswith("13 rows of 13 pictures at 2 layers; all shards are finished\n")
    assert "13/13" in said.err, "the progress"
    out = datasets.open("out")
    assert out.layers == ["4", "1"]
    assert out.classes == ["a", "b", "c"]
    rows = list(out.rows())
    assert [row["id"] for row in rows[:5]] == ["a/000.png", "a/003.png", "a/006.png", "a/009.png", "a/012.png"]
    cav = LayerCAV(jobs.network(), ["4", "1"], normalize="abs", score="logit")
    for number, row in enumerate(rows):
        assert row["target"] == row["label"] == "abc".index(row["id"][0])
        picture = jobs.preprocess(zoo.open_picture(row["path"]))[None]
        expected = cav.attribute(picture, row["target"])
        for layer, one in zip(out.layers, expected, strict=True):
            assert torch.allclose(out.map(number, layer), one[0].sum(0), atol=1e-6)


def test_json_and_a_damaged_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pictures" / "b" / "001.png").write_bytes(b"no picture")
    assert cli.main(command("--json", "--target", "b", "2")) == 1
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts == {
        "output": "out",
        "complete": True,
        "pictures": 13,
        "rows": 26,
        "errors": 2,
        "layers": ["4", "1"],
    }
    assert "2 of 26 rows have an error instead of numbers; the first, b/001.png: cannot open the picture" in said.err
    assert {row["target"] for row in datasets.open("out").rows()} == {1, 2}


def test_parts_of_a_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("--shard", "1/2", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False
    assert cli.main(command("--shard", "0/2")) == 0
    assert cli.main(command(output="whole")) == 0
    assert jobs.tree(folder / "out") == jobs.tree(folder / "whole")


def test_other_settings_are_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command()) == 0
    capsys.readouterr()
    assert cli.main(command("--rules", "gamma", "--target", "label")) == 2
    said = capsys.readouterr().err
    assert "out was begun with other settings: rules: " in said
    assert "targets was best and is label" in said


def test_batches_that_come_often_are_recorded_and_the_files_stay_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(command()) == 0
    monkeypatch.setattr(repeated, "RECORD_AFTER", 1)
    with patch.object(Compiled, "_record", autospec=True, side_effect=Compiled._record) as record:
        assert cli.main(command(output="recorded")) == 0
    assert record.call_count == 1
    assert jobs.tree(folder / "out") == jobs.tree(folder / "recorded")


@pytest.mark.slow
def test_fused_kernels_give_the_maps_up_to_rounding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("--dtype", "float32")) == 0
    assert cli.main(command("--compile", "--dtype", "float32", output="fused")) == 0
    for one, other in zip(datasets.open("out"), datasets.open("fused"), strict=True):  # type: ignore[call-overload]
        assert one.row["score"] == pytest.approx(other.row["score"], rel=1e-5)
        assert all(torch.allclose(one.maps[layer], other.maps[layer], atol=1e-5) for layer in ("4", "1"))
    capsys.readouterr()
    assert cli.main(command("--compile", "--dtype", "float32")) == 2
    assert "out was begun with other settings: backend was missing and is inductor." in capsys.readouterr().err


def test_fused_kernels_that_are_off_end_the_job_and_what_is_advised_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "ways_to_run", lambda backend, recording: [off_by(0.001)])
    assert cli.main(command("--compile")) == 2
    said = capsys.readouterr().err
    assert (
        "--compile cannot be used for small; expected no --compile, and another --output. The reason: the fused" in said
    )
    assert cli.main(command()) == 2, "the rows of both would not fit together"
    assert cli.main(command(output="other")) == 0


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write = shards.write

    def interrupting(*arguments: object) -> object:
        if arguments[1] == 2:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    with patch.object(shards, "write", interrupting):
        assert cli.main(command()) == 130
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last == "captum-cav: interrupted; the same command goes on where this one stopped"
    assert cli.main(command()) == 0
    assert cli.main(command(output="whole")) == 0
    assert jobs.tree(folder / "out") == jobs.tree(folder / "whole")


def test_a_full_disk_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(number: int) -> None:
        raise OSError(28, os.strerror(28))

    with patch.object(os, "fsync", full):
        assert cli.main(command()) == 2
    assert "captum-cav: error: cannot write out/pictures.csv: No space left on device" in capsys.readouterr().err


def test_no_picture_can_be_opened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folder / "pictures").rglob("*.png"):
        file.write_bytes(b"")
    assert cli.main(command()) == 2
    assert "none of the first 13 pictures can be opened; cannot open the picture" in capsys.readouterr().err


def test_what_can_be_kept_is_named() -> None:
    assert names.KEEP == KEEP


def run(*more: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "captum_cav", *command(*more)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # noqa: S603
        arguments,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A shell that runs the tests in the background ignores Ctrl-C for them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_command_killed_at_twenty_random_moments_has_the_same_files(workers: str, folder: Path) -> None:
    jobs.write_pictures(folder / "pictures", 300)
    more = ("--workers", workers, "--shard-size", "8")
    assert cli.main(command(*more, output="whole")) == 0
    dice = random.Random(int(workers))  # noqa: S311
    killed = 0
    while killed < 20:
        process = run(*more)
        # From the start of the imports to the middle of the writing.
        time.sleep(dice.uniform(0.5, 4))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            # The job was finished: take half of it away.
            for file in (folder / "out" / "shards").glob("0002*"):
                file.unlink()
    assert cli.main(command(*more)) == 0
    assert jobs.tree(folder / "out") == jobs.tree(folder / "whole")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(folder: Path) -> None:
    jobs.write_pictures(folder / "pictures", 600)
    process = run("--workers", "2", "--shard-size", "8")
    while not (folder / "out" / "shards" / "00003.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1].startswith("captum-cav: interrupted; the same command goes on")
    assert not list((folder / "out").rglob(".*.tmp"))
