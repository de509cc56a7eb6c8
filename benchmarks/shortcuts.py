"""``python -m benchmarks.shortcuts``: how often a planted mark is found, and how often one is reported without a mark.

Small networks are trained on digits. A white mark stands in the corner of a part of the pictures of one class. Clear
digits are easy to recognise without the mark; faint digits in noise are not. The table is in ``docs/shortcuts.md``.
"""

from __future__ import annotations

import argparse

import torch

from captum_cav import InputCAV
from captum_cav.datasets.clusters import find_clusters
from tests.datasets.digits import MARKED_CLASS, digits, trained

#: Brightness of the digits beside a mark of 1, and the noise.
PICTURES = {"clear": (1.0, 0.0), "faint": (0.3, 0.15)}
#: How many pictures of the class have the mark.
SHARES = (0.1, 0.3, 0.6, 0.9, 0.0)
RULES = ("paper", "epsilon_plus")


def measure(share: float, seed: int, contrast: float, noise: float, rules: str) -> tuple[bool, bool, int]:
    """Whether the class with the mark comes first, whether it is reported, and how many other classes are reported."""
    pictures, _ = digits(share, seed, contrast=contrast, noise=noise)
    inputs, classes = pictures.tensors
    maps = InputCAV(trained(pictures, seed), rules=rules, normalize="abs").attribute(inputs, classes)[:, 0].detach()
    found = [find_clusters(maps[classes == one]) for one in range(10)]
    distances = torch.tensor([one.distance for one in found])
    reported = {number for number, one in enumerate(found) if one.is_reported}
    is_first = int(distances.argmax()) == MARKED_CLASS
    return is_first, MARKED_CLASS in reported, len(reported - {MARKED_CLASS})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="networks for each line (default 5)")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    print("| digits | pictures with the mark | rules | its class is first | is reported | other classes reported |")
    print("|---|---|---|---|---|---|")
    for name, (contrast, noise) in PICTURES.items():
        for share in SHARES:
            for rules in RULES:
                found = [measure(share, seed, contrast, noise, rules) for seed in range(seeds)]
                first, reported, others = (sum(numbers) for numbers in zip(*found, strict=True))
                of_mark = [f"{first} of {seeds}", f"{reported} of {seeds}"] if share else ["", str(reported)]
                cells = [name, f"{share:.0%}", f"`{rules}`", *of_mark, f"{others} of {9 * seeds}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
