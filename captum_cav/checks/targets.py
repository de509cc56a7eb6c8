"""The output of the model, the target that selects a score of it, and neurons of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from captum_cav.checks.options import as_integer
from captum_cav.checks.outputs import describe_output, example_of
from captum_cav.errors import CAVTypeError, ModelError, TargetError

#: One target for each example, or None if the model gives one score for each example.
Targets: TypeAlias = list[Any] | None


class Positions(NamedTuple):
    """Targets as a tensor, for recordings of a computation, which must not hold the numbers of one call.

    Attributes:
        values: integers of shape (N,): the position of each sample's score in its flattened output, from 0.
    """

    values: torch.Tensor


def check_output(output: Any, *, can_be_named: bool = False) -> torch.Tensor:
    """The output of the model as a tensor whose first dimension is that of the samples.

    Args:
        output: what the model returned.
        can_be_named: whether the caller has an option ``output``, which names the part that holds the scores.

    Raises:
        CAVTypeError: for what is not a tensor.
        ModelError: for a tensor without numbers.
    """
    if not isinstance(output, torch.Tensor):
        example = example_of(output)
        advice = "Pass a function that returns it, as lambda *x: model(*x).logits."
        if example is not None and can_be_named:
            advice = f"Name the part of the output that holds it, as output={example}, or pass output=a function."
        elif example is not None:
            part = "lambda output: output" + (f"[{example}]" if hasattr(output, "__getitem__") else f".{example[1:-1]}")
            advice = f"Pass scores.with_score(model, {part})."
        raise CAVTypeError(f"the model returned {describe_output(output)}; expected a tensor of scores. {advice}")
    if not output.numel():
        raise ModelError(
            f"the model returned no scores: its output has shape {tuple(output.shape)}. Expected at least one score "
            "for each sample."
        )
    return output.reshape(1) if output.dim() == 0 else output


def read_target(target: Any) -> Any:
    """A target whose numbers are on the host: a tensor of integers as an integer or a list, anything else unchanged.

    :func:`resolve_target` tells whether the target fits the output.
    """
    if isinstance(target, torch.Tensor) and _holds_integers(target):
        if target.numel() == 1:
            return int(target)
        if target.dim() == 1:
            return target.tolist()
    return target


def resolve_target(
    output: torch.Tensor, target: Any, first_sample: int = 0
) -> list[tuple[int, ...]] | tuple[int, ...] | Positions | None:
    """A target in any of the forms that Captum takes, as indices of the dimensions behind the batch dimension.

    :class:`Positions` are returned unchanged.

    Args:
        output: shape (N, ...), the output of the model.
        target: an index, a tuple of indices, a list or 1-D tensor with one entry for each sample, or None.
        first_sample: the number of the first of these samples in the batch, for messages.

    Returns:
        A tuple of indices that holds for all samples, a list with one tuple for each sample, or None if the output is
        one score for each sample.

    Raises:
        TargetError, CAVTypeError: if the target does not select one score for each sample.
    """
    shape = tuple(output.shape)
    samples = shape[0]
    if target is None:
        if output.numel() != samples:
            raise TargetError(
                f"target is missing: the model gives {output[0].numel()} values a sample (output shape {shape}); "
                f"pass {_example(shape)}."
            )
        return None
    if isinstance(target, Positions):
        return target
    target = read_target(target)
    if isinstance(target, torch.Tensor):
        if not _holds_integers(target):
            raise CAVTypeError(f"target is a tensor of {target.dtype}; expected integers, as {_example(shape)}.")
        rows = target.dim() == 2 and tuple(target.shape) == (samples, len(shape) - 1)
        how = "pass target=list(map(tuple, target.tolist()))" if rows else f"pass {_example(shape)}"
        raise TargetError(
            f"target has shape {tuple(target.shape)}; expected an index, or a list of {samples} indices or tuples, one "
            f"for each sample (output shape {shape}); {how}."
        )
    check_target_count(target, samples)
    if isinstance(target, list):
        return [_indices(entry, f"target[{sample}]", shape) for sample, entry in enumerate(target, first_sample)]
    return _indices(target, "target", shape)


def positions(shape: Sequence[int], target: Any, first_sample: int = 0) -> list[int] | None:
    """A target in any of the forms that Captum takes, as the position of each sample's score in its flattened output.

    Args:
        shape: (N, ...), of the output of the model.
        target: as for :func:`resolve_target`.
        first_sample: the number of the first of these samples in the batch, for messages.

    Returns:
        One integer for each sample, from 0; or None if the output is one score for each sample.

    Raises:
        TargetError, CAVTypeError: as by :func:`resolve_target`.

    Example::

        >>> positions((2, 3), -1), positions((2, 3, 4), [(0, 1), (2, 3)])
        ([2, 2], [1, 11])
    """
    indices = resolve_target(torch.empty(tuple(shape), device="meta"), target, first_sample)
    if indices is None:
        return None
    assert not isinstance(indices, Positions)
    found = []
    for entry in indices if isinstance(indices, list) else [indices] * shape[0]:
        position = 0
        for index, size in zip(entry, shape[1:], strict=True):
            position = position * size + index % size
        found.append(position)
    return found


def check_target_count(target: Any, samples: int) -> None:
    """Refuse a list of targets that has not one entry for each sample.

    Raises:
        TargetError: for a list of another length.
    """
    if isinstance(target, list) and len(target) != samples:
        raise TargetError(f"target lists {len(target)} entries for {samples} samples; expected one for each.")


def check_one_for_each(values: torch.Tensor, what: str, part: range | None) -> None:
    """Refuse values of a part of a batch if they are not one value, or one row of values, for each sample.

    Args:
        values: the scores, or the values of a neuron, as the model or a function returned them.
        what: what gave the values, for the message.
        part: the samples of the part; None for the whole batch, of which nothing is asked.

    Raises:
        TargetError: says how many values there are.
    """
    if part is not None and values.shape[:1] != (len(part),):
        raise TargetError(
            f"{what} gives a tensor of shape {tuple(values.shape)} for {len(part)} samples; internal_batch_size "
            "explains a batch in parts, so expected one row for each sample. Leave out internal_batch_size."
        )


def _holds_integers(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _indices(entry: Any, which: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    indices = [as_integer(index) for index in (entry if isinstance(entry, tuple) else (entry,))]
    known = tuple(index for index in indices if index is not None)
    if len(known) != len(indices):
        raise CAVTypeError(
            f"{which} is {entry!r} ({type(entry).__name__}); expected an integer, a tuple of integers, or a list of "
            f"integers or tuples, one for each sample, as {_example(shape)}."
        )
    if len(known) != len(shape) - 1:
        raise TargetError(
            f"{which} is {entry!r}, which selects {len(known)} of the {len(shape) - 1} dimensions behind the batch "
            f"(output shape {shape}); pass {_example(shape)}."
        )
    for index, size in zip(known, shape[1:], strict=True):
        if not -size <= index < size:
            raise TargetError(f"{which} is {entry!r}, out of range for output shape {shape}: 0 to {size - 1}.")
    return known


def _example(shape: Sequence[int]) -> str:
    choices = shape[1:]
    if not choices:
        return "no target"
    if len(choices) == 1:
        return f"target=i with i from 0 to {choices[0] - 1}"
    return f"target=(i, ...) with one index for each of the sizes {tuple(choices)}"


def check_targets(target: Any, examples: int) -> Targets:
    """A target in any of the forms that Captum takes, as a list with one entry for each example.

    Args:
        target: as for :func:`resolve_target`, which later tells whether the entries fit the output.
        examples: how many there are.

    Raises:
        TargetError: for a list of another length.
    """
    if isinstance(target, torch.Tensor):
        target = target.tolist() if target.numel() != 1 else target.item()
    if isinstance(target, list):
        if len(target) != examples:
            raise TargetError(f"target lists {len(target)} entries for {examples} examples; expected one for each.")
        return [entry.item() if isinstance(entry, torch.Tensor) else entry for entry in target]
    return None if target is None else [target] * examples


def check_classes(classes: Sequence[int], count: int) -> tuple[int, ...]:
    """Indices of classes as integers.

    Args:
        classes: the indices, each from 0 to ``count - 1``.
        count: how many classes there are.

    Raises:
        CAVTypeError, TargetError: for what is not the index of a class.
    """
    checked = []
    for index in classes:
        number = as_integer(index)
        if number is None:
            raise CAVTypeError(f"a class is {index!r} ({type(index).__name__}); expected its index.")
        if not 0 <= number < count:
            raise TargetError(f"there is no class {number}: the model gives {count} scores, 0 to {count - 1}.")
        checked.append(number)
    return tuple(checked)


def check_neuron(selector: Any, values: tuple[torch.Tensor, ...]) -> Any:
    """A neuron selector that selects from the tensors of a layer; a function is not checked.

    Args:
        selector: an index, a slice, a tuple of indices or slices, or a function of the output of the layer.
        values: the tensors of the layer, each of shape (N, ...).

    Returns:
        The selector, as Captum takes it.

    Raises:
        CAVTypeError, TargetError: with what selects a neuron of this layer.
    """
    if callable(selector):
        return selector
    shape = tuple(values[0].shape)
    given = selector if isinstance(selector, tuple) else (selector,)
    indices = tuple(index if isinstance(index, slice) else as_integer(index) for index in given)
    expected = f"one integer or slice for each of the sizes {shape[1:]}, or a function of the layer's output"
    if None in indices:
        raise CAVTypeError(f"neuron_selector is {selector!r} ({type(selector).__name__}); expected {expected}.")
    if len(values) > 1:
        raise TargetError(f"the layer gives {len(values)} tensors; pass a function that selects from them.")
    if len(indices) != len(shape) - 1:
        raise TargetError(f"neuron_selector is {selector!r} for a layer of shape {shape}; expected {expected}.")
    for index, size in zip(indices, shape[1:], strict=True):
        selected = range(size)[index] if isinstance(index, slice) else range(-size, size)
        if not selected or (isinstance(index, int) and index not in selected):
            raise TargetError(f"neuron_selector is {selector!r}, out of range for a layer of shape {shape}.")
    return indices
