"""benchmarks.causes: what is read from archives and kept on disk, the rules of candidates, and the tables."""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks import causes
from benchmarks.cache import Cache, hash_of_sources, hash_of_tensors
from benchmarks.candidates import SEARCH, DampedGammaRule, method_of
from benchmarks.localization import Known
from benchmarks.networks import DEPTHS
from benchmarks.photographs import Photograph, read_rcc
from captum_cav import InputCAV, LayerCAV, presets, rules, zoo


def archive(files: dict[str, bytes], version: int) -> bytes:
    """An archive of Qt resources with a folder "pictures"; files whose name ends in "z" are compressed."""
    names, name_places = b"", {}
    for name in ["pictures", *files]:
        name_places[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    time = b"" if version == 1 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + time
    tree += struct.pack(">IHII", name_places["pictures"], 2, len(files), 2) + time
    data = b""
    for name, content in files.items():
        is_compressed = name.endswith("z")
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if is_compressed else content
        tree += struct.pack(">IHHHI", name_places[name], int(is_compressed), 0, 0, len(data)) + time
        data += struct.pack(">I", len(stored)) + stored
    start = 20
    header = struct.pack(">4s4I", b"qres", version, start, start + len(tree), start + len(tree) + len(data))
    return header + tree + data + names


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_an_archive_of_qt_resources(version: int) -> None:
    files = {"dog.webp": b"a dog", "cät.jpg": bytes(range(256)), "packed.z": b"x" * 1000}
    expected = [(f"/pictures/{name}", content) for name, content in files.items()]
    assert list(read_rcc(archive(files, version))) == expected
    with pytest.raises(ValueError, match="no archive of Qt resources"):
        list(read_rcc(b"PK\3\4"))


def test_what_was_measured_once_is_read_again(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path / "new"), []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.arange(3.0)}

    key = {"network": "a", "masks": 4}
    assert not cache.has("effects", key)
    for _ in range(2):
        assert torch.equal(cache.get("effects", key, make)["x"], torch.arange(3.0))
    assert cache.has("effects", dict(reversed(key.items())))
    assert len(calls) == 1
    for other in (key | {"masks": 8}, key | {"network": "b"}):
        assert not cache.has("effects", other)
    assert not cache.has("sums", key)

    def stopped() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("sums", key, stopped)
    assert not cache.has("sums", key)


def test_hashes_tell_networks_and_sources_apart() -> None:
    net = nn.Linear(2, 2)
    before = hash_of_tensors(net.state_dict())
    assert hash_of_tensors({name: value.clone() for name, value in net.state_dict().items()}) == before
    net.weight.data[0, 0] += 1e-6
    assert hash_of_tensors(net.state_dict()) != before
    assert len(hash_of_sources()) == 64


def net(strides: Sequence[int] = (1, 1, 1, 1), width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    body = []
    for inputs, stride in zip((3, *[width] * len(strides)), strides, strict=False):
        body += [nn.Conv2d(inputs, width, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval().requires_grad_(False)


def rules_of(candidate: str, model: nn.Module) -> dict[Any, Any]:
    """The rules of a candidate as a plain mapping."""
    return dict(method_of(candidate, model).options["rules"])


def test_the_rules_of_candidates() -> None:
    model = net()
    assert rules_of("gamma=1", model) == dict(presets.pinpoint())
    assert rules_of("gamma=4", model) == dict(presets.pinpoint(4.0))
    deep = {key: rule for key, rule in rules_of("absolute=0.3", model).items() if isinstance(key, nn.Module)}
    assert deep == dict.fromkeys([model[4], model[6]], rules.AbsoluteEpsilonRule(0.3))
    everywhere = {key for key in rules_of("absolute=0.3+share=1", model) if isinstance(key, nn.Module)}
    assert everywhere == {model[2], model[4], model[6]}, "the first layer keeps its rule for the input"
    both = rules_of("absolute=0.3+deep=0.5", model)[model[4]]
    assert both == DampedGammaRule(gamma=0.5, epsilon=0.3)
    kept = [
        rule
        for value in rules_of("slopes=0+flat=0", model).values()
        for rule in (value if isinstance(value, list) else [value])
    ]
    assert {type(rule) for rule in kept} == {rules.GammaRule, rules.ContributionRule}
    with pytest.raises(ValueError, match=r"has the parts \['eps'\]"):
        rules_of("eps=1", model)
    fine = rules_of("absolute=0.3+fine=4", model)[F.conv2d]
    assert fine == [
        rules.AtInput(rules.FlatRule()),
        rules.AtFineMaps(rules.GammaRule(1.0), 4),
        rules.AbsoluteEpsilonRule(0.3),
    ]


def test_no_two_candidates_are_the_same() -> None:
    # Several convolutions for each reduction of the map, so that all parts of a candidate matter.
    model, x = net([1, 2, 2, 1, 2, 1, 1, 2, 1, 2, 1, 1, 1], width=16), torch.rand(1, 3, 64, 64)
    candidates = [name for name in SEARCH if "=" in name]
    scores = [method_of(name, model).options["score"] for name in candidates]
    assert {name for name, score in zip(candidates, scores, strict=True) if score == "log_odds"} == {
        "gamma=1+odds=1",
        "absolute=0.1+share=1+odds=1",
    }
    maps = [InputCAV(model, **method_of(name, model).options).attribute(x, 1) for name in candidates]
    for number, found in enumerate(maps):
        assert bool(found.isfinite().all())
        assert not any(torch.equal(found, other) for other in maps[:number]), candidates[number]


@pytest.mark.parametrize(("candidate", "preset"), [
    ("gamma=1", "pinpoint"),
    ("absolute=0.1+fine=8", "absolute_epsilon_flat"),
])  # fmt: skip
def test_some_candidates_are_presets(candidate: str, preset: str) -> None:
    # Fine maps and coarse ones.
    model, x = net([1, 2, 2, 2, 2, 1], width=16), torch.rand(1, 3, 32, 32)
    found = LayerCAV(model, ["0", "3"], **method_of(candidate, model).options).attribute(x, 1)
    of_preset = LayerCAV(model, ["0", "3"], rules=preset, normalize="abs").attribute(x, 1)
    for one, expected in zip(found, of_preset, strict=True):
        assert torch.equal(one, expected)


def test_gamma_and_an_absolute_epsilon_at_once_is_each_of_them_without_the_other() -> None:
    """Both at once, by the formula: (z + g z+) / (y + g y+ + e sum |z|) for an output above 0."""
    x, weight = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[2.0, -0.25, 1.0], [1.0, -1.0, 1.0]])
    summands = x * weight

    def shares(rule: rules.Rule) -> torch.Tensor:
        net = nn.Linear(3, 2, bias=False)
        net.weight.data = weight
        return InputCAV(net, rules={nn.Linear: rule}, normalize=None).attribute(x.expand(2, -1), [0, 1])

    torch.testing.assert_close(shares(DampedGammaRule(0.5, 0.0)), shares(rules.GammaRule(0.5)))
    torch.testing.assert_close(shares(DampedGammaRule(0.0, 0.3)), shares(rules.AbsoluteEpsilonRule(0.3)))
    expected = []
    for row in summands:
        agrees = torch.where(row.sum().sign() * row > 0, row, torch.zeros(3))
        damped = row.sum() + 0.5 * agrees.sum() + 0.3 * row.abs().sum() * row.sum().sign()
        expected.append((row + 0.5 * agrees) / damped * row.sum())
    torch.testing.assert_close(shares(DampedGammaRule(0.5, 0.3)), torch.stack(expected))


@pytest.fixture
def subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> causes.Subjects:
    """A network of five classes, and six photographs that it is said to know."""
    monkeypatch.setitem(DEPTHS, "small", ("1", "input"))
    torch.manual_seed(1)
    pool = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        pool.append(Photograph(path.name, path, None, "here", "choose" if number % 2 else "report"))

    def recognised(network: zoo.Network, photographs: list[Photograph], _: torch.device) -> list[Known]:
        (one,) = photographs
        return [Known(one, network.preprocess(zoo.open_picture(one.path)), int(one.path.stem) % 5, 0.9)]

    monkeypatch.setattr(causes, "known", recognised)
    options = argparse.Namespace(
        cache=tmp_path / "cache", split="report", most=None, masks=128, steps=5, sources="", cached=False, against="cav"
    )
    network = zoo.Network("small", net(), from_picture, lambda picture: picture)
    return causes.Subjects(network, pool, options)


def from_picture(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def test_the_classes_of_a_photograph_are_its_own_and_three_others(subjects: causes.Subjects) -> None:
    assert [one.photograph.name for one in subjects.chosen] == ["0.png", "2.png", "4.png"]
    assert [subjects.classes(one) for one in subjects.known] == [
        [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0], [3, 4, 0, 1], [4, 0, 1, 2], [0, 1, 2, 3]
    ]  # fmt: skip


def test_tables_of_a_network(subjects: causes.Subjects, capsys: pytest.CaptureFixture[str]) -> None:
    assert causes.measured_already(subjects) == subjects.chosen
    subjects.options.cached = True
    assert not causes.measured_already(subjects)
    causes.run_effects([subjects])
    assert causes.measured_already(subjects) == subjects.chosen
    capsys.readouterr()
    found = causes.report(subjects, ["random", "cav", "cav:pinpoint", "absolute=0.3"])
    printed = capsys.readouterr().out
    own = found["tables"]["Own class"]
    for method in ("random", "cav", "cav:pinpoint", "absolute=0.3"):
        assert own[method]["input"]["number"] == 3
        assert list(own[method]["input"]["by_photograph"]) == ["0.png", "2.png", "4.png"]
    # A global average of ReLUs of each place: contributions to the score are effects, up to what the padding mixes.
    assert own["cav"]["input"]["mean"] > own["random"]["input"]["mean"]
    difference = found["tables"]["Own class, more than cav"]
    assert difference["absolute=0.3"]["input"]["mean"] == pytest.approx(
        own["absolute=0.3"]["input"]["mean"] - own["cav"]["input"]["mean"], abs=1e-4
    )
    assert "cav" not in difference
    assert own["effects"]["input"]["mean"] > 0.5
    assert (
        found["tables"]["Alike: absolute correlation of two classes"]["effects without noise"]["input"]["number"] == 3
    )
    assert "| cav:pinpoint |" in printed
    assert "small: 3 photographs (report)" in printed


def test_effects_and_sums_are_those_of_the_package(subjects: causes.Subjects) -> None:
    one = subjects.chosen[0]
    effects = subjects.effects(one)
    assert effects.effects.shape == (1, 5, 16)
    sums = subjects.sums("cav", one)
    maps = LayerCAV(subjects.network.model, "1", normalize="abs").attribute_targets(one.inputs[None], [0, 1, 2, 3])
    cells = [found.sum((0, 1)).unfold(0, 2, 2).unfold(1, 2, 2).sum((2, 3)).flatten().double() for found in maps]
    torch.testing.assert_close(sums["1"], torch.stack(cells), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("names", "expected"), [
    (["search"], list(SEARCH)),
    (["cav", "cav", "absolute=2"], ["cav", "absolute=2"]),
])  # fmt: skip
def test_which_methods_are_meant(names: list[str], expected: list[str]) -> None:
    assert causes.chosen_methods(names) == expected


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(SystemExit, match="unknown method 'cam'"):
        causes.chosen_methods(["cam"])
