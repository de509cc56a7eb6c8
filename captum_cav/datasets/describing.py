"""What the numbers of a job hang on, as text that is the same in every process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

# Where an object lies in memory differs from process to process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(value: Any) -> str:
    """A value as text. Equal values have equal texts in every process.

    A function stands for itself by its name, so a change of its code is not seen. A tensor stands for its numbers.

    Args:
        value: any object: a rule, a transform, a dataset, ...

    Example::

        >>> describe(functools.partial(max, 3))
        'partial(builtins.max, 3)'
        >>> describe(object())
        '<object object>'
    """
    if isinstance(value, torch.Tensor):
        return f"tensor({fingerprint([('', value)])[:16]}, shape={tuple(value.shape)})"
    if isinstance(value, functools.partial):
        given = [describe(one) for one in (value.func, *value.args)]
        return f"partial({', '.join([*given, *(f'{key}={describe(one)}' for key, one in value.keywords.items())])})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{describe(key)}: {describe(one)}' for key, one in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(describe, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f"{one.name}={describe(getattr(value, one.name))}" for one in dataclasses.fields(value) if one.init]
        return f"{type(value).__name__}({', '.join(fields)})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", repr(value))


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The SHA-256 of named tensors: names, types, shapes and numbers.

    Args:
        tensors: names and tensors.

    Example::

        >>> fingerprint([("a", torch.zeros(2))]) == fingerprint([("a", torch.zeros(1, 2))])
        False
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two descriptions differ, each as a text.

    Args:
        before: values for JSON by name, as they stand in an output.
        now: values for JSON by name.

    Example::

        >>> differences({"batch_size": 8, "rules": {}}, {"batch_size": 16, "rules": {}})
        ['batch_size was 8 and is 16']
    """
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "missing"), now.get(name, "missing")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}: {one}" for one in differences(old, new)]
        elif old != new:
            found.append(f"{name} was {_short(old)} and is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
