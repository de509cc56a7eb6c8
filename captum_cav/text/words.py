"""Tokens as people read them: decoded, and joined to words.

Tokenizers spell tokens in several ways. WordPiece writes ``##ing`` for the end of a word. SentencePiece writes
``▁the`` for a word after a space, and ``<0xE4>`` for a single byte. Byte-level tokenizers, such as that of GPT-2, write
``Ġthe``, and spell each byte of another script as a letter of its own. In scripts without spaces each token is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

Spelling: TypeAlias = Literal["byte-level", "sentencepiece", "wordpiece", "plain"]

_SPACE_OF_SENTENCEPIECE = "▁"
_SPACE_OF_BYTES = "Ġ"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# These signs do not end a word: an apostrophe, a hyphen, a low line.
_INSIDE = frozenset("'\u2019-\u2010_")
# The names of scripts whose words have no spaces between them.
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class Word:
    """Some neighbouring tokens that people read as one word.

    Attributes:
        text: as people read the word, without the space before the word.
        start: the index of the first token.
        stop: the index behind the last token.
        spaced: whether a space stands before the word.
        special: whether the tokenizer calls the token special, such as padding. A special token is a word by itself.
    """

    text: str
    start: int
    stop: int
    spaced: bool
    special: bool


def spelling_of(tokens: Iterable[str]) -> Spelling:
    """How a tokenizer spells tokens.

    Args:
        tokens: the vocabulary of the tokenizer, or else the tokens of a text.

    Returns:
        ``"byte-level"``, ``"sentencepiece"``, ``"wordpiece"``, or ``"plain"`` if no token shows another one.

    Example::

        >>> spelling_of(["Ġthe", "Ġcat"]), spelling_of(["▁the", "▁cat"]), spelling_of(["em", "##bed"])
        ('byte-level', 'sentencepiece', 'wordpiece')
        >>> spelling_of(["the", "cat"])
        'plain'
    """
    for token in tokens:
        if token.startswith(_SPACE_OF_BYTES):
            return "byte-level"
        if token.startswith(_SPACE_OF_SENTENCEPIECE):
            return "sentencepiece"
        if token.startswith("##") and len(token) > 2:
            return "wordpiece"
    return "plain"


def _bytes_by_letter() -> dict[str, int]:
    """The byte that each letter stands for in a byte-level vocabulary.

    Bytes that can be printed in Latin-1 stand for themselves. All others follow in order from letter 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


_BYTES = _bytes_by_letter()


def _as_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; a token that was added to the vocabulary is plain text."""
    if all(letter in _BYTES for letter in token):
        return bytes(_BYTES[letter] for letter in token)
    return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace(_SPACE_OF_SENTENCEPIECE, " ").encode()


def _wordpiece_bytes(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else f" {token}".encode()


_READ: dict[Spelling, Callable[[str], bytes]] = {
    "byte-level": _as_bytes,
    "sentencepiece": _sentencepiece_bytes,
    "wordpiece": _wordpiece_bytes,
    "plain": _wordpiece_bytes,
}


def words_of(
    tokens: Sequence[str],
    special: Sequence[bool] | None = None,
    *,
    spelling: Spelling | None = None,
    breaks: Sequence[int] = (),
    joined: bool = True,
) -> list[Word]:
    """Join tokens to words.

    Args:
        tokens: as the tokenizer spells them.
        special: whether each token is special; None if none is.
        spelling: how the tokenizer spells tokens; None to find out from the tokens.
        breaks: indices of tokens at which a new word begins in any case, such as the first token of an output.
        joined: whether subwords are joined to words. Otherwise only the tokens are joined that are parts of one letter.

    Returns:
        The words, in order. Together they have all tokens.

    Example::

        >>> [word.text for word in words_of(["Ġun", "believ", "able", "Ġfilm", ".", "ĠÃ©", "tÃ©"])]
        ['unbelievable', 'film', '.', 'été']
        >>> [word.text for word in words_of(["[CLS]", "em", "##bed", "it"], [True, False, False, False])]
        ['[CLS]', 'embed', 'it']
        >>> [word.text for word in words_of(["▁ein", "▁Baum", "haus"])]
        ['ein', 'Baumhaus']
    """
    special = special or [False] * len(tokens)
    spelling = spelling or spelling_of(token for token, one in zip(tokens, special, strict=True) if not one)
    words: list[Word] = []
    letters = b""
    for index, (token, is_special) in enumerate(zip(tokens, special, strict=True)):
        if is_special:
            words.append(Word(token, index, index + 1, False, True))
            letters = b""
            continue
        is_part = bool(letters) and _is_cut(letters) and index not in breaks
        letters = letters + _READ[spelling](token) if is_part else _READ[spelling](token)
        start = words.pop().start if is_part else index
        text = letters.decode(errors="replace")
        words.append(Word(text.removeprefix(" "), start, index + 1, text.startswith(" "), False))
    return _joined(words, breaks) if joined else words


def _joined(parts: Sequence[Word], breaks: Sequence[int]) -> list[Word]:
    """Join words, each of whole letters, to longer words."""
    words: list[Word] = []
    for part in parts:
        if words and part.start not in breaks and _belong_together(words[-1], part):
            before = words.pop()
            words.append(replace(before, text=before.text + part.text, stop=part.stop))
        else:
            words.append(part)
    return words


def _belong_together(before: Word, after: Word) -> bool:
    if before.special or after.special or after.spaced or not after.text:
        return False
    if not before.text:
        return not after.text[0].isspace()  # a space that is a token of its own
    last, first = before.text[-1], after.text[0]
    if first.isspace() or last.isspace() or _has_no_spaces(first) or _has_no_spaces(last):
        return False
    are_letters = (last.isalnum() or _is_mark(last), first.isalnum() or _is_mark(first))
    return all(are_letters) or (any(are_letters) and bool({last, first} & _INSIDE))


def _is_cut(given: bytes) -> bool:
    """Whether the bytes end inside a letter."""
    try:
        given.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")


def _has_no_spaces(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_WITHOUT_SPACES)


def visible(text: str) -> str:
    r"""A text with signs for everything that would be invisible: line breaks, tabs, controls, and a lone space.

    Example::

        >>> visible("a\n"), visible(""), visible("é")
        ('a↵', '␣', 'é')
    """
    signs = {"\n": "↵", "\t": "⇥", "\r": "␍"}
    shown = "".join(
        letter if letter.isprintable() or _is_joiner(letter) else signs.get(letter, f"\\u{ord(letter):04x}")
        for letter in text
    )
    return shown if shown.strip() else "␣" * max(len(shown), 1)


def _is_joiner(letter: str) -> bool:
    # Zero-width joiners belong to the letters of Persian and to emoji.
    return letter in "‌‍"


def vocabulary_of(tokenizer: Any) -> Iterable[str]:
    """The vocabulary of a tokenizer; empty if it does not tell."""
    get = getattr(tokenizer, "get_vocab", None)
    return get() if callable(get) else ()


def sums_over_words(values: torch.Tensor, words: Sequence[Word]) -> torch.Tensor:
    """The sums of values over the tokens of each word.

    Args:
        values: shape (..., tokens).
        words: the words of all tokens.

    Returns:
        Shape (..., words).

    Example::

        >>> sums_over_words(torch.tensor([[1.0, 2.0, 4.0]]), words_of(["em", "##bed", "it"]))
        tensor([[3., 4.]])
    """
    numbers = [number for number, word in enumerate(words) for _ in range(word.start, word.stop)]
    sums = values.new_zeros(*values.shape[:-1], len(words))
    return sums.index_add_(-1, torch.tensor(numbers, device=values.device), values)
