"""``captum-cav text FOLDER --prompt TEXT`` writes one page that shows which words gave a model of texts its outputs."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from captum_cav.commands import names
from captum_cav.commands import options as shared
from captum_cav.commands.outputs import Outputs
from captum_cav.errors import InputError, ModelError


def add_parser(commands: Any) -> None:
    """Add ``text``."""
    command = commands.add_parser("text", help="write one HTML page that shows which words gave a model its outputs")
    command.add_argument(
        "model",
        type=Path,
        metavar="FOLDER",
        help="a model and its tokenizer, as transformers save them: a language model, an encoder-decoder, a classifier "
        "of texts or of tokens, or an encoder of sentences",
    )
    command.add_argument("--prompt", nargs="+", required=True, metavar="TEXT", help="one or several prompts or texts")
    command.add_argument(
        "--answer",
        nargs="+",
        metavar="TEXT",
        help="what to explain, one for each prompt (default: what the model says)",
    )
    command.add_argument(
        "--target",
        nargs="+",
        metavar="NAME_OR_INDEX",
        help="of classifiers: the classes to explain (default: the best one, of classifiers of tokens that of each "
        "token). For one token: POSITION:NAME_OR_INDEX, where the first token of the text has the position 0",
    )
    command.add_argument(
        "--similar-to",
        nargs="+",
        metavar="TEXT",
        help="of encoders of sentences: a second text for each prompt; the similarity of both is explained",
    )
    command.add_argument(
        "--max-new-tokens", type=int, default=20, metavar="N", help="the most tokens that the model says (default 20)"
    )
    command.add_argument("--contrast", metavar="NAME", help="explain each output against this token, or this class")
    command.add_argument("--layer", metavar="NAME", help="the layer to look at (default: the embedding of the tokens)")
    command.add_argument(
        "--rules",
        default="attnlrp",
        metavar="PRESET",
        help=f"a preset of rules (default: attnlrp); one of {', '.join(names.PRESETS)}",
    )
    command.add_argument(
        "--normalize",
        choices=("abs", "none"),
        default="none",
        help="units of the score (none, the default), or shares of the size of the score (abs)",
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--output", type=Path, default=Path("captum_cav_text.html"), metavar="FILE")
    shared.add_json(command)
    shared.add_force(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if not (options.model / "config.json").is_file():
        raise ModelError(
            f"{options.model} holds no model of transformers: there is no config.json; expected a folder that "
            "model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER) wrote"
        )
    for option, texts in (("--answer", options.answer), ("--similar-to", options.similar_to)):
        if texts and len(texts) != len(options.prompt):
            raise InputError(
                f"{option} has {len(texts)} texts for {len(options.prompt)} prompts; expected one for each prompt"
            )
    if not all((*options.prompt, *(options.answer or ()), *(options.similar_to or ()))):
        raise InputError("a text is empty; expected at least one letter in each --prompt, --answer and --similar-to")
    shared.check_count(options.max_new_tokens, "--max-new-tokens")
    shared.check_known("preset", [options.rules], names.PRESETS)
    if options.output.is_dir():
        raise InputError(f"{options.output} is a folder; expected a file: --output FILE")
    outputs = Outputs(options.output.parent, options.model.iterdir(), force=options.force)
    outputs.plan(options.output.name)
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            "captum-cav text expected the package transformers, which is not installed: pip install transformers"
        )
    from captum_cav.commands.running import text

    text.run(options, outputs)
