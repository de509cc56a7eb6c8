"""The allocator of the process. Each test has a process of its own, because the settings stay until it ends."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from captum_cav import cli, memory

FAULTS = """
import resource, torch
from captum_cav import cli, memory
{setting}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)  # 48 MB, more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

on_glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc has these settings"
)


def page_faults(setting: str) -> int:
    """The pages that the system maps for twenty large tensors, in a fresh process."""
    command = [sys.executable, "-c", FAULTS.format(setting=setting)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603


@on_glibc
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    assert page_faults("assert memory.keep_freed_memory() is True") < 100
    assert page_faults("") > 100, "the import alone sets nothing"


@pytest.mark.parametrize("kind", ["no linux", "no glibc", "refused"])
def test_elsewhere_nothing_is_set_and_the_function_says_so(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def mallopt(parameter: int, value: int) -> int:
        called.append(parameter)
        return 0

    library = SimpleNamespace(mallopt=mallopt, gnu_get_libc_version=None)
    if kind == "no glibc":
        del library.gnu_get_libc_version
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "darwin" if kind == "no linux" else "linux")
    assert memory.keep_freed_memory() is False
    assert bool(called) is (kind == "refused")


def test_the_command_line_sets_the_allocator_of_its_own_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append(1))
    ended = SimpleNamespace(parse_args=lambda arguments: SimpleNamespace(run=lambda options: None))
    monkeypatch.setattr(cli, "_parser", lambda: ended)
    assert cli.main(["explain"]) == 0
    assert not called, "whoever passes arguments has a process of their own"
    assert cli.main() == 0
    assert called
