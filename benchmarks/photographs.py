"""Photographs for the benchmarks: none are shipped, they are read out of installed packages.

    pip install --no-deps foolbox scikit-image

The packages are opened as folders of files and never imported, so that what they depend on is not needed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captum_cav import zoo
from captum_cav.zoo.weights import packaged

# The first seed with which no network knows more than one photograph more in one half than in the other. Only these
# numbers were looked at.
SEED = 2
SPLITS = ("choose", "report")
_INSTALL = "--no-deps foolbox scikit-image"

# Of scikit-image, what shows an object with a name in ImageNet, with its class where there is just one.
_SKIMAGE = {"camera.png": 872, "chelsea.png": None, "coffee.png": 967, "motorcycle_left.png": None, "rocket.jpg": 657}


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Args:
        name: what results call it: the file's name.
        path: where it lies.
        label: its ImageNet class, or None where nobody wrote it down.
        source: the package it comes from, or "pictures" for the extra folder.
        split: "choose" for what options are chosen on, "report" for what is reported.
    """

    name: str
    path: Path
    label: int | None
    source: str
    split: str


def photographs(folder: Path | None = None) -> list[Photograph]:
    """All photographs, each in one half.

    Each source is shuffled by a fixed seed and dealt out in turn, so that the halves do not depend on a network, and
    those of the packages not on the folder.

    Args:
        folder: a folder of more photographs (JPEG; drawings and compositions are usually not) without labels.

    Returns:
        The photographs, those of the packages first. What shows the same as an earlier one is left out.

    Raises:
        ModelError: a package is missing.
    """
    sources: dict[str, list[tuple[Path, int | None]]] = {
        "foolbox": [
            (path, int(path.stem.rpartition("_")[2]))
            for path in sorted(packaged("foolbox", "foolbox/data", _INSTALL).glob("imagenet_*.jpg"))
        ],
        "scikit-image": [
            (packaged("scikit-image", f"skimage/data/{name}", _INSTALL), label) for name, label in _SKIMAGE.items()
        ],
        "pictures": [
            (path, None) for path in sorted(folder.iterdir() if folder else ()) if path.suffix in (".jpg", ".jpeg")
        ],
    }
    found: list[Photograph] = []
    seen: list[np.ndarray] = []
    for source, files in sources.items():
        new = []
        for path, label in files:
            look = np.asarray(zoo.open_picture(path).convert("L").resize((16, 16)), dtype=np.float32)
            # Another compression of the same photograph differs by one or two grey levels.
            if all(np.abs(look - other).mean() > 5 for other in seen):
                seen.append(look)
                new.append((path, label))
        random.Random(SEED).shuffle(new)  # noqa: S311
        for path, label in new:
            found.append(Photograph(path.name, path, label, source, SPLITS[len(found) % 2]))
    return found
