"""Another default device of torch (``torch.set_default_device``) changes nothing: numbers stay where they belong.

The device is "meta", on which no number can be read. With "cuda" it would be the same, and tests need no GPU so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import captum_cav
from captum_cav import (
    InputCAV,
    LayerCAV,
    SequenceCAV,
    ablation,
    compare,
    datasets,
    metrics,
    rules,
    scores,
    visualization,
)
from captum_cav.metrics import MEASURES
from tests.comparison.networks import classifier, pictures
from tests.datasets import jobs
from tests.metrics.test_measures import call, given
from tests.support.tensors import tensors_of
from tests.visualization.test_kinds_of_numbers import DRAW, MAP, PICTURE


def under_another(run: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return run()


def check_same(found: Any, expected: Any) -> None:
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name: str) -> None:
    arguments = given()
    check_same(under_another(lambda: call(MEASURES[name], arguments)), call(MEASURES[name], arguments))


@pytest.mark.parametrize("name", DRAW)
def test_pictures(name: str) -> None:
    assert under_another(lambda: DRAW[name](PICTURE, MAP)) is not None


@pytest.mark.parametrize("masks", [64, 128])
def test_effects_by_all_masks_and_by_drawn_ones(masks: int) -> None:
    arguments = given()

    def run() -> Any:
        found = metrics.causal_effects(arguments["model"], arguments["inputs"][:2], cells=(2, 3), masks=masks // 2)
        return [found.effects, found.halves]

    check_same(under_another(run), run())


@pytest.mark.parametrize("freeze", [False, True])
def test_recordings(freeze: bool) -> None:
    cav, x = LayerCAV(jobs.network(), jobs.LAYERS), jobs.pictures(2)
    run = lambda: captum_cav.compile(cav, freeze=freeze).attribute(x, 1)  # noqa: E731
    check_same(under_another(run), cav.attribute(x, 1))


@pytest.mark.parametrize(
    "chosen",
    [
        {"0": rules.ZBoxRule(torch.zeros(1, 3, 1, 1), 1.0)},
        "absolute_epsilon_flat",
        "auto",
    ],
    ids=["bounds", "absolute_epsilon_flat", "auto"],
)
def test_rules(chosen: Any) -> None:
    x = jobs.pictures(2)
    net = jobs.network()
    run = lambda: InputCAV(net, rules=chosen).attribute(x, 1)  # noqa: E731
    check_same(under_another(run), run())


def test_scores_of_a_box_and_of_a_region() -> None:
    score = under_another(lambda: scores.Detection([0.0, 0.0, 1.0, 1.0]))
    found = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 0.5]]), "scores": torch.tensor([0.75]), "labels": torch.tensor([2])}
    check_same(under_another(lambda: score([found])), torch.tensor([0.75]))
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    check_same(under_another(lambda: scores.Region(1)(maps)), scores.Region(1)(maps))


def test_ablation() -> None:
    net, x = jobs.network(), jobs.pictures(2)

    def run() -> Any:
        found = ablation.ablate(net, x, jobs.LAYERS[0], ablation.box_mask((0, 0, 4, 4), (8, 8)))
        return [found.before, found.after]

    check_same(under_another(run), run())


def test_a_comparison() -> None:
    net, x = classifier(), pictures(3)

    def run() -> Any:
        return compare(net, x, [2, 1, 2], ["cav", "gradcam"], ["body.last"], (), progress=False).raw

    found, expected = under_another(run), run()
    check_same([*found.values()], [*expected.values()])


def test_a_job_on_a_dataset(tmp_path: Path) -> None:
    folder, cav = jobs.write_pictures(tmp_path / "pictures"), jobs.attribution()

    def run(name: str) -> Any:
        found = datasets.explain_dataset(
            cav, folder, tmp_path / name, preprocess=jobs.preprocess, progress=False, workers=0, **jobs.SIZES
        )
        return [one.maps[layer] for one in found for layer in jobs.LAYERS]

    check_same(under_another(lambda: run("under another")), run("as usual"))


def test_sequences() -> None:
    transformers = pytest.importorskip("transformers", reason="the model comes from transformers")
    settings = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()

    def run() -> Any:
        found = SequenceCAV(model).attribute([1, 2, 3], [4, 5])
        return [found.contributions, found.constants]

    check_same(under_another(run), run())


def test_tables() -> None:
    values = torch.tensor([0.5, -0.2])
    draw = lambda: visualization.show_features(["a", "b"], values, constants=0.1)  # noqa: E731
    assert under_another(draw) is not None
