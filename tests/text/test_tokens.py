"""Texts in, spellings out: tokenizers of transformers and of ``tokenizers``, indices, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav import SequenceCAV
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.text.tokens import sequences_in
from tests.text.models import built, llama, transformers

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers come from this library")

WORDS = ["<pad>", "<s>", "</s>", "[UNK]", "the", "cat", "sat", "on", "a", "mat"]


def plain() -> Any:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")  # noqa: S106
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def of_transformers() -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain(),
        unk_token="[UNK]",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
    )


@pytest.mark.parametrize("make", [plain, of_transformers])
def test_texts_are_read_and_tokens_spelled(make: Any) -> None:
    cav = SequenceCAV(built(llama), tokenizer=make())
    found = cav.attribute("the cat", output="sat on")
    assert found.tokens == ["<s>", "the", "cat", "sat", "on"]
    assert found.output_tokens == ["sat", "on"], "no special token is added to an output"
    assert found.is_special == [make is of_transformers, False, False, False, False]
    by_index = cav.attribute([1, 4, 5], output=[6, 7])
    assert torch.equal(found.contributions, by_index.contributions)
    rather = cav.attribute("the cat", output="sat on", contrast="mat")
    assert rather.contrast_tokens == [["mat"], ["mat"]]


def test_what_a_tokenizer_returns_is_taken() -> None:
    tokenizer = of_transformers()
    cav = SequenceCAV(built(llama), tokenizer=tokenizer)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(["the cat sat", "a mat"], return_tensors="pt", padding=True)
        long, short = cav.attribute(batch, ["on", "on"])
        assert short.tokens == ["<s>", "a", "mat", "on"]
        assert torch.equal(short.contributions, cav.attribute("a mat", "on").contributions)
        assert torch.equal(long.contributions, cav.attribute("the cat sat", "on").contributions)
    (one,) = cav.attribute(tokenizer("a mat", return_tensors="pt"), ["on"])
    assert one.tokens == short.tokens
    alone = cav.attribute(tokenizer("a mat"), "on")
    assert alone.tokens == short.tokens


def test_a_text_needs_a_tokenizer() -> None:
    with pytest.raises(CAVTypeError, match="inputs is a text; without a tokenizer, expected indices of tokens"):
        SequenceCAV(built(llama)).attribute("the cat", [5])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], InputError, "inputs is empty"),
        (torch.ones(0, dtype=torch.long), InputError, "inputs is empty"),
        (torch.ones(3), InputError, r"inputs has shape \(3,\) and torch.float32; expected integers"),
        (torch.ones(1, 2, 3, dtype=torch.long), InputError, r"inputs has shape \(2, 3\)"),
        ({"ids": 1}, InputError, 'inputs is a dict without "input_ids"'),
        (1.5, CAVTypeError, "inputs is a float; expected a text, or the indices of tokens"),
        ([1.5, 2.5], CAVTypeError, "inputs is a float; expected a text, or the indices of tokens"),
    ],
)
def test_what_holds_no_tokens_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sequences_in(given, "inputs", None)
