"""Small language models in folders, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def saved_gpt2(path: Path) -> Path:
    """Save a small GPT-2 with random weights, and a tokenizer of bytes."""
    return saved(path, "GPT2LMHeadModel")


def saved(path: Path, architecture: str, **settings: Any) -> Path:
    """Save a small model of transformers with random weights, and a tokenizer of bytes.

    Args:
        path: the folder.
        architecture: the name of its class.
        settings: of the configuration.
    """
    transformers = pytest.importorskip("transformers", reason="the models come from transformers")
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers come from tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "bos_token": "<|end|>", "pad_token": "<|end|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    kind = getattr(transformers, architecture)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(vocab_size=len(fast), **_SIZES[kind.config_class.model_type], **ids, **settings))
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    "bert": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
