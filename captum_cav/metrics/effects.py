"""What the parts of a sample do to the scores, measured by hiding them, and how well maps agree with that."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from captum_cav.captum_internals import select_scores
from captum_cav.checks import (
    Layout,
    check_count,
    check_finite_results,
    check_layout,
    check_maps,
    check_measured_model,
    check_option,
    check_places,
    check_same_length,
    check_samples,
    check_targets,
    resolve_target,
    sides_of,
)
from captum_cav.checks.layouts import SIDES
from captum_cav.checks.options import as_integer
from captum_cav.checks.targets import Targets
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.maps import resize_map
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Model, Output, class_outputs, scored_model
from captum_cav.metrics.perturbation import Baseline, Samples, grid_cells
from captum_cav.metrics.resolution import precise
from captum_cav.metrics.similarity import spearman

#: What may say which places belong together.
Cells: TypeAlias = int | Sequence[int] | torch.Tensor
_ROUNDING = 1e-5


@dataclass(frozen=True)
class CausalEffects:
    """What the cells of samples do to the scores of some classes, as :func:`causal_effects` measures it.

    Attributes:
        effects: shape (N, K, cells), for K classes. By how much a cell raises the score on average.
        halves: shape (2, N, K, cells): the same, measured twice, each time with half of the masks. The errors of both
            are independent. If all subsets of the cells were hidden, both are ``effects``.
        labels: the number of the cell of each place, -1 for places that were never hidden. Shape (N, h, w), or with
            the sides of other samples; (1, h, w) if all samples have the same cells.
    """

    effects: torch.Tensor
    halves: torch.Tensor
    labels: torch.Tensor

    @property
    def reliability(self) -> torch.Tensor:
        """How much of the order of the effects of the cells is not noise, from 0 to 1. Shape (N, K).

        This is Spearman's correlation r of both halves over the cells, and ``2 r / (1 + r)`` for the whole, which has
        twice as many masks. No map without noise of its own is expected to correlate with the effects by more than the
        square root of the reliability. NaN if all effects in a half are equal.

        Source: Spearman 1910 and Brown 1910.
        """
        return _whole_from_halves(_by_rows(*self.halves))

    def of(self, classes: torch.Tensor | Sequence[int]) -> CausalEffects:
        """The effects on some of the classes.

        Args:
            classes: positions along the dimension of the classes, the same for all samples, shape (L,), or for each
                sample, shape (N, L).

        Returns:
            The effects on L classes for each sample.

        Raises:
            InputError: for positions of another shape, or that do not exist.

        Example::

            >>> effects = torch.tensor([[[1., 2.], [3., 4.]]])                       # two classes, two cells
            >>> CausalEffects(effects, torch.stack([effects] * 2), torch.arange(2)[None]).of([1]).effects
            tensor([[[3., 4.]]])
        """
        examples, count, cells = self.effects.shape
        chosen = torch.as_tensor(classes, device=self.effects.device)
        if chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.dim() not in (1, 2):
            raise InputError(
                f"classes is {chosen.dtype} of shape {tuple(chosen.shape)}; expected integers of shape (L,) or (N, L)."
            )
        if chosen.dim() == 2 and len(chosen) != examples:
            raise InputError(f"classes has {len(chosen)} rows for {examples} samples; expected one for each.")
        if bool(((chosen < 0) | (chosen >= count)).any()):
            raise InputError(f"classes holds positions that do not exist; expected 0 to {count - 1}.")
        index = chosen.expand(examples, -1)[..., None].expand(-1, -1, cells)
        halves = torch.stack([half.gather(1, index) for half in self.halves])
        return CausalEffects(self.effects.gather(1, index), halves, self.labels)


def causal_effects(
    model: Model,
    inputs: torch.Tensor,
    targets: Sequence[Any] | None = None,
    *,
    cells: Cells = 4,
    baseline: Baseline | None = None,
    masks: int = 512,
    channels: int = 1,
    output: Output = "score",
    seed: int = 0,
    batch_size: int = 8,
) -> CausalEffects:
    """By how much each cell of a sample raises the scores of all classes, measured by hiding random halves of cells.

    The effect of a cell is the mean score with the cell minus the mean score without it, over all subsets of the other
    cells. This is the Banzhaf value of the cell. The subsets are drawn: each cell is hidden with probability 1/2, and
    each mask is followed by its complement. The linear function that is nearest to the scores of all masks has the
    effects as its coefficients, so a least-squares fit estimates them. Its error is smaller than that of the
    differences of the means, because the fit takes the other cells into account.

    One forward pass of a masked sample serves all classes.

    Args:
        model: a module or any callable that returns scores of shape (N, classes), or any shape if there are targets.
        inputs: pictures of shape (N, C, H, W), volumes or videos (N, C, D, H, W), signals (N, C, T), series (N, T),
            embeddings of tokens (N, T, C) with ``channels=-1``, or token ids, integers of shape (N, T).
        targets: a list of targets, each in any of Captum's forms, if not all classes are wanted. None for all classes.
        cells: which places are hidden together. A number of cells along each side, one for all sides, or a sequence
            with one for each side; if a side cannot be divided into equal cells, the first cells are one place larger.
            Or the number of the cell of each place, as Captum's ``feature_mask``: integers from 0 on, of the shape of
            the places or (N, places). Places of cell -1 are never hidden, such as padding and special tokens.
        baseline: what replaces hidden places, as for :func:`captum_cav.metrics.deletion`. None is ``"blur"`` for
            pictures and volumes, ``"mean"`` for signals and series, and ``"zero"`` for embeddings. Token ids need the
            id of the mask token or of the padding.
        masks: how many masks are drawn, a multiple of 4, at least four times as many as there are cells. The model
            runs once for each mask and sample. If the cells have no more subsets than this, all subsets are hidden
            once, and the effects are exact.
        channels: the dimension of the channels of inputs with three dimensions: 1 for (N, C, T), -1 for (N, T, C).
        output: ``"score"`` for the scores before softmax, or ``"probability"``.
        seed: of the masks. The state of torch's random numbers does not change.
        batch_size: how many masks of a sample run at once.

    Returns:
        The effects on all classes, or on those of the targets, in double precision, with their reliability.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Banzhaf, Weighted Voting Doesn't Work, 1965. The linear fit: Hammer and Holzman, Approximations of
    Pseudo-Boolean Functions; Applications to Game Theory, 1992. Random masks: Petsiuk, Das and Saenko, RISE, 2018.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1., 2., 3., 4.], [0., 0., 0., -1.]])
        >>> found = causal_effects(model, torch.ones(1, 1, 2, 2), cells=2, baseline="zero")
        >>> found.effects                                     # two classes, four cells; exact, as 16 subsets are few
        tensor([[[ 1.,  2.,  3.,  4.],
                 [ 0.,  0.,  0., -1.]]], dtype=torch.float64)
    """
    check_measured_model(model)
    check_count(batch_size, "batch_size")
    check_count(masks, "masks", least=2)
    check_option("output", output, ("probability", "score"))
    inputs = check_samples(inputs)
    layout = check_layout(inputs, channels)
    samples = Samples(inputs, layout)
    asked = None if targets is None else _targets(targets, len(inputs))
    labels, count = _labels(cells, len(inputs), layout, inputs.device)
    hidden, weights = _design(count, masks, seed)
    # The last column is for the places that are never hidden.
    hidden = torch.nn.functional.pad(hidden, (0, 1)).to(inputs.device)
    weights = precise(weights.to(inputs.device))
    columns = torch.where(labels < 0, count, labels).flatten(1).expand(len(inputs), -1)
    model = scored_model(model, inputs)
    values, replaced = samples.values, samples.replaced(baseline)
    found: list[torch.Tensor] = []
    for example in range(len(inputs)):
        targets_of_it = None if asked is None else [None if one is None else one[example] for one in asked]
        # The fit is linear in the scores, so only its sums are kept.
        fits: torch.Tensor | None = None
        for numbers in torch.split(torch.arange(len(hidden), device=inputs.device), batch_size):
            removed = hidden[numbers][:, columns[example]].reshape(len(numbers), 1, *layout.size)
            made = layout.restored(torch.where(removed, replaced[example], values[example]))
            scores = precise(_scores(model, made, targets_of_it, output))
            part = torch.einsum("fcm,mk->fkc", weights[:, :, numbers], scores)
            fits = part if fits is None else fits + part
        assert fits is not None
        found.append(fits)
    whole, *halves = torch.stack(found, 1)
    return CausalEffects(whole, torch.stack(halves), labels)


def _targets(targets: Sequence[Any], examples: int) -> list[Targets]:
    if not isinstance(targets, list | tuple) or not targets:
        raise CAVTypeError(f"targets is {targets!r}; expected a list of targets, such as [281, 282], or None.")
    return [check_targets(target, examples) for target in targets]


def _scores(model: Model, made: torch.Tensor, targets: list[Any] | None, output: Output) -> torch.Tensor:
    """The scores of all classes, or of the targets, for some masks of a sample: shape (masks, K), finite."""
    found = class_outputs(model, made, output)
    if targets is not None:
        indices = [resolve_target(found, target) for target in targets]
        found = torch.stack([select_scores(found, index) for index in indices], 1)
    elif found.dim() == 1:
        found = found[:, None]
    if found.dim() != 2:
        raise InputError(
            f"the model returned shape {tuple(found.shape)}; expected (N, classes). Name what to measure, such as "
            f"targets=[{(0,) * (found.dim() - 1)}]."
        )
    check_finite_results("the score is", found, model, functools.partial(model, made))
    return found


def _labels(cells: Any, examples: int, layout: Layout, device: torch.device) -> tuple[torch.Tensor, int]:
    """The number of the cell of each place, of shape (1, places) or (N, places), and how many cells there are."""
    size = layout.size
    sides = SIDES[len(size)]
    if isinstance(cells, torch.Tensor):
        return _given_labels(cells.detach().to(device), examples, size)
    number = as_integer(cells)
    counts = [number] * len(size) if number is not None else cells
    if (
        not isinstance(counts, list | tuple)
        or len(counts) != len(size)
        or not all(isinstance(count, int) and count >= 1 for count in counts)
    ):
        raise OptionError(
            f"cells is {cells!r}; expected a number of cells along each side, one for each of ({sides}), or integers "
            f"of shape {size}."
        )
    if any(count > length for count, length in zip(counts, size, strict=True)):
        raise InputError(
            f"inputs of {' x '.join(map(str, size))} places cannot be divided into {' x '.join(map(str, counts))} "
            "cells; expected at least as many places along each side."
        )
    return grid_cells(size, counts, device)[None], math.prod(counts)


def _given_labels(labels: torch.Tensor, examples: int, size: tuple[int, ...]) -> tuple[torch.Tensor, int]:
    shapes = (size, (1, *size), (examples, *size), (1, 1, *size), (examples, 1, *size))
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.shape not in shapes:
        raise InputError(
            f"cells is {labels.dtype} of shape {tuple(labels.shape)}; expected integers of shape {size} or "
            f"{(examples, *size)}, the number of the cell of each place."
        )
    labels = labels.long().reshape(-1, *size)
    count = int(labels.max()) + 1
    if count < 1 or int(labels.min()) < -1:
        raise InputError(
            f"cells holds numbers from {int(labels.min())} to {count - 1}; expected numbers from 0 on, and -1 for "
            "places that are never hidden."
        )
    for example, row in enumerate(labels.flatten(1)):
        missing = sorted(set(range(count)) - set(row.tolist()))
        if missing:
            raise InputError(
                f"sample {example} has no place in cell {missing[0]}; expected places in each of the cells 0 to "
                f"{count - 1}. Number the cells without gaps, and pass samples with other numbers of cells separately."
            )
    return labels, count


def _design(count: int, masks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells each mask hides, and the weights with which the scores add up to the effects.

    Args:
        count: the number of cells.
        masks: how many masks are drawn, unless there are fewer subsets.
        seed: of the masks.

    Returns:
        Booleans of shape (masks, cells), and weights of shape (3, cells, masks): of all masks, and of either half.
    """
    if 2**count <= masks:
        hidden = torch.arange(2**count, device="cpu")[:, None].bitwise_and(2 ** torch.arange(count, device="cpu")) > 0
        # Over all subsets, the fit and the difference of the means are the same.
        weights = (1 - 2 * hidden.double()).T / 2 ** (count - 1)
        return hidden, weights.expand(3, -1, -1)
    if masks % 4 or masks < 4 * count:
        raise OptionError(
            f"masks is {masks} for {count} cells; expected a multiple of 4 of at least {4 * count}, or at least "
            f"2 ** {count} for all subsets."
        )
    generator = torch.Generator().manual_seed(seed)
    pairs = masks // 2
    while True:
        shown = torch.randint(2, (pairs, count), generator=generator, device="cpu", dtype=torch.bool)
        signs = 2 * shown.double() - 1
        if all(int(torch.linalg.matrix_rank(half)) == count for half in signs.chunk(2)):
            break
    # A mask minus its complement leaves no constant to fit. The coefficients of +1 and -1 are half of the effects.
    fits = signs.new_zeros(3, count, pairs)
    fits[0] = torch.linalg.pinv(signs)
    for number, (place, half) in enumerate(
        zip(torch.arange(pairs, device="cpu").chunk(2), signs.chunk(2), strict=True), 1
    ):
        fits[number, :, place] = torch.linalg.pinv(half)
    return torch.cat([~shown, shown]), torch.cat([fits, -fits], 2)


@dataclass(frozen=True)
class EffectAgreement:
    """How well maps agree with measured effects, as :func:`agreement_with_effects` finds it. Each has shape (N,).

    Attributes:
        own: the correlation for the class that is there.
        absent: the mean correlation for the other classes; NaN without other classes.
        interaction: the correlation of what is different between the classes; NaN without other classes.
        own_ceiling, absent_ceiling, interaction_ceiling: what the noise of the effects leaves at most.
    """

    own: torch.Tensor
    absent: torch.Tensor
    interaction: torch.Tensor
    own_ceiling: torch.Tensor
    absent_ceiling: torch.Tensor
    interaction_ceiling: torch.Tensor


def agreement_with_effects(maps: torch.Tensor, effects: CausalEffects, own: Any = 0) -> EffectAgreement:
    """Whether maps are high in the cells that raise the score, for the class that is there and for others.

    Each map is summed over the cells. Spearman's correlation compares the sums with the measured effects, for each
    class separately. A random map has 0 on average.

    The interaction of class and cell tells whether maps of different classes differ where the effects differ. In maps
    and in effects, each class is centred over the cells and scaled to the same mean square, so that the unit of a map
    does not matter. Then the mean over the classes is subtracted from each cell, and Spearman's correlation compares
    all classes and cells at once. A method that shows the same for all classes has no interaction (NaN).

    Args:
        maps: shape (N, K, h, w), or with the sides of other samples: a map for each of the classes of ``effects``, in
            their order, positive if the place raised the score. :func:`captum_cav.visualization.resize_map` brings maps
            of any layer to the grid of the samples; their sums stay the same.
        effects: what was measured for the same samples. :meth:`CausalEffects.of` picks the classes.
        own: the position of the class that is there, among the K classes: an integer for all samples, or a list or
            tensor with one for each.

    Returns:
        The correlations, and for each the square root of the reliability of the effects as its ceiling. A perfect map
        is expected to reach it. A quotient of means over many samples, agreement over ceiling, corrects for the noise.

    Raises:
        InputError: if shapes do not fit.

    Source: the ceiling is Spearman's correction for attenuation, The Proof and Measurement of Association, 1904.

    Example::

        >>> effects = torch.tensor([[[1., 2., 3., 4.], [4., 3., 2., 1.]]])           # two classes, four cells
        >>> found = CausalEffects(effects, torch.stack([effects] * 2), torch.arange(4).reshape(1, 2, 2))
        >>> maps = torch.tensor([[[[1., 2.], [3., 9.]], [[1., 2.], [3., 4.]]]])      # right and wrong
        >>> result = agreement_with_effects(maps, found, own=0)
        >>> result.own, result.absent
        (tensor([1.], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
    """
    sums = _over_cells(maps, effects)
    classes = sums.shape[1]
    chosen = torch.as_tensor(own, device=sums.device)
    if chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.shape not in ((), (1,), (len(sums),)):
        raise InputError(f"own is {own!r}; expected the position of a class, or one for each of {len(sums)} samples.")
    if bool(((chosen < 0) | (chosen >= classes)).any()):
        raise InputError(f"own is {own!r}; expected positions from 0 to {classes - 1}, one of the classes of the maps.")
    is_own = torch.nn.functional.one_hot(chosen.long().expand(len(sums)), classes).bool()
    others = ~is_own
    found = _by_rows(sums, effects.effects)
    ceilings = effects.reliability.sqrt()
    between = [_interaction(values) for values in (sums, effects.effects, *effects.halves)]
    return EffectAgreement(
        found[is_own],
        _mean_where(found, others),
        spearman(between[0], between[1]),
        ceilings[is_own],
        _mean_where(ceilings, others),
        _whole_from_halves(spearman(between[2], between[3])).sqrt(),
    )


@measure(-1.0, 1.0, "higher")
def effect_agreement(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    cells: Cells = 4,
    baseline: Baseline | None = None,
    masks: int = 128,
    channels: int = 1,
    output: Output = "score",
    seed: int = 0,
    batch_size: int = 8,
) -> torch.Tensor:
    """Whether maps are high in the cells that raise the score of the class on average; higher is better.

    The effects are measured anew for each call. To measure them once for many maps and classes, call
    :func:`causal_effects` and :func:`agreement_with_effects`. A random map has 0 on average.

    Args:
        model, inputs, cells, baseline, masks, channels, output, seed, batch_size: as for :func:`causal_effects`.
        maps: positive if the place raised the score. Shape (N, h, w), or with the sides of other samples.
        target: the class, in any of Captum's forms.

    Returns:
        Spearman's correlation over the cells, shape (N,), from -1 to 1; NaN if all cells of the map, or all effects,
        are equal.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: as for :func:`causal_effects`.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1., 2., 3., 4.], [0., 0., 0., 0.]])
        >>> contributions = torch.tensor([[[1., 2.], [3., 4.]]])
        >>> effect_agreement(model, torch.ones(1, 1, 2, 2), contributions, 0, cells=2, baseline="zero")
        tensor([1.], dtype=torch.float64)
    """
    maps = check_maps(maps, sides=sides_of(inputs))
    found = causal_effects(
        model,
        inputs,
        [target],
        cells=cells,
        baseline=baseline,
        masks=masks,
        channels=channels,
        output=output,
        seed=seed,
        batch_size=batch_size,
    )
    check_same_length(maps, "maps", inputs, "inputs")
    check_places(maps, inputs, check_layout(inputs, channels))
    return agreement_with_effects(maps[:, None], found).own


def _over_cells(maps: Any, effects: CausalEffects) -> torch.Tensor:
    """The sums of maps over the cells: shape (N, K, cells)."""
    shape = tuple(effects.effects.shape)
    size = tuple(effects.labels.shape[1:])
    if not isinstance(maps, torch.Tensor) or maps.dim() != len(size) + 2 or maps.shape[:2] != shape[:2]:
        what = f"shape {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise InputError(
            f"maps is {what}; expected a map for each of {shape[0]} samples and {shape[1]} classes: "
            f"{shape[:2]} and the sides of a layer. CausalEffects.of picks classes."
        )
    spread = precise(maps.detach().to(effects.effects.device))
    if not bool(spread.isfinite().all()):
        raise InputError("maps holds NaN or infinity; expected finite numbers.")
    spread = (spread if spread.shape[2:] == size else resize_map(spread, size)).flatten(2)
    labels = effects.labels.flatten(1)[:, None].expand(spread.shape)
    sums = spread.new_zeros(*shape[:2], shape[2] + 1)
    return sums.scatter_add_(2, torch.where(labels < 0, shape[2], labels), spread)[..., :-1]


def _by_rows(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation over the last dimension."""
    return spearman(one.flatten(0, -2), other.flatten(0, -2)).reshape(one.shape[:-1])


def _whole_from_halves(correlation: torch.Tensor) -> torch.Tensor:
    """The reliability of a whole whose halves correlate so, by the formula of Spearman and Brown; at least 0."""
    correlation = correlation.clamp(min=0)
    return 2 * correlation / (1 + correlation)


def _mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The mean of some entries of each row; NaN if there are none."""
    return torch.where(where, values, 0).sum(1) / where.sum(1)


def _interaction(values: torch.Tensor) -> torch.Tensor:
    """What is different between the classes, of values of shape (N, K, cells)."""
    centred = values - values.mean(2, keepdim=True)
    scaled = centred / centred.square().mean(2, keepdim=True).sqrt()
    between = scaled - scaled.mean(1, keepdim=True)
    # Rounding must not pass for a difference between maps that are equal up to their units.
    return torch.where(between.abs().amax((1, 2), keepdim=True) < _ROUNDING, 0, between)
