"""Small language models in folders, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def saved_gpt2(path: Path) -> Path:
    """Save a small GPT-2 with random weights, and a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers", reason="the models come from transformers")
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers come from tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "bos_token": "<|end|>", "pad_token": "<|end|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(fast), **sizes))
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path
