"""Tokens as people read them: decoded, joined to words, in several scripts."""

from __future__ import annotations

import itertools

import pytest
import torch

from captum_cav.text.words import spelling_of, sums_over_words, visible, words_of

# The letters of a byte-level vocabulary, made here from their definition and not from the module.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
LETTERS = {**{byte: chr(byte) for byte in PRINTABLE}, **{byte: chr(256 + n) for n, byte in enumerate(OTHERS)}}


def byte_level(text: str, *cuts: int) -> list[str]:
    """A text as a byte-level tokenizer spells the tokens, cut at the given bytes."""
    encoded = text.encode()
    ends = [0, *cuts, len(encoded)]
    return ["".join(LETTERS[byte] for byte in encoded[one:other]) for one, other in itertools.pairwise(ends)]


def read(tokens: list[str], **options: object) -> list[tuple[str, int, int]]:
    return [(word.text, word.start, word.stop) for word in words_of(tokens, **options)]  # type: ignore[arg-type]


def test_the_byte_level_alphabet_is_that_of_gpt2() -> None:
    for text in ("naïve café", "Привет мир", "你好 世界", "שלום עולם", "नमस्ते", "a\n\tb", "🙂 ok", "\x00\x7f\xad"):
        whole = byte_level(text)
        (word, *more) = words_of(whole, spelling="byte-level")
        assert not more
        assert word.text == text


@pytest.mark.parametrize("text", ["你好世界", "🙂🙃", "éà", "ﷺ", "नमस्ते", "👩‍🚀"])
def test_letters_that_are_cut_into_bytes_are_whole_again(text: str) -> None:
    encoded = text.encode()
    tokens = byte_level(text, *range(1, len(encoded)))
    assert len(tokens) == len(encoded)
    words = words_of(tokens, spelling="byte-level", joined=False)
    assert [word.text for word in words] == list(text)
    assert "".join(word.text for word in words_of(tokens, spelling="byte-level")) == text
    assert words[-1].stop == len(tokens)
    fallback = [f"<0x{byte:02X}>" for byte in encoded]
    assert [word.text for word in words_of(fallback, spelling="sentencepiece", joined=False)] == list(text)


def test_subwords_of_every_spelling_are_joined() -> None:
    assert read(["Ġthe", "Ġbas", "ket", "ball", ",", "Ġdon", "'t", "Ċ", "Next"]) == [
        ("the", 0, 1),
        ("basketball", 1, 4),
        (",", 4, 5),
        ("don't", 5, 7),
        ("\n", 7, 8),
        ("Next", 8, 9),
    ]
    assert read(["▁the", "▁bas", "ket", "▁", "2", "5", "."]) == [
        ("the", 0, 1),
        ("basket", 1, 3),
        ("25", 3, 6),
        (".", 6, 7),
    ]
    assert read(["the", "bas", "##ket", "##ball", "."]) == [("the", 0, 1), ("basketball", 1, 4), (".", 4, 5)]
    assert read(["the", "cat"]) == [("the", 0, 1), ("cat", 1, 2)]
    assert read(["Ġwell", "-", "known", "Ġx", "_", "1"]) == [("well-known", 0, 3), ("x_1", 3, 6)]


def test_scripts_without_spaces_stay_in_tokens_and_other_scripts_are_joined() -> None:
    chinese = byte_level("我喜欢猫", 3, 9)
    assert [word.text for word in words_of(chinese, spelling="byte-level")] == ["我", "喜欢", "猫"]
    japanese = ["▁", "私は", "猫", "が", "好き"]
    assert [word.text for word in words_of(japanese)] == ["私は", "猫", "が", "好き"]
    hebrew = byte_level(" שלום עולם", 5, 9, 13)
    assert [word.text for word in words_of(hebrew, spelling="byte-level")] == ["שלום", "עולם"]
    arabic = ["▁ال", "سلام", "▁عليكم"]
    assert [word.text for word in words_of(arabic)] == ["السلام", "عليكم"]
    devanagari = ["▁नम", "स्ते"]
    assert [word.text for word in words_of(devanagari)] == ["नमस्ते"]


def test_special_tokens_stand_alone_and_break_words() -> None:
    tokens = ["<s>", "ab", "</s>", "cd", "ef"]
    special = [True, False, True, False, False]
    words = words_of(tokens, special, spelling="byte-level")
    assert [(word.text, word.special) for word in words] == [
        ("<s>", True),
        ("ab", False),
        ("</s>", True),
        ("cdef", False),
    ]
    assert [word.text for word in words_of(["Ġab", "cd"], breaks=[1])] == ["ab", "cd"]


def test_damaged_bytes_are_shown_as_damaged() -> None:
    words = words_of(["Ġa", LETTERS[0xFF], "Ġb", LETTERS[0xE4]], spelling="byte-level")
    assert "".join(word.text for word in words) == "a\ufffdb\ufffd"
    assert words[-1].stop == 4


def test_the_spelling_is_found() -> None:
    assert spelling_of(["a", "b", "Ġthe"]) == "byte-level"
    assert spelling_of(["<unk>", "▁the"]) == "sentencepiece"
    assert spelling_of(["[UNK]", "##s"]) == "wordpiece"
    assert spelling_of(["##", "a"]) == "plain"


def test_what_is_invisible_is_shown_by_signs() -> None:
    assert [visible(text) for text in ("\n", "\t", "", "  ", "\x00", "a\u202eb", "ok")] == [
        "↵",
        "⇥",
        "␣",
        "␣␣",
        "\\u0000",
        "a\\u202eb",
        "ok",
    ]


def test_contributions_of_words_are_sums_over_their_tokens() -> None:
    values = torch.arange(10.0).reshape(2, 5)
    words = words_of(["Ġa", "b", "Ġc", "d", "e"])
    assert sums_over_words(values, words).tolist() == [[1, 9], [11, 24]]
    torch.testing.assert_close(sums_over_words(values, words).sum(1), values.sum(1))
