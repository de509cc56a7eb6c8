"""What the network says when pixels are taken away in the order of the map, or cells one at a time."""

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
)
from captum_cav.checks.targets import Targets
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Model, Output, scores
from captum_cav.metrics.resolution import at_size, precise
from captum_cav.metrics.similarity import spearman

#: What stands where pixels were taken away.
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
    """How long the class survives while pixels are taken away, the map's highest first; lower is better.

    The area under the curve of the class's probability over the share of pixels taken away, in evenly spaced steps
    (rounded up to whole pixels), by the trapezoid rule. A pixel is taken away in all channels at once. Pixels are
    ranked on the inputs' grid, to which maps are brought by bilinear interpolation; equal values rank in the order of
    reading, which favours an even map or not as the pictures will have it. Coarse and fine maps delete differently:
    compare with random maps of the same resolution.

    Args:
        model: a module or any callable that returns scores of shape (N, classes).
        inputs: pictures of shape (N, C, H, W).
        maps: shape (N, h, w), positive where the score was raised.
        target: the class, in any of Captum's forms.
        steps: into how many the pixels are divided; the model runs ``steps + 1`` times for each picture.
        baseline: what stands where pixels were taken away: ``"blur"``, the picture under a Gaussian of a sixteenth of
            its height; ``"zero"``; ``"mean"``, each channel's mean over the picture; a tensor that can be expanded to
            the inputs; or a function of the inputs that returns one of their shape.
        output: ``"probability"``, the softmax over classes, or ``"score"``, before softmax (then of any value).
        batch_size: how many pictures run at once.

    Returns:
        Shape (N,), with probabilities from 0 to 1. It does not change under increasing functions of a map of the
        inputs' resolution.

    Raises:
        InputError: for shapes that do not fit, or values that are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, 2018.

    Example::

        >>> model = torch.nn.Flatten()                        # a class for each pixel, whose score is the pixel
        >>> picture = torch.tensor([[[[2., 0.], [0., 0.]]]])
        >>> right, wrong = torch.tensor([[[1., 0.], [0., 0.]]]), torch.tensor([[[0., 0.], [0., 1.]]])
        >>> options = {"steps": 4, "baseline": "zero", "output": "score"}
        >>> deletion(model, picture, right, 0, **options)     # the curve is 2, 0, 0, 0, 0
        tensor([0.2500], dtype=torch.float64)
        >>> deletion(model, picture, wrong, 0, **options)     # 2, 2, 0, 0, 0: pixel 3, then in the order of reading
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
    """How soon the class appears while pixels are put into the baseline, the map's highest first; higher is better.

    The area under the curve of the class's probability over the share of pixels put in; else as :func:`deletion`.

    Args:
        model, inputs, maps, target, steps, baseline, output, batch_size: as for :func:`deletion`.

    Returns:
        Shape (N,), with probabilities from 0 to 1.

    Raises:
        InputError: for shapes that do not fit, or values that are not finite.
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
    """The gap between taking away the least relevant pixels first and the most relevant first; higher is better.

    The area under the curve of LeRF less that of MoRF. A picture that lost its least relevant pixels is a baseline with
    the most relevant put in, so the gap is :func:`insertion` less :func:`deletion`, and is computed so; equal values go
    in the reverse order the other way round. By chance, 0.

    Args:
        model, inputs, maps, target, steps, baseline, output, batch_size: as for :func:`deletion`; the model runs
            ``2 (steps + 1)`` times for each picture.

    Returns:
        Shape (N,), with probabilities from -1 to 1.

    Raises:
        InputError: for shapes that do not fit, or values that are not finite.
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
    """Whether those cells of the map are high without which the score falls most; higher is better.

    Each cell of a ``cells x cells`` grid is taken away by itself: Spearman's correlation of the map's means over the
    cells with the drops of the class's score. All maps are judged on the same few cells, so coarse and fine ones are
    on equal terms. By chance, 0.

    Args:
        model, inputs, maps, target, baseline, batch_size: as for :func:`deletion`.
        cells: how many rows and columns; the model runs ``cells ** 2 + 1`` times for each picture. Where they do not
            divide the picture, the first cells are a pixel larger, and the map's means let none count more.
        output: ``"score"``, before softmax, or ``"probability"``.

    Returns:
        Shape (N,), from -1 to 1; NaN where the cells of the map, or all drops, are equal.

    Raises:
        InputError: for shapes that do not fit, or values that are not finite.
        CAVTypeError, ModelError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Hesse, Schaub-Meyer and Roth, FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of
    Explainable AI Methods, 2023, there with parts of birds instead of cells.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1., 2., 3., 4.], [0., 0., 0., 0.]])
        >>> contributions = torch.tensor([[[1., 2.], [3., 4.]]])
        >>> single_deletion(model, torch.ones(1, 1, 2, 2), contributions, 0, cells=2, baseline="zero")
        tensor([1.], dtype=torch.float64)
    """
    check_count(cells, "cells", least=2)
    inputs, maps, targets = _given(model, inputs, maps, target, output, batch_size)
    size = inputs.shape[2], inputs.shape[3]
    if min(size) < cells:
        raise InputError(f"inputs of {size[0]} x {size[1]} pixels cannot be divided into {cells} x {cells} cells.")
    rows, columns = (_cell_of_each(length, cells, inputs.device) for length in size)
    cell = rows[:, None] * cells + columns
    replaced = _replaced(inputs, baseline)
    found = _scores(
        model,
        inputs,
        targets,
        1 + cells**2,
        # Version 0 is whole.
        lambda examples, versions: torch.where(
            (cell == versions[:, None, None] - 1)[:, None], replaced[examples], inputs[examples]
        ),
        output,
        batch_size,
    )
    spread = precise(at_size(maps, size)).flatten(1)
    # Cells of an even map would differ by rounding; of zeros they do not.
    spread = spread - spread[:, :1]
    members = precise(torch.nn.functional.one_hot(cell.flatten(), cells**2))
    return spearman(spread @ (members / members.sum(0)), found[:, :1] - found[:, 1:])


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
    values = at_size(maps, (inputs.shape[2], inputs.shape[3]))
    order = values.flatten(1).argsort(descending=True, stable=True)
    ranks = order.argsort().reshape(values.shape)
    pixels = order.shape[1]
    replaced = _replaced(inputs, baseline)
    before, after = (replaced, inputs) if insert else (inputs, replaced)

    def at_step(examples: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        # The first step * pixels / steps of them, in integers.
        reached = ranks[examples] * steps < step[:, None, None] * pixels
        return torch.where(reached[:, None], after[examples], before[examples])

    curve = _scores(model, inputs, targets, steps + 1, at_step, output, batch_size)
    return torch.trapezoid(curve) / steps


def _given(
    model: Model, inputs: torch.Tensor, maps: torch.Tensor, target: Any, output: Output, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    check_measured_model(model)
    check_count(batch_size, "batch_size")
    check_option("output", output, ("probability", "score"))
    maps = check_maps(maps)
    inputs = check_pictures(inputs, maps)
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
    """Scores of some versions of each example, (N, versions), made and run a few at a time.

    ``make`` takes numbers of examples and of versions, and returns those pictures.
    """
    found = []
    for places in torch.split(torch.arange(len(inputs) * versions, device=inputs.device), batch_size):
        examples = places // versions
        chosen = None if targets is None else [targets[example] for example in examples.tolist()]
        found.append(scores(model, make(examples, places % versions), chosen, output))
    return precise(torch.cat(found)).reshape(len(inputs), versions)


def _replaced(inputs: torch.Tensor, baseline: Baseline) -> torch.Tensor:
    """The inputs with all pixels taken away."""
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
