"""Jobs that are killed, run out of disk, or share their output: the files are those of an undisturbed job."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from captum_cav.datasets import ExplainedDataset, layout, shards
from captum_cav.datasets.sources import PictureFiles
from captum_cav.errors import InputError
from tests.datasets import jobs

# On a machine with one CPU, torch says that two processes are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Picture files."""
    return jobs.write_pictures(tmp_path / "pictures")


def explain(folder: Path, output: Path, workers: int = 0) -> ExplainedDataset:
    return jobs.explain(folder, output, preprocess=jobs.preprocess, workers=workers)


def undisturbed(folder: Path) -> dict[str, bytes]:
    """The files of a job that nothing happens to."""
    output = folder.parent / "undisturbed"
    explain(folder, output)
    return jobs.tree(output)


def killed_at(step: int, run: Callable[[], Any]) -> None:
    """Run a job that kills its process just before a step of its writing."""
    steps = itertools.count()

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                jobs.kill_myself()
            return function(*args, **kwargs)

        return call

    with (
        patch.object(os, "fsync", stopping(os.fsync)),
        patch.object(Path, "replace", stopping(Path.replace)),
        patch.object(Path, "unlink", stopping(Path.unlink)),
    ):
        run()


def test_a_job_that_is_killed_again_and_again_has_the_same_files(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "killed"
    kills = 0

    def run() -> None:
        killed_at(kills, lambda: explain(folder, output))

    while status := jobs.in_child(run):
        assert status == -9
        kills += 1
    assert kills > 15
    assert jobs.tree(output) == expected


@pytest.mark.slow
def test_a_job_killed_at_any_step_of_its_writing_has_the_same_files(folder: Path) -> None:
    expected = undisturbed(folder)
    for step in itertools.count():
        output = folder.parent / f"killed_{step}"
        if not jobs.in_child(lambda step=step, output=output: killed_at(step, lambda: explain(folder, output))):  # type: ignore[misc]
            break
        explain(folder, output)
        assert jobs.tree(output) == expected, step
    assert step > 40


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_killed_at_random_moments_has_the_same_files(
    workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "killed"
    dice = random.Random(workers)  # noqa: S311
    # The first child is killed early, so that at least one child was at work.
    monkeypatch.setitem(jobs.delay, 0, 0.02)
    ended = [
        jobs.in_child(lambda: explain(folder, output, workers), kill_after=dice.uniform(0.01, after))
        for after in (0.03, 0.1, 0.2, 0.3, 0.3)
    ]
    assert -9 in ended
    explain(folder, output, workers)
    assert jobs.tree(output) == expected


def test_two_processes_share_one_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "shared"
    computed = folder.parent / "computed"
    compute = shards.compute

    def noted(job: Any, shard: int, batches: Any) -> Any:
        with computed.open("a") as file:
            file.write(f"{os.getpid()} {shard}\n")
        return compute(job, shard, batches)

    monkeypatch.setattr(shards, "compute", noted)
    monkeypatch.setitem(jobs.delay, 0, 0.03)
    children = [jobs.start(lambda: explain(folder, output)) for _ in range(2)]
    assert [jobs.status(child) for child in children] == [0, 0]
    assert jobs.tree(output) == expected
    lines = computed.read_text().split()
    assert sorted(lines[1::2]) == ["0", "1", "2", "3"], "no shard was computed twice"
    assert len(set(lines[::2])) == 2, "both processes worked"


def test_a_process_takes_over_what_a_killed_process_had_claimed(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "shared"

    def kill_after_a_while() -> None:
        with patch.object(shards, "write", lambda *_: time.sleep(60)):
            explain(folder, output)

    first = jobs.start(kill_after_a_while)
    while not list(output.glob("shards/.00000.lock")):
        time.sleep(0.01)
    second = jobs.start(lambda: explain(folder, output))
    while not (output / "shards" / "00003.json").exists():  # it computes the other shards meanwhile
        time.sleep(0.01)
        assert second.is_alive()
    assert not (output / "manifest.json").exists(), "it waits for the first shard"
    first.kill()
    assert jobs.status(second) == 0
    assert jobs.tree(output) == expected


def test_without_locks_processes_compute_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "shared"

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("flock")

    monkeypatch.setattr(layout.FileLock, "acquire", missing)
    monkeypatch.setitem(jobs.delay, 0, 0.01)
    children = [jobs.start(lambda: explain(folder, output)) for _ in range(2)]
    assert [jobs.status(child) for child in children] == [0, 0]
    assert jobs.tree(output) == expected


def test_a_full_disk_ends_the_job_and_it_goes_on_later(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "full"
    for room in range(7):
        writes = itertools.count()

        def full(number: int, writes: Any = writes, room: int = room) -> None:
            if next(writes) >= room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with (
            patch.object(os, "fsync", full),
            pytest.raises(InputError, match=r"^cannot write .*: No space left on device\. Finished .*$"),
        ):
            explain(folder, output)
        assert not list(output.rglob(".*")), "nothing unfinished is left"
    assert list(output.glob("shards/*.json")), "there was room for some shards"
    explain(folder, output)
    assert jobs.tree(output) == expected


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_really_full_disk(folder: Path) -> None:
    expected = undisturbed(folder)
    disk = folder.parent / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(disk)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("this system does not let the tests mount a disk")
    try:
        with pytest.raises(InputError, match="No space left on device"):
            explain(folder, disk / "output")
        finished = [file.name for file in disk.rglob("0*.json")]
        assert finished
        moved = folder.parent / "larger"
        shutil.copytree(disk / "output", moved)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S603, S607
    explain(folder, moved)
    assert jobs.tree(moved) == expected


def test_a_process_that_reads_pictures_is_killed(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "killed"
    load = PictureFiles.load

    def killing(self: PictureFiles, index: int) -> Any:
        if index == 6:
            jobs.kill_myself()
        return load(self, index)

    with (
        patch.object(PictureFiles, "load", killing),
        pytest.raises(InputError, match=r"a process that reads pictures ended: .* Finished shards are kept"),
    ):
        explain(folder, output, workers=2)
    explain(folder, output, workers=2)
    assert jobs.tree(output) == expected


def test_ctrl_c_leaves_a_job_that_goes_on(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "interrupted"
    load = PictureFiles.load

    def interrupting(self: PictureFiles, index: int) -> Any:
        if index == 6:
            raise KeyboardInterrupt
        return load(self, index)

    with patch.object(PictureFiles, "load", interrupting), pytest.raises(KeyboardInterrupt):
        explain(folder, output)
    assert (output / "shards" / "00000.json").exists()
    assert not list(output.rglob(".*")), "nothing unfinished and no lock is left"
    explain(folder, output)
    assert jobs.tree(output) == expected


def test_a_picture_that_is_gone_is_a_row_with_its_error_and_is_tried_again(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "gone"
    picture = folder / "b" / "004.png"
    data = picture.read_bytes()
    write = shards.write

    def stopping(job: Any, shard: int, computed: Any) -> Any:
        entry = write(job, shard, computed)
        picture.unlink(missing_ok=True)
        if shard == 0:
            raise KeyboardInterrupt
        return entry

    with patch.object(shards, "write", stopping), pytest.raises(KeyboardInterrupt):
        explain(folder, output)
    out = explain(folder, output)
    assert len(out) == jobs.PICTURES
    errors = {row["id"]: row["error"] for row in out.rows() if row["error"]}
    assert errors == {"b/004.png": f"cannot open the picture {picture}: No such file or directory"}
    assert out.is_complete
    picture.write_bytes(data)
    explain(folder, output)
    assert jobs.tree(output) == expected


def test_the_first_picture_may_be_gone_too(folder: Path) -> None:
    output = folder.parent / "gone"
    explain(folder, output)
    (folder / "a" / "000.png").unlink()
    assert not next(explain(folder, output).rows())["error"], "it was explained before"


def test_a_file_that_lost_bytes_is_computed_again(folder: Path) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "damaged"
    explain(folder, output)
    maps = output / "shards" / "00001.safetensors"
    maps.write_bytes(maps.read_bytes()[:100])
    (output / "shards" / "00002.csv").unlink()
    explain(folder, output)
    assert jobs.tree(output) == expected


def test_parts_of_a_job_unite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed(folder)
    output = folder.parent / "parts"
    first = jobs.explain(folder, output, preprocess=jobs.preprocess, workers=0, shard=(0, 2))
    assert not first.is_complete
    assert [row["row"] for row in first.rows()] == [0, 1, 2, 3, 8, 9, 10, 11]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    both = explain(folder, output)
    assert both.is_complete
    assert jobs.tree(output) == expected
