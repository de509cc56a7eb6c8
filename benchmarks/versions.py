"""The versions that the results of a benchmark name."""

from __future__ import annotations

import importlib.metadata
import platform

import captum_cav


def versions_with(*packages: str) -> dict[str, str]:
    """The versions of Python, of captum_cav and of other packages.

    Args:
        packages: the names of the other packages.

    Returns:
        The versions by name; "not installed" for a package that is missing.
    """
    return {
        "python": platform.python_version(),
        "captum_cav": captum_cav.__version__,
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
