"""The networks of Captum's own tests. The tests that need them are skipped where Captum does not bring them."""

from __future__ import annotations

import pytest

__all__ = ["basic_models"]

basic_models = pytest.importorskip(
    "captum.testing.helpers.basic_models", reason="Captum brings the networks of its tests from version 0.9 on"
)
