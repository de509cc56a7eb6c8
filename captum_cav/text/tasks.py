"""How models of sequences are called, and which of their numbers are explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from captum_cav import checks
from captum_cav.errors import CAVTypeError, ModelError, TargetError
from captum_cav.scores import Similarity

#: How the vectors of the tokens of a text become one vector.
Pooling: TypeAlias = Literal["mean", "first"] | Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """One forward pass, and which numbers of its output are explained.

    Attributes:
        head: runs the model. Returns logits of shape (outputs, choices), or scores of shape (outputs,).
        inputs: the arguments of ``head``, indices of tokens, each of shape (1, T).
        columns: for each of the inputs, the column of its first token in the matrix.
        segments: the parts of the tokens, by name, in order. Their tokens are the columns of the matrix.
        outputs: shape (outputs,), the explained choice of each row. None if ``head`` returns scores.
        first_later: for each output, the first column whose token comes later. None if all tokens may contribute.
        sides: for each of the inputs, the modules that take only this input. Empty if that is not known.
    """

    head: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    columns: tuple[int, ...]
    segments: dict[str, torch.Tensor]
    outputs: torch.Tensor | None
    first_later: Sequence[int] | None = None
    sides: tuple[frozenset[torch.nn.Module], ...] = ()


def causal(model: Any, prompt: torch.Tensor, output: torch.Tensor) -> Task:
    """Each output token, explained by the prompt and by the output tokens before it."""
    ids = torch.cat([prompt, output])[None, :-1]
    options = _options(model, attention_mask=torch.ones_like(ids), logits_to_keep=len(output), use_cache=False)

    def head(ids: torch.Tensor) -> torch.Tensor:
        return _of_positions(logits_of(model(ids, **options)), slice(-len(output), None))

    later = range(len(prompt), len(prompt) + len(output))
    return Task(head, (ids,), (0,), {"prompt": prompt, "output": output}, output, later)


def translation(model: Any, source: torch.Tensor, start: torch.Tensor, output: torch.Tensor) -> Task:
    """Each output token of an encoder-decoder, explained by the source and by the output tokens before it.

    Args:
        model: the model.
        source: shape (S,).
        start: shape (1,), the token with which the decoder starts.
        output: shape (T,).
    """
    decoder = torch.cat([start, output])
    options = _options(model, attention_mask=torch.ones_like(source[None]), use_cache=False)

    def head(source: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        return _of_positions(logits_of(model(source, decoder_input_ids=decoder, **options)), slice(None))

    later = range(len(source) + 1, len(source) + 1 + len(output))
    return Task(
        head,
        (source[None], decoder[None, :-1]),
        (0, len(source)),
        {"source": source, "output": decoder},
        output,
        later,
        _sides(model),
    )


def classification(model: Any, text: torch.Tensor, targets: Sequence[Any]) -> Task:
    """Classes of a text, or of its tokens.

    Args:
        model: the model.
        text: shape (T,).
        targets: an index for each class of the text, or a pair of a position and an index for each class of a token.

    Raises:
        TargetError, CAVTypeError: for targets that are neither.
    """
    entries = [target if isinstance(target, (tuple, list)) else (target,) for target in targets]
    indices = [[checks.as_integer(index) for index in entry] for entry in entries]
    if any(None in entry or len(entry) != len(indices[0]) or len(entry) > 2 for entry in indices):
        raise CAVTypeError(
            f"target is {targets!r}; expected the index of a class, a pair of a position and an index, or a list of "
            "such indices or of such pairs."
        )
    positions = [entry[0] for entry in indices] if len(indices[0]) == 2 else None
    for position in positions or ():
        if not -len(text) <= position < len(text):  # type: ignore[operator]
            raise TargetError(f"target names the position {position} of {len(text)} tokens; expected one of them.")
    options = _options(model, attention_mask=torch.ones_like(text[None]), use_cache=False)

    def head(ids: torch.Tensor) -> torch.Tensor:
        logits = logits_of(model(ids, **options))
        if positions is not None:
            return _of_positions(logits, positions)
        if logits.dim() != 2:
            raise TargetError(
                f"target is {targets!r}, and the model gives logits of shape {tuple(logits.shape)}; expected a pair of "
                "a position and an index, as target=(position, index)."
            )
        return logits[[0] * len(indices)]

    return Task(head, (text[None],), (0,), {"text": text}, torch.tensor([entry[-1] for entry in indices], device="cpu"))


def similarity(model: Any, first: torch.Tensor, second: torch.Tensor, pooling: Pooling) -> Task:
    """How similar two texts are: the cosine of their vectors. Each of the two carries half of it."""

    def vector_of(ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        if _takes_features(model):
            return _pooled(model({"input_ids": ids, "attention_mask": mask}), pooling)
        return _pooled(model(ids, **_options(model, attention_mask=mask, use_cache=False)), pooling)

    def head(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return Similarity()((vector_of(first), vector_of(second)))

    segments = {"first": first, "second": second}
    return Task(head, (first[None], second[None]), (0, len(first)), segments, None)


def _takes_features(model: Any) -> bool:
    """Whether a model takes one dict, as sentence-transformers' models do."""
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    return next(iter(parameters), "") in ("input", "features")


def _pooled(output: Any, pooling: Pooling) -> torch.Tensor:
    """The vector of a text, shape (1, d)."""
    if callable(pooling):
        return pooling(output)
    ready = checks.part_of(output, "sentence_embedding", "text_embeds")
    if checks.is_floating(ready):
        return ready  # type: ignore[no-any-return]
    states = output if checks.is_floating(output) else checks.part_of(output, "last_hidden_state", "token_embeddings")
    if not checks.is_floating(states) or states.dim() not in (2, 3):
        raise ModelError(
            f"the model returned {checks.describe_output(output)}; expected a vector for each token, as "
            '"last_hidden_state", or for the text, as "sentence_embedding". Pass pooling=, a function of the output.'
        )
    if states.dim() == 2:
        return states  # type: ignore[no-any-return]
    return states.mean(1) if pooling == "mean" else states[:, 0]  # type: ignore[no-any-return]


def _of_positions(logits: torch.Tensor, positions: Any) -> torch.Tensor:
    """The rows of logits for some positions, shape (positions, choices)."""
    if logits.dim() != 3:
        raise ModelError(
            f"the model gives logits of shape {tuple(logits.shape)}; expected (1, T, choices), a row for each token. "
            "For a classifier of texts, pass target=index."
        )
    return logits[0, positions]


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


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model of transformers has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def start_of_decoder(model: Any) -> int:
    """The token with which the decoder of an encoder-decoder starts.

    Raises:
        ModelError: if the model does not say so.
    """
    for settings in (getattr(model, "generation_config", None), model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise ModelError(
        "the model does not say with which token its decoder starts; expected model.config.decoder_start_token_id, an "
        "integer."
    )


def generate(model: Any, prompt: torch.Tensor, max_new_tokens: int, options: dict[str, Any]) -> torch.Tensor:
    """The tokens that a model adds to a prompt, or gives for a source, shape (T,). The likeliest ones by default.

    Args:
        model: the model. If it has a method ``generate``, that method is used.
        prompt: shape (T,).
        max_new_tokens: the largest number of tokens.
        options: passed on to ``generate``.

    Raises:
        ModelError: for a model of transformers without a language model's head, and if no token was generated.
    """
    ids = prompt[None]
    can_generate = getattr(model, "can_generate", None)
    if can_generate is not None and not can_generate():
        raise ModelError(
            f"{type(model).__name__} generates no text; expected output=, a text that it should have said, target=, a "
            "class, or similar_to=, another text."
        )
    with torch.no_grad():
        if can_generate is not None:
            given = {"do_sample": False, "max_new_tokens": max_new_tokens, "attention_mask": torch.ones_like(ids)}
            found = model.generate(ids, **{**given, **options})[0]
            said: torch.Tensor = found[1 if is_encoder_decoder(model) else len(prompt) :]
        else:
            for _ in range(max_new_tokens):
                following = _of_positions(logits_of(model(ids)), [-1]).argmax(-1, keepdim=True)
                ids = torch.cat([ids, following], 1)
            said = ids[0, len(prompt) :]
    if not len(said):
        raise ModelError("the model generated no token; expected at least one. Pass output= to say what it said.")
    return said


def _sides(model: Any) -> tuple[frozenset[torch.nn.Module], ...]:
    """The modules of the encoder, and those of the decoder."""
    if not (hasattr(model, "get_encoder") and hasattr(model, "get_decoder")):
        return ()
    return tuple(frozenset(side.modules()) for side in (model.get_encoder(), model.get_decoder()))


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
