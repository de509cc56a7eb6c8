"""The parts of what a model returns: a tensor, a dict, a tuple, a dataclass or a ``ModelOutput`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from captum_cav.errors import CAVTypeError, OptionError
from captum_cav.suggestions import did_you_mean


def part_of(output: Any, *names: str) -> Any:
    """The first part of an output that is there under one of the names; None if there is none.

    Args:
        output: what the model returned. A ``ModelOutput`` of transformers is a mapping, too.
        names: keys of a mapping, or names of attributes.
    """
    for name in names:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if found is not None:
            return found
    return None


def check_part(output: Any) -> None:
    """Refuse what cannot name a part of the model's output.

    Args:
        output: the option: None, a name, the position in a tuple, or a function.

    Raises:
        OptionError: says what is expected.
    """
    is_position = isinstance(output, int) and not isinstance(output, bool)
    if not (output is None or isinstance(output, str) or is_position or callable(output)):
        raise OptionError(
            f"output is {output!r}; expected the name of a part of what the model returns, its position in a tuple, or "
            "a function of what the model returns."
        )


def picked(output: Any, which: Any) -> Any:
    """The part of what a model returned that an option names.

    Args:
        output: what the model returned.
        which: as for :func:`check_part`. None for the whole output.

    Raises:
        CAVTypeError: if there is no such part. The message says which parts there are.

    Example::

        >>> picked({"logits": 1, "states": 2}, "logits"), picked((3, 4), -1), picked([5], lambda output: output[0])
        (1, 4, 5)
        >>> picked({"logits": 1, "states": 2}, "logit")
        Traceback (most recent call last):
        captum_cav.errors.CAVTypeError: output is 'logit', but the model returned a dict with 'logits', 'states' ...
    """
    if which is None:
        return output
    if callable(which):
        return which(output)
    if isinstance(which, str):
        found = part_of(output, which)
    else:
        in_range = isinstance(output, (tuple, list)) and -len(output) <= which < len(output)
        found = output[which] if in_range else None
    if found is None:
        hint = did_you_mean(which, _names_in(output)) if isinstance(which, str) else ""
        raise CAVTypeError(
            f"output is {which!r}, but the model returned {describe_output(output)}{hint}; expected the name of a "
            "part, its position in a tuple, or a function of what the model returns."
        )
    return found


def example_of(output: Any) -> str | None:
    """What could name the part of an output that holds scores, as Python writes it; None if nothing could."""
    names = _names_in(output)
    likely = [name for name in ("logits", "scores", "out", "output") if name in names]
    tensors = [name for name in names if isinstance(part_of(output, name), torch.Tensor)]
    if likely or tensors:
        return repr((likely or tensors)[0])
    return "0" if isinstance(output, (tuple, list)) and output else None


def _names_in(output: Any) -> list[str]:
    if isinstance(output, Mapping):
        return [key for key in output if isinstance(key, str)]
    if is_dataclass(output):
        return [field.name for field in fields(output)]
    return list(getattr(output, "_fields", ()))


def describe_output(output: Any) -> str:
    """What a model returned, in words: kinds, keys and shapes."""
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    names = _names_in(output)
    if names or isinstance(output, Mapping):
        keys = map(repr, output if isinstance(output, Mapping) else names)
        return f"a {type(output).__name__} with {', '.join(keys) or 'nothing in it'}"
    if isinstance(output, (tuple, list)):
        first = f" that begins with {describe_output(output[0])}" if output else ""
        return f"a {type(output).__name__} of length {len(output)}{first}"
    return f"a {type(output).__name__}"
