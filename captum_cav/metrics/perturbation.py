"""How the score changes when places are removed in the order of the map, or when single cells are removed.

A place is a pixel, a voxel, a moment or a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from captum_cav.ablation.disabling import replacement
from captum_cav.ablation.result import BY, By
from captum_cav.checks import (
    Layout,
    check_count,
    check_layout,
    check_maps,
    check_measured_model,
    check_option,
    check_places,
    check_same_length,
    check_samples,
    check_targets,
    is_ids,
    sides_of,
)
from captum_cav.checks.targets import Targets
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Model, Output, scored_model, scores
from captum_cav.metrics.resolution import at_size, precise
from captum_cav.metrics.similarity import spearman

#: What replaces removed places.
Baseline: TypeAlias = By | float | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]


@measure(0.0, 1.0, "lower")
def deletion(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline | None = None,
    keep: torch.Tensor | None = None,
    channels: int = 1,
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """How long the probability of the class stays high while the highest places are removed; lower is better.

    The value is the area under the curve of the probability of the class over the share of removed places. A place is a
    pixel, a voxel, a moment or a token. The places are removed in equal steps, rounded up to whole places, and the
    trapezoid rule gives the area. A place is removed in all channels at once. Linear interpolation brings maps to the
    grid of the inputs, where the places are ranked. Equal places rank row by row from the top, so the value of a
    uniform map depends on the samples. Coarse maps and fine maps delete differently, so compare a map with random maps
    of the same resolution.

    Args:
        model: a module or any callable that returns scores of shape (N, classes). A model that needs a mask of
            attention finds the padding by itself: ``lambda ids: model(ids, attention_mask=ids != padding).logits``.
        inputs: pictures of shape (N, C, H, W), volumes or videos (N, C, D, H, W), signals (N, C, T), series (N, T),
            embeddings of tokens (N, T, C) with ``channels=-1``, or token ids, integers of shape (N, T).
        maps: positive if the place raised the score. Shape (N, h, w) for pictures, (N, d, h, w) for volumes, (N, t)
            for anything else; one number for each token id.
        target: the class, in any of Captum's forms.
        steps: the number of steps. The model runs ``steps + 1`` times for each sample.
        baseline: what replaces removed places: ``"blur"``, the sample under a Gaussian whose standard deviation is a
            sixteenth of the height or length (along the depth of a volume, a sixteenth of the depth); ``"zero"``;
            ``"mean"``, the mean of each channel over the sample; a number; a tensor that can be expanded to the shape
            of the inputs; or a function of the inputs that returns a tensor of the same shape. None is ``"blur"`` for
            pictures and volumes, ``"mean"`` for signals and series, and ``"zero"`` for embeddings. Token ids need a
            number: the id of the mask token, or of the padding.
        keep: booleans, True where a place is never removed, such as padding and special tokens. The shares of removed
            places are shares of the others. Shape (N, T), (N, H, W) or (N, D, H, W); None removes all places.
        channels: the dimension of the channels of inputs with three dimensions: 1 for (N, C, T), -1 for (N, T, C).
        output: ``"probability"`` for the softmax over classes, or ``"score"`` for the score before softmax. If the
            model ends in a softmax or a sigmoid, its output is the probability. To find that out, the model runs once
            more for one picture.
        batch_size: how many samples run at once.

    Returns:
        Shape (N,), from 0 to 1 with probabilities. For maps of the resolution of the inputs, only the order of the
        places matters.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, 2018.

    Example::

        >>> model = torch.nn.Flatten()                        # a class for each pixel, whose score is the pixel
        >>> picture = torch.tensor([[[[2., 0.], [0., 0.]]]])
        >>> right, wrong = torch.tensor([[[1., 0.], [0., 0.]]]), torch.tensor([[[0., 0.], [0., 1.]]])
        >>> options = {"steps": 4, "baseline": "zero", "output": "score"}
        >>> deletion(model, picture, right, 0, **options)     # the curve is 2, 0, 0, 0, 0
        tensor([0.2500], dtype=torch.float64)
        >>> deletion(model, picture, wrong, 0, **options)     # 2, 2, 0, 0, 0: pixel 3 first, then row by row
        tensor([0.7500], dtype=torch.float64)

        >>> ids, padding = torch.tensor([[7, 9, 4]]), 0
        >>> def longest(ids):                                 # the score is the number of tokens that are not padding
        ...     return (ids != padding).sum(1, keepdim=True).double()
        >>> deletion(longest, ids, torch.rand(1, 3), 0, steps=3, baseline=padding, output="score")  # 3, 2, 1, 0
        tensor([1.5000], dtype=torch.float64)
    """
    return _area(model, inputs, maps, target, False, steps, baseline, keep, channels, output, batch_size)


@measure(0.0, 1.0, "higher")
def insertion(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline | None = None,
    keep: torch.Tensor | None = None,
    channels: int = 1,
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """How soon the class appears while the highest places are inserted into the baseline; higher is better.

    The value is the area under the curve of the probability of the class over the share of inserted places. All else is
    as for :func:`deletion`.

    Args:
        model, inputs, maps, target, steps, baseline, keep, channels, output, batch_size: as for :func:`deletion`.

    Returns:
        Shape (N,), from 0 to 1 with probabilities.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Petsiuk, Das and Saenko, 2018, as for :func:`deletion`.

    Example::

        >>> model = torch.nn.Flatten()
        >>> picture = torch.tensor([[[[2., 0.], [0., 0.]]]])
        >>> right = torch.tensor([[[1., 0.], [0., 0.]]])
        >>> insertion(model, picture, right, 0, steps=4, baseline="zero", output="score")     # 0, 2, 2, 2, 2
        tensor([1.7500], dtype=torch.float64)
    """
    return _area(model, inputs, maps, target, True, steps, baseline, keep, channels, output, batch_size)


@measure(-1.0, 1.0, "higher")
def morf_lerf(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline | None = None,
    keep: torch.Tensor | None = None,
    channels: int = 1,
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """Remove the least relevant places first, or the most relevant first: the gap between both; higher is better.

    The value is the area under the curve of LeRF (least relevant first) minus the area of MoRF (most relevant first). A
    sample without its least relevant places is a baseline with the most relevant places inserted. So the gap is
    computed as :func:`insertion` minus :func:`deletion`. A random map has 0 on average.

    Args:
        model, inputs, maps, target, steps, baseline, keep, channels, output, batch_size: as for :func:`deletion`. The
            model runs ``2 (steps + 1)`` times for each sample.

    Returns:
        Shape (N,), from -1 to 1 with probabilities.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Samek, Binder, Montavon, Lapuschkin and Mueller, Evaluating the Visualization of What a Deep Neural Network
    Has Learned, 2017; the gap: Schulz, Sixt, Tombari and Landgraf, Restricting the Flow, 2020.

    Example::

        >>> model = torch.nn.Flatten()
        >>> picture = torch.tensor([[[[2., 0.], [0., 0.]]]])
        >>> right = torch.tensor([[[1., 0.], [0., 0.]]])
        >>> options = {"steps": 4, "baseline": "zero", "output": "score"}
        >>> morf_lerf(model, picture, right, 0, **options), morf_lerf(model, picture, -right, 0, **options)
        (tensor([1.5000], dtype=torch.float64), tensor([-1.5000], dtype=torch.float64))
    """
    most, least = (
        _area(model, inputs, maps, target, insert, steps, baseline, keep, channels, output, batch_size)
        for insert in (False, True)
    )
    return least - most


@measure(-1.0, 1.0, "higher")
def single_deletion(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    cells: int = 4,
    baseline: Baseline | None = None,
    channels: int = 1,
    output: Output = "score",
    batch_size: int = 8,
) -> torch.Tensor:
    """Whether the map is high in the cells whose removal lowers the score most; higher is better.

    Each cell of a grid of ``cells x cells`` is removed separately (of a volume, ``cells x cells x cells``; of a
    sequence or a signal, ``cells`` parts of the length). The value
    is Spearman's correlation of the means of the map over the cells with the drops of the score of the class. All maps
    are measured on the same few cells, so coarse maps and fine maps can be compared. A random map has 0 on average.

    Args:
        model, inputs, maps, target, baseline, channels, batch_size: as for :func:`deletion`.
        cells: the number of cells along each side. The model runs ``cells ** 2 + 1`` times for each picture,
            ``cells ** 3 + 1`` times for each volume, and ``cells + 1`` times for each sequence. If a side cannot be
            divided into equal cells, the first cells are one place larger. The mean over a cell does not depend on the
            size of the cell.
        output: ``"score"`` for the score before softmax, or ``"probability"``.

    Returns:
        Shape (N,), from -1 to 1; NaN if all cells of the map, or all drops, are equal.

    Raises:
        InputError: if shapes do not fit, or values are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Hesse, Schaub-Meyer and Roth, FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of
    Explainable AI Methods, 2023, which removes parts of birds instead of cells.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1., 2., 3., 4.], [0., 0., 0., 0.]])
        >>> contributions = torch.tensor([[[1., 2.], [3., 4.]]])
        >>> single_deletion(model, torch.ones(1, 1, 2, 2), contributions, 0, cells=2, baseline="zero")
        tensor([1.], dtype=torch.float64)
    """
    check_count(cells, "cells", least=2)
    samples, maps, targets = _given(model, inputs, maps, target, channels, output, batch_size)
    size = samples.layout.size
    if min(size) < cells:
        raise InputError(
            f"inputs of {' x '.join(map(str, size))} {'pixels' if len(size) > 1 else 'places'} cannot be divided into "
            f"{' x '.join([str(cells)] * len(size))} cells; expected at least as many along each side."
        )
    count = cells ** len(size)
    cell = grid_cells(size, [cells] * len(size), maps.device)
    replaced = samples.replaced(baseline)
    found = _scores(
        model,
        samples,
        targets,
        1 + count,
        # Version 0 is the whole sample.
        lambda examples, versions: torch.where(
            (cell == _like(versions, maps) - 1)[:, None], replaced[examples], samples.values[examples]
        ),
        output,
        batch_size,
    )
    spread = precise(at_size(maps, size)).flatten(1)
    # Rounding would make the cells of a uniform map different. Zeros stay equal.
    spread = spread - spread[:, :1]
    members = precise(torch.nn.functional.one_hot(cell.flatten(), count))
    return spearman(spread @ (members / members.sum(0)), found[:, :1] - found[:, 1:])


def _like(numbers: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """One number for each sample, in a shape that broadcasts to maps of shape (N, ...)."""
    return numbers.reshape(-1, *[1] * (maps.dim() - 1))


def grid_cells(size: Sequence[int], cells: Sequence[int], device: torch.device) -> torch.Tensor:
    """The number of the cell of each place, row by row.

    If a side cannot be divided into equal cells, the first cells are one place larger.

    Args:
        size: the number of places along each side.
        cells: the number of cells along each side.
        device: where the numbers are wanted.

    Returns:
        Integers of shape ``size``, from 0 on.
    """
    numbers = torch.zeros((), dtype=torch.long, device=device)
    for length, count in zip(size, cells, strict=True):
        parts = torch.arange(length, device=device).tensor_split(count)
        along = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
        numbers = numbers[..., None] * count + along
    return numbers


@dataclass(frozen=True)
class Samples:
    """The samples of a measure.

    Attributes:
        inputs: the samples in the shape that the model takes.
        layout: where they have their places and channels.
    """

    inputs: torch.Tensor
    layout: Layout

    @property
    def values(self) -> torch.Tensor:
        """The samples in the shape (N, C, places)."""
        return self.layout.channels_first(self.inputs)

    def replaced(self, baseline: Baseline | None) -> torch.Tensor:
        """The samples with all places removed, in the shape (N, C, places)."""
        if baseline is None and not is_ids(self.inputs):
            of_tokens = self.layout.channels == -1
            baseline = "zero" if of_tokens else "blur" if len(self.layout.size) > 1 else "mean"
        if isinstance(baseline, str) and baseline in BY and not is_ids(self.inputs):
            return replacement(self.values, baseline).expand_as(self.values)
        return self.layout.channels_first(_replaced(self.inputs, baseline))


def _area(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    insert: bool,
    steps: int,
    baseline: Baseline | None,
    keep: torch.Tensor | None,
    channels: int,
    output: Output,
    batch_size: int,
) -> torch.Tensor:
    """The area under the curve of deletion or insertion."""
    check_count(steps, "steps")
    samples, maps, targets = _given(model, inputs, maps, target, channels, output, batch_size)
    order = at_size(maps, samples.layout.size).flatten(1)
    places = order.shape[1]
    kept = None if keep is None else _kept(keep, samples).flatten(1)
    # How many places of each sample are removed at the end.
    removed = torch.full((len(order), 1), places, device=order.device)
    if kept is not None:
        order, removed = order.masked_fill(kept, -torch.inf), places - kept.sum(1, keepdim=True)
    ranks = order.argsort(descending=True, stable=True).argsort()
    replaced = samples.replaced(baseline)
    before, after = (replaced, samples.values) if insert else (samples.values, replaced)

    def at_step(examples: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        # The first step * removed / steps places, computed with integers.
        reached = ranks[examples] * steps < _like(step, ranks) * removed[examples]
        if kept is not None and insert:
            reached = reached | kept[examples]
        return torch.where(reached.reshape(-1, 1, *samples.layout.size), after[examples], before[examples])

    curve = _scores(model, samples, targets, steps + 1, at_step, output, batch_size)
    return torch.trapezoid(curve) / steps


def _kept(keep: Any, samples: Samples) -> torch.Tensor:
    """The places that are never removed, after a check."""
    shape = (len(samples.inputs), *samples.layout.size)
    if not isinstance(keep, torch.Tensor) or keep.dtype != torch.bool or keep.shape != shape:
        what = f"{keep.dtype} of shape {tuple(keep.shape)}" if isinstance(keep, torch.Tensor) else type(keep).__name__
        raise InputError(f"keep is {what}; expected booleans of shape {shape}, True where a place is never removed.")
    if bool(keep.flatten(1).all(1).any()):
        raise InputError("keep holds all places of a sample; expected at least one place that can be removed.")
    return keep.to(samples.inputs.device)


def _given(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    channels: int,
    output: Output,
    batch_size: int,
) -> tuple[Samples, torch.Tensor, Targets]:
    check_measured_model(model)
    check_count(batch_size, "batch_size")
    check_option("output", output, ("probability", "score"))
    inputs = check_samples(inputs)
    maps = check_maps(maps, sides=sides_of(inputs))
    check_same_length(maps, "maps", inputs, "inputs")
    layout = check_layout(inputs, channels)
    check_places(maps, inputs, layout)
    return Samples(inputs, layout), maps.to(inputs.device), check_targets(target, len(inputs))


def _scores(
    model: Model,
    samples: Samples,
    targets: Targets,
    versions: int,
    make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    output: Output,
    batch_size: int,
) -> torch.Tensor:
    """The scores of several versions of each example, shape (N, versions). The samples are made batch by batch.

    ``make`` takes the indices of examples and of versions, and returns these samples in the shape (N, C, places).
    """
    found = []
    inputs = samples.inputs
    model = scored_model(model, inputs)
    places = torch.arange(len(inputs) * versions, device=inputs.device)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        # Read from a range, not from the tensor: reading would make the host wait for the device.
        chosen = None if targets is None else [targets[place // versions] for place in range(start, start + len(part))]
        made = samples.layout.restored(make(part // versions, part % versions))
        found.append(scores(model, made, chosen, output))
    return precise(torch.cat(found)).reshape(len(inputs), versions)


def _replaced(inputs: torch.Tensor, baseline: Any) -> torch.Tensor:
    """The inputs with all places replaced by a number, a tensor or what a function returns, in the shape of inputs."""
    if isinstance(baseline, int | float) and not isinstance(baseline, bool):
        if is_ids(inputs) and not isinstance(baseline, int):
            raise OptionError(f"baseline is {baseline!r}; expected a whole number for token ids.")
        return torch.full_like(inputs, baseline)
    if isinstance(baseline, torch.Tensor):
        try:
            return baseline.detach().to(inputs).expand_as(inputs)
        except RuntimeError as error:
            raise InputError(
                f"baseline has shape {tuple(baseline.shape)}, which does not expand to that of the inputs, "
                f"{tuple(inputs.shape)}."
            ) from error
    if callable(baseline):
        found = baseline(inputs)
        if not isinstance(found, torch.Tensor):
            raise CAVTypeError(f"baseline returned a {type(found).__name__}; expected a tensor.")
        if found.shape != inputs.shape:
            raise InputError(f"baseline returned shape {tuple(found.shape)} for inputs of {tuple(inputs.shape)}.")
        return found.detach().to(inputs)
    if is_ids(inputs):
        raise OptionError(
            f"baseline is {baseline!r} for token ids; expected the id that replaces removed tokens, such as "
            "tokenizer.mask_token_id or tokenizer.pad_token_id, a tensor of ids, or a function of the inputs."
        )
    raise OptionError(
        f'baseline is {baseline!r}; expected "blur", "zero", "mean", a number, a tensor or a function of the inputs.'
    )
