"""Expected errors: their classes, their texts, and a model that is left as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from captum_cav.errors import (
    CAVError,
)
from tests.support.traces import left_as_it_was


@contextmanager
def refused(builtin: type[Exception], *texts: str, model: nn.Module | None = None) -> Iterator[None]:
    """Expect an error of both hierarchies that says all the texts, and a model left as it was."""
    with left_as_it_was(nn.Identity() if model is None else model):
        with pytest.raises(CAVError) as caught:
            yield
        assert isinstance(caught.value, builtin)
    for text in texts:
        assert text in str(caught.value)


@contextlib.contextmanager
def raising(
    kind: type[CAVError], builtin: type[Exception], said: str, model: nn.Module | None = None
) -> Iterator[None]:
    """Expect an error of this class, which is the built-in one too, whose text fits; a model is left as it was."""
    assert issubclass(kind, CAVError)
    with left_as_it_was(nn.Identity() if model is None else model):
        with pytest.raises(builtin, match=said) as caught:
            yield
        assert type(caught.value) is kind


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
