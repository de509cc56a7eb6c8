"""What an attribution says about a batch: maps, scores and shares, computed on the device of the model.

:func:`on_device` reads no number on the host. So a GPU never waits between two batches but for the numbers that are
copied to the host, which :func:`on_host` does at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from captum.attr import NeuronAttribution

from captum_cav import checks
from captum_cav.attribution import InputCAV, LayerCAV
from captum_cav.attribution.contributions import ContributionAttribution, noting_outputs
from captum_cav.attribution.logits import logit_model, probabilities, squashed_by
from captum_cav.attribution.scores import select_target
from captum_cav.compilation.compiled import Compiled, as_usual
from captum_cav.compilation.repeated import Repeated
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.maps import spatial_map

#: The largest number that float16 holds is 65504, so a map is divided by a power of two that brings it below 2 ** 15.
_HALF_EXPONENT = 14
# Powers of two outside of these are no normal numbers of float32.
_LEAST_EXPONENT, _GREATEST_EXPONENT = -126, 126
#: On a CPU, so many numbers at once are summed: as many as its cache holds. A copy of a whole layer of a batch takes
#: much longer than the sum, because the system has to clear the memory.
_NUMBERS_AT_ONCE = 2**20


class Measured(NamedTuple):
    """What was found out about one target of each sample of a batch, on the device.

    Attributes:
        maps: for each layer, shape (N, h, w), or (N, ...) as the attribution gave it.
        scales: for each layer shape (N,), what the numbers of a map are multiples of; empty if the type is float32.
        shares: shape (N, layers, 4): the sums of positive and of negative contributions, the constants behind the
            layer, and what is unexplained, all as parts of the size of the score. NaN where nothing was measured.
        sums: shape (N, layers), the sum of each map; not finite if a number of the map is not finite.
        scores: shape (N,), what was explained.
        probabilities: shape (N,), of the target; NaN if the scores are not of classes.
    """

    maps: list[torch.Tensor]
    scales: list[torch.Tensor]
    shares: torch.Tensor
    sums: torch.Tensor
    scores: torch.Tensor
    probabilities: torch.Tensor


class Outputs(NamedTuple):
    """What the model gave for a batch, on the device.

    Attributes:
        explained: shape (N, classes) or (N, ...), the numbers of which a target selects the score.
        scores: shape (N, classes), before the last squashing function if there is one.
        probabilities: shape (N, classes); None if the scores are not of classes.
    """

    explained: torch.Tensor
    scores: torch.Tensor
    probabilities: torch.Tensor | None


class Explainer:
    """An attribution, and all that is known of it.

    Batches of one shape that come again and again are recorded, and replayed; the numbers stay the same to the bit.

    Args:
        attribution: an object with a method ``attribute(inputs, target=...)``. A compiled one runs batches that are
            smaller than ``batch_size`` as usual, because there is one such batch, or a few, for which to record.
        batch_size: how many pictures a batch has.
        keep_channels: whether maps keep their channels.
        with_constants: whether to measure the shares of constants.
        is_half: whether maps are stored as float16.

    Raises:
        CAVTypeError: for an object without ``attribute``.
        OptionError: if constants cannot be measured.
    """

    def __init__(
        self, attribution: Any, *, batch_size: int, keep_channels: bool, with_constants: bool, is_half: bool
    ) -> None:
        if not callable(getattr(attribution, "attribute", None)):
            raise CAVTypeError(
                f"attribution is a {type(attribution).__name__}; expected an attribution such as LayerCAV(model, "
                "layers), or another object with a method attribute(inputs, target)."
            )
        self.attribution = attribution
        self._batch_size = batch_size
        self.keep_channels, self.with_constants, self.is_half = keep_channels, with_constants, is_half
        self.model: Callable[..., Any] = attribution.forward_func
        self.layers = layer_names(attribution)
        self._several = isinstance(getattr(attribution, "layer", None), (list, tuple))
        self._options = attribution.options if isinstance(attribution, ContributionAttribution) else None
        if isinstance(attribution, NeuronAttribution):
            raise CAVTypeError(
                f"attribution is a {type(attribution).__name__}, which explains a neuron; expected an attribution that "
                "explains scores. A function of the model's output can be a score: LayerCAV(..., score=...)."
            )
        if with_constants and self._options is None:
            raise OptionError(
                f'keep holds "constants", which {type(attribution).__name__} does not measure; expected an attribution '
                'of this package, or keep=("maps", "scores").'
            )
        if with_constants and not attribution.multiplies_by_inputs:
            raise OptionError(
                'keep holds "constants", and multiply_by_inputs=False gives coefficients, of which there are no '
                'shares; expected keep=("maps", "scores").'
            )
        self._small = as_usual(attribution)
        is_ours = isinstance(attribution, (LayerCAV, InputCAV)) and not isinstance(attribution, Compiled)
        self._full = Repeated(attribution) if is_ours else attribution
        self._logits: Callable[..., Any] | None = None
        self.device = _device_of(self.model)

    def outputs(self, inputs: torch.Tensor, seen: torch.Tensor | None = None) -> Outputs:
        """What the model gives for a batch.

        Args:
            inputs: shape (N, ...), on the device.
            seen: the outputs from which the scores were selected while the batch was explained; None to run the model.

        Raises:
            OptionError: for shares of constants of a squashed score.
        """
        with torch.no_grad():
            if self._options is not None and self._options.function is not None:
                explained = checks.check_output(self._options.scored(self.model)(inputs) if seen is None else seen)
                return Outputs(explained, explained, None)
            logits = self._logits_of(inputs)
            if squashed_by(logits) is None:
                output = checks.check_output(self.model(inputs) if seen is None else seen)
                is_of_classes = output.dim() == 2 and output.shape[1] > 1
                return Outputs(output, output, output.softmax(1, torch.float32) if is_of_classes else None)
            if logits is not self.model and (self._options is None or self._options.score == "output"):
                output = checks.check_output(self.model(inputs) if seen is None else seen)
                return Outputs(output, logits(inputs), probabilities(logits, inputs))
            scores = checks.check_output(logits(inputs) if seen is None else seen)
            return Outputs(scores, scores, probabilities(logits, inputs))

    def _logits_of(self, inputs: torch.Tensor) -> Callable[..., Any]:
        """The model that gives the numbers before the last squashing function; found out with the first batch."""
        if self._logits is None:
            self._logits = logit_model(self.model, inputs[:1])
            of_output = self._options is not None and (self._options.score, self._options.normalize) == (
                "output",
                "abs",
            )
            if self._logits is not self.model and of_output and self.with_constants:
                raise OptionError(
                    f'the model ends in {squashed_by(self._logits)}, and with normalize="abs" the shares of a squashed '
                    'score have the sign of its logit; pass score="logit" to the attribution, or leave "constants" out '
                    "of keep."
                )
        return self._logits

    def explain(
        self, inputs: torch.Tensor, targets: Sequence[Any], outputs: Outputs | None
    ) -> tuple[list[tuple[list[torch.Tensor], list[Any]]], Outputs]:
        """The attributions of each target, and what the model gave.

        Args:
            inputs: shape (N, ...), on the device.
            targets: for each target, what ``attribute`` takes.
            outputs: what the model gave, if that is known.

        Returns:
            For each target the attributions of each layer, and for each layer its delta, or None if constants are not
            measured; and what the model gave.
        """
        options = {"return_convergence_delta": True} if self.with_constants else {}
        attribution = self._small if len(inputs) < self._batch_size else self._full
        # A forward pass less: the one of the attribution gives the scores, too.
        with noting_outputs() as seen:
            if len(targets) > 1 and hasattr(attribution, "attribute_targets"):
                found = attribution.attribute_targets(inputs, targets, **options)
            else:
                found = [attribution.attribute(inputs, target=target, **options) for target in targets]
        # Other methods call the model with inputs of their own, or more often.
        is_known = self._options is not None and len(seen) == len(targets)
        outputs = outputs or self.outputs(inputs, seen[0] if is_known else None)
        return [self._of_layers(one) for one in found], outputs

    def _of_layers(self, found: Any) -> tuple[list[torch.Tensor], list[Any]]:
        maps, deltas = found if self.with_constants else (found, None)
        listed = list(maps) if self._several else [maps]
        for name, one in zip(self.layers, listed, strict=True):
            if not isinstance(one, torch.Tensor):
                raise CAVTypeError(
                    f"layer {name} gives several tensors; expected layers that give one. Explain a layer behind it."
                )
        if deltas is None:
            return listed, [None] * len(listed)
        return listed, list(deltas) if self._several else [deltas]

    def selected(self, outputs: Outputs, target: Any) -> torch.Tensor:
        """The score of each sample that is explained, shape (N,)."""
        # Behind a sigmoid the log-odds are the logit.
        of_sigmoid = self._logits is not self.model and "sigmoid" in (squashed_by(self._logits) or "")
        log_odds = self._options is not None and self._options.score == "log_odds" and not of_sigmoid
        return select_target(outputs.explained, target, "log_odds" if log_odds else "output").values

    @property
    def gives_ratios(self) -> bool:
        """Whether contributions are divided by the score."""
        return self._options is not None and self._options.normalize is not None

    def unit(self, scores: torch.Tensor) -> torch.Tensor:
        """What brings contributions to parts of the size of the score, shape (N,). NaN if their unit is not known."""
        if self._options is None or not self._options.multiply_by_inputs:
            return torch.full_like(scores, torch.nan)
        if self._options.normalize == "abs":
            return torch.ones_like(scores)
        return scores.sign() if self._options.normalize == "score" else 1 / scores.abs()


def layer_names(attribution: Any) -> list[str]:
    """The names of the layers whose units an attribution explains; "input" for the inputs."""
    layer = getattr(attribution, "layer", None)
    if layer is None:
        return ["input"]
    return [checks.find_layer(attribution.forward_func, one)[0].strip("'") for one in _as_list(layer)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _device_of(model: Callable[..., Any]) -> torch.device:
    if not isinstance(model, torch.nn.Module):
        return torch.device("cpu")
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0, device="cpu")).device


def on_device(
    explainer: Explainer, inputs: torch.Tensor, targets: Sequence[Any], outputs: Outputs | None = None
) -> tuple[list[Measured], Outputs]:
    """Explain a batch.

    Args:
        explainer: the attribution.
        inputs: shape (N, ...), on the device of the model.
        targets: for each target, what ``attribute`` takes.
        outputs: what the model gave for the batch, if that is known.

    Returns:
        What was measured for each target, and what the model gave.
    """
    explained, outputs = explainer.explain(inputs, targets, outputs)
    found = []
    for target, (maps, deltas) in zip(targets, explained, strict=True):
        scores = explainer.selected(outputs, target)
        unit = explainer.unit(scores)
        shares = [_shares(one, delta, unit, scores.sign()) for one, delta in zip(maps, deltas, strict=True)]
        kept = [one if explainer.keep_channels else _map_of(one, inputs) for one in maps]
        halves = [_as_half(one) for one in kept] if explainer.is_half else []
        found.append(
            Measured(
                [half for half, _ in halves] or [one.float() for one in kept],
                [scale for _, scale in halves],
                torch.stack([share for share, _ in shares], 1),
                torch.stack([sums for _, sums in shares], 1),
                scores.float(),
                _probability(outputs, target, scores),
            )
        )
    return found, outputs


def _shares(
    maps: torch.Tensor, delta: Any, unit: torch.Tensor, total: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shape (N, 4), see :class:`Measured`; and the sum of each map, shape (N,)."""
    sums, positive = _sums(maps.detach().flatten(1))
    negative = (sums - positive).clamp(max=0)
    unit = unit.float()
    raised = torch.where(unit < 0, negative, positive) * unit
    lowered = torch.where(unit < 0, positive, negative) * unit
    if delta is None:
        nothing = torch.full_like(raised, torch.nan)
        return torch.stack([raised, lowered, nothing, nothing], 1), sums
    unexplained = (delta * unit).float()
    return torch.stack([raised, lowered, total.float() - raised - lowered - unexplained, unexplained], 1), sums


def _sums(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of all numbers and of the positive numbers of each row."""
    count = max(1, _NUMBERS_AT_ONCE // max(maps.shape[1], 1)) if maps.device.type == "cpu" else len(maps)
    found = [(part.sum(1), part.clamp(min=0).sum(1)) for part in map(torch.Tensor.float, torch.split(maps, count))]
    return torch.cat([sums for sums, _ in found]), torch.cat([positive for _, positive in found])


def _map_of(attributions: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The map of the paper if there is one: one number for each place. Otherwise the attributions as they are."""
    if inputs.dim() < 4 or attributions.dim() < 3:
        return attributions
    try:
        return spatial_map(attributions, tuple(inputs.shape[2:]))
    except InputError:
        return attributions


def _as_half(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps as float16, and for each map the power of two that its numbers are multiples of."""
    maps = maps.float()
    largest = maps.abs().flatten(1).amax(1)
    exponents = (largest.log2().floor() - _HALF_EXPONENT).clamp(_LEAST_EXPONENT, _GREATEST_EXPONENT)
    scales = torch.exp2(torch.where(largest > 0, exponents, torch.zeros_like(exponents)))
    return (maps / scales.reshape(-1, *[1] * (maps.dim() - 1))).half(), scales


def _probability(outputs: Outputs, target: Any, scores: torch.Tensor) -> torch.Tensor:
    if outputs.probabilities is None:
        return torch.full_like(scores, torch.nan, dtype=torch.float32)
    return select_target(outputs.probabilities, target, "output").values
