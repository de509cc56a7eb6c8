"""The default tests on the oldest and newest versions that pyproject.toml admits, each in its own environment.

``nox`` runs every session, ``nox -s oldest`` one. What follows ``--`` goes to pytest: ``nox -s oldest -- tests/rules``.
"""

from __future__ import annotations

import re

import nox

nox.options.default_venv_backend = "uv|virtualenv"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def lower_bounds() -> dict[str, str]:
    """The oldest version of each package on which captum_cav depends, as a requirement such as ``torch==2.6``."""
    dependencies = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    return {re.split("[<>=]", text)[0]: text.partition(",")[0].replace(">=", "==") for text in dependencies}


def test(session: nox.Session, *pins: str) -> None:
    """Install captum_cav with its tests and certain versions, say which ones came, and run the default tests."""
    session.install("--editable", ".[test]", *pins)
    session.run(
        "python",
        "-c",
        "import captum, numpy, sys, torch, torchvision\n"
        "print('Python', sys.version.split()[0])\n"
        "for package in (torch, torchvision, captum, numpy): print(package.__name__, package.__version__)",
    )
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", "-q", *session.posargs)


@nox.session(python=PYTHONS[0], tags=["tests"])
def oldest(session: nox.Session) -> None:
    """The lower bound of every dependency, and the numpy that they take together."""
    test(session, *lower_bounds().values())


@nox.session(python="3.11", tags=["tests"])
def torch_2_9(session: nox.Session) -> None:
    """A torch between the oldest and the newest."""
    test(session, "torch==2.9.*")


@nox.session(python="3.11", tags=["tests"])
def captum_oldest(session: nox.Session) -> None:
    """The oldest Captum, which takes no numpy 2, with the newest torch."""
    # From version 26 on, pyarrow cannot be imported with numpy 1, but its metadata does not say so.
    test(session, lower_bounds()["captum"], "pyarrow<26")


@nox.session(python=PYTHONS, tags=["tests"])
def newest(session: nox.Session) -> None:
    """The newest version of everything that each Python can have."""
    test(session)
