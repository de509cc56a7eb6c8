"""Causal language models: the matrix is that of one attribution for each output token."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

from captum_cav import InputCAV, LayerCAV, SequenceCAV
from tests.text.models import CAUSAL, built, tokens

PROMPT, OUTPUT = 7, 5
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
#: Norms of these models compute in float32. So what is not computed in the same steps differs by its rounding.
ROUNDED: dict[str, Any] = {"rtol": 0, "atol": 1e-6}
DEFAULT = [("llama", "sdpa", "attnlrp"), ("gpt2", "eager", None), ("mamba", "eager", "attnlrp")]
SETTINGS = [
    pytest.param(*setting, marks=() if setting in DEFAULT else pytest.mark.slow)
    for setting in itertools.product(CAUSAL, ("eager", "sdpa"), ("attnlrp", None))
    if setting[:2] != ("mamba", "sdpa")
]


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


@pytest.mark.parametrize(("name", "attention", "rules"), SETTINGS)
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


LONG_PROMPT, LONG_OUTPUT = 64, 32


def off_from_single_calls(model: Any) -> float:
    """The largest difference between the matrix of many tokens and single calls, for three of the outputs."""
    ids = tokens(LONG_PROMPT + LONG_OUTPUT)
    found = SequenceCAV(model).attribute(ids[:LONG_PROMPT], ids[LONG_PROMPT:]).contributions
    largest = 0.0
    for count in (1, LONG_OUTPUT // 2, LONG_OUTPUT):
        position = LONG_PROMPT + count
        single = step_by_step(model, ids[:position], position - 1, False, rules="attnlrp")[0]
        largest = max(largest, float((found[count - 1, :position] - single).abs().max()))
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_many_tokens(name: str) -> None:
    assert (
        off_from_single_calls(built(CAUSAL[name], attn_implementation="eager" if name == "mamba" else "sdpa")) < 1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen", "mixtral"])
def test_the_eager_softmax_of_transformers_rounds_to_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention of these models calls softmax with ``dtype=torch.float32``. Nothing else is inexact."""
    model = built(CAUSAL[name], attn_implementation="eager")
    assert 1e-12 < off_from_single_calls(model) < 1e-8
    # The same attention with a softmax that keeps the type. The model's own function looks it up in this module.
    softmax = torch.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim))
    assert off_from_single_calls(model) < 1e-12


def test_each_step_may_come_from_a_cache() -> None:
    """Token by token, with keys and values that earlier steps cached, in one forward pass."""
    model, ids = built(CAUSAL["llama"]), tokens(9)
    prompt = 6

    def scores(ids: torch.Tensor) -> torch.Tensor:
        step = model(ids[:, :prompt], use_cache=True)
        logits = [step.logits[:, -1]]
        for position in range(prompt, ids.shape[1]):
            step = model(ids[:, position : position + 1], past_key_values=step.past_key_values, use_cache=True)
            logits.append(step.logits[:, -1])
        return torch.stack(logits, 1)

    found = SequenceCAV(model).attribute(ids[:prompt], ids[prompt:])
    cav = InputCAV(scores, rules="attnlrp", normalize=None)
    for row in range(3):
        expected = cav.attribute(ids[None, :-1], target=(row, int(ids[prompt + row])))
        torch.testing.assert_close(found.contributions[row, :-1], expected[0], **CLOSE)


def test_several_layers_at_once() -> None:
    model, ids = built(CAUSAL["llama"]), tokens(9)
    layers = ["model.embed_tokens", model.model.layers[0], "model.layers.1.mlp"]
    several = SequenceCAV(model, layers).attribute(ids[:6], ids[6:])
    for layer, found in zip(layers, several, strict=True):
        alone = SequenceCAV(model, layer).attribute(ids[:6], ids[6:])
        torch.testing.assert_close(found.contributions, alone.contributions, **CLOSE)
        torch.testing.assert_close(found.constants, alone.constants, **ROUNDED)
        cav = LayerCAV(model, layer, rules="attnlrp", normalize=None, output=lambda found: found.logits[:, -1])
        expected, delta = cav.attribute(ids[None, :-1], int(ids[-1]), return_convergence_delta=True)
        torch.testing.assert_close(found.contributions[-1, :-1], expected[0].sum(-1), **CLOSE)
        torch.testing.assert_close(found.unexplained[-1:], delta, **ROUNDED)
    assert [found.layer for found in several] == ["model.embed_tokens", "model.layers.0", "model.layers.1.mlp"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gets_nothing_and_a_batch_equals_single_calls(side: str) -> None:
    model = built(CAUSAL["llama"])
    rows, outputs = [tokens(5), tokens(3, 1)], [tokens(2, 2), tokens(4, 3)]
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(5 - len(row), 5) if side == "left" else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    cav = SequenceCAV(model)
    batch = cav.attribute({"input_ids": ids, "attention_mask": mask}, outputs)
    for found, row, output in zip(batch, rows, outputs, strict=True):
        alone = cav.attribute(row, output)
        assert torch.equal(found.contributions, alone.contributions)
        assert found.tokens == alone.tokens
        assert found.prompt_length == len(row)
    generated = cav.attribute(rows, max_new_tokens=2)
    for found, row in zip(generated, rows, strict=True):
        assert torch.equal(found.contributions, cav.attribute(row, max_new_tokens=2).contributions)


def test_what_the_model_generates_is_explained() -> None:
    model, prompt = built(CAUSAL["gpt2"]), tokens(5)
    found = SequenceCAV(model).attribute(prompt, max_new_tokens=4)
    with torch.no_grad():
        said = model.generate(
            prompt[None], attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=4, do_sample=False
        )[0, 5:]
    assert found.output_ids.tolist() == said.tolist()
    assert found.output_tokens == list(map(str, said.tolist()))
    again = SequenceCAV(model).attribute(prompt, said)
    assert torch.equal(found.contributions, again.contributions)
    with torch.no_grad():
        logits = model(torch.cat([prompt, said])[None]).logits[0, 4:-1]
    torch.testing.assert_close(found.probabilities, logits.softmax(1).gather(1, said[:, None])[:, 0], **CLOSE)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> Any:
            return self.model(ids).logits

    plain = SequenceCAV(Plain()).attribute(prompt, max_new_tokens=len(said))
    torch.testing.assert_close(plain.contributions, found.contributions, **CLOSE)


def test_one_token_rather_than_another() -> None:
    model, ids = built(CAUSAL["llama"]), tokens(9)
    cav = SequenceCAV(model)
    found = cav.attribute(ids[:6], ids[6:], contrast=[4, 5])
    plain = cav.attribute(ids[:6], ids[6:])
    for row in range(3):
        expected = plain.contributions[row].clone()
        for other in (4, 5):
            one = cav.attribute(ids[: 6 + row], [other]).contributions[0]
            expected[: len(one)] -= one / 2
        torch.testing.assert_close(found.contributions[row], expected, **ROUNDED)
    assert found.contrast_tokens == [["4", "5"]] * 3
    torch.testing.assert_close(found.contributions.sum(1) + found.constants + found.unexplained, found.scores, **CLOSE)


def test_log_odds_and_ratios() -> None:
    model, ids = built(CAUSAL["gpt2"]), tokens(9)
    found = SequenceCAV(model, score="log_odds", rules=None).attribute(ids[:6], ids[6:])
    assert found.probabilities is not None
    torch.testing.assert_close(found.scores, (found.probabilities / (1 - found.probabilities)).log(), **CLOSE)
    cav = InputCAV(model, score="log_odds", normalize=None, output=lambda found: found.logits[:, -1])
    expected = cav.attribute(ids[None, :-1], int(ids[-1]))
    torch.testing.assert_close(found.contributions[-1, :-1], expected[0], **CLOSE)
    plain = SequenceCAV(model).attribute(ids[:6], ids[6:])
    for normalize in ("score", "abs"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ratios = SequenceCAV(model, normalize=normalize).attribute(ids[:6], ids[6:])
        divisor = plain.scores if normalize == "score" else plain.scores.abs()
        for name in ("constants", "unexplained"):
            torch.testing.assert_close(getattr(ratios, name), getattr(plain, name) / divisor, **CLOSE)
        torch.testing.assert_close(ratios.contributions, plain.contributions / divisor[:, None], **CLOSE)


@pytest.mark.parametrize("rules", ["paper", "epsilon", "gamma", "epsilon_plus", "alpha2_beta1", "attnlrp", "cp_lrp"])
def test_backward_passes_that_run_together_equal_single_ones(rules: str) -> None:
    model, ids = built(CAUSAL["llama"]), tokens(9)
    one, many = (
        SequenceCAV(model, rules=rules).attribute(ids[:6], ids[6:], internal_batch_size=size) for size in (1, 8)
    )
    torch.testing.assert_close(many.contributions, one.contributions, **CLOSE)
