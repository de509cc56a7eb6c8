"""What several test files share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.support.pages import browse as browse  # a fixture

# Most tests are many small operations, in which several threads would mostly wait for each other.
torch.set_num_threads(1)
# The same examples in every run, however long one takes: timings are no tests.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """The garbage collector leaves out all objects that exist already: going through them takes most of its time."""
    gc.freeze()
    yield
    gc.unfreeze()
