"""The result of an attribution of a sequence: which tokens gave each output its score."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure

from captum_cav.text.figure import show_matrix, show_output
from captum_cav.text.html import coloured_text, write_page


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
        """How many columns the first part of the tokens has, such as the prompt, the source or the first text."""
        return int(next(iter(self.segments.values())).stop)

    def of(self, segment: str) -> torch.Tensor:
        """The columns of one part of the tokens, such as ``"prompt"``, shape (outputs, tokens of the part)."""
        return self.contributions[:, self.segments[segment]]

    def figure(self, output: int | None = None, title: str = "", *, joined: bool = True) -> Figure:
        """Draw the matrix of outputs and words, or the words with the colours of one output.

        Args:
            output: the number of an output word; None draws the matrix.
            title: the title; empty for one that names the output.
            joined: whether subwords are joined to words.

        Returns:
            The figure. No window is opened.

        Raises:
            InputError: if there is no such output, or a contribution is not finite.
        """
        if output is None:
            return show_matrix(self, title, joined=joined)[0]
        return show_output(self, output, title, joined=joined)[0]

    def save_html(self, path: str | os.PathLike[str], title: str = "Where the text came from") -> None:
        """Write one HTML page: whoever points at a word of the output sees its sources.

        Args:
            path: the file to write.
            title: the title of the page.

        Raises:
            InputError: if a contribution is not finite.
            OSError: if the file cannot be written.
        """
        write_page(path, self, title)

    def _repr_html_(self) -> str:
        """Coloured text, as notebooks show it."""
        return coloured_text(self)
