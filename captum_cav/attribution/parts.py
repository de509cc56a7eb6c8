"""A batch in parts, for batches whose graph does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_cav import checks
from captum_cav.attribution.input_checks import Arguments
from captum_cav.errors import InputError, LayerError
from captum_cav.propagation.reentrancy import batch_in_parts
from captum_cav.tensors import tensors_in
from captum_cav.torch_internals import tree_map


def in_parts(arguments: Arguments, size: int | None, explain: Callable[[Arguments], Any]) -> Any:
    """What ``explain`` returns for a batch, from calls with at most so many samples.

    Inputs and targets are cut along the samples, and so is each additional tensor whose first dimension has the number
    of samples. Everything else goes to each call as it is.

    Args:
        arguments: the checked arguments.
        size: the largest number of samples of a call; None for all samples.
        explain: returns tensors, in any structure, whose first dimension is that of the samples.

    Returns:
        The structure that ``explain`` returns; each tensor is the concatenation of the tensors of all calls.

    Raises:
        OptionError: for a size that is not a positive integer.
        InputError, TargetError, LayerError: for a batch that cannot be cut.
    """
    if size is None:
        return explain(arguments)
    checks.check_count(size, "internal_batch_size")
    samples = _count_samples(arguments.inputs)
    for target in arguments.targets:
        checks.check_target_count(target, samples)
    if samples <= size:
        return explain(arguments)
    results: list[Any] = []
    start, count = 0, size
    while start < samples:
        part = range(start, min(start + count, samples))
        with batch_in_parts():
            results.append(explain(_part_of(arguments, part, samples)))
        shapes = [tensor.shape for tensor in tensors_in(results[-1])]
        _check_shapes(shapes, len(part))
        # If another dimension has the size of the part, that dimension might be the one of the samples. Parts of
        # different sizes tell.
        is_unclear = not start and samples % size == 0 and any(size in shape[1:] for shape in shapes)
        count = max(size - 1, 1) if is_unclear else size
        start = part.stop
    with torch.enable_grad():
        return tree_map(lambda *tensors: torch.cat(tensors), *results)


def _count_samples(inputs: tuple[Any, ...]) -> int:
    """The number of samples, which is the first dimension of every input."""
    shapes = [tuple(tensor.shape) for tensor in tensors_in(list(inputs))]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) > 1 or () in sizes:
        raise InputError(
            f"inputs have the shapes {', '.join(map(str, shapes))}; expected the same first dimension, which "
            "internal_batch_size cuts into parts. Pass what all samples share by additional_forward_args, or leave out "
            "internal_batch_size."
        )
    return shapes[0][0]


def _part_of(arguments: Arguments, part: range, samples: int) -> Arguments:
    """The arguments of some samples of the batch."""
    cut = slice(part.start, part.stop)

    def of_part(leaf: Any) -> Any:
        is_cut = isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (samples,)
        return leaf[cut] if is_cut else leaf

    # With their graph: contributions may be differentiated with respect to the inputs, also under torch.no_grad().
    with torch.enable_grad():
        inputs, additional = tree_map(of_part, (arguments.inputs, arguments.additional))
    targets = [target[cut] if isinstance(target, list) else target for target in arguments.targets]
    return arguments._replace(inputs=inputs, additional=additional, targets=targets, part=part)


def _check_shapes(shapes: list[torch.Size], samples: int) -> None:
    """Refuse results that are not one row for each sample."""
    for shape in shapes:
        if shape[:1] != (samples,):
            raise LayerError(
                f"internal_batch_size needs layers whose first dimension is that of the samples: for {samples} "
                f"samples, expected shape ({samples}, ...), got {tuple(shape)}. Leave out internal_batch_size, or pass "
                "so many samples at a time yourself."
            )
