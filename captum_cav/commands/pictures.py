"""Picture files that are named on the command line: single files, folders, and names for what is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from captum_cav.errors import InputError

#: The files of a folder that count as pictures. A file that is named itself may have any suffix.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find(names: Iterable[str]) -> list[Path]:
    """The picture files that are named, each once.

    Args:
        names: files, and folders. Of a folder all files with the suffix of a picture are taken, in the order of their
            names; its subfolders are left out.

    Returns:
        The files, all readable.

    Raises:
        InputError: for a file that cannot be opened, an address, or a folder without pictures.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
            raise InputError(f"cannot open the picture {name}: it is an address; download the file, and give its path")
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise InputError(f"the folder {name} has no picture; expected files as {', '.join(SUFFIXES)}")
            found += files
        else:
            found.append(path)
    for file in found:
        if reason := why_unreadable(file):
            raise InputError(f"cannot open the picture {file}: {reason}")
    return list(dict.fromkeys(found))


def why_unreadable(file: str | Path) -> str | None:
    """Why a file cannot be opened; None if it can."""
    try:
        Path(file).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def stems(files: Sequence[Path]) -> list[str]:
    """A name for each file, without folder and suffix; a number tells files with the same name apart.

    Args:
        files: the files.

    Returns:
        The names, all different.

    Example::

        >>> stems([Path("a/dog.png"), Path("b/dog.jpg"), Path("cat.png")])
        ['dog', 'dog_2', 'cat']
    """
    taken: list[str] = []
    for file in files:
        name, number = file.stem, 1
        while name in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.append(name)
    return taken
