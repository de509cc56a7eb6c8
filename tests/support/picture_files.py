"""Pictures as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_cav import cli, zoo

PICTURE = str(Path(zoo.__file__).parents[1] / "data" / "dog_above_cat.png")


def refused_by_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command prints before it exits with status 2."""
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert error.startswith("captum-cav: error: ")
    assert "\n" not in error
    return error


NASTY = [
    "../../x",
    "<script>alert(1)</script>",
    r"a $\bad{ $ b",
    "=cmd|' /C calc'!A0",
    "price $5 and $6",
    "con",
    "{0} %s",
]
