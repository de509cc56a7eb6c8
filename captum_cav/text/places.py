"""Where the tokens are in what a layer gives: the tokens' places in the calls of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from captum_cav.attribution.contributions import chosen_tap
from captum_cav.errors import LayerError
from captum_cav.propagation.forward import Forward
from captum_cav.text.tasks import Task


class Place(NamedTuple):
    """One call of a layer that has a row for each token of an input.

    Attributes:
        input: the number of the input.
        tap: the number of the tap.
        has_rows: for each tensor that the layer gives, whether it has a row for each token.
        sum_up: sums up contributions of shape (K, ...) for each token, to shape (K, T). Of a tensor without such rows,
            it sums up all of them, to shape (K, 1).
    """

    input: int
    tap: int
    has_rows: Sequence[bool]
    sum_up: Callable[[torch.Tensor], torch.Tensor]


def places_of_embeddings(passed: Forward, task: Task) -> list[Place]:
    """The calls of the embeddings that take the tokens.

    Raises:
        LayerError: for an input that no embedding takes.
    """
    found = {one.input for one in passed.embedded}
    if len(found) < len(task.inputs):
        raise LayerError(
            "no embedding layer of the model takes the tokens as they are; expected layer=, the layer that takes them."
        )

    def sums(number: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
        one = passed.embedded[number]
        return lambda contributions: one.of_input(contributions, size, _type_of(contributions))

    return [
        Place(one.input, one.tap, [True], sums(number, task.inputs[one.input].shape[1]))
        for number, one in enumerate(passed.embedded)
    ]


def places_of_layer(passed: Forward, task: Task, site: int, name: str, module: torch.nn.Module) -> list[Place]:
    """The calls of a layer.

    Args:
        passed: what the forward pass left.
        task: what the model was given.
        site: the number of the layer among the sites.
        name: of the layer, for messages.
        module: the layer.

    Raises:
        LayerError: if the layer is reached more often than there are inputs, or has no row for each token.
    """
    calls, inputs = len(passed.calls[site]), range(len(task.inputs))
    taken = list(inputs)
    if calls != len(inputs):
        first = chosen_tap(passed, site, name, None)
        taken = [number for number, side in enumerate(task.sides) if module in side]
        if len(taken) != 1:
            taken = [number for number in inputs if any(_has_rows(passed, first, task, number))]
        if len(taken) != 1:
            raise LayerError(
                f"layer {name} may belong to {len(taken)} of the {len(inputs)} texts; expected a layer of the encoder "
                "or of the decoder."
            )
    taps = [chosen_tap(passed, site, name, call) for call in range(len(taken))]
    return [_place(passed, tap, task, number, name) for tap, number in zip(taps, taken, strict=True)]


def _has_rows(passed: Forward, tap: int, task: Task, number: int) -> list[bool]:
    """For each tensor of a tap, whether it has a row for each token of an input."""
    length = task.inputs[number].shape[1]
    # What a layer gives beside its first tensor may be attention weights, which have heads where others have tokens.
    return [
        (value.shape[:2] in ((1, length), (length, 1)) or (value.dim() == 2 and len(value) == length))
        and (not position or value.dim() <= 3)
        for position, value in enumerate(passed.trace.taps[tap].values)
    ]


def _place(passed: Forward, tap: int, task: Task, number: int, name: str) -> Place:
    length, values = task.inputs[number].shape[1], passed.trace.taps[tap].values
    has_rows = _has_rows(passed, tap, task, number)
    if not any(has_rows):
        raise LayerError(
            f"layer {name} gives a tensor of shape {tuple(values[0].shape)}; expected (1, {length}, ...), with a row "
            "for each token."
        )
    with_rows = {value.shape for value, by_token in zip(values, has_rows, strict=True) if by_token}

    def sum_up(contributions: torch.Tensor) -> torch.Tensor:
        count = length if contributions.shape[1:] in with_rows else 1
        return contributions.reshape(len(contributions), count, -1).sum(2, dtype=_type_of(contributions))

    return Place(number, tap, has_rows, sum_up)


def _type_of(contributions: torch.Tensor) -> torch.dtype:
    return torch.promote_types(contributions.dtype, torch.float32)
