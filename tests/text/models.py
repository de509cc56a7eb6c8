"""Small models of sequences with random weights, in float64, as transformers builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="the models come from transformers")

WORDS = 61
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**options: Any) -> Any:
    """Grouped queries, rotary positions, and biases."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, **options)
    )


def qwen(**options: Any) -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=4, **options))


def mixtral(**options: Any) -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **SIZES, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager", **options
        )
    )


def gpt2(**options: Any) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS, n_embd=16, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2, **options
        )
    )


def mamba(**options: Any) -> Any:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=WORDS, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
        )
    )


def t5(**options: Any) -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS,
            d_model=16,
            d_kv=4,
            d_ff=20,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            **options,
        )
    )


def bart(**options: Any) -> Any:
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=WORDS,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=20,
            decoder_ffn_dim=20,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            **options,
        )
    )


def bert(kind: Any, **options: Any) -> Any:
    sizes = {name: size for name, size in SIZES.items() if name not in ("num_key_value_heads", "eos_token_id")}
    return kind(transformers.BertConfig(**sizes, type_vocab_size=2, num_labels=3, **options))


def classifier(**options: Any) -> Any:
    return bert(transformers.BertForSequenceClassification, **options)


def tagger(**options: Any) -> Any:
    return bert(transformers.BertForTokenClassification, **options)


def masked(**options: Any) -> Any:
    return bert(transformers.BertForMaskedLM, **options)


def encoder(**options: Any) -> Any:
    return bert(transformers.BertModel, **options)


CAUSAL: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (llama, qwen, mixtral, gpt2, mamba)
}


def built(build: Callable[..., Any], **options: Any) -> Any:
    """A model in float64 and evaluation mode, with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(**options).double().eval()
        for name, parameter in model.named_parameters():
            if "A_log" not in name:
                nn.init.normal_(parameter, std=0.3)
    return model


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, WORDS, (count,), generator=torch.Generator().manual_seed(seed))
