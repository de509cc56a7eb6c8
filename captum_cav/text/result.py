"""The result of an attribution of a sequence: which tokens gave each output its score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class SequenceContributions:
    """Which tokens gave each output its score: a matrix of outputs x tokens.

    An output is a generated token, a class, or the similarity of two texts. The units are those of ``normalize``:
    shares of the score, or units of the score. For each output, the contributions of all tokens, ``constants`` and
    ``unexplained`` add up to 1, or to the score.

    Attributes:
        contributions: shape (outputs, tokens), on the CPU. 0 where a token comes later than the output.
        scores: shape (outputs,), the explained scores.
        probabilities: shape (outputs,), the probability of each output. None where the model gives none, as for a
            similarity.
        constants: shape (outputs,), the shares of constants: biases, positions, and all that only adds.
        unexplained: shape (outputs,), what neither tokens nor constants explain. Near 0 where the rules conserve and
            every path to the score runs through the layer.
        tokens: the token of each column, as the tokenizer spells it.
        token_ids: shape (tokens,), the index of each of these tokens.
        output_tokens: the token, or the class, of each row.
        output_ids: shape (outputs,), the index of each of these.
        segments: the columns of each part of the tokens, by name, in order: ``"prompt"`` and ``"output"`` of a causal
            language model, ``"source"`` and ``"output"`` of an encoder-decoder, ``"first"`` and ``"second"`` of a
            similarity, ``"text"`` of a classifier.
        is_special: for each column, whether the token is a special token of the tokenizer, such as padding.
        layer: the name of the explained layer.
        normalize: what contributions are divided by: ``"score"``, ``"abs"`` or None.
        contrast_tokens: for each row, the tokens to which the output was compared; empty if there was no comparison.
        tokenizer: the tokenizer, or None.
    """

    contributions: torch.Tensor
    scores: torch.Tensor
    probabilities: torch.Tensor | None
    constants: torch.Tensor
    unexplained: torch.Tensor
    tokens: list[str]
    token_ids: torch.Tensor
    output_tokens: list[str]
    output_ids: torch.Tensor
    segments: dict[str, slice]
    is_special: list[bool]
    layer: str
    normalize: str | None = None
    contrast_tokens: list[list[str]] = field(default_factory=list)
    tokenizer: Any = field(default=None, repr=False)

    @property
    def prompt_length(self) -> int:
        """How many columns the first part of the tokens has: the prompt, the source or the first text."""
        return int(next(iter(self.segments.values())).stop)

    def of(self, segment: str) -> torch.Tensor:
        """The columns of one part of the tokens, such as ``"prompt"``, shape (outputs, tokens of the part)."""
        return self.contributions[:, self.segments[segment]]
