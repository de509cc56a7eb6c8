"""docs/scores.md: its examples run, and give maps that are not 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_cav import scores
from captum_cav.attribution.scores import SCORES
from tests.support.examples import python_in

PAGE = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
#: What the examples call their maps.
MAPS = ("own", "inside", "found", "clean", "error", "rather", "together")


def run(sections: list[str]) -> None:
    names: dict[str, Any] = {}
    for section in sections:
        blocks = python_in(section)
        assert blocks, section
        for block in blocks:
            torch.manual_seed(0)
            for name in MAPS:
                names.pop(name, None)
            exec(block, names)  # noqa: S102
            maps = [names[name] for name in MAPS if name in names]
            assert maps
            assert all(bool(torch.isfinite(found).all()) and found.count_nonzero() for found in maps)


def test_the_examples_run() -> None:
    run(SECTIONS[2:])


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS[:2], ids=["segmentation", "detection"])
def test_the_examples_of_torchvision_run(section: str) -> None:
    run([section])


@pytest.mark.parametrize("name", sorted({*SCORES, *scores.__all__} - {"ScoreFunction"}))
def test_every_score_is_on_the_page(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)
