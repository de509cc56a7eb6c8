"""Relevance patching: what would the score be with the activations of another input? Estimates, and the truth.

Activation patching runs a model on one input, replaces the activation of a module by that for another input, and
measures how the score changes. That needs one forward pass for each module and place. Attribution patching estimates
the change by ``(other - own) * gradient`` for all modules at once. Relevance patching puts the coefficients ``c`` of
contribution propagation in the place of the gradients.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import nn

from captum_cav import checks
from captum_cav.attribution import LayerCAV, Rules
from captum_cav.captum_internals import select_scores
from captum_cav.errors import InputError, LayerError, OptionError
from captum_cav.scores import ScoreFunction, with_score
from captum_cav.torch_internals import tree_map
from captum_cav.visualization.colours import ink, new_figure

__all__ = ["Patching", "patch"]

_ESTIMATES = ("relevance", "gradient")


@dataclass(frozen=True, eq=False)
class Patching:
    """Effects of patches on the score: measured, and estimated in two ways.

    Attributes:
        true: for each layer, shape (N, places): the change of the score when the activation at the place is patched.
            Shape (N, 1) if whole layers were patched.
        relevance: the same, estimated by ``(clean - corrupted) * c``.
        gradient: the same, estimated by ``(clean - corrupted) * gradient``.
        clean, corrupted: shape (N,), the scores of both inputs.
        into: which run was patched.
    """

    true: Mapping[str, torch.Tensor]
    relevance: Mapping[str, torch.Tensor]
    gradient: Mapping[str, torch.Tensor]
    clean: torch.Tensor
    corrupted: torch.Tensor
    into: str

    def correlations(self) -> dict[str, dict[str, float]]:
        """Pearson's correlation of each estimate with the measured effects, over all samples and places.

        Returns:
            For each layer, and for ``"all layers"``, the correlation of ``"relevance"`` and of ``"gradient"``. NaN
            where all effects are equal.
        """
        names = [*self.true, "all layers"]
        return {
            name: {
                kind: _pearson(self._joined(getattr(self, kind), name), self._joined(self.true, name))
                for kind in _ESTIMATES
            }
            for name in names
        }

    def _joined(self, effects: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        chosen = effects.values() if name == "all layers" else [effects[name]]
        return torch.cat([effect.flatten() for effect in chosen]).double()

    def to_markdown(self) -> str:
        """One line for each layer: the correlations with the measured effects, and the largest effect."""
        lines = ["| layer | relevance patching | attribution patching | largest effect |", "|---|---|---|---|"]
        for name, found in self.correlations().items():
            largest = float(self._joined(self.true, name).abs().max())
            lines.append(f"| {name} | {found['relevance']:.3f} | {found['gradient']:.3f} | {largest:.3g} |")
        scores = f"mean score {float(self.clean.mean()):.3g} clean, {float(self.corrupted.mean()):.3g} corrupted"
        what = (
            "clean activations into the corrupted run"
            if self.into == "corrupted"
            else ("corrupted activations into the clean run")
        )
        return "\n".join([*lines, "", f"Pearson's correlation with activation patching ({what}); {scores}."])

    def __str__(self) -> str:
        return self.to_markdown()

    def figure(self, title: str = "") -> Figure:
        """Draw the estimates over the measured effects: one row for each estimate, one column for each layer.

        Args:
            title: the title of the figure.

        Returns:
            The figure. No window is opened.
        """
        figure = new_figure(2.3 * len(self.true) + 0.8, 5.0)
        colour = ink(figure.get_facecolor())
        figure.suptitle(
            title or "Estimates (up) and measured effects (right) of patches", color=colour, parse_math=False
        )
        axes = figure.subplots(2, len(self.true), squeeze=False)
        correlations = self.correlations()
        for row, (kind, name) in enumerate(zip(_ESTIMATES, ("relevance", "attribution"), strict=True)):
            for column, (layer, true) in enumerate(self.true.items()):
                axis = axes[row][column]
                measured, estimated = true.flatten(), getattr(self, kind)[layer].flatten()
                ends = [
                    float(torch.stack([measured, estimated]).min()),
                    float(torch.stack([measured, estimated]).max()),
                ]
                axis.plot(ends, ends, color="0.6", linewidth=1)
                axis.scatter(measured, estimated, s=8, color="tab:red" if row == 0 else "tab:blue", alpha=0.6)
                axis.set_title(
                    f"{layer}\nr = {correlations[layer][kind]:.2f}", fontsize=8, color=colour, parse_math=False
                )
                axis.tick_params(labelsize=7, colors=colour)
            axes[row][0].set_ylabel(f"{name} patching", fontsize=8, color=colour)
        return figure


def patch(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    target: Any = None,
    layers: Sequence[str | nn.Module] = (),
    *,
    additional_forward_args: Any = None,
    score: ScoreFunction | None = None,
    rules: Rules = "attnlrp",
    into: Literal["corrupted", "clean"] = "corrupted",
    places: int | None = 1,
    batch_size: int = 32,
) -> Patching:
    """Patch activations, and estimate the effects of the patches by relevance and by gradients.

    Both estimates take two forward passes and one backward pass for all layers together. The measured effects take one
    forward pass for each layer and place. The model does not change.

    Args:
        model: a module, in evaluation mode.
        clean: the inputs on which the model does what is explained: a tensor of shape (N, ...), or a tuple of tensors.
        corrupted: inputs of the same shapes, on which the model does something else.
        target: which output is the score, in any of Captum's forms.
        layers: modules, or their qualified names. A module may return a tuple; its first tensor is patched.
        additional_forward_args: further arguments of the model, a tuple or a single argument, the same for both inputs.
        score: what is explained instead of the output, such as a difference of two logits: a function of what the model
            returns.
        rules: the rules of the coefficients, as :class:`captum_cav.LayerCAV` takes them.
        into: ``"corrupted"`` puts clean activations into the run on corrupted inputs. The effect is how much the score
            rises. ``"clean"`` puts corrupted activations into the clean run. The effect is how much the score falls.
        places: the dimension whose entries are patched one by one, such as 1 for the tokens of (N, T, C). None patches
            the whole layer at once.
        batch_size: how many patched samples run at once.

    Returns:
        The effects.

    Raises:
        InputError: if both inputs have other shapes, or if a tensor is no batch.
        LayerError: for a layer that is unknown or is reached several times.
        OptionError: for other options that cannot be used.

    Source: Jafari, Eberle, Khakzar and Nanda, RelP: Faithful and Efficient Circuit Discovery via Relevance Patching,
    2025; attribution patching: Nanda, 2023; activation patching: Vig et al., 2020, and Meng et al., 2022.

    Example::

        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
        >>> for weight, values in zip(net.parameters(), ([[1., 0.], [0., 1.]], [[1., 2.]])):
        ...     _ = weight.data.copy_(torch.tensor(values))
        >>> found = patch(net, torch.tensor([[3., 1.]]), torch.tensor([[1., -1.]]), 0, ["1"])
        >>> found.true["1"]                                 # from 1 to 3, and from 0 to 1 with the weight 2
        tensor([[2., 2.]])
        >>> found.relevance["1"].round(decimals=3)
        tensor([[2., 2.]])
    """
    model = checks.check_module(model)
    checks.check_evaluation(model)
    checks.check_count(batch_size, "batch_size")
    checks.check_option("into", into, ("corrupted", "clean"))
    if not layers:
        raise OptionError("layers is empty; expected at least one layer, such as layers=['encoder.layer.0'].")
    if score is not None:
        model = with_score(model, score)
    found = [
        checks.find_layer(model, layer) for layer in ([layers] if isinstance(layers, (str, nn.Module)) else layers)
    ]
    names = [name.strip("'") for name, _ in found]
    modules = [module for _, module in found]
    both = {"clean": checks.as_inputs(clean), "corrupted": checks.as_inputs(corrupted)}
    _check_alike(*both.values())
    more = checks.additional_arguments(additional_forward_args)
    # The first passes over both inputs give the activations, the scores and the gradients.
    tapped = {name: _tapped(model, modules, names, (*inputs, *more), target) for name, inputs in both.items()}
    activations = {name: [value.detach() for value in values] for name, (values, _) in tapped.items()}
    scores = {name: score.detach() for name, (_, score) in tapped.items()}
    values, own_scores = tapped[into]
    gradients = torch.autograd.grad(own_scores.sum(), values)
    run = both[into]
    cav = LayerCAV(model, modules, rules=rules, normalize=None, multiply_by_inputs=False)
    coefficients = [
        _first(found, name)
        for found, name in zip(cav.attribute(run, target, additional_forward_args=more or None), names, strict=True)
    ]
    differences = [one - other for one, other in zip(activations["clean"], activations["corrupted"], strict=True)]
    estimates = {
        kind: {
            name: _by_place(difference * factor, places)
            for name, difference, factor in zip(names, differences, factors, strict=True)
        }
        for kind, factors in (("relevance", coefficients), ("gradient", gradients))
    }
    other = activations["clean" if into == "corrupted" else "corrupted"]
    sign = 1 if into == "corrupted" else -1
    true = {
        name: sign
        * (_patched(model, module, name, run, more, target, value, places, batch_size) - scores[into][:, None])
        for name, module, value in zip(names, modules, other, strict=True)
    }
    return Patching(true, estimates["relevance"], estimates["gradient"], scores["clean"], scores["corrupted"], into)


def _check_alike(clean: tuple[Any, ...], corrupted: tuple[Any, ...]) -> None:
    shapes = [[tuple(getattr(value, "shape", ())) for value in inputs] for inputs in (clean, corrupted)]
    if shapes[0] != shapes[1] or not shapes[0] or not shapes[0][0]:
        raise InputError(
            f"clean has the shapes {shapes[0]} and corrupted {shapes[1]}; expected tensors of the same shapes: "
            "two sequences need the same number of tokens."
        )


def _tapped(
    model: nn.Module, modules: Sequence[nn.Module], names: Sequence[str], arguments: tuple[Any, ...], target: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The first tensor of each module and the scores, with the graph between them."""
    found: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(modules))}

    def tap(number: int, value: torch.Tensor) -> torch.Tensor:
        value = value if value.requires_grad else value.detach().requires_grad_()
        found[number].append(value)
        return value

    with ExitStack() as hooked, torch.enable_grad():
        for number, module in enumerate(modules):
            hooked.enter_context(_exchanged(module, functools.partial(tap, number), names[number]))
        output = checks.check_output(model(*checks.copied(arguments)))
    for number, values in found.items():
        if len(values) != 1:
            raise LayerError(
                f"layer {names[number]!r} was reached {len(values)} times by the forward pass; expected a layer that "
                "is reached once."
            )
    scores = select_scores(output, checks.resolve_target(output, target))
    checks.check_finite_results("the score is", scores, model, functools.partial(model, *arguments))
    return [values[0] for values in found.values()], scores


def _first(found: Any, name: str) -> torch.Tensor:
    """The first tensor of the coefficients of a layer."""
    return _floating(found[0] if isinstance(found, (tuple, list)) else found, name)


def _floating(value: Any, name: str) -> torch.Tensor:
    if not checks.is_floating(value):
        raise LayerError(
            f"layer {name!r} gives a {type(value).__name__} first; expected a floating-point tensor. Pick a module "
            "inside."
        )
    return value  # type: ignore[no-any-return]


def _by_place(values: torch.Tensor, places: int | None) -> torch.Tensor:
    """The sums of values over all dimensions but the samples and the places, shape (N, places)."""
    if places is None:
        return values.flatten(1).sum(1, keepdim=True)
    return _places_first(values, places).flatten(2).sum(2)


def _places_first(values: torch.Tensor, places: int) -> torch.Tensor:
    """Values of shape (N, places, all else), in the same memory where that is possible."""
    if not 0 < places % values.dim() < values.dim():
        raise OptionError(
            f"places is {places} for values of shape {tuple(values.shape)}; expected a dimension behind that of the "
            "samples, or None for the whole layer."
        )
    moved = values.movedim(places, 1)
    return moved.unsqueeze(2) if moved.dim() == 2 else moved


def _scores(model: nn.Module, arguments: tuple[Any, ...], target: Any) -> torch.Tensor:
    with torch.no_grad():
        output = checks.check_output(model(*checks.copied(arguments)))
    scores = select_scores(output, checks.resolve_target(output, target))
    checks.check_finite_results("the score is", scores, model, functools.partial(model, *arguments))
    return scores.detach()


def _patched(
    model: nn.Module,
    module: nn.Module,
    name: str,
    inputs: tuple[Any, ...],
    more: tuple[Any, ...],
    target: Any,
    other: torch.Tensor,
    places: int | None,
    batch_size: int,
) -> torch.Tensor:
    """The scores with the activation of one module patched, shape (N, places)."""
    samples = len(other)
    count = 1 if places is None else other.shape[places]
    numbers = torch.arange(samples * count, device=other.device)
    targets = checks.check_targets(target, samples)
    found = []
    for part in torch.split(numbers, batch_size):
        sample, place = part // count, part % count
        chosen = None if targets is None else [targets[one] for one in sample.tolist()]

        def exchange(value: torch.Tensor, sample: torch.Tensor = sample, place: torch.Tensor = place) -> torch.Tensor:
            patched = value.clone()
            if places is None:
                return patched.copy_(other[sample])
            rows = torch.arange(len(sample), device=value.device)
            patched.movedim(places, 1)[rows, place] = other.movedim(places, 1)[sample, place].to(value)
            return patched

        arguments = tree_map(
            lambda leaf, sample=sample: leaf[sample] if _is_of_samples(leaf, samples) else leaf, (*inputs, *more)
        )
        with _exchanged(module, exchange, name):
            found.append(_scores(model, arguments, chosen))
    return torch.cat(found).reshape(samples, count)


def _is_of_samples(value: Any, samples: int) -> bool:
    return isinstance(value, torch.Tensor) and value.shape[:1] == (samples,)


def _exchanged(module: nn.Module, exchange: Callable[[torch.Tensor], torch.Tensor], name: str) -> Any:
    """A context in which the first tensor that a module gives is exchanged, in this thread."""
    thread = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        if isinstance(output, tuple):
            return (exchange(_floating(output[0], name)), *output[1:])
        return exchange(_floating(output, name))

    return module.register_forward_hook(hook)


def _pearson(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1]) if len(one) > 1 else float("nan")


def __dir__() -> list[str]:
    return list(__all__)
