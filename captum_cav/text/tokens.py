"""Texts, tokens and their indices, with or without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from captum_cav import checks
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.tensors import as_tensor


def is_batch(given: Any) -> bool:
    """Whether an argument stands for several sequences: a list of texts or of sequences, or a tensor (N, T)."""
    if isinstance(given, Mapping):
        given = given.get("input_ids")
    if isinstance(given, torch.Tensor):
        return given.dim() > 1
    return isinstance(given, (list, tuple)) and bool(given) and checks.as_integer(given[0]) is None


def sequences_in(given: Any, name: str, tokenizer: Any, *, adds_special: bool = True) -> list[torch.Tensor]:
    """The sequences of tokens in an argument, each without padding.

    Args:
        given: a text, indices of tokens, a list of these, a tensor of shape (T,) or (N, T), or a mapping as tokenizers
            give it, with ``"input_ids"`` and ``"attention_mask"``.
        name: of the argument, for messages.
        tokenizer: the tokenizer, or None.
        adds_special: whether special tokens are added to texts, as the tokenizer does by itself.

    Returns:
        Tensors of shape (T,), each of another length.

    Raises:
        CAVTypeError, InputError: for what holds no sequences.
    """
    mask = None
    if isinstance(given, Mapping):
        if "input_ids" not in given:
            raise InputError(
                f'{name} is a {type(given).__name__} without "input_ids"; expected what a tokenizer gives.'
            )
        given, mask = given["input_ids"], given.get("attention_mask")
    rows = list(given) if is_batch(given) else [given]
    masks = [None] * len(rows) if mask is None else list(as_tensor(mask).reshape(len(rows), -1))
    return [_one_sequence(row, of_row, name, tokenizer, adds_special) for row, of_row in zip(rows, masks, strict=True)]


def _one_sequence(given: Any, mask: torch.Tensor | None, name: str, tokenizer: Any, adds_special: bool) -> torch.Tensor:
    if isinstance(given, str):
        if tokenizer is None:
            raise CAVTypeError(
                f"{name} is a text; without a tokenizer, expected indices of tokens. Pass tokenizer= to SequenceCAV."
            )
        given = _encode(tokenizer, given, adds_special)
    if not isinstance(given, torch.Tensor):
        indices = [checks.as_integer(index) for index in given] if isinstance(given, (list, tuple)) else [None]
        if None in indices:
            raise CAVTypeError(f"{name} is a {type(given).__name__}; expected a text, or the indices of tokens.")
        given = torch.tensor(indices, dtype=torch.long, device="cpu")
    if given.dim() != 1 or given.is_floating_point():
        raise InputError(
            f"{name} has shape {tuple(given.shape)} and {given.dtype}; expected integers of shape (T,) or (N, T)."
        )
    if mask is not None:
        given = given[mask.to(given.device).bool()]
    if not len(given):
        raise InputError(f"{name} is empty; expected at least one token.")
    sequence: torch.Tensor = given.long()
    return sequence


def _encode(tokenizer: Any, text: str, adds_special: bool) -> Sequence[int]:
    if hasattr(tokenizer, "encode") and not hasattr(tokenizer, "convert_ids_to_tokens"):
        encoded = tokenizer.encode(text, add_special_tokens=adds_special)
        return list(getattr(encoded, "ids", encoded))
    return list(tokenizer(text, add_special_tokens=adds_special)["input_ids"])


def spelled(ids: torch.Tensor, tokenizer: Any) -> list[str]:
    """The tokens as the tokenizer spells them; without a tokenizer, their indices."""
    indices = ids.tolist()
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return list(map(str, tokenizer.convert_ids_to_tokens(indices)))
    if hasattr(tokenizer, "id_to_token"):
        return [str(tokenizer.id_to_token(index)) for index in indices]
    return list(map(str, indices))


def are_special(ids: torch.Tensor, tokenizer: Any) -> list[bool]:
    """For each token, whether it is a special token of the tokenizer."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    return [index in special for index in ids.tolist()]
