"""A recording in a file: it runs without the model's code and without captum_cav."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import captum_cav
from captum_cav import LayerCAV
from captum_cav.compilation import save
from captum_cav.errors import CAVTypeError, RecordingError
from tests.compilation.test_equality import convolutional
from tests.support.small_networks import picture, small_net

_SCRIPT = """
import sys, torch
x, position = torch.load("input.pt")
with torch.no_grad():
    torch.save(list(torch.export.load("cav.pt2").module()(x, position)), "found.pt")
assert "captum_cav" not in sys.modules
"""


@pytest.mark.slow
def test_a_file_runs_with_torch_alone(tmp_path: Path) -> None:
    cav = LayerCAV(convolutional(), ["0", "3"])
    compiled = captum_cav.compile(cav)
    compiled.attribute(picture(), 1)
    save(compiled, tmp_path / "cav.pt2")
    other = picture(2)
    torch.save([other, torch.tensor([3, 0])], tmp_path / "input.pt")
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True, cwd=tmp_path)  # noqa: S603
    expected = cav.attribute(other, [3, 0])
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_one_recording_is_saved(tmp_path: Path) -> None:
    compiled = captum_cav.compile(LayerCAV(small_net(), "0"))
    with pytest.raises(RecordingError, match=r"has 0 recordings; expected one"):
        save(compiled, tmp_path / "cav.pt2")
    with pytest.raises(CAVTypeError, match=r"given a LayerCAV; expected what captum_cav\.compile"):
        save(LayerCAV(small_net(), "0"), tmp_path / "cav.pt2")
    assert not list(tmp_path.iterdir())
