"""Text, names and files from outside: nothing in them is run, and the command says what is wrong."""

from __future__ import annotations

import collections
import os
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from captum_cav import cli, zoo
from tests.support.picture_files import NASTY, PICTURE, refused_by_cli
from tests.support.small_networks import seeded


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_weights_that_would_run_code(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, weights, output = tmp_path / "trace", tmp_path / "weights.pth", tmp_path / "out"
    if kind == "torch.save":
        torch.save({"features.0.weight": Malicious(trace)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Malicious(trace)))
    said = refused_by_cli(
        capsys, "explain", PICTURE, "--model", "vgg11", "--weights", str(weights), "--output", str(output)
    )
    assert re.search(rf"cannot read the weights {weights}: .*Expected a state dict, saved with torch\.save\(", said)
    assert not trace.exists()
    assert list(output.iterdir()) == []
    torch.load(weights, weights_only=False) if kind == "torch.save" else pickle.loads(weights.read_bytes())  # noqa: S301
    assert trace.exists(), "it was harmless and proves nothing"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "--model",
            "__import__('os').mkdir('trace'):make",
            'does not name a factory: expected "package.module:factory"',
        ),
        ("--model", "os:mkdir('trace')", "does not name a factory"),
        ("--model", "os:path.join", "does not name a factory"),
        ("--model", "os:mkdir", "must be callable without arguments"),
        ("--model", "os:sep", "os:sep is no function: it is str"),
        ("--model", "os:getcwd", "os:getcwd returned str: expected a Network or a torch.nn.Module"),
        ("--layers", "__import__('os').mkdir('trace')", "unknown layer"),
        ("--layers", "blocks.4.__class__", "unknown layer 'blocks.4.__class__'"),
        ("--target", "__import__('os').mkdir('trace')", "has no class"),
    ],
)
def test_text_is_never_run(
    option: str,
    value: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused_by_cli(capsys, "explain", PICTURE, option, value, "--output", "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}
    assert list((tmp_path / "out").glob("*")) == []


def nasty_network() -> zoo.Network:
    """A network whose class and layer names are no names for files, formats or TeX."""
    with seeded():
        net = nn.Sequential(collections.OrderedDict({r"$\bad{ $": nn.Conv2d(3, 4, 9, stride=8), "relu": nn.ReLU()}))
        net.add_module("pool", nn.AdaptiveAvgPool2d(1))
        net.add_module("flat", nn.Flatten())
        net.add_module("head", nn.Linear(4, len(NASTY)))
    transform = torchvision.transforms.ToTensor()
    return zoo.Network("nasty $\\", net, transform, lambda picture: picture, tuple(NASTY))


def test_odd_names_of_classes_and_pictures_make_no_files_and_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are called what they are always called, in the folder that was asked for; names are drawn as they are."""
    module = types.ModuleType("nasty_networks")
    module.make = nasty_network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nasty_networks", module)
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    odd = work / "$(touch trace) .. ; '\n.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(odd)
    monkeypatch.chdir(work)
    arguments = ["explain", str(odd), "--model", "nasty_networks:make", "--layers", r"relu,$\bad{ $", "--output", "out"]
    assert cli.main([*arguments, "--target", *NASTY[:3]]) == 0
    printed = capsys.readouterr().out
    assert all(repr(name) in printed for name in NASTY[:3])
    created = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    written = [f"{odd.stem}_contributions.png", f"{odd.stem}_rules.png", "shares.csv", ".captum_cav_files.json"]
    assert created == sorted([f"a/b/{odd.name}", *(f"a/b/out/{name}" for name in written)])


def test_files_that_are_no_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(PICTURE).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "corrupt.png").write_bytes(whole[:8] + bytes(len(whole) - 8))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    output = str(tmp_path / "out")
    for name in ("truncated", "corrupt", "text", "empty"):
        file = tmp_path / f"{name}.png"
        said = refused_by_cli(capsys, "explain", str(file), "--output", output)
        assert str(file) in said
        assert "picture" in said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    said = refused_by_cli(capsys, "explain", PICTURE, "--output", output)
    assert re.search(r"dog_above_cat\.png.*pixels", said)
    assert Image.MAX_IMAGE_PIXELS == 1000, "it is the user's"
    assert list(Path(output).iterdir()) == []
