"""The one function here that runs a model: it explains the difference of two scores, and draws the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from captum_cav import checks
from captum_cav.attribution import LayerCAV, Rules
from captum_cav.attribution.scores import select_target
from captum_cav.visualization.layers import layer_panels
from captum_cav.visualization.panels import Scale, as_pixels
from captum_cav.visualization.rows import show_rows


class _Difference(NamedTuple):
    """The contributions to the difference of two scores.

    Attributes:
        maps: the contributions at each layer, in score points.
        layers: the name of each layer.
        scores: both scores, each of shape (N,).
    """

    maps: Sequence[torch.Tensor]
    layers: list[str]
    scores: tuple[torch.Tensor, torch.Tensor]


def show_difference(
    picture: Any,
    forward_func: Callable[..., Any],
    layer: torch.nn.Module | str | Sequence[torch.nn.Module | str],
    inputs: Any,
    targets: tuple[Any, Any],
    classes: tuple[str, str],
    *,
    rules: Rules = None,
    scale: Scale = "each",
    outlier_percentile: float = 99.0,
    axes: tuple[Figure, Any] | None = None,
) -> tuple[Figure, Any]:
    """Draw what raised the score of class A more than the score of class B.

    The maps are the contributions to the difference ``score_A - score_B``, in score points. What raises both scores
    equally cancels. The maps of contribution ratios of both classes could not be subtracted, because each map is a
    share of another score.

    Args:
        picture: what the network saw, as :func:`show_rows` takes it.
        forward_func, layer, rules: as for :class:`captum_cav.LayerCAV`. Here ``rules`` cannot name modules by their
            qualified names, because the model is wrapped; pass the modules themselves or their types.
        inputs: one sample, as ``attribute`` takes it.
        targets: A and B, each in any of Captum's forms.
        classes: the names of A and B for the legend. Red is for A, blue is for B.
        scale, outlier_percentile, axes: as for :func:`show_rows`.

    Returns:
        The figure and an array of axes, one for each layer. No window is opened.

    Raises:
        InputError, OptionError: as :func:`show_rows`.
        TargetError, LayerError, ModelError, CAVTypeError, UnsupportedOperationError: as ``LayerCAV.attribute``.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.ReLU(), torch.nn.Flatten(),
        ...                             torch.nn.Linear(64, 2))
        >>> inputs = torch.rand(1, 3, 16, 16)
        >>> figure, axes = show_difference(inputs[0].permute(1, 2, 0), model, "1", inputs, (0, 1), ("tabby", "boxer"))
        >>> [text.get_text() for text in figure.axes[-1].get_yticklabels()]
        ['for boxer', '0', 'for tabby']
    """
    shown = as_pixels(picture)
    found = _explain_difference(forward_func, layer, inputs, targets, rules)
    ends = (f"for {classes[1]}", f"for {classes[0]}")
    rows = [("", layer_panels(found.maps, found.layers, shown, signed=True, unit="score points", ends=ends))]
    first, second = map(float, found.scores)
    title = f"What speaks for {classes[0]} (score {first:.2f}) rather than {classes[1]} ({second:.2f})"
    title = title if axes is None else ""
    figure, grid = show_rows(shown, rows, title, scale=scale, outlier_percentile=outlier_percentile, axes=axes)
    return figure, grid[0]


def _explain_difference(
    forward_func: Callable[..., Any],
    layer: torch.nn.Module | str | Sequence[torch.nn.Module | str],
    inputs: Any,
    targets: tuple[Any, Any],
    rules: Rules,
) -> _Difference:
    model = checks.check_model(forward_func)
    layers = [checks.find_layer(model, one)[1] for one in (layer if isinstance(layer, (list, tuple)) else [layer])]
    compared: list[torch.Tensor] = []

    def difference(*args: Any) -> torch.Tensor:
        output = checks.check_output(model(*args))
        first, second = (select_target(output, target, "output").values for target in targets)
        compared[:] = first.detach(), second.detach()
        return first - second

    maps = LayerCAV(difference, layers, rules=rules, normalize=None).attribute(inputs)
    known = {module: name for name, module in model.named_modules()} if isinstance(model, torch.nn.Module) else {}
    names = [known.get(module, type(module).__name__) for module in layers]
    return _Difference(maps, names, (compared[0], compared[1]))
