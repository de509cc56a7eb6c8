"""Whether a map changes when the parameters of the network change, and when the class changes."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import torch

from captum_cav.checks import (
    check_count,
    check_maps,
    check_measured_model,
    check_module,
    check_same_length,
    check_samples,
    check_targets,
    sides_of,
)
from captum_cav.errors import InputError
from captum_cav.metrics.measure import measure
from captum_cav.metrics.model_outputs import Explain, classes, explained
from captum_cav.metrics.similarity import spearman


@measure(0.0, 1.0, "lower")
def model_randomisation(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    explain: Explain,
    *,
    stages: int = 10,
    seed: int = 0,
) -> torch.Tensor:
    """How much of a map stays when the parameters of the network become random; lower is better.

    The parameters of more and more layers become random, from the last layer of the forward pass to the first. The
    changed network is explained at several stages. The value is the mean over the stages of the absolute value of
    Spearman's correlation with the original map. A map with the opposite sign counts as similar, because it also does
    not depend on what the network has learned.

    A layer is a module with parameters that belong to no module inside. The method ``reset_parameters`` of the layer
    draws new parameters. If this method does not exist, or does not change a parameter, the parameter is shuffled.

    Args:
        model: the model; only copies change.
        inputs: token ids (N, T), embeddings (N, T, C), series (N, T), signals (N, C, T), pictures (N, C, H, W), or
            volumes or videos (N, C, D, H, W).
        maps: what ``explain`` returns for the model: shape (N, t), (N, h, w) for pictures, (N, d, h, w) for volumes.
        target: the class, in any of Captum's forms.
        explain: takes a model, the inputs and a list of targets, and returns maps. It gets copies of the model, so it
            must find layers by name.
        stages: the number of stages, evenly spread from one random layer to all random layers; at most the number of
            layers.
        seed: the seed of the random parameters.

    Returns:
        Shape (N,), from 0 to 1. A stage with a constant map does not count. NaN if the original map is constant, or if
        the maps of all stages are.

    Raises:
        InputError: if shapes do not fit, values are not finite, or the model has no parameters.
        CAVTypeError, ModelError, OptionError: for other arguments that cannot be used.

    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, Sanity Checks for Saliency Maps, 2018 (cascading
    randomization).

    Example::

        >>> from captum_cav import LayerCAV
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 2)
        ... )
        >>> pictures = torch.randn(2, 1, 5, 5)
        >>> def relevance(model, inputs, target):
        ...     return LayerCAV(model, "1", normalize=None).attribute(inputs, target).sum(1)
        >>> def brightness(model, inputs, target):      # does not depend on the network
        ...     return inputs.sum(1)
        >>> model_randomisation(net, pictures, brightness(net, pictures, 0), 0, brightness)
        tensor([1., 1.], dtype=torch.float64)
        >>> bool((model_randomisation(net, pictures, relevance(net, pictures, 0), 0, relevance) < 1).all())
        True
    """
    check_count(stages, "stages")
    maps, inputs = _given(maps, inputs)
    targets = check_targets(target, len(inputs))
    randomised = copy.deepcopy(check_module(model))
    layers = _from_the_top(randomised, inputs)
    count = min(stages, len(layers))
    ends = [round(1 + stage * (len(layers) - 1) / max(count - 1, 1)) for stage in range(count)]
    found, start = [], 0
    for end in ends:
        for number in range(start, end):
            _draw_anew(randomised.get_submodule(layers[number]), seed + number)
        start = end
        found.append(_likeness(maps, explained(explain, randomised, inputs, targets)))
    return torch.stack(found).nanmean(0)


@measure(0.0, 1.0, "lower")
def random_logit(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    target: Any,
    explain: Explain,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """How similar a map is to the map of a random other class; lower is better.

    The value is the absolute value of Spearman's correlation of both maps. A map with the opposite sign counts as
    similar: a class that is not in the picture has a negative score, and often the same map with the opposite sign.

    Args:
        model, inputs, maps, target, explain: as for :func:`model_randomisation`. The model does not change, and it may
            be any callable that ``explain`` takes.
        seed: the seed of the random choice. Each example gets another class.

    Returns:
        Shape (N,), from 0 to 1; NaN if one of both maps is constant.

    Raises:
        InputError: if shapes do not fit, values are not finite, or the model has only one class.
        CAVTypeError, ModelError, TargetError: for other arguments that cannot be used.

    Source: Sixt, Granz and Landgraf, When Explanations Lie: Why Many Modified BP Attributions Fail, 2020, which uses
    the structural similarity.

    Example::

        >>> from captum_cav import InputCAV
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> net[1].weight.data = torch.tensor([[1., 2., 3., 4.], [-1., -2., -3., -4.]])
        >>> picture = torch.ones(1, 1, 2, 2)
        >>> def relevance(model, inputs, target):
        ...     return InputCAV(model, normalize="abs").attribute(inputs, target).sum(1)
        >>> random_logit(net, picture, relevance(net, picture, 0), 0, relevance)     # the opposite map
        tensor([1.], dtype=torch.float64)
    """
    check_measured_model(model)
    maps, inputs = _given(maps, inputs)
    own, count = classes(model, inputs, check_targets(target, len(inputs)))
    dice = random.Random(seed)  # noqa: S311
    others = [(one + dice.randrange(1, count)) % count for one in own]
    return _likeness(maps, explained(explain, model, inputs, others))


def _given(maps: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = check_samples(inputs)
    maps = check_maps(maps, sides=sides_of(inputs))
    check_same_length(maps, "maps", inputs, "inputs")
    return maps.to(inputs.device), inputs


def _likeness(maps: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    if found.shape != maps.shape:
        raise InputError(
            f"explain returned maps of shape {tuple(found.shape)} and maps has {tuple(maps.shape)}; expected maps to "
            "be what explain gives for the model itself."
        )
    return spearman(maps, found.to(maps.device)).abs()


def _from_the_top(model: torch.nn.Module, inputs: torch.Tensor) -> list[str]:
    """The names of the modules with parameters that belong to no module inside, from the last in the forward pass on.

    The model must be a copy, because the function sets hooks.
    """
    entered: dict[torch.nn.Module, int] = {}
    moments = itertools.count()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: entered.__setitem__(module, next(moments)))
        for module in model.modules()
    ]
    with torch.no_grad():
        model(inputs[:1])
    for hook in hooks:
        hook.remove()

    def moment(name: str) -> int:
        # A module may use the parameters of another module without a call, as attention does with its projection.
        module = model.get_submodule(name)
        return entered[module] if module in entered else moment(name.rpartition(".")[0])

    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if not names:
        raise InputError(f"the model ({type(model).__name__}) has no parameters that could be drawn anew.")
    # Of modules with the same moment, the last in the order of definition comes first.
    return sorted(names, key=moment)[::-1]


def _draw_anew(module: torch.nn.Module, seed: int) -> None:
    """Give new parameters to a module. The state of all random generators stays the same."""
    own = list(module.parameters(recurse=False))
    devices = sorted({parameter.device.index for parameter in own if parameter.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        # torch.manual_seed would seed the other devices too.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        before = [parameter.clone() for parameter in own]
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        for parameter, old in zip(own, before, strict=True):
            if torch.equal(parameter, old):
                order = torch.randperm(parameter.numel(), device=parameter.device)
                parameter.copy_(old.flatten()[order].reshape(old.shape))
