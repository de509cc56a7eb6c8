"""Run several methods on one model, the same inputs and the same layers."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from captum_cav import checks
from captum_cav.attribution.logits import logit_model, squashed_by
from captum_cav.captum_internals import select_scores
from captum_cav.comparison.cost import Cost, measure
from captum_cav.comparison.methods import CONTROLS, AnyMethod, Method, Targets, as_method
from captum_cav.comparison.places import INPUT, Places
from captum_cav.comparison.report import Comparison, Place, Row, Settings, as_pictures, build
from captum_cav.compilation.repeated import keeping, kept_recordings
from captum_cav.errors import CAVTypeError, InputError, MethodError, OptionError
from captum_cav.maps import resize_map
from captum_cav.metrics import MEASURES
from captum_cav.scores import ScoreFunction, with_score
from captum_cav.suggestions import did_you_mean
from captum_cav.version import __version__

#: The metrics that are measured by default.
METRICS = ("deletion", "insertion", "single_deletion", "sparseness")


def compare(
    model: nn.Module,
    inputs: torch.Tensor,
    target: Any = None,
    methods: Mapping[str, Any] | Sequence[str] = (),
    layers: Sequence[str | nn.Module] = (),
    metrics: Mapping[str, Mapping[str, Any]] | Sequence[str] = METRICS,
    masks: torch.Tensor | None = None,
    *,
    score: ScoreFunction | None = None,
    channels: int | None = None,
    size: Literal["input"] | tuple[int, ...] = "input",
    batch_size: int = 8,
    repeats: int = 3,
    seed: int = 0,
    progress: bool = True,
    on_error: Literal["raise", "record"] = "raise",
) -> Comparison:
    """Explain the same inputs with several methods at the same layers, and measure the maps and the cost.

    All maps are summed over channels. A positive place raised the score, also if the score is negative. The methods
    that do not tell what raised the score (saliency, guided backpropagation) give absolute values, and the result names
    these methods. Each map keeps its sum on the common grid. Two controls are part of every comparison: ``"random"``
    and ``"uniform"``, a map of random numbers and a map of ones on the grid of each layer.

    If the model ends in a squashing function, such as a softmax or a sigmoid, all methods explain the numbers before
    the function. The result says so.

    The model does not change. The methods of other libraries run on a deep copy, in which activations do not work in
    place. If Captum has no rule for an operation and would be wrong without a warning, ``compare`` raises an error.

    Args:
        model: maps inputs to scores; in evaluation mode.
        inputs: pictures of shape (N, C, H, W), volumes or videos (N, C, D, H, W), signals (N, C, T) or (N, T, C),
            series (N, T), or token ids, integers of shape (N, T); on the device of the model. All maps and grids of
            volumes have a depth in front of the height. The figure shows sums along the depth. Maps of signals, series
            and token ids have the shape (N, t). Token ids are explained at a layer, such as the embedding. Metrics that
            remove tokens need the option ``baseline``, the id of the mask token or of the padding.
        target: what to explain, in any of Captum's forms.
        methods: a list of short names of :data:`captum_cav.comparison.NAMES`, or a mapping from names of your choice to
            methods. A method is a short name, a :class:`Method`, an attribution class, or a function. The function
            takes the inputs and a list of targets, and returns maps of shape (N, h, w) or attributions. For language
            models there are also the methods of :func:`captum_cav.comparison.language_model_method`.
        layers: qualified names of layers, or modules, for the methods that explain a layer and do not name a layer
            themselves; ``"input"`` stands for the input of the network.
        metrics: names of :data:`captum_cav.metrics.MEASURES`, or a mapping from names to options. The metrics measure
            the maps on the common grid. If the common grid is that of the inputs, the metrics that rank pixels or use
            masks get the maps on the grid of the method and interpolate these; so a uniform map stays exactly uniform.
            ``agreement`` compares with the first method, at the same layer if the first method has a map there.
        masks: booleans of shape (N, H, W) or (N, T), True where the object is; for the metrics that need masks.
        score: what all methods explain instead of the output of the model: one of :mod:`captum_cav.scores`, or another
            function of what the model returns. Metrics of probabilities need the option ``output="score"`` then, as
            ``metrics={"deletion": {"output": "score"}}``.
        channels: the dimension of the channels of signals and sequences: 1 for (N, C, t), -1 for (N, t, C). None is 1
            for the inputs; at a layer the dimension that has not the length of the inputs, and -1 for token ids.
        size: (height, width) of the common grid; ``"input"`` for the grid of the inputs.
        batch_size: how many examples, and how many perturbed inputs of metrics, run at once.
        repeats: how often to time each method.
        seed: the seed of all random numbers. The random state of the process does not change.
        progress: whether to show a progress bar.
        on_error: ``"raise"`` stops at the first failure; ``"record"`` stores the failure in the rows and continues.

    Returns:
        A :class:`captum_cav.Comparison`.

    Raises:
        MethodError: if a method or a metric fails. The message names it, and the reason is the cause of the error.
        CAVError: for arguments that cannot be used.

    Example::

        >>> import torch
        >>> from captum.attr import LayerGradCam
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(2, 3),
        ... ).eval()
        >>> report = compare(
        ...     net, torch.rand(1, 1, 8, 8), 2, {"CAV": "cav", "Grad-CAM": Method(LayerGradCam)}, ["1"], progress=False,
        ... )
        >>> report.maps["CAV", "1"].shape, report.raw["Grad-CAM", "1"].shape
        (torch.Size([1, 8, 8]), torch.Size([1, 6, 6]))
        >>> [(row.method, row.forwards, row.backwards) for row in report.rows]
        [('CAV', 1.0, 1.0), ('Grad-CAM', 1.0, 1.0), ('random', 0.0, 0.0), ('uniform', 0.0, 0.0)]
    """
    model = checks.check_module(model)
    if score is not None:
        model = with_score(model, score)
    for name, number in {"batch_size": batch_size, "repeats": repeats}.items():
        checks.check_count(number, name)
    checks.check_option("on_error", on_error, ("raise", "record"))
    inputs = checks.check_samples(inputs)
    layout = checks.check_layout(inputs, 1 if channels is None else channels)
    checks.check_inputs(model, inputs)
    of_layers = -1 if channels is None and checks.is_ids(inputs) else channels
    # Token ids are explained at their embedding, also where they are the input.
    of_inputs = -1 if checks.is_ids(inputs) else layout.channels
    places = Places(layout.size, of_inputs, of_layers)
    measured = _known_metrics(metrics, inputs, masks, layout)
    cells = _cells(model, _named(methods, inputs), layers)
    model = logit_model(model, inputs[:1])
    subject = _scored(model, inputs, target, masks, batch_size)
    run = _Run(subject, measured, _grid(size, layout.size), places, batch_size, repeats, seed, on_error == "record")
    with tqdm(cells, disable=not progress, delay=1, leave=False) as bar:
        for cell in bar:
            bar.set_description(f"{cell.name} at {cell.layer}", refresh=False)
            run.add(cell)
    kinds = {cell.name: cell.method for cell in cells}
    settings = Settings(
        methods={name: repr(method) for name, method in kinds.items()},
        unsigned=tuple(name for name, method in kinds.items() if not method.signed),
        shares=tuple(name for name, method in kinds.items() if method.unit == "share"),
        squashed_by=squashed_by(model),
        directions={name: MEASURES[name].direction for name in measured},
        size=run.grid,
        repeats=repeats,
        seed=seed,
        batch_size=batch_size,
        device=str(inputs.device),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "captum": importlib.metadata.version("captum"),
            "captum_cav": __version__,
        },
    )
    return build(run.rows, run.maps, run.raw, as_pictures(layout.channels_first(inputs)), settings)


def _grid(size: Any, of_inputs: tuple[int, ...]) -> tuple[int, ...]:
    if size == "input":
        return of_inputs
    sides = len(of_inputs)
    given = size if isinstance(size, tuple) else ()
    if len(given) != sides or not all(isinstance(side, int) and side > 0 for side in given):
        names = {1: "(length,)", 2: "(height, width)", 3: "(depth, height, width)"}[sides]
        raise OptionError(f'size is {size!r}; expected "input" or {names}.')
    return given


def _known_metrics(
    names: Mapping[str, Mapping[str, Any]] | Sequence[str],
    inputs: torch.Tensor,
    masks: torch.Tensor | None,
    layout: checks.Layout,
) -> dict[str, Mapping[str, Any]]:
    """Check the metrics, and return the options of each."""
    if isinstance(names, str):
        names = [names]
    wanted = dict(names) if isinstance(names, Mapping) else {name: {} for name in names}
    for name, options in wanted.items():
        if name not in MEASURES:
            raise OptionError(
                f"unknown metric {name!r}{did_you_mean(name, MEASURES)}; expected some of {', '.join(MEASURES)}."
            )
        known = _options(name)
        for option in options:
            if option not in known:
                raise OptionError(f"metric {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}.")
        if "masks" in MEASURES[name].needs and masks is None:
            raise OptionError(f"metric {name!r} needs to know where the objects are; pass masks=, (N, H, W) of bool.")
        if "baseline" in known and checks.is_ids(inputs) and "baseline" not in options:
            raise OptionError(
                f"metric {name!r} removes tokens and was told no id to put in their place; expected metrics="
                f"{{{name!r}: {{'baseline': tokenizer.mask_token_id}}}}, or tokenizer.pad_token_id."
            )
    if masks is not None and tuple(masks.shape) != (len(inputs), *layout.size):
        raise InputError(f"masks have shape {tuple(masks.shape)}; expected {(len(inputs), *layout.size)}.")
    return wanted


def _options(name: str) -> list[str]:
    parameters = inspect.signature(MEASURES[name]).parameters
    return [option for option in parameters if option not in MEASURES[name].needs]


def _named(methods: Any, inputs: torch.Tensor) -> dict[str, AnyMethod]:
    """The methods by name; the controls come last."""
    if isinstance(methods, (str, Method)) or not isinstance(methods, (Mapping, Sequence)):
        raise CAVTypeError(
            f"methods is a {type(methods).__name__}; expected a mapping from names to methods or a list of short names."
        )
    if not methods:
        raise OptionError("methods is empty; expected at least one, as methods=['cav', 'gradcam'].")
    found = {}
    # A method without a name need not be hashable, so no mapping is made of a list.
    for name, value in methods.items() if isinstance(methods, Mapping) else zip(methods, methods, strict=True):
        if not isinstance(name, str):
            raise CAVTypeError(
                f"methods lists {name!r}; a method that is not a short name needs a name: use a mapping."
            )
        if name in CONTROLS:
            if value != name:
                raise OptionError(f"the name {name!r} belongs to a control, which is always there; choose another.")
            continue
        found[name] = as_method(value, inputs)
    return {**found, **CONTROLS}


@dataclass(frozen=True)
class _Cell:
    """One method at one layer."""

    name: str
    method: AnyMethod
    layer: str


def _cells(model: nn.Module, methods: Mapping[str, AnyMethod], layers: Any) -> list[_Cell]:
    if isinstance(layers, (str, nn.Module)):
        layers = [layers]
    asked = [_name_of(model, layer) for layer in layers]
    cells: list[_Cell] = []
    for name, method in methods.items():
        if not method.takes_layer:
            where = [INPUT]
        elif name in CONTROLS:
            where = list(dict.fromkeys(cell.layer for cell in cells if cell.name not in CONTROLS))
        else:
            where = asked if method.layer is None else [_name_of(model, method.layer)]
        if not where:
            raise OptionError(
                f"method {name!r} explains a layer and was told none; pass layers=['...'] or Method(..., layer='...')."
            )
        cells += [_Cell(name, method, layer) for layer in where]
    return cells


def _name_of(model: nn.Module, layer: Any) -> str:
    """The qualified name of a layer of the model, or "input"."""
    if isinstance(layer, str) and layer == INPUT:
        return INPUT
    _, module = checks.find_layer(model, layer)
    names: dict[nn.Module, str] = {other: name for name, other in model.named_modules()}
    return names[module]


@dataclass(frozen=True)
class _Subject:
    """What is explained: a model, inputs, the targets and their scores, and the masks of the objects."""

    model: nn.Module
    inputs: torch.Tensor
    targets: Targets
    scores: torch.Tensor
    masks: torch.Tensor | None


def _scored(
    model: nn.Module, inputs: torch.Tensor, target: Any, masks: torch.Tensor | None, batch_size: int
) -> _Subject:
    with torch.no_grad():
        parts = torch.split(inputs, batch_size)
        output = torch.cat([checks.check_output(model(part.clone())) for part in parts])
    resolved = checks.resolve_target(output, target)
    scores = select_scores(output, resolved)
    checks.check_finite_results("the score is", scores, model, functools.partial(model, inputs))
    targets: Any = None
    if resolved is not None:
        each = resolved if isinstance(resolved, list) else [resolved] * len(inputs)
        targets = [one[0] if len(one) == 1 else one for one in each]
    return _Subject(model, inputs, targets, scores, masks)


class _Run:
    """Runs the methods one after another, and collects rows and maps.

    Args:
        subject: what is explained.
        measured: the metrics with their options.
        grid: (height, width), (depth, height, width) or (length,) of the common grid.
        places: where inputs and layers have their places.
        batch_size, repeats, seed: as for :func:`compare`.
        records: whether a failure is stored in the rows. Otherwise a failure raises.
    """

    def __init__(
        self,
        subject: _Subject,
        measured: Mapping[str, Mapping[str, Any]],
        grid: tuple[int, ...],
        places: Places,
        batch_size: int,
        repeats: int,
        seed: int,
        records: bool,
    ) -> None:
        self.grid = grid
        self.rows: list[Row] = []
        self.maps: dict[Place, torch.Tensor] = {}
        self.raw: dict[Place, torch.Tensor] = {}
        self._subject = subject
        self._measured = measured
        self._places = places
        self._batch_size = batch_size
        self._repeats = repeats
        self._seed = seed
        self._records = records

    def add(self, cell: _Cell) -> None:
        """Run a method at a layer, and add its rows and maps."""
        errors: list[str] = []
        raw, cost = None, None
        with self._failing(cell, "", errors):
            raw, cost = self._explained(cell)
        values: dict[str, list[float]] = {}
        if raw is not None:
            place = (cell.name, cell.layer)
            self.raw[place], self.maps[place] = raw.cpu(), resize_map(raw, self.grid).cpu()
            for name, options in self._measured.items():
                with self._failing(cell, f"metric {name!r}", errors):
                    values[name] = self._metric(cell, name, options)
        nothing = [float("nan")] * len(self._subject.inputs)
        for example, score in enumerate(self._subject.scores.tolist()):
            self.rows.append(
                Row(
                    cell.name,
                    cell.layer,
                    example,
                    None if self._subject.targets is None else self._subject.targets[example],
                    score,
                    {name: values.get(name, nothing)[example] for name in self._measured},
                    None if raw is None else tuple(raw.shape[1:]),
                    **({} if cost is None else vars(cost)),
                    error="; ".join(errors) or None,
                )
            )

    @contextmanager
    def _failing(self, cell: _Cell, what: str, errors: list[str]) -> Iterator[None]:
        """Raise an error that names the method or metric, or store the failure in ``errors`` and continue."""
        try:
            yield
        except Exception as error:  # a method of a user or of another library may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if not self._records:
                subject = f"{what} of {cell.name!r}" if what else f"the method {cell.name!r}"
                raise MethodError(
                    f'{subject} failed at layer {cell.layer!r}: {reason} (on_error="record" goes on with the others)'
                ) from error
            errors.append(f"{what}: {reason}" if what else reason)

    def _explained(self, cell: _Cell) -> tuple[torch.Tensor, Cost]:
        subject = self._subject
        recordings = kept_recordings()
        compiled = None
        # Passes are counted, and seconds are those of a method as it is, unless fused kernels were asked for.
        with _seeded(self._seed, subject.inputs.device), keeping(None):
            run, model = self._bound(cell)
            if recordings is not None and recordings.fused and isinstance(cell.method, Method) and cell.method.is_own:
                with keeping(recordings):
                    compiled, _ = self._bound(cell)
            raw, cost = measure(run, model, len(subject.inputs), subject.inputs.device, self._repeats, compiled)
        if not bool(torch.isfinite(raw).all()):
            raise InputError("the map holds NaN or infinity.")
        return raw, cost

    def _bound(self, cell: _Cell) -> tuple[Callable[[], torch.Tensor], nn.Module]:
        """What explains all inputs by a method at a layer, and the model that runs."""
        subject = self._subject
        bound = cell.method.at(subject.model, cell.layer, subject.inputs[:1], self._places)
        return lambda: self._in_batches(bound.explain, subject.inputs, subject.targets), bound.model

    def _in_batches(self, explain: Any, inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        size = self._batch_size
        parts = []
        for start in range(0, len(inputs), size):
            some = None if targets is None else targets[start : start + size]
            parts.append(explain(inputs[start : start + size], some))
        return torch.cat(parts)

    def _metric(self, cell: _Cell, name: str, options: Mapping[str, Any]) -> list[float]:
        """The values of a metric for each example; NaN if the metric does not apply to these maps."""
        subject, measured = self._subject, MEASURES[name]
        place = (cell.name, cell.layer)
        by_pixel = measured.needs & {"inputs", "masks"} and self.grid == self._places.size
        maps = (self.raw if by_pixel else self.maps)[place]
        others = self._of_the_first(cell.layer)
        available: dict[str, Any] = {
            "maps": maps.to(subject.inputs.device),
            "model": subject.model,
            "inputs": subject.inputs,
            "target": subject.targets,
            "others": others.to(subject.inputs.device),
        }
        if subject.masks is not None:
            available["masks"] = subject.masks.to(subject.inputs.device)
        if cell.method.unit is not None:
            available["scores"] = subject.scores.sign() if cell.method.unit == "share" else subject.scores
        if cell.method.any_model:
            available["explain"] = self._explain_any(cell)
        if not measured.needs <= available.keys():
            return [float("nan")] * len(subject.inputs)
        known = _options(name)
        if "batch_size" in known:
            options = {"batch_size": self._batch_size, **options}
        if "channels" in known and subject.inputs.dim() == 3:
            options = {"channels": self._places.of_inputs, **options}
        if "layer" in known and cell.layer != INPUT:
            options = {"layer": cell.layer, **options}
        with _seeded(self._seed, subject.inputs.device):
            values = measured(**{need: available[need] for need in measured.needs}, **options)
        return [float(value) for value in values]

    def _of_the_first(self, layer: str) -> torch.Tensor:
        (name, first), *_ = self.maps
        return self.maps.get((name, layer), self.maps[name, first])

    def _explain_any(self, cell: _Cell) -> Any:
        recordings = kept_recordings()

        def explain(model: nn.Module, inputs: torch.Tensor, target: Any) -> torch.Tensor:
            # Other models come once. Kernels would be fused for each number of inputs, which takes minutes.
            is_repeated = model is self._subject.model and recordings is not None and not recordings.fused
            with keeping(recordings if is_repeated else None):
                bound = cell.method.at(model, cell.layer, inputs[:1], self._places)
                return self._in_batches(bound.explain, inputs, target)

        return explain


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers of torch and of numpy, which Captum uses; restore both at the end."""
    of_numpy = np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else ()):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
