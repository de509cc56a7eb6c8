"""The parts of what a model returns: a tensor, a dict, a tuple or a ``ModelOutput`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch

from captum_cav import checks
from captum_cav.checks import describe_output, part_of
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.propagation.reentrancy import has_part


def tensor_of(output: Any, score: Any, expected: str, dimensions: Sequence[int], *names: str) -> torch.Tensor:
    """The tensor of an output that a score reads.

    Args:
        output: what the model returned: the tensor, or an object that has the tensor under one of the names.
        score: the score, for messages.
        expected: the shape and meaning of the tensor, for messages.
        dimensions: how many dimensions the tensor may have; empty for any number of at least two.
        names: see :func:`part_of`.

    Raises:
        CAVTypeError: if there is no such tensor. The message says what was found.
    """
    found = output if isinstance(output, torch.Tensor) else part_of(output, *names)
    if not checks.is_floating(found) or (found.dim() not in dimensions if dimensions else found.dim() < 2):
        under = f", or an object with it as {' or '.join(map(repr, names))}" if names else ""
        refuse_output(output, score, expected + under)
    return found


def refuse_output(output: Any, score: Any, expected: str) -> NoReturn:
    """Refuse an output in which a score does not find what it reads.

    Raises:
        CAVTypeError: always. The message says how to hand a part of the output to the score.
    """
    part = "convert(output)"
    if isinstance(output, Mapping) and output:
        part = f"output[{next(iter(output))!r}]"
    elif isinstance(output, (tuple, list)):
        part = "output[0]"
    raise CAVTypeError(
        f"the model returned {describe_output(output)}; expected by the score {type(score).__name__}: {expected}. "
        f"Pass a function that hands the right part on, as score=lambda output: my_score({part})."
    )


class Shown:
    """A base of dataclasses whose ``repr`` names tensors by their shapes."""

    def __repr__(self) -> str:
        given = (f"{field.name}={_shown(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(given)})"


def _shown(value: Any) -> str:
    return f"<tensor of shape {tuple(value.shape)}>" if isinstance(value, torch.Tensor) else repr(value)


def check_whole(what: str) -> None:
    """Refuse what a score has for each sample, if the score gets a part of the batch: nobody tells it which part.

    Args:
        what: the name of the argument and what the argument is, for the message.

    Raises:
        InputError: says what to do.
    """
    if has_part():
        raise InputError(
            f"{what} for each sample, and internal_batch_size explains the batch in parts; expected one for all "
            "samples. Pass that, or leave out internal_batch_size."
        )


def for_each_sample(what: str, given: torch.Tensor, entry: Sequence[int], samples: int) -> torch.Tensor:
    """A tensor that the user gave, with one entry for each sample or one entry for all samples.

    Args:
        what: the name of the argument, for the message.
        given: the tensor.
        entry: the shape of one entry.
        samples: the number of samples in the output of the model.

    Returns:
        Shape (N, *entry) or (1, *entry).

    Raises:
        InputError: for a tensor of another shape, and for entries of samples if the batch is explained in parts.
    """
    shape, one = tuple(given.shape), tuple(entry)
    if shape == one:
        return given[None]
    if shape[1:] == one and shape[0] != 1:
        check_whole(f"{what} has shape {shape}, one entry")
    if shape[1:] == one and shape[0] in (1, samples):
        return given
    raise InputError(
        f"{what} has shape {shape}; expected {one} for all samples, or {(samples, *one)} with one for each sample."
    )
