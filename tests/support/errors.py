"""Expected errors: their classes, their texts, and a model that is left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from captum_cav.errors import CAVError
from tests.support.traces import left_as_it_was


@contextmanager
def cav_error(builtin: type[Exception], *texts: str) -> Iterator[None]:
    """Expect an error of the package that is also of a built-in class, and whose message contains all the texts."""
    with pytest.raises(CAVError) as caught:
        yield
    assert isinstance(caught.value, builtin)
    for text in texts:
        assert text in str(caught.value)


@contextmanager
def refused(builtin: type[Exception], *texts: str, model: nn.Module | None = None) -> Iterator[None]:
    """Expect :func:`cav_error`, and a model and a process that are left as they were."""
    with left_as_it_was(nn.Identity() if model is None else model), cav_error(builtin, *texts):
        yield


@contextmanager
def raising(
    kind: type[CAVError], builtin: type[Exception], said: str, model: nn.Module | None = None
) -> Iterator[None]:
    """Expect an error of this class, which is also of the built-in class, and whose message fits the pattern.

    The model and the process are left as they were.
    """
    assert issubclass(kind, CAVError)
    with left_as_it_was(nn.Identity() if model is None else model):
        with pytest.raises(builtin, match=said) as caught:
            yield
        assert type(caught.value) is kind


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
