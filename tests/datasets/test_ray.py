"""The same job on Ray: actors that are lost, two nodes, and what Ray says and does not say."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from captum_cav.datasets import explain
from captum_cav.errors import UnavailableError
from tests.datasets import jobs

ROOT = Path(__file__).parents[2]


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UnavailableError, match=r'engine="ray" needs Ray with Ray Data.*pip install "captum_cav\[ray\]"'
    ):
        jobs.explain(jobs.labelled(), tmp_path, engine="ray", workers=1)


def run(folder: Path, before: str = "", after: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Explain the pictures with Ray, in a process of its own, so that Ray leaves nothing in this one."""
    code = f"""
import os, sys
from pathlib import Path
from tests.datasets import jobs
{textwrap.dedent(before)}
if __name__ == "__main__":
    out = jobs.explain(Path({str(folder)!r}) / "pictures", Path({str(folder)!r}) / "ray", preprocess=jobs.preprocess,
                       engine="ray", **{options!r})
    print("rows", len(out), out.is_complete)
{textwrap.indent(textwrap.dedent(after), "    ")}
"""
    # Bytes depend on the number of threads, so the job in this process and the actors have one.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("ray.data")
    jobs.write_pictures(tmp_path / "pictures", 24)
    jobs.explain(tmp_path / "pictures", tmp_path / "expected", preprocess=jobs.preprocess, workers=0)
    return tmp_path


def check(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-3000:])
    assert done.stdout.strip().splitlines()[-1] == "rows 24 True"
    assert jobs.tree(folder / "ray") == jobs.tree(folder / "expected")


#: An actor that is killed while the first time a shard is read.
_KILLING = """
    from captum_cav.datasets.sources import PictureFiles
    load = PictureFiles.load
    mark = Path("killed")

    def killing(self, index):
        if index == 13 and not mark.exists():
            mark.touch()
            jobs.kill_myself()
        return load(self, index)

    class Killing(PictureFiles):
        load = killing

    from captum_cav.datasets import explain
    find = explain.picture_files

    def found(*arguments):
        source = find(*arguments)
        source.__class__ = Killing
        return source

    explain.picture_files = found
"""


@pytest.mark.slow
def test_two_actors_of_which_one_is_killed(folder: Path) -> None:
    assert explain.picture_files
    done = run(folder, _KILLING.replace('Path("killed")', f"Path({str(folder / 'killed')!r})"), workers=2)
    assert (folder / "killed").exists()
    check(folder, done)


@pytest.mark.slow
def test_two_nodes(folder: Path) -> None:
    """Each node has room for one actor, so both work."""
    cluster = """
        import ray
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
    """
    check(folder, run(folder, cluster, "ray.shutdown()\ncluster.shutdown()", workers=3))


@pytest.mark.slow
def test_more_actors_than_the_cluster_has_room_for(folder: Path) -> None:
    """The job uses the room that there is, does not wait for more, and Ray says nothing."""
    small = """
        import ray
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    """
    done = run(folder, small, workers=4)
    check(folder, done)
    # One line of Ray's core about its own actors cannot be switched off.
    assert not [line for line in done.stderr.splitlines() if line.strip() and "core_worker" not in line], done.stderr


@pytest.mark.slow
def test_what_is_wrong_is_one_error_of_this_package(folder: Path) -> None:
    done = run(folder, workers=1, targets=[9])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("captum_cav.errors.TargetError: none of the first 4 pictures can be explained")
