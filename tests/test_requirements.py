"""The installed packages, the private parts of Captum, and optional packages that are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from typing import Any

import captum._utils.common
import pytest
from captum._utils.common import _select_targets
from captum._utils.gradient import _verify_select_neuron
from captum.attr._utils import lrp_rules
from packaging.requirements import Requirement

from captum_cav import captum_internals, zoo
from captum_cav.errors import (
    ModelError,
)
from tests.support.errors import raising


def test_versions_are_within_what_the_package_asks_for() -> None:
    asked = [Requirement(text) for text in importlib.metadata.requires("captum_cav") or []]
    required = {one.name: one.specifier for one in asked if one.marker is None}
    assert {"captum", "torch", "torchvision", "matplotlib"} <= set(required)
    for name, specifier in required.items():
        version = importlib.metadata.version(name)
        assert specifier.contains(version.split("+")[0], prereleases=True), f"{name} {version}"
    assert not required["captum"].contains("1.0"), "private parts of it are used"


def test_the_private_parts_of_captum_are_as_they_were() -> None:
    assert list(inspect.signature(_select_targets).parameters) == ["output", "target"]
    assert list(inspect.signature(_verify_select_neuron).parameters) == ["layer_output", "selector"]
    assert lrp_rules.EpsilonRule(0.5).STABILITY_FACTOR == 0.5
    gamma = lrp_rules.GammaRule(0.7, set_bias_to_zero=True)
    assert (gamma.gamma, gamma.set_bias_to_zero) == (0.7, True)
    assert {"Alpha1_Beta0_Rule", "IdentityRule", "PropagationRule"} <= set(vars(lrp_rules))


def test_a_captum_without_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("captum_cav.internals_again", captum_internals.__file__)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.delattr(captum._utils.common, "_select_targets")
    with pytest.raises(ImportError, match=r"'_select_targets' from 'captum\._utils\.common'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_an_optional_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(distribution)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "distribution", missing)
        for name in ("squeezenet1_1", "efficientnet_lite0"):
            with raising(
                ModelError,
                RuntimeError,
                r'is needed, but the package is not installed: pip install "captum_cav\[demo\]"',
            ):
                zoo.load(name)
