"""What ``captum-cav text`` does."""

from __future__ import annotations

import argparse
from typing import Any

from captum_cav.commands.outputs import Outputs
from captum_cav.commands.running import common
from captum_cav.errors import ModelError
from captum_cav.text import SequenceCAV, write_page


def run(options: argparse.Namespace, outputs: Outputs) -> None:
    """Run ``text``: explain the prompts and write the page.

    Args:
        options: the options.
        outputs: where the page goes.
    """
    device = common.choose_device(options.device)
    model, tokenizer = _load(options.model)
    cav = SequenceCAV(
        model.to(device),
        options.layer,
        tokenizer=tokenizer,
        rules=options.rules,
        normalize=None if options.normalize == "none" else options.normalize,
    )
    results = [
        cav.attribute(prompt, answer, max_new_tokens=options.max_new_tokens, contrast=options.contrast)
        for prompt, answer in zip(options.prompt, options.answer or [None] * len(options.prompt), strict=True)
    ]
    with outputs.writing(options.output.name) as path:
        write_page(path, results, f"Where the words of {options.model.resolve().name} came from")
    for prompt, result in zip(options.prompt, results, strict=True):
        said = tokenizer.decode(result.output_ids, skip_special_tokens=True)
        print(f"{prompt!r} -> {said!r}")
    print(f"page: {options.output} ({common.size_of(options.output)})")


def _load(folder: Any) -> tuple[Any, Any]:
    """The model and the tokenizer in a folder. Nothing is downloaded, and no code of the folder runs."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder} could not be loaded; expected a causal language model and its tokenizer: {reason}"
        ) from error
    return model.eval(), tokenizer
