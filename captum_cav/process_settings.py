"""Settings of the whole process that an attribution changes for a while, and puts back whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

#: Whoever changes something of the whole process holds this lock.
process_lock = threading.RLock()


def give_back_lock() -> None:
    """Give :data:`process_lock` back, although an interrupt may have come before this thread left the context."""
    with suppress(RuntimeError):  # The thread does not hold the lock any more.
        while True:
            process_lock.release()


class SharedSetting:
    """A setting of the whole process. The first thread that needs the setting applies it. The last thread restores it.

    Args:
        change: returns a context in which the setting is changed. The context may be left in any state, also twice,
            because interrupts may come at any time.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self._change = change
        self._users: set[object] = set()
        self._active: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While this context is active, the setting is changed."""
        user = object()
        try:
            try:
                with process_lock:
                    self._users.add(user)
                    if self._active is None:
                        self._active = self._change()
                        self._active.__enter__()
                yield
            finally:
                self._end(user)
        finally:
            self._end(user)  # An interrupt may have come first.

    def _end(self, user: object) -> None:
        with process_lock:
            self._users.discard(user)
            if not self._users and self._active is not None:
                self._active.__exit__(None, None, None)
                self._active = None


class Patch:
    """Attributes of classes that are replaced for a while. The patch may be left in any state, also twice.

    Args:
        replaced: a class, the name of an attribute, and what makes the new value from the value before.
    """

    def __init__(self, *replaced: tuple[type, str, Callable[[Any], Any]]) -> None:
        self._replaced = replaced
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = [vars(owner)[name] for owner, name, _ in self._replaced]
        for (owner, name, make), before in zip(self._replaced, self._before, strict=True):
            setattr(owner, name, make(before))

    def __exit__(self, *_: object) -> None:
        for (owner, name, _make), before in zip(self._replaced, self._before, strict=False):
            setattr(owner, name, before)
