"""Decoders of transformers with a constant memory: the map depends on neither the attention nor what is explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV

transformers = pytest.importorskip("transformers")

WIDTH, BANDS = 16, 20
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": WIDTH,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
}
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bart(attention: str) -> tuple[nn.Module, str]:
    config = transformers.BartConfig(
        **SIZES, encoder_layers=2, max_position_embeddings=32, attn_implementation=attention
    )
    return transformers.BartForConditionalGeneration(config), "inputs_embeds"


def whisper(attention: str) -> tuple[nn.Module, str]:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"num_mel_bins": 7, "max_source_positions": BANDS // 2, "max_target_positions": 16}
    config = transformers.WhisperConfig(**SIZES, **tokens, **lengths, encoder_layers=1, attn_implementation=attention)
    return transformers.WhisperForConditionalGeneration(config), "input_features"


SOURCES: dict[Any, tuple[int, ...]] = {bart: (2, 7, WIDTH), whisper: (2, 7, BANDS)}


def score_of(build: Callable[[str], tuple[nn.Module, str]], attention: str) -> Score:
    model, source = build(attention)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.double().eval().parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)

    def score(target: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        output = model(**{source: memory}, decoder_inputs_embeds=target, use_cache=False)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    return score


@pytest.mark.slow
@pytest.mark.parametrize("preset", [None, "cp_lrp", "gamma", "attnlrp"])
@pytest.mark.parametrize("build", SOURCES)
def test_a_decoder_has_one_map(build: Callable[[str], tuple[nn.Module, str]], preset: str | None) -> None:
    generator = torch.Generator().manual_seed(1)
    target, memory = (torch.randn(shape, generator=generator).double() for shape in ((2, 5, WIDTH), SOURCES[build]))
    maps = []
    for attention in ("eager", "sdpa"):
        cav = InputCAV(score_of(build, attention), normalize=None, rules=preset)
        alone, delta = cav.attribute(target, 3, additional_forward_args=(memory,), return_convergence_delta=True)
        both = cav.attribute((target, memory), 3)
        maps.append((alone, *both))
        if preset != "attnlrp":
            torch.testing.assert_close(alone, both[0])
            assert delta.abs().max() < 1e-12
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other)
