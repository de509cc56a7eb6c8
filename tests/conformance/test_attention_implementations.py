"""Attention has the same map in every way in which torch and transformers compute attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import implementations
from benchmarks.coverage.transformers_models import CASES
from captum_cav import InputCAV
from tests.support.networks import fixed
from tests.support.small_networks import seeded

TOLERANCE = 1e-6
every_preset = pytest.mark.parametrize("rules", implementations.RULES)


def explained(score: Callable[..., torch.Tensor], inputs: torch.Tensor, target: int, rules: str) -> Any:
    return InputCAV(score, rules=rules).attribute(inputs, target, return_convergence_delta=True)


# torch.nn.MultiheadAttention ----------------------------------------------------------------------------------------

QUERY, MEMORY = fixed(2, 3, 8), fixed(2, 5, 8, seed=2)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
#: What is attended to, for a query that is explained, and the mask of the keys.
SOURCES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor | None]] = {
    "itself": (lambda query: query, None),
    "constants": (lambda query: MEMORY, None),
    "constants with padding": (lambda query: MEMORY, PADDING),
    "itself and constants": (lambda query: torch.cat([query, MEMORY[:, 3:]], 1), PADDING),
}


def attending(source: str, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A residual attention with biases, and a linear layer on the last token."""
    with seeded():
        attention, head = nn.MultiheadAttention(8, 2, batch_first=True).double().eval(), nn.Linear(8, 3).double()
        nn.init.normal_(attention.in_proj_bias)
        nn.init.normal_(attention.out_proj.bias)
    read, padding = SOURCES[source]

    def score(query: torch.Tensor) -> torch.Tensor:
        memory = read(query)
        attended, _ = attention(query, memory, memory, key_padding_mask=padding, **options)
        scores: torch.Tensor = head((query + attended)[:, -1])
        return scores

    return score


@every_preset
@pytest.mark.parametrize("options", [{}, {"average_attn_weights": False}], ids=["averaged", "of each head"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_weights_of_an_attention_may_be_asked_for(source: str, options: dict[str, bool], rules: str) -> None:
    expected, delta = explained(attending(source, need_weights=False), QUERY, 1, rules)
    found, delta_with_weights = explained(attending(source, need_weights=True, **options), QUERY, 1, rules)
    assert implementations.distance(found, expected) < TOLERANCE
    torch.testing.assert_close(delta_with_weights, delta, rtol=TOLERANCE, atol=TOLERANCE)
    if rules == "paper":
        assert delta.abs().max() < 1e-9


# transformers -------------------------------------------------------------------------------------------------------


@every_preset
@pytest.mark.parametrize("name", ["Bart", "Whisper", "T5"])
def test_a_decoder_that_attends_to_constants(name: str, rules: str) -> None:
    """The source is another argument of the model. Attention to the source is the same, fused or in steps."""
    pytest.importorskip("transformers")
    builders = implementations.transformers_builders(implementations.with_constant_source(CASES[name]))
    (row,) = implementations.compare("transformers", name, builders, [rules])
    assert row.is_right, row


@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
@pytest.mark.parametrize("padded", [False, True])
@every_preset
def test_masks_give_no_nan(name: str, padded: bool, rules: str) -> None:
    """A softmax in float32 makes -inf of the smallest number of float64, with which the model masks."""
    pytest.importorskip("transformers")
    case = CASES[name]
    problem = dataclasses.replace(case, arguments={**case.arguments, "attn_implementation": "eager"}).build()
    mask = torch.ones(problem.inputs.shape[:2], dtype=torch.long)
    if padded:
        mask[0, -2:] = 0

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return case.read(problem.model(inputs_embeds=inputs, attention_mask=mask))

    maps, delta = explained(score, problem.inputs, problem.target, rules)
    assert maps.isfinite().all()
    assert delta.isfinite().all()
    if rules == "paper":
        assert delta.abs().max() < 1e-5
