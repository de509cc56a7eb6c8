"""Importing the package's name costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import captum_cav


def test_importing_the_package_imports_none_of_the_heavy_optional_ones() -> None:
    code = "import sys, captum_cav; print(*(m for m in ('matplotlib', 'torchvision', 'pandas') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", captum_cav.__all__)
def test_public_names_are_found(name: str) -> None:
    assert getattr(captum_cav, name) is not None
    assert name in dir(captum_cav)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CAV'"):
        captum_cav.CAV  # noqa: B018
