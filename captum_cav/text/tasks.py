"""How models of sequences are called, and which of their numbers are explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav import checks
from captum_cav.errors import ModelError


@dataclass(frozen=True)
class Segment:
    """A part of the tokens, such as the source of an encoder-decoder.

    Attributes:
        ids: shape (T,), the tokens of its columns.
        taken: how many of these tokens the model takes. The last token of an output is never taken.
        call: which call of the embedding takes them.
    """

    ids: torch.Tensor
    taken: int
    call: int


@dataclass(frozen=True)
class Task:
    """One forward pass, and which numbers of its output are explained.

    Attributes:
        inputs: the arguments of ``head``.
        head: runs the model and returns logits, shape (outputs, choices).
        outputs: shape (outputs,), the explained choice of each row.
        takes: for each tapped call of the embedding, the names of the segments whose tokens it takes, in order.
        segments: the parts of the tokens, by name.
    """

    inputs: tuple[torch.Tensor, ...]
    head: Callable[..., torch.Tensor]
    outputs: torch.Tensor
    segments: dict[str, Segment]


def causal(model: Any, prompt: torch.Tensor, output: torch.Tensor) -> Task:
    """Each output token, explained by the prompt and by the output tokens before it."""
    ids = torch.cat([prompt, output.to(prompt.device)])[None]
    taken = ids.shape[1] - 1
    options = _options(model, attention_mask=torch.ones_like(ids[:, :-1]), logits_to_keep=len(output), use_cache=False)

    def head(ids: torch.Tensor) -> torch.Tensor:
        return logits_of(model(ids, **options))[0, -len(output) :]

    segments = {"prompt": Segment(prompt, len(prompt), 0), "output": Segment(output, taken - len(prompt), 0)}
    return Task((ids[:, :-1],), head, output, segments)


def logits_of(output: Any) -> torch.Tensor:
    """The logits of what a model returned.

    Raises:
        ModelError: if there are none.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    found = first if checks.is_floating(first) else checks.part_of(output, "logits", "prediction_logits")
    if not checks.is_floating(found):
        raise ModelError(
            f"the model returned {checks.describe_output(output)}; expected logits: a tensor of shape (N, T, "
            'vocabulary), or an object that has it as "logits". Pass a model with a head, such as AutoModelForCausalLM.'
        )
    return found  # type: ignore[no-any-return]


def generate(model: Any, prompt: torch.Tensor, max_new_tokens: int, options: dict[str, Any]) -> torch.Tensor:
    """The tokens that a causal language model adds to a prompt, shape (T,). The likeliest tokens by default.

    Args:
        model: the model. If it has a method ``generate``, that method is used.
        prompt: shape (T,).
        max_new_tokens: the largest number of tokens.
        options: passed on to ``generate``.
    """
    ids = prompt[None]
    with torch.no_grad():
        if hasattr(model, "generate"):
            given = {"do_sample": False, "max_new_tokens": max_new_tokens, "attention_mask": torch.ones_like(ids)}
            return model.generate(ids, **{**given, **options})[0, len(prompt) :]  # type: ignore[no-any-return]
        for _ in range(max_new_tokens):
            following = logits_of(model(ids))[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
    return ids[0, len(prompt) :]


def _options(model: Any, **wanted: Any) -> dict[str, Any]:
    """Those keyword arguments that the model takes."""
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    config = getattr(model, "config", None)
    return {
        name: value
        for name, value in wanted.items()
        if name in parameters or (takes_all and name == "use_cache" and hasattr(config, "use_cache"))
    }
