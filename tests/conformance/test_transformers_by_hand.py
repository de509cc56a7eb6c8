"""AttnLRP and CP-LRP on transformers, against the same models with the gradient modified by hand, at every block."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.coverage.problem import Problem
from benchmarks.coverage.transformers_models import CASES
from captum_cav import InputCAV, LayerCAV
from tests.support.transformers_by_hand import METHODS, REFERENCES, Method

TOLERANCE = 1e-9


def _problem(name: str, implementation: str) -> Problem:
    case = CASES[name]
    return dataclasses.replace(case, arguments={**case.arguments, "attn_implementation": implementation}).build()


# Transformers is installed where slow tests run.
@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.preset)
@pytest.mark.parametrize("name", REFERENCES)
def test_contributions_at_every_block(name: str, method: Method, implementation: str) -> None:
    pytest.importorskip("transformers")
    score, model, x, target = _problem(name, implementation)
    reference = REFERENCES[name]
    scores, expected = reference.contributions(model, x, target, method)
    torch.testing.assert_close(scores, score(x).detach(), rtol=1e-10, atol=1e-10)
    blocks = list(reference.blocks(model))
    options = {"rules": method.preset, "normalize": None}
    found = [InputCAV(score, **options).attribute(x, target)]
    found += LayerCAV(score, blocks, **options).attribute(x, target)
    distances = {
        place: float((ours - theirs).norm() / theirs.norm())
        for place, ours, theirs in zip(("inputs", "block 0", "block 1"), found, expected, strict=True)
    }
    assert max(distances.values()) < TOLERANCE, distances
