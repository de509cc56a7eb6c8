"""The methods that are compared: attribution classes with their options, functions, and two controls.

The methods of other libraries run on a copy of the model, see :mod:`captum_cav.comparison.rivals`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from captum import attr as captum_attr
from torch import nn

from captum_cav import presets
from captum_cav.attribution import InputCAV, LayerCAV
from captum_cav.checks import SIDES, is_ids
from captum_cav.comparison import rivals
from captum_cav.comparison.places import INPUT, Places
from captum_cav.compilation.repeated import kept
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.suggestions import did_you_mean

#: How many steps a method takes on the path from the baseline to the input.
STEPS = 50
# Without this limit Captum runs all steps of all examples at once.
_STEPS_AT_ONCE = 10
_SAMPLES = 20

Targets: TypeAlias = list[int] | list[tuple[int, ...]] | None
#: The unit of a map: shares of the size of the score, score units, or neither.
Unit: TypeAlias = Literal["share", "score"] | None


@dataclass(frozen=True)
class BoundMethod:
    """A method that is ready for one model and one layer.

    Attributes:
        model: the model that the method runs. The passes through this model count as the cost of the method.
        explain: takes inputs of shape (N, C, H, W), or of another :class:`Places`, and their targets, and returns maps
            of shape (N, h, w), one number for each place.
    """

    model: nn.Module
    explain: Callable[[torch.Tensor, Targets], torch.Tensor]


class AnyMethod(Protocol):
    """What ``compare`` needs from a method. :class:`Method`, :class:`Function` and :class:`Control` have all of it."""

    @property
    def layer(self) -> str | nn.Module | None:
        """The layer to explain; None if the caller of ``compare`` decides."""

    @property
    def takes_layer(self) -> bool:
        """Whether the method explains layers. Otherwise the method explains the input."""

    @property
    def signed(self) -> bool:
        """Whether positive numbers in the maps mean that the score was raised, and negative numbers the opposite."""

    @property
    def unit(self) -> Unit:
        """The unit of the maps."""

    @property
    def any_model(self) -> bool:
        """Whether the method can explain every model. Measures that change the model need this."""

    def at(self, model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> BoundMethod:
        """Make the method ready for a model and a layer, or for the input.

        Args:
            model: the model.
            layer: the qualified name of a layer, or "input".
            inputs: examples of the inputs that will be explained.
            places: where inputs and layers have their places.

        Returns:
            The ready method.
        """


_OWN = (LayerCAV, InputCAV)


@dataclass(frozen=True, init=False)
class Method:
    """An attribution class with its options: one of Captum's, one of captum_cav's, or any class with their interface.

    Args:
        factory: the class. Its constructor gets the model and, if it has a parameter ``layer``, a layer. Its method
            ``attribute`` gets the inputs and, if it has a parameter ``target``, the targets.
        layer: the layer to explain, a module or its qualified name; None for the layers of ``compare``.
        options: options of the constructor or of ``attribute``.

    The classes of captum_cav get ``normalize="abs"`` by default. So a positive contribution raised the score, also if
    the score is negative, as in the maps of all other methods.

    Raises:
        CAVTypeError: if ``factory`` is no class with a method ``attribute``.
        OptionError: for an option that neither the constructor nor ``attribute`` has.

    Example::

        >>> from captum.attr import LayerGradCam
        >>> Method(LayerGradCam, layer="features.12", relu_attributions=True)
        Method(LayerGradCam, layer='features.12', relu_attributions=True)
    """

    factory: type[Any]
    layer: str | nn.Module | None
    options: Mapping[str, Any]

    def __init__(self, factory: type[Any], /, layer: str | nn.Module | None = None, **options: Any) -> None:
        if not isinstance(factory, type) or not callable(getattr(factory, "attribute", None)):
            raise CAVTypeError(
                f"Method takes an attribution class, as captum.attr.LayerGradCam, not {factory!r}; pass a function of "
                "inputs and targets without Method: methods={'mine': function}."
            )
        if issubclass(factory, _OWN) and options.setdefault("normalize", "abs") == "score":
            raise OptionError(
                'normalize="score" changes the sign of a map if the score is negative, and no other method does so; '
                'compare with normalize="abs", or None.'
            )
        known = {**_parameters(factory.__init__, *_OF_CONSTRUCTOR), **_parameters(factory.attribute, *_OF_ATTRIBUTE)}
        for name in options:
            if name not in known:
                raise OptionError(
                    f"{factory.__name__} has no option {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}."
                )
        object.__setattr__(self, "factory", factory)
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "options", options)
        if layer is not None and not self.takes_layer:
            raise OptionError(f"{factory.__name__} explains no layer, but layer={layer!r} was given; leave it out.")

    def __repr__(self) -> str:
        layer = {} if self.layer is None else {"layer": self.layer}
        shown = [f"{name}={_shown(value)}" for name, value in {**layer, **self.options}.items()]
        return f"Method({', '.join([self.factory.__name__, *shown])})"

    @property
    def is_own(self) -> bool:
        """Whether the class is one of this package."""
        return issubclass(self.factory, _OWN)

    @property
    def takes_layer(self) -> bool:
        """Whether the class explains layers."""
        return "layer" in inspect.signature(self.factory.__init__).parameters

    @property
    def signed(self) -> bool:
        """Whether positive numbers in the maps mean that the score was raised, and negative numbers the opposite."""
        return not issubclass(self.factory, rivals.UNSIGNED)

    @property
    def unit(self) -> Unit:
        """The unit of the maps, which is a share of the size of the score, the unit of the score, or neither."""
        if self.is_own:
            return "share" if self.options["normalize"] == "abs" else "score"
        return None if issubclass(self.factory, rivals.WITHOUT_UNIT) else "score"

    @property
    def any_model(self) -> bool:
        """The class explains every model, so this is always true."""
        return True

    def at(self, model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> BoundMethod:
        """Make the method ready for a model and a layer, or for the input; see :meth:`AnyMethod.at`."""
        if self.factory is LayerCAV and layer == INPUT:
            return Method(InputCAV, **self.options).at(model, layer, inputs, places)
        constructor = _chosen(self.options, _parameters(self.factory.__init__, *_OF_CONSTRUCTOR))
        prepared = None if self.is_own else rivals.prepare(self.factory, model, layer, inputs, places)
        run = model if prepared is None else prepared.model
        where = {"layer": layer if prepared is None else prepared.layer} if self.takes_layer else {}
        key = (run, layer, self.factory, *constructor.items())
        # Options that are no texts or numbers may be changed between two pictures.
        is_fixed = self.is_own and all(isinstance(value, (str, float, type(None))) for value in constructor.values())

        def make() -> Any:
            return self.factory(run, **where, **constructor)

        attribution = kept(key, make) if is_fixed else make()
        attribute = _chosen(self.options, _parameters(self.factory.attribute, *_OF_ATTRIBUTE))
        takes_target = "target" in inspect.signature(self.factory.attribute).parameters

        def explain(inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
            if prepared is not None:
                if prepared.one_by_one and len(inputs) > 1:
                    each = [None] * len(inputs) if targets is None else [[target] for target in targets]
                    return torch.cat([explain(inputs[n : n + 1], each[n]) for n in range(len(inputs))])  # type: ignore[arg-type]
                prepared.before_each()
            target = {"target": targets} if takes_target else {}
            with warnings.catch_warnings():
                # Captum warns that it sets hooks and sets requires_grad. Model and inputs are copies here.
                warnings.filterwarnings("ignore", category=UserWarning, module=r"captum\.")
                found = attribution.attribute(inputs.clone(), **target, **attribute)
            if not isinstance(found, torch.Tensor):
                raise CAVTypeError(f"attributions are a {type(found).__name__}; expected one tensor.")
            return places.maps((found if self.signed else found.abs()).detach(), layer if self.takes_layer else INPUT)

        return BoundMethod(run, explain)


_OF_CONSTRUCTOR = ("self", "model", "forward_func", "layer", "device_ids")
_OF_ATTRIBUTE = ("self", "inputs", "target", "additional_forward_args", "return_convergence_delta")


def _parameters(function: Callable[..., Any], *taken: str) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name, without the names in ``taken``."""
    return {name: one for name, one in inspect.signature(function).parameters.items() if name not in taken}


def _chosen(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in known}


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<{'x'.join(map(str, value.shape)) or 'scalar'} tensor>"
    return f"<{type(value).__name__}>" if isinstance(value, nn.Module) else repr(value)


@dataclass(frozen=True)
class Function:
    """A function of the user as a method.

    Args:
        function: takes inputs of shape (N, C, H, W) and a list with one target for each input. It returns maps of shape
            (N, h, w), or attributions of shape (N, C, h, w) or (N, h, w, C), which are summed over channels. For
            volumes, each of these shapes has a depth in front of the height. For sequences and signals, maps have the
            shape (N, t), and attributions the shape of the inputs.
    """

    function: Callable[..., Any]
    layer = None
    takes_layer = False
    signed = True
    unit: Unit = None
    any_model = False  # the function has its own model

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", None) or repr(self.function)

    def at(self, model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> BoundMethod:
        """The function with checks of what it returns; see :meth:`AnyMethod.at`."""

        def explain(inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
            found = self.function(inputs.clone(), targets)
            if not isinstance(found, torch.Tensor):
                raise CAVTypeError(f"the function returned a {type(found).__name__}; expected a tensor of maps.")
            sides = len(places.size)
            if found.dim() not in (sides + 1, sides + 2) or len(found) != len(inputs):
                grid = SIDES[sides]
                raise InputError(
                    f"the function returned shape {tuple(found.shape)} for {len(inputs)} examples; expected maps "
                    f"({len(inputs)}, {grid}) or attributions ({len(inputs)}, C, {grid})."
                )
            return found.detach() if found.dim() == sides + 1 else places.maps(found.detach(), INPUT)

        return BoundMethod(model, explain)


@dataclass(frozen=True)
class Control:
    """A map that does not depend on the input, on the grid of a layer. A useful method is better than a control.

    Args:
        draw: makes a map of the same shape as the map that it is given.
    """

    draw: Callable[[torch.Tensor], torch.Tensor]
    layer = None
    takes_layer = True
    signed = True
    unit: Unit = None
    any_model = True

    def __repr__(self) -> str:
        return self.draw.__name__

    def at(self, model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> BoundMethod:
        """Maps on the grid of the layer; see :meth:`AnyMethod.at`."""
        like = inputs if layer == INPUT else rivals.output_of(model, layer, inputs)
        grid = places.maps(like[:1] if like.is_floating_point() else like[:1].float(), layer)
        return BoundMethod(model, lambda inputs, targets: self.draw(grid.expand(len(inputs), *grid.shape[1:])))


#: The controls, which are part of every comparison.
CONTROLS: Mapping[str, Control] = {"random": Control(torch.randn_like), "uniform": Control(torch.ones_like)}


def _path(factory: type[Any]) -> Callable[[torch.Tensor], Method]:
    def ready(inputs: torch.Tensor) -> Method:
        _refuse_ids(inputs, factory, "n_steps=50")
        return Method(factory, n_steps=STEPS, internal_batch_size=_STEPS_AT_ONCE)

    return ready


def _refuse_ids(inputs: torch.Tensor, factory: type[Any], more: str) -> None:
    """Refuse a short name whose baseline 0 would be the token with the id 0."""
    if is_ids(inputs):
        raise OptionError(
            f"{factory.__name__} compares with a baseline, and inputs are token ids; expected the id of the mask token "
            f"or of the padding, as Method({factory.__name__}, baselines=tokenizer.pad_token_id, {more})."
        )


def _occlusion(inputs: torch.Tensor) -> Method:
    _refuse_ids(inputs, captum_attr.Occlusion, "sliding_window_shapes=(1,)")
    if inputs.dim() == 2:
        inputs = inputs[:, None]
        length = inputs.shape[2]
        return Method(
            captum_attr.Occlusion, sliding_window_shapes=(max(1, length // 7),), strides=(max(1, length // 14),)
        )
    _, channels, *size = inputs.shape
    window, stride = (tuple(max(1, side // part) for side in size) for part in (7, 14))
    return Method(captum_attr.Occlusion, sliding_window_shapes=(channels, *window), strides=(channels, *stride))


def _gradient_shap(inputs: torch.Tensor) -> Method:
    _refuse_ids(inputs, captum_attr.GradientShap, "n_samples=20")
    return Method(captum_attr.GradientShap, baselines=torch.zeros_like(inputs[:1]), n_samples=_SAMPLES)


# Each is a function of the inputs, because some options depend on the size of the inputs.
_READY: dict[str, Callable[[torch.Tensor], Method]] = {
    "saliency": lambda _: Method(captum_attr.Saliency),
    "input_x_gradient": lambda _: Method(captum_attr.InputXGradient),
    "integrated_gradients": _path(captum_attr.IntegratedGradients),
    "deeplift": lambda _: Method(captum_attr.DeepLift),
    "gradient_shap": _gradient_shap,
    "occlusion": _occlusion,
    "guided_backprop": lambda _: Method(captum_attr.GuidedBackprop),
    "lrp": lambda _: Method(captum_attr.LRP),
    "guided_gradcam": lambda _: Method(captum_attr.GuidedGradCam),
    "gradcam": lambda _: Method(captum_attr.LayerGradCam, relu_attributions=True),
    "layer_gradient_x_activation": lambda _: Method(captum_attr.LayerGradientXActivation),
    "layer_lrp": lambda _: Method(captum_attr.LayerLRP),
    "layer_integrated_gradients": _path(captum_attr.LayerIntegratedGradients),
    "layer_conductance": _path(captum_attr.LayerConductance),
    "internal_influence": _path(captum_attr.InternalInfluence),
}

#: All short names. A name of CAV may end in "+log_odds"; then CAV explains a class against all other classes.
NAMES: tuple[str, ...] = (*_READY, "cav", *(f"cav:{preset}" for preset in presets.NAMES))


def find(name: str, inputs: torch.Tensor) -> Method:
    """Find a method by its short name.

    Captum's methods have Captum's defaults with these exceptions. The baseline is 0, which is the mean colour of
    normalized pictures. Paths have 50 steps. GradientShap draws 20 samples. Occlusion hides a seventh of each side and
    moves by half of that. Grad-CAM has the ReLU of its publication.

    Args:
        name: one of ``NAMES``; a name of CAV may end in "+log_odds".
        inputs: the inputs that will be explained.

    Returns:
        The method.

    Raises:
        OptionError: for an unknown name.

    Example::

        >>> find("cav:gamma", torch.zeros(1, 3, 8, 8))
        Method(LayerCAV, rules='gamma', score='output', normalize='abs')
    """
    if name in _READY:
        return _READY[name](inputs)
    rules, _, score = name.partition("+")
    if rules not in NAMES or score not in ("", "log_odds") or rules in _READY:
        hint = ""
        if rules.partition(":")[2] in presets.PRESETS:
            hint = f"; Method(LayerCAV, rules=presets.{rules.partition(':')[2]}(...)) gives a preset its arguments"
        near = did_you_mean(name, [*NAMES, *CONTROLS])
        raise OptionError(f"unknown method {name!r}{near}; expected one of {', '.join(NAMES)}{hint}.")
    return Method(LayerCAV, rules=rules.partition(":")[2] or "paper", score=score or "output")


def as_method(value: Any, inputs: torch.Tensor) -> AnyMethod:
    """Turn what the user passed into a method.

    Args:
        value: a short name, a :class:`Method`, an attribution class, or a function.
        inputs: the inputs that will be explained.

    Returns:
        The method.

    Raises:
        CAVTypeError: for anything else.
        OptionError: for an unknown name.
    """
    if isinstance(value, str):
        return find(value, inputs)
    if isinstance(value, type):
        return Method(value)
    if hasattr(value, "at") and hasattr(value, "takes_layer"):
        return value  # type: ignore[no-any-return]
    if callable(value):
        return Function(value)
    raise CAVTypeError(
        f"a method is a {type(value).__name__}; expected a Method, an attribution class, a function of inputs and "
        "targets, or a short name as 'gradcam'."
    )
