"""docs/text.md: its examples run, and give what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import python_of

pytest.importorskip("transformers", reason="the examples explain models of transformers")

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


def test_the_examples_run() -> None:
    names: dict[str, Any] = {}
    generated, compared, translated, classes, similar, inputs = python_of(PAGE)
    exec(generated, names)  # noqa: S102
    found = names["found"]
    assert found.contributions.shape == (len(found.scores), 3 + len(found.scores))
    exec(compared, names)  # noqa: S102
    assert names["rather"].contrast_tokens == [["10"], ["10"]]
    assert [one.layer for one in (names["first"], names["last"])] == ["model.layers.0", "model.layers.1"]
    assert [one.contributions.shape for one in names["batch"]] == [(1, 4), (2, 4)]
    exec(translated, names)  # noqa: S102
    assert names["found"].of("source").shape == names["found"].of("output").shape == (2, 3)
    exec(classes, names)  # noqa: S102
    assert names["found"].contributions.shape == (1, 4)
    exec(similar, names)  # noqa: S102
    assert names["found"].of("second").shape == (1, 3)
    exec(inputs, names)  # noqa: S102
    assert names["words"]["input_ids"].shape == (1, 4)
    assert names["layer"].shape == (1, 4, 16)
