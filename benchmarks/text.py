"""Language: what the matrix of a prompt and its output costs, in one call and token by token.

A Llama with random weights gets a prompt of 64 tokens and an output of 32. Each method says how much each earlier token
gave each output token:

- ``matrix``: :class:`captum_cav.SequenceCAV`, with so many outputs in one backward pass.
- ``single calls``: :class:`captum_cav.LayerCAV` at the embedding, once for each output token; also with its delta,
  which the matrix always has.
- ``captum``: ``LLMGradientAttribution`` of Captum around gradient x activation, and around integrated gradients.

Seconds are the best of some runs: of the processor's time on a CPU, so that other programs do not count, and of the
clock on a GPU. The memory is the peak of a GPU, above what the model takes.

    python -m benchmarks.text [--sizes tiny small] [--device cpu] [--repeats 3] [--json FILE] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from benchmarks.tables import of_text
from benchmarks.versions import versions_with
from captum_cav import LayerCAV, SequenceCAV

PROMPT, OUTPUT, WORDS, STEPS = 64, 32, 2000, 20
SIZES = {"tiny": (64, 4), "small": (256, 6)}


def llama(size: str, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama with random weights of one of the sizes: the width, and the number of layers."""
    width, layers = SIZES[size]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def words() -> Any:
    """A tokenizer whose words are numbers."""
    tokenizer = Tokenizer(WordLevel({str(index): index for index in range(WORDS)}, unk_token="0"))  # noqa: S106
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", pad_token="0")  # noqa: S106


def methods(model: Any, ids: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The methods, by name. Each explains all output tokens."""
    prompt, output = ids[:PROMPT], ids[PROMPT:]
    cav = SequenceCAV(model)
    single = LayerCAV(
        model, model.get_input_embeddings(), rules="attnlrp", normalize=None, output=lambda found: found.logits[:, -1]
    )

    def one_by_one(with_delta: bool) -> None:
        for position in range(PROMPT, PROMPT + OUTPUT):
            single.attribute(ids[None, :position], int(ids[position]), return_convergence_delta=with_delta)

    tokenizer = words()
    text = TextTokenInput(" ".join(map(str, prompt.tolist())), tokenizer)
    said = " ".join(map(str, output.tolist()))
    layer = model.get_input_embeddings()
    gradient = LLMGradientAttribution(LayerGradientXActivation(model, layer), tokenizer)
    integrated = LLMGradientAttribution(LayerIntegratedGradients(model, layer), tokenizer)

    def matrix(at_once: int) -> Callable[[], Any]:
        return lambda: cav.attribute(prompt, output, internal_batch_size=at_once)

    return {
        **{f"matrix, {at_once} at once": matrix(at_once) for at_once in (1, 4, 8, 32)},
        f"{OUTPUT} single calls": lambda: one_by_one(False),
        f"{OUTPUT} single calls with deltas": lambda: one_by_one(True),
        "captum: gradient x activation": lambda: gradient.attribute(text, said),
        f"captum: integrated gradients, {STEPS} steps": lambda: integrated.attribute(text, said, n_steps=STEPS),
    }


def measure(run: Callable[[], Any], repeats: int, device: str) -> tuple[float, float | None]:
    """The seconds of the fastest run, and the peak of the GPU's memory in MB above what was there before."""
    best, peak = float("inf"), None
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        now = time.perf_counter if device == "cuda" else time.process_time
        start = now()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        best = min(best, now() - start)
    return best, peak


def precision(size: str) -> float:
    """The correlation of the maps of bfloat16 and of float32, of the same weights."""
    half = llama(size, torch.bfloat16)
    ids = torch.randint(1, WORDS, (PROMPT + OUTPUT,), generator=torch.Generator().manual_seed(1))
    found = [
        SequenceCAV(model).attribute(ids[:PROMPT], ids[PROMPT:]).contributions.flatten().float()
        for model in (half, llama(size, torch.bfloat16).float())
    ]
    return float(torch.corrcoef(torch.stack(found))[0, 1])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows = []
    for size in args.sizes:
        model = llama(size).to(args.device)
        ids = torch.randint(1, WORDS, (PROMPT + OUTPUT,), generator=torch.Generator().manual_seed(0)).to(args.device)
        for name, run in methods(model, ids).items():
            seconds, peak = measure(run, args.repeats, args.device)
            rows.append({"model": size, "method": name, "seconds": seconds, "peak": peak})
            memory = "" if peak is None else f"  {peak:8.1f} MB"
            print(f"{size:6} {name:45} {seconds:8.3f} s{memory}", flush=True)
        correlation = precision(size)
        rows.append({"model": size, "method": "bfloat16", "correlation": correlation})
        print(f"{size:6} maps of bfloat16 and float32 correlate with {correlation:.4f}", flush=True)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.text", *(sys.argv[1:] if argv is None else argv)]),
        "device": args.device,
        "versions": versions_with("torch", "captum", "transformers"),
        "rows": rows,
    }
    print("\n".join(["", *of_text(report)]))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
