"""Causal language models: the matrix is that of one attribution for each output token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav import LayerCAV, SequenceCAV
from tests.text.models import CAUSAL, WORDS, built

PROMPT, OUTPUT = 7, 5
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
SETTINGS = [
    (name, attention) for name in CAUSAL for attention in ("eager", "sdpa") if (name, attention) != ("mamba", "sdpa")
]


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, WORDS, (count,), generator=torch.Generator().manual_seed(seed))


def step_by_step(model: Any, ids: torch.Tensor, prompt: int, use_cache: bool, **options: Any) -> torch.Tensor:
    """The matrix from one forward and one backward pass for each output token."""
    matrix = torch.zeros(len(ids) - prompt, len(ids), dtype=torch.float64)
    cav = LayerCAV(
        lambda ids: model(ids, use_cache=use_cache).logits[:, -1],
        model.get_input_embeddings(),
        normalize=None,
        **options,
    )
    for row, position in enumerate(range(prompt, len(ids))):
        found = cav.attribute(ids[None, :position], target=int(ids[position]))
        matrix[row, :position] = found[0].sum(-1)
    return matrix


@pytest.mark.parametrize("rules", ["attnlrp", None])
@pytest.mark.parametrize(("name", "attention"), SETTINGS)
def test_the_matrix_is_that_of_single_calls(name: str, attention: str, rules: str | None) -> None:
    model = built(CAUSAL[name], attn_implementation=attention)
    ids = tokens(PROMPT + OUTPUT)
    found = SequenceCAV(model, rules=rules).attribute(ids[:PROMPT], ids[PROMPT:], internal_batch_size=3)
    for use_cache in (False, True):
        expected = step_by_step(model, ids, PROMPT, use_cache, rules=rules)
        torch.testing.assert_close(found.contributions, expected, **CLOSE)
    with torch.no_grad():
        logits = model(ids[None]).logits[0, PROMPT - 1 : -1]
    torch.testing.assert_close(found.scores, logits.gather(1, ids[PROMPT:, None])[:, 0], **CLOSE, check_dtype=False)
    whole = found.contributions.sum(1) + found.constants + found.unexplained
    torch.testing.assert_close(whole, found.scores, **CLOSE)
    if rules is None:
        assert found.unexplained.abs().max() < 1e-6, "norms of transformers compute in float32"
