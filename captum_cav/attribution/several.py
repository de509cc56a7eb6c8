"""Several scores of one forward pass, each with a map of its own: one backward pass for many scores at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from captum_cav.attribution.common_pass import Start, batched_grad, common_start
from captum_cav.propagation import zeros
from captum_cav.propagation.forward import Forward

#: Sums up contributions of shape (K, ...), the contributions of K scores to one tensor of a layer.
Reduce = Callable[[torch.Tensor], torch.Tensor]


def contributions_by_score(
    passed: Forward, scores: torch.Tensor, chosen: Sequence[int], at_once: int, reduce: Sequence[Reduce]
) -> list[list[torch.Tensor]]:
    """The contributions to each of several scores, in units of the score.

    Torch computes the backward passes of several scores as one (``is_grads_batched``), which costs less than one after
    the other. Where torch cannot do that, each score has a backward pass of its own.

    Args:
        passed: what the forward pass left. Its graph stays as it is.
        scores: shape (K,), with their graph.
        chosen: the indices of the explained layers among what was tapped.
        at_once: how many scores share a backward pass. The memory of the pass grows with this number.
        reduce: for each explained layer, a function that sums up the contributions of several scores to one tensor of
            the layer. So the full contributions never exist for all scores at once.

    Returns:
        For each explained layer, and for each of its tensors, what ``reduce`` gives for all scores.
    """
    parts: list[list[list[torch.Tensor]]] = [[[] for _ in passed.trace.taps[index].edges] for index in chosen]
    # The shares of constants of several scores at once could not be told apart.
    with passed.trace.shares.paused():
        start = common_start(passed, scores, chosen)
        for first in range(0, len(scores), at_once):
            seeds = start.seeds(first, min(first + at_once, len(scores)))
            for of_layer, index, coefficients, sum_up in zip(
                parts, chosen, _coefficients(passed, start, chosen, seeds), reduce, strict=True
            ):
                values = passed.trace.taps[index].values
                for of_tensor, value, part in zip(of_layer, values, coefficients, strict=True):
                    if part is None:
                        found = value.new_zeros(()).expand(len(seeds), *value.shape)
                    else:
                        found = zeros.contributions(value, part, passed.trace.shares.zeros_carry)
                    of_tensor.append(sum_up(found.detach()))
    return [[torch.cat(of_tensor) for of_tensor in of_layer] for of_layer in parts]


def _coefficients(
    passed: Forward, start: Start, chosen: Sequence[int], seeds: torch.Tensor
) -> list[list[torch.Tensor | None]]:
    """The coefficients of each tensor of each layer for several rows of seeds, one row for each score."""
    if len(seeds) > 1:
        edges = [edge for index in chosen for edge in passed.trace.taps[index].edges]
        try:
            found = iter(batched_grad(start.at, edges, seeds))
            return [[next(found) for _ in passed.trace.taps[index].edges] for index in chosen]
        except RuntimeError:
            pass  # A backward pass that torch cannot batch. The same pass for one score tells whether it fails, too.
    rows = [passed.coefficients(start.at, seed, chosen, True) for seed in seeds]
    return [
        [None if of_tensor[0] is None else torch.stack(of_tensor) for of_tensor in zip(*of_layer, strict=True)]
        for of_layer in zip(*rows, strict=True)
    ]
