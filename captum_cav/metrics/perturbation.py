"""How the score changes when pixels are removed in the order of the map, or when single cells are removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from captum_cav.ablation.disabling import replacement
from captum_cav.ablation.result import By
from captum_cav.checks import (
    check_count,
    check_maps,
    check_measured_model,
    check_option,
    check_pictures,
    check_targets,
    sides_of,
)
from captum_cav.checks.targets import Targets
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Model, Output, scored_model, scores
from captum_cav.metrics.resolution import at_size, precise
from captum_cav.metrics.similarity import spearman

#: What replaces removed pixels.
Baseline: TypeAlias = By | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]


@measure(0.0, 1.0, "lower")
def deletion(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline = "blur",
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """How long the probability of the class stays high while the highest pixels are removed; lower is better.

    The value is the area under the curve of the probability of the class over the share of removed pixels. The pixels
    are removed in equal steps, rounded up to whole pixels, and the trapezoid rule gives the area. A pixel is removed in
    all channels at once. Bilinear interpolation brings maps to the grid of the inputs, where the pixels are ranked.
    Equal pixels rank row by row from the top, so the value of a uniform map depends on the pictures. Coarse maps and
    fine maps delete differently, so compare a map with random maps of the same resolution.

    Args:
        model: a module or any callable that returns scores of shape (N, classes).
        inputs: pictures of shape (N, C, H, W), or volumes or videos of shape (N, C, D, H, W).
        maps: shape (N, h, w), or (N, d, h, w) for volumes, positive if the place raised the score.
        target: the class, in any of Captum's forms.
        steps: the number of steps. The model runs ``steps + 1`` times for each picture.
        baseline: what replaces removed pixels: ``"blur"``, the picture under a Gaussian whose standard deviation is a
            sixteenth of the height (along the depth of a volume, a sixteenth of the depth); ``"zero"``; ``"mean"``, the
            mean of each channel over the picture; a tensor that can be expanded to the shape of the inputs; or a
            function of the inputs that returns a tensor of the same shape.
        output: ``"probability"`` for the softmax over classes, or ``"score"`` for the score before softmax. If the
            model ends in a softmax or a sigmoid, its output is the probability. To find that out, the model runs once
            more for one picture.
        batch_size: how many pictures run at once.

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
    """
    return _area(model, inputs, maps, target, False, steps, baseline, output, batch_size)


@measure(0.0, 1.0, "higher")
def insertion(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline = "blur",
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """How soon the class appears while the highest pixels are inserted into the baseline; higher is better.

    The value is the area under the curve of the probability of the class over the share of inserted pixels. All else is
    as for :func:`deletion`.

    Args:
        model, inputs, maps, target, steps, baseline, output, batch_size: as for :func:`deletion`.

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
    return _area(model, inputs, maps, target, True, steps, baseline, output, batch_size)


@measure(-1.0, 1.0, "higher")
def morf_lerf(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    *,
    steps: int = 20,
    baseline: Baseline = "blur",
    output: Output = "probability",
    batch_size: int = 8,
) -> torch.Tensor:
    """Remove the least relevant pixels first, or the most relevant first: the gap between both; higher is better.

    The value is the area under the curve of LeRF (least relevant first) minus the area of MoRF (most relevant first). A
    picture without its least relevant pixels is a baseline with the most relevant pixels inserted. So the gap is
    computed as :func:`insertion` minus :func:`deletion`. A random map has 0 on average.

    Args:
        model, inputs, maps, target, steps, baseline, output, batch_size: as for :func:`deletion`. The model runs
            ``2 (steps + 1)`` times for each picture.

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
        _area(model, inputs, maps, target, insert, steps, baseline, output, batch_size) for insert in (False, True)
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
    baseline: Baseline = "blur",
    output: Output = "score",
    batch_size: int = 8,
) -> torch.Tensor:
    """Whether the map is high in the cells whose removal lowers the score most; higher is better.

    Each cell of a grid of ``cells x cells`` (of a volume, ``cells x cells x cells``) is removed separately. The value
    is Spearman's correlation of the means of the map over the cells with the drops of the score of the class. All maps
    are measured on the same few cells, so coarse maps and fine maps can be compared. A random map has 0 on average.

    Args:
        model, inputs, maps, target, baseline, batch_size: as for :func:`deletion`.
        cells: the number of rows and of columns. The model runs ``cells ** 2 + 1`` times for each picture, and
            ``cells ** 3 + 1`` times for each volume. If the
            picture cannot be divided into equal cells, the first cells are one pixel larger. The mean over a cell does
            not depend on the size of the cell.
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
    inputs, maps, targets = _given(model, inputs, maps, target, output, batch_size)
    size = tuple(inputs.shape[2:])
    if min(size) < cells:
        raise InputError(
            f"inputs of {' x '.join(map(str, size))} pixels cannot be divided into "
            f"{' x '.join([str(cells)] * len(size))} cells."
        )
    count = cells ** len(size)
    cell = torch.zeros((), dtype=torch.long, device=inputs.device)
    for length in size:
        cell = cell[..., None] * cells + _cell_of_each(length, cells, inputs.device)
    replaced = _replaced(inputs, baseline)
    found = _scores(
        model,
        inputs,
        targets,
        1 + count,
        # Version 0 is the whole picture.
        lambda examples, versions: torch.where(
            (cell == _like(versions, maps) - 1)[:, None], replaced[examples], inputs[examples]
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


def _cell_of_each(length: int, cells: int, device: torch.device) -> torch.Tensor:
    parts = torch.arange(length, device=device).tensor_split(cells)
    return torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])


def _area(
    model: Model,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    insert: bool,
    steps: int,
    baseline: Baseline,
    output: Output,
    batch_size: int,
) -> torch.Tensor:
    """The area under the curve of deletion or insertion."""
    check_count(steps, "steps")
    inputs, maps, targets = _given(model, inputs, maps, target, output, batch_size)
    values = at_size(maps, tuple(inputs.shape[2:]))
    order = values.flatten(1).argsort(descending=True, stable=True)
    ranks = order.argsort().reshape(values.shape)
    pixels = order.shape[1]
    replaced = _replaced(inputs, baseline)
    before, after = (replaced, inputs) if insert else (inputs, replaced)

    def at_step(examples: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        # The first step * pixels / steps pixels, computed with integers.
        reached = ranks[examples] * steps < _like(step, ranks) * pixels
        return torch.where(reached[:, None], after[examples], before[examples])

    curve = _scores(model, inputs, targets, steps + 1, at_step, output, batch_size)
    return torch.trapezoid(curve) / steps


def _given(
    model: Model, inputs: torch.Tensor, maps: torch.Tensor, target: Any, output: Output, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    check_measured_model(model)
    check_count(batch_size, "batch_size")
    check_option("output", output, ("probability", "score"))
    sides = sides_of(inputs)
    maps = check_maps(maps, sides=sides)
    inputs = check_pictures(inputs, maps, sides)
    return inputs, maps.to(inputs.device), check_targets(target, len(inputs))


def _scores(
    model: Model,
    inputs: torch.Tensor,
    targets: Targets,
    versions: int,
    make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    output: Output,
    batch_size: int,
) -> torch.Tensor:
    """The scores of several versions of each example, shape (N, versions). The pictures are made batch by batch.

    ``make`` takes the indices of examples and of versions, and returns these pictures.
    """
    found = []
    model = scored_model(model, inputs)
    places = torch.arange(len(inputs) * versions, device=inputs.device)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        # Read from a range, not from the tensor: reading would make the host wait for the device.
        chosen = None if targets is None else [targets[place // versions] for place in range(start, start + len(part))]
        found.append(scores(model, make(part // versions, part % versions), chosen, output))
    return precise(torch.cat(found)).reshape(len(inputs), versions)


def _replaced(inputs: torch.Tensor, baseline: Baseline) -> torch.Tensor:
    """The inputs with all pixels removed."""
    if isinstance(baseline, str) and baseline in ("blur", "zero", "mean"):
        return replacement(inputs, baseline).expand_as(inputs)
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
    raise OptionError(
        f'baseline is {baseline!r}; expected "blur", "zero", "mean", a tensor or a function of the inputs.'
    )
