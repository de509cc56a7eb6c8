"""A result as people read it: words in place of tokens, for pages, notebooks and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from captum_cav.text.words import Word, spelling_of, sums_over_words, vocabulary_of, words_of


class Result(Protocol):
    """What is read of a :class:`captum_cav.text.SequenceContributions`."""

    @property
    def contributions(self) -> torch.Tensor:
        """Shape (outputs, tokens)."""

    @property
    def scores(self) -> torch.Tensor:
        """Shape (outputs,), the explained scores."""

    @property
    def probabilities(self) -> torch.Tensor | None:
        """Shape (outputs,), or None."""

    @property
    def constants(self) -> torch.Tensor:
        """Shape (outputs,), the shares of constants."""

    @property
    def unexplained(self) -> torch.Tensor:
        """Shape (outputs,), what nothing explains."""

    @property
    def tokens(self) -> list[str]:
        """The token of each column."""

    @property
    def output_tokens(self) -> list[str]:
        """The token or the class of each row."""

    @property
    def segments(self) -> dict[str, slice]:
        """The columns of each part of the text."""

    @property
    def is_special(self) -> list[bool]:
        """Whether the token of each column is special."""

    @property
    def layer(self) -> str:
        """The name of the layer."""

    @property
    def normalize(self) -> str | None:
        """What contributions are divided by."""

    @property
    def contrast_tokens(self) -> list[list[str]]:
        """What each row was compared with."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""


@dataclass(frozen=True)
class Output:
    """A word of the output, or a class.

    Attributes:
        text: as people read the output.
        rows: the rows of the matrix that belong to the output.
        column: the index of the word of the output among all words; None for a class, which is no word.
        score, constants, unexplained: the sums over the rows.
        own: what the first tokens of the word gave the later ones, in the same unit.
        probability: the product of the probabilities of the rows; None if there are none.
        against: what the output was compared with, or an empty text.
    """

    text: str
    rows: range
    column: int | None
    score: float
    constants: float
    unexplained: float
    own: float
    probability: float | None
    against: str = ""


@dataclass(frozen=True)
class Reading:
    """A result with words in place of tokens.

    Attributes:
        words: all words, in order.
        segments: the first word and the word behind the last word of each part of the text, by name.
        outputs: the outputs, in order.
        contributions: shape (outputs, words). The outputs of several tokens have the sum of the rows of their tokens.
            What a word gave itself is not among them: it is the ``own`` of the output, and hides the other words.
    """

    words: list[Word]
    segments: dict[str, range]
    outputs: list[Output]
    contributions: torch.Tensor


def read(result: Result, *, joined: bool = True) -> Reading:
    """Join the tokens of a result to words.

    Contributions of tokens add up to the contribution of a word. The score of an output of several tokens is the sum of
    their scores, so its contributions are the sums of their rows.

    Args:
        result: of an attribution.
        joined: whether subwords are joined to words. Otherwise only tokens are joined that are parts of one letter.

    Returns:
        The reading.
    """
    starts = [segment.start for segment in result.segments.values()]
    spelling = spelling_of(vocabulary_of(result.tokenizer) or result.tokens)
    words = words_of(result.tokens, result.is_special, spelling=spelling, breaks=starts, joined=joined)
    number_of = [number for number, word in enumerate(words) for _ in range(word.start, word.stop)]
    segments = {
        name: range(number_of[part.start], number_of[part.stop - 1] + 1) if part.stop > part.start else range(0)
        for name, part in result.segments.items()
    }
    rows = _rows_of_words(result, number_of)
    summed = sums_over_words(result.contributions.double(), words)
    contributions = torch.stack([summed[list(chosen)].sum(0) for chosen, _ in rows])
    outputs = []
    for values, (chosen, column) in zip(contributions, rows, strict=True):
        own = 0.0 if column is None else float(values[column])
        if column is not None:
            values[column] = 0
        outputs.append(_output(result, words, chosen, column, own))
    return Reading(words, segments, outputs, contributions)


def _rows_of_words(result: Result, number_of: Sequence[int]) -> list[tuple[range, int | None]]:
    """For each output its rows, and the index of its word if the output is a word."""
    count = len(result.output_tokens)
    part = result.segments.get("output")
    if part is None:
        return [(range(row, row + 1), None) for row in range(count)]
    # The output of an encoder-decoder begins with a token that nobody generated.
    first = part.stop - count
    found: list[tuple[range, int | None]] = []
    for row in range(count):
        word = number_of[first + row]
        if found and found[-1][1] == word:
            found[-1] = (range(found[-1][0].start, row + 1), word)
        else:
            found.append((range(row, row + 1), word))
    return found


def _output(result: Result, words: Sequence[Word], rows: range, column: int | None, own: float) -> Output:
    chosen = list(rows)
    probabilities = result.probabilities
    against = result.contrast_tokens[rows.start] if result.contrast_tokens else []
    return Output(
        text=result.output_tokens[rows.start] if column is None else words[column].text,
        rows=rows,
        column=column,
        score=float(result.scores[chosen].sum()),
        constants=float(result.constants[chosen].sum()),
        unexplained=float(result.unexplained[chosen].sum()),
        own=own,
        probability=None if probabilities is None else float(probabilities[chosen].prod()),
        against=", ".join(word.text for word in words_of(against, spelling=_spelling(result))) if against else "",
    )


def _spelling(result: Result) -> Any:
    return spelling_of(vocabulary_of(result.tokenizer) or result.tokens)
