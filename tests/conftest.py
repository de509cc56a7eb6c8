"""What several test files share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples in every run, however long one takes: timings are no tests.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For files of many small operations: several threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """The garbage collector leaves out all objects that exist already: going through them takes most of its time."""
    gc.freeze()
    yield
    gc.unfreeze()
