"""What ``captum-cav text`` does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captum_cav.commands.outputs import Outputs, json_text
from captum_cav.commands.running import common
from captum_cav.errors import InputError, ModelError, OptionError
from captum_cav.text import SequenceCAV, SequenceContributions, write_page
from captum_cav.text.reading import read
from captum_cav.text.tasks import Pooling, logits_of
from captum_cav.zoo.names import find_class


class _Kind(NamedTuple):
    """A kind of model.

    Attributes:
        name: for messages.
        loader: the class of transformers that loads such models.
        table: the table of transformers that names these models, in ``transformers.models.auto.modeling_auto``.
        options: the options of the command that only some kinds take.
    """

    name: str
    loader: str
    table: str
    options: tuple[str, ...]


_WRITES = ("answer", "contrast")
_CLASSIFIES = ("target", "contrast")
_LANGUAGE_MODEL = _Kind("language model", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", _WRITES)
_ENCODER_DECODER = _Kind(
    "encoder-decoder", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", _WRITES
)
_OF_TEXTS = _Kind(
    "classifier of texts",
    "AutoModelForSequenceClassification",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    _CLASSIFIES,
)
_OF_TOKENS = _Kind(
    "classifier of tokens",
    "AutoModelForTokenClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    _CLASSIFIES,
)
_ENCODER = _Kind("encoder of sentences", "AutoModel", "MODEL_MAPPING_NAMES", ("similar_to",))
_KINDS = (_LANGUAGE_MODEL, _ENCODER_DECODER, _OF_TEXTS, _OF_TOKENS, _ENCODER)


def run(options: argparse.Namespace, outputs: Outputs) -> None:
    """Run ``text``: explain the texts and write the page.

    Args:
        options: the options.
        outputs: where the page goes.
    """
    device = common.choose_device(options.device)
    kind, model, tokenizer = _load(options.model, lambda kind: _check(kind, options))
    cav = SequenceCAV(
        model.to(device),
        options.layer,
        tokenizer=tokenizer,
        rules=options.rules,
        normalize=None if options.normalize == "none" else options.normalize,
        pooling=_pooling(options.model) if kind is _ENCODER else "mean",
    )
    contrast = options.contrast
    if contrast is not None and kind in (_OF_TEXTS, _OF_TOKENS):
        contrast = find_class(contrast, _classes(model), options.model.name)
    results = []
    for number, prompt in enumerate(options.prompt):
        if kind is _ENCODER:
            found = cav.attribute(prompt, similar_to=options.similar_to[number])
        elif kind in (_OF_TEXTS, _OF_TOKENS):
            targets = _targets(kind, options, model, tokenizer, prompt)
            found = cav.attribute(prompt, target=targets, contrast=contrast)
        else:
            answer = options.answer[number] if options.answer else None
            found = cav.attribute(prompt, answer, max_new_tokens=options.max_new_tokens, contrast=contrast)
        results.append(found)
    writes = kind in (_LANGUAGE_MODEL, _ENCODER_DECODER)
    name = options.model.resolve().name
    title = f"Where the words of {name} came from" if writes else f"Which words gave {name} its outputs"
    with outputs.writing(options.output.name) as path:
        write_page(path, results, title)
    said = [tokenizer.decode(found.output_ids, skip_special_tokens=True) if writes else None for found in results]
    if options.json:
        entries = zip(options.prompt, said, results, strict=True)
        texts = [_as_json(prompt, words, found) for prompt, words, found in entries]
        print(json_text({"kind": kind.name, "texts": texts, "files": [str(options.output)]}))
        return
    for number, (prompt, words, found) in enumerate(zip(options.prompt, said, results, strict=True)):
        if words is not None:
            print(f"{prompt!r} -> {words!r}")
        elif kind is _ENCODER:
            print(f"{prompt!r} and {options.similar_to[number]!r}: similarity {float(found.scores[0]):.3f}")
        else:
            pairs = zip(found.output_tokens, found.scores.tolist(), strict=True)
            print(f"{prompt!r} -> {', '.join(f'{name} (score {score:.3g})' for name, score in pairs)}")
    print(f"page: {options.output} ({common.size_of(options.output)})")


def _load(folder: Path, check: Callable[[_Kind], None]) -> tuple[_Kind, Any, Any]:
    """The kind of the model in a folder, the model and its tokenizer.

    Args:
        folder: the folder. Nothing is downloaded, and no code of the folder runs.
        check: checks the options for this kind of model, before the weights are read.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    config = _from_folder(transformers.AutoConfig, folder)
    architecture = next(iter(config.architectures or ()), "")
    kind = next((kind for kind in _KINDS if architecture in _names(getattr(modeling_auto, kind.table))), None)
    if kind is None:
        raise ModelError(
            f"{folder} holds {architecture or 'a model without a name'}; expected one of these, as config.json names "
            f'it in "architectures": {", ".join(kind.name for kind in _KINDS)}. For other models use '
            "captum_cav.SequenceCAV in Python"
        )
    check(kind)
    tokenizer = _from_folder(transformers.AutoTokenizer, folder)
    return kind, _from_folder(getattr(transformers, kind.loader), folder).eval(), tokenizer


def _from_folder(loader: Any, folder: Path) -> Any:
    try:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder} could not be loaded; expected a model and its tokenizer: {reason}") from error


def _pooling(folder: Path) -> Pooling:
    """How the vectors of tokens become one, as sentence-transformers writes it beside a model; else their mean."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    found = json.loads(file.read_text(encoding="utf-8"))
    chosen = [name for name, is_chosen in found.items() if name.startswith("pooling_mode_") and is_chosen is True]
    known: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise ModelError(f"{file} asks for {chosen}; expected one of {list(known)}. Use SequenceCAV in Python")
    return known[chosen[0]]


def _names(table: Any) -> set[str]:
    """The names of the classes in a table of transformers, which has one or several for each kind of configuration."""
    return {name for entry in table.values() for name in (entry if isinstance(entry, (tuple, list)) else (entry,))}


def _check(kind: _Kind, options: argparse.Namespace) -> None:
    """Refuse options that this kind of model does not take.

    Raises:
        OptionError: names the option, and what the model takes.
    """
    for option in ("answer", "contrast", "target", "similar_to"):
        if getattr(options, option) is not None and option not in kind.options:
            taken = " and ".join(_spelled(name) for name in kind.options)
            raise OptionError(f"{_spelled(option)} is not for this {kind.name}; expected {taken} at most")
    if kind is _ENCODER and options.similar_to is None:
        raise OptionError("this encoder of sentences compares two texts; expected --similar-to TEXT beside --prompt")


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _classes(model: Any) -> tuple[str, ...]:
    names = model.config.id2label
    return tuple(str(names[index]) for index in sorted(names))


def _targets(kind: _Kind, options: argparse.Namespace, model: Any, tokenizer: Any, text: str) -> list[Any]:
    """The classes to explain: those of ``--target``, or the best ones."""
    classes, name = _classes(model), options.model.name
    found = tokenizer(text, return_special_tokens_mask=True)
    ids, special = found["input_ids"], found["special_tokens_mask"]
    words = [position for position, is_special in enumerate(special) if not is_special]
    if options.target is None:
        with torch.no_grad():
            best = logits_of(model(torch.tensor([ids], device=model.device)))[0].argmax(-1)
        return [int(best)] if kind is _OF_TEXTS else [(position, int(best[position])) for position in words]
    if kind is _OF_TEXTS:
        return [find_class(target, classes, name) for target in options.target]
    targets = []
    for target in options.target:
        place, colon, class_name = target.partition(":")
        if not (colon and place.isdecimal() and int(place) < len(words)):
            raise InputError(
                f"--target is {target!r}; expected POSITION:NAME_OR_INDEX with a position from 0 to {len(words) - 1}, "
                f"for one of the tokens {tokenizer.convert_ids_to_tokens([ids[position] for position in words])}"
            )
        targets.append((words[int(place)], find_class(class_name, classes, name)))
    return targets


def _as_json(prompt: str, said: str | None, result: SequenceContributions) -> dict[str, Any]:
    reading = read(result)
    return {
        "prompt": prompt,
        "answer": said,
        "layer": result.layer,
        "normalize": result.normalize,
        "words": [word.text for word in reading.words],
        "parts": {name: [part.start, part.stop] for name, part in reading.segments.items()},
        "outputs": [
            {
                "text": output.text,
                "score": output.score,
                "probability": output.probability,
                "constants": output.constants,
                "unexplained": output.unexplained,
                "own": output.own,
                "contributions": values.tolist(),
            }
            for output, values in zip(reading.outputs, reading.contributions, strict=True)
        ],
    }
