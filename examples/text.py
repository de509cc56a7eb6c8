"""Why does a network take a text for German? Contributions of n-grams, shown on the characters of the text.

The network is ``lande`` (Fabio Spampinato; MIT licence). It takes the frequencies of 620 n-grams, has a hidden layer of
120 ReLUs and returns the logits of 50 languages. So it has the full connections of the paper. The weights come with a
package of npm and are read as data. No code of the package runs::

    npm install --no-save --ignore-scripts lande@1.0.10
    python -m examples.text "Ich habe heute the weather forecast seen" --languages eng deu --output text.png

All logits are far below 0, also that of the best language, because softmax depends only on differences. So the example
explains the log odds of a language: its logit minus the log-sum-exp of all other logits.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from captum_cav import InputCAV
from captum_cav.errors import CAVError, InputError, ModelError
from captum_cav.visualization import show_tokens

PACKAGE = Path("node_modules/lande/standalone")
EXAMPLE = "Ich habe heute the weather forecast seen"


class LanguageDetector:
    """The network, its n-grams and its languages.

    Args:
        package: the folder of the package with the file ``t50-options.js``.

    Raises:
        ModelError: if a file does not exist, or has another format.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self.languages: list[str] = _exported(package / "t50-langs.js")
        self.ngrams: list[str] = [ngram for size in _exported(package / "t50-ngrams.js").values() for ngram in size]
        layers = [
            layer for layer in _exported(package / "t50-options.js")["layers"] if layer["type"] in ("dense", "relu")
        ]
        self.model = nn.Sequential(*(_linear(one) if one["type"] == "dense" else nn.ReLU() for one in layers)).eval()

    def frequencies(self, text: str) -> torch.Tensor:
        """The input for a normalized text: the share of each n-gram among all n-grams of its length; (1, 620)."""
        shares = [len(_places(ngram, text)) / max(len(text) - len(ngram) + 1, 1) for ngram in self.ngrams]
        return torch.tensor([shares])

    def contributions(self, text: str, language: str) -> torch.Tensor:
        """The contribution of each n-gram to the log odds of a language, in units of the log odds; (620,)."""
        cav = InputCAV(self.model, normalize=None, score="log_odds")
        found: torch.Tensor = cav.attribute(self.frequencies(text), target=self.languages.index(language))
        return found[0]

    def on_characters(self, text: str, contributions: torch.Tensor) -> torch.Tensor:
        """Share the contribution of each n-gram equally among its characters in the text; (len(text),)."""
        shares = torch.zeros(len(text))
        for ngram, contribution in zip(self.ngrams, contributions.tolist(), strict=True):
            places = _places(ngram, text)
            for start in places:
                shares[start : start + len(ngram)] += contribution / (len(places) * len(ngram))
        return shares


def normalized(text: str) -> str:
    """The text in the form that the network takes: lower-case letters with their marks, and single spaces."""
    kept = "".join(c for c in re.sub("-+", " ", text) if c.isspace() or unicodedata.category(c)[0] in "LM")
    return " " + re.sub(r"\s{2,}", " ", kept).lower().strip() + " "


def log_odds(detector: LanguageDetector, text: str, language: str) -> float:
    """The logit of a language minus the log-sum-exp of all other logits, for a normalized text."""
    logits = detector.model(detector.frequencies(text)).detach()[0]
    index = detector.languages.index(language)
    return float(logits[index] - torch.cat([logits[:index], logits[index + 1 :]]).logsumexp(0))


def by_word(text: str, ratios: torch.Tensor) -> list[tuple[str, float]]:
    """Each word of a normalized text, with the sum of the contributions of its characters and of the next space."""
    words, start = [], 1
    for word in text.split():
        words.append((word, float(ratios[start : start + len(word) + 1].sum())))
        start += len(word) + 1
    return words


def without(text: str, index: int) -> str:
    """A normalized text without one of its words."""
    words = text.split()
    return normalized(" ".join(words[:index] + words[index + 1 :]))


def show(text: str, maps: dict[str, torch.Tensor]) -> Figure:
    """Draw the characters of a text in the colours of each language."""
    lines = 1 + len(text) // 45
    figure = Figure(figsize=(10, (0.8 + 0.35 * lines) * len(maps)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(maps), squeeze=False)[:, 0]
    for axis, (language, ratios) in zip(axes, maps.items(), strict=True):
        show_tokens(list(text), ratios, f"as {language} rather than any other", unit="log odds", axes=(figure, axis))
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.text", description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default=EXAMPLE)
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="of three letters; by default the best two")
    parser.add_argument("--output", type=Path, default=Path("text.png"))
    options = parser.parse_args()
    try:
        detector = LanguageDetector()
        text = normalized(options.text)
        chances = detector.model(detector.frequencies(text)).detach()[0].softmax(0)
        best = [detector.languages[index] for index in chances.topk(5).indices.tolist()]
        languages = options.languages or best[:2]
        if unknown := sorted(set(languages) - set(detector.languages)):
            raise InputError(f"there is no language {', '.join(unknown)}: {', '.join(detector.languages)}")
    except CAVError as error:
        parser.error(str(error))
    print("read:", ", ".join(f"{name} {float(chances[detector.languages.index(name)]):.1%}" for name in best))
    maps = {}
    for language in languages:
        contributions = detector.contributions(text, language)
        print(f"\n{language}: log odds {log_odds(detector, text, language):+.2f}")
        order = contributions.argsort().tolist()
        for title, indices in (("raised", order[::-1][:8]), ("lowered", order[:8])):
            listed = (f"{detector.ngrams[index]!r} {float(contributions[index]):+.2f}" for index in indices)
            print(f"{title:>10}: " + ", ".join(listed))
        maps[language] = detector.on_characters(text, contributions)
        print(f"{'word':>20} contribution   log odds without it")
        for index, (word, contribution) in enumerate(by_word(text, maps[language])):
            print(f"{word:>20} {contribution:+12.2f} {log_odds(detector, without(text, index), language):+21.2f}")
    show(text, maps).savefig(options.output, dpi=110, bbox_inches="tight")
    print(f"\nwrote {options.output}")


def _places(ngram: str, text: str) -> list[int]:
    """The positions of an n-gram in a text; occurrences may overlap."""
    return [start for start in range(len(text)) if text.startswith(ngram, start)]


def _exported(file: Path) -> Any:
    """Read a JavaScript file that exports one literal: JSON between ``export default`` and a semicolon."""
    try:
        return json.loads(file.read_text("utf-8").strip().removeprefix("export default").removesuffix(";"))
    except FileNotFoundError as error:
        raise ModelError(f"there is no {file}: npm install --no-save --ignore-scripts lande@1.0.10") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the weights {file}: {error}") from error


def _linear(layer: dict[str, Any]) -> nn.Linear:
    weight = torch.stack([_decoded(row) for row in layer["_filters"]])
    linear = nn.Linear(*weight.shape[::-1])
    linear.load_state_dict({"weight": weight, "bias": _decoded(layer["_biases"])})
    return linear


def _decoded(numbers: str) -> torch.Tensor:
    """Numbers of 8 bits: the text is ``1``, the scale, a bar, and the bytes in base 64. The byte 127 stands for 0."""
    scale, encoded = numbers[1:].split("|")
    return torch.from_numpy((np.frombuffer(base64.b64decode(encoded), dtype=np.uint8) - 127.0) / float(scale)).float()


if __name__ == "__main__":
    main()
