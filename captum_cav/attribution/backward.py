"""From scores back to contributions, and to what the contributions do not explain.

Nothing here reads a number on the host. A GPU gets all of this work without a wait, and the work can be recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav.attribution.options import Normalize
from captum_cav.attribution.scores import SelectedScores
from captum_cav.propagation import zeros
from captum_cav.propagation.forward import Forward


@dataclass(frozen=True)
class Propagated:
    """What one backward pass found.

    Attributes:
        seeds: shape (N,), the coefficient of each score: 1, or 1/score for ratios; times ``scale``.
        contributions: for each explained layer, the contributions of each of its tensors, or their coefficients; times
            ``scale``.
        deltas: for each explained layer, or for all of them together, the part of the scores that contributions and
            constants leave unexplained, shape (N,); times ``scale``. Empty if nobody asked for them.
        independent: the positions of the explained layers that the scores do not depend on.
        scale: a factor that keeps small numbers of half precision apart from 0; None stands for 1.
        weighed: an operation in which a gate weighs nothing but constants, for messages; None if there is none.
        divided: for each delta, the part of the batch, a float64 scalar, and the parts of its samples, shape
            (N,), by a derivative. They add up if torch differentiated the backward pass rightly. Empty if nothing was
            differentiated.
    """

    seeds: torch.Tensor
    contributions: list[tuple[torch.Tensor, ...]]
    deltas: list[torch.Tensor]
    independent: list[int]
    scale: torch.Tensor | None
    weighed: str | None
    divided: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()

    def unscaled(self) -> tuple[list[tuple[torch.Tensor, ...]], list[torch.Tensor]]:
        """Contributions and deltas in their own unit, without a graph."""
        contributions = [tuple(part.detach() for part in parts) for parts in self.contributions]
        if self.scale is None:
            return contributions, self.deltas
        return (
            [tuple(part / self.scale.to(part.device) for part in parts) for parts in contributions],
            [delta / self.scale for delta in self.deltas],
        )


def propagate(
    passed: Forward,
    scores: SelectedScores,
    chosen: Sequence[int],
    *,
    normalize: Normalize,
    multiply_by_inputs: bool,
    with_delta: bool,
    joint: bool,
    keep_graph: bool,
    grad_kwargs: dict[str, Any] | None,
    one_by_one: bool = False,
) -> Propagated:
    """One backward pass from the scores to the explained layers.

    An operation may have its samples in any dimension, so sums cannot be taken sample by sample. All sums are linear in
    the seeds instead: the part of a sample is its seed times the derivative of the sum with respect to that seed. Some
    operations have a backward pass that torch cannot differentiate. For these there is ``one_by_one``.

    Args:
        passed: what the forward pass left.
        scores: the scores that are explained.
        chosen: the indices of the explained layers among what was tapped.
        normalize: what contributions are divided by.
        multiply_by_inputs: whether to multiply the coefficients of a layer by the values of the layer.
        with_delta: whether to measure what stays unexplained; needs the account of constants.
        joint: whether there is one delta for all explained layers together, instead of one for each.
        keep_graph: whether another backward pass will follow.
        grad_kwargs: passed on to :func:`torch.autograd.grad`.
        one_by_one: whether each sample gets a backward pass of its own for its delta.

    Returns:
        What the backward pass found. ``contributions`` and ``deltas`` mean nothing if some layer is independent.

    Raises:
        RuntimeError: by torch, if ``one_by_one`` is needed. ``divided`` tells where torch does not raise.
    """
    # Contributions that keep their graph are computed in another way, see differentiable.py.
    options = {key: value for key, value in (grad_kwargs or {}).items() if key != "create_graph"}
    materialize = options.pop("materialize_grads", False)
    values = scores.values.detach()
    scale = _scale_of(values) if normalize is not None and values.itemsize < 4 else None
    seeds = seeds_of(values, normalize, 1.0 if scale is None else scale)
    if normalize == "abs" and scores.slopes is not None and scores.can_turn_back:
        seeds = torch.where(scores.slopes < 0, -seeds, seeds)
    if not scores.values.requires_grad and not materialize:
        return Propagated(seeds, [], [], list(range(len(chosen))), scale, passed.trace.weighed)
    by_sample = with_delta and len(seeds) > 1
    if by_sample and not one_by_one:
        seeds.requires_grad_()
        options["create_graph"] = True
    with torch.enable_grad():
        start = scores.values
        if not start.requires_grad:
            # The scores consist of constants. The backward pass needs a start all the same, and reaches no layer.
            start = start + torch.zeros_like(start).requires_grad_()
        coefficients = passed.coefficients(start, seeds, chosen, keep_graph or by_sample, **options)
        contributions = _contributions(passed, chosen, coefficients)
        totals = _totals(passed, chosen, contributions, seeds.device, joint) if with_delta else []
        if not by_sample:
            explained = [total.reshape(1) for total in totals]
        elif one_by_one:
            explained = _by_pass(passed, start, chosen, seeds, joint)
        else:
            explained = _by_seed(totals, seeds)
        explainable = (values - scores.constants) * seeds.detach()
        deltas = [(explainable - part).detach().to(values.dtype) for part in explained]
    independent = [
        place
        for place, parts in enumerate(coefficients)
        if not materialize and all(coefficient is None for coefficient in parts)
    ]
    if not multiply_by_inputs:
        contributions = _coefficients(passed, chosen, coefficients)
    divided = list(zip(totals, explained, strict=True)) if by_sample and not one_by_one else []
    return Propagated(seeds, contributions, deltas, independent, scale, passed.trace.weighed, divided)


def seeds_of(scores: torch.Tensor, normalize: Normalize, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """The coefficient of each score, where a backward pass starts.

    Args:
        scores: shape (N,).
        normalize: what contributions are divided by.
        scale: a factor of the coefficients of ratios.

    Returns:
        Shape (N,): 1, or ``scale / score`` for ratios.
    """
    seeds = torch.ones_like(scores)
    if normalize is None:
        return seeds
    return seeds * scale / (scores if normalize == "score" else scores.abs())


def _scale_of(scores: torch.Tensor) -> torch.Tensor:
    """A power of two near the smallest score that is not 0, as a float32 scalar; 1 if all scores are 0.

    In half precision, coefficients divided by a score would soon be too small or too large.
    """
    sizes = scores.abs().float()
    smallest = torch.where(sizes > 0, sizes, torch.inf).min()
    power = 2.0 ** smallest.log2().floor()
    return torch.where(torch.isfinite(power), power, 1.0)


def _contributions(
    passed: Forward, chosen: Sequence[int], coefficients: Sequence[Sequence[torch.Tensor | None]]
) -> list[tuple[torch.Tensor, ...]]:
    """The contributions of each tensor of each layer.

    Args:
        passed: what the forward pass left.
        chosen: the indices of the explained layers among what was tapped.
        coefficients: the coefficients of each tensor of each layer, or None for a tensor without contributions.
    """
    zeros_carry = passed.trace.shares.zeros_carry
    return [
        tuple(
            torch.zeros_like(value) if part is None else zeros.contributions(value, part, zeros_carry)
            for value, part in zip(passed.trace.taps[index].values, parts, strict=True)
        )
        for index, parts in zip(chosen, coefficients, strict=True)
    ]


def _coefficients(
    passed: Forward, chosen: Sequence[int], coefficients: Sequence[Sequence[torch.Tensor | None]]
) -> list[tuple[torch.Tensor, ...]]:
    """The coefficients of each tensor of each layer, with zeros where there are none. See :func:`_contributions`."""
    return [
        tuple(
            torch.zeros_like(value) if part is None else part
            for value, part in zip(passed.trace.taps[index].values, parts, strict=True)
        )
        for index, parts in zip(chosen, coefficients, strict=True)
    ]


def _totals(
    passed: Forward,
    chosen: Sequence[int],
    contributions: Sequence[tuple[torch.Tensor, ...]],
    device: torch.device,
    joint: bool,
) -> list[torch.Tensor]:
    """For each explained layer, what the layer and the constants behind it contribute together, a float64 scalar.

    With ``joint``, one such scalar for all explained layers together, in which each constant counts once.

    Args:
        passed: what the forward pass left; it measured the shares of constants.
        chosen: the indices of the explained layers among what was tapped.
        contributions: the contributions of each tensor of each layer.
        device: where the sums are wanted.
        joint: whether the layers are summed, too.
    """
    masks, groups = [1 << index for index in chosen], list(contributions)
    if joint:
        masks, groups = [sum(set(masks))], [tuple(part for parts in contributions for part in parts)]
    totals = []
    for total, parts in zip(passed.trace.shares.settle(masks, device), groups, strict=True):
        for part in parts:
            total = total + part.sum(dtype=torch.float64).to(device)
        totals.append(total)
    return totals


def _by_seed(totals: Sequence[torch.Tensor], seeds: torch.Tensor) -> list[torch.Tensor]:
    """For each explained layer, the part of each sample, by a derivative with respect to the seeds.

    Args:
        totals: the part of all samples together, for each layer, as functions of the seeds.
        seeds: shape (N,), the coefficient of each score.

    Returns:
        Float64 tensors of shape (N,).
    """
    return [
        torch.autograd.grad(total + 0 * seeds.sum(), seeds, retain_graph=True)[0].double() * seeds.detach()
        for total in totals
    ]


def _by_pass(
    passed: Forward, start: torch.Tensor, chosen: Sequence[int], seeds: torch.Tensor, joint: bool
) -> list[torch.Tensor]:
    """For each delta, the part of each sample, by one backward pass for each sample.

    Args:
        passed: what the forward pass left.
        start: shape (N,), the scores.
        chosen: the indices of the explained layers among what was tapped.
        seeds: shape (N,), the coefficient of each score.
        joint: whether there is one delta for all explained layers together.

    Returns:
        Float64 tensors of shape (N,).
    """
    parts = []
    for sample in range(len(seeds)):
        seed = torch.zeros_like(seeds)
        seed[sample] = seeds[sample]
        contributions = _contributions(passed, chosen, passed.coefficients(start, seed, chosen, True))
        parts.append(_totals(passed, chosen, contributions, seeds.device, joint))
    return [torch.stack(of_delta) for of_delta in zip(*parts, strict=True)]
