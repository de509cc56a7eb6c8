"""Captum's methods, as far as they are right: copies of the model to run them on, and what they cannot see.

Captum registers hooks, attributes and rules on the modules of the model, and leaves some there; so they get a copy.
Several of its methods change what single types of modules do and take the plain gradient of everything else, without a
word: such networks are refused here, with the operation that is missed.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from captum import attr as captum_attr
from torch import nn
from torch.nn import functional as F

from captum_cav.attribution import InputCAV
from captum_cav.errors import CAVTypeError, LayerError, UnsupportedOperationError, UnsupportedOperationWarning
from captum_cav.maps import spatial_map

#: Their maps tell how sensitive the score is, not what raised or lowered it: absolute values are compared.
UNSIGNED = (captum_attr.Saliency, captum_attr.GuidedBackprop, captum_attr.Deconvolution, captum_attr.GuidedGradCam)
#: Their maps have other units than the score, or count a change of it for each window and channel.
WITHOUT_UNIT = (
    *UNSIGNED,
    captum_attr.InternalInfluence,
    captum_attr.LayerActivation,
    captum_attr.LayerGradCam,
    captum_attr.Occlusion,
)

_GUIDED = (captum_attr.GuidedBackprop, captum_attr.Deconvolution, captum_attr.GuidedGradCam)
# They give each channel a weight, and take dimension 1 for channels whatever it is.
_WEIGHING = (captum_attr.LayerGradCam, captum_attr.GuidedGradCam)

# The rules, as explain_rules names them, of operations whose gradient is all that any method needs.
_LINEAR = ("affine", "batch_norm", "linear", "additive", "averaging")
_CHOOSING = "winner_takes_all"
# The modules that DeepLift has a rule for, by their exact type.
_RESCALED = (
    nn.ReLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softmax,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
# Functions through which relevance goes as gradients do; sums and means among others would share it wrongly.
_PASSING = """
    cat chunk contiguous dropout flatten getitem max_pool2d pad permute relu relu_ reshape split squeeze transpose
    unflatten unsqueeze view
""".split()


class _GuidedReLU6(nn.ReLU):
    """A ReLU6 that is taken for a ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clipped: torch.Tensor = F.relu6(x)
        return clipped


class _SplitReLU6(nn.Module):
    """A ReLU6 as the difference of two ReLUs; what DeepLift gives each adds up to what it should give the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.rising = nn.ReLU()
        self.ceiling = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference: torch.Tensor = self.rising(x) - self.ceiling(x - 6)
        return difference


class _ApartMaxPool(nn.Module):
    """A max pooling whose overlapping windows are laid side by side first.

    Where several windows have the same maximum, Captum's DeepLift counts it for one of them only.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = map(_pair, (pool.kernel_size, pool.stride, pool.padding))
        self.ceil_mode = pool.ceil_mode
        self.pool = nn.MaxPool2d(self.kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = torch.empty(x.shape, device="meta")
        grid = F.max_pool2d(shape, self.kernel, self.stride, self.padding, ceil_mode=self.ceil_mode).shape[2:]
        pads: list[int] = []
        for count, size, side, step, before in zip(
            grid, x.shape[2:], self.kernel, self.stride, self.padding, strict=True
        ):
            pads = [before, (count - 1) * step + side - before - size, *pads]  # the last dimension comes first
        x = F.pad(x, pads, value=torch.finfo(x.dtype).min)
        windows = x.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        sides = [count * side for count, side in zip(grid, self.kernel, strict=True)]
        apart = windows.transpose(3, 4).reshape(*x.shape[:2], *sides)
        pooled: torch.Tensor = self.pool(apart)
        return pooled


def _without_overlap(pool: nn.MaxPool2d) -> nn.Module:
    overlaps = any(side > step for side, step in zip(_pair(pool.kernel_size), _pair(pool.stride), strict=True))
    return _ApartMaxPool(pool) if overlaps and _pair(pool.dilation) == (1, 1) else pool


def _pair(number: Any) -> tuple[int, int]:
    return number if isinstance(number, tuple) else (number, number)


class Prepared(NamedTuple):
    """What a class of Captum's is given.

    Attributes:
        model: a copy of the user's model.
        layer: the layer in it.
        before_each: to be called before each attribution.
        one_by_one: whether examples must not share a batch.
    """

    model: nn.Module
    layer: nn.Module
    before_each: Callable[[], None]
    one_by_one: bool


def prepare(factory: type[Any], model: nn.Module, layer: str, inputs: torch.Tensor) -> Prepared:
    """A copy of a model on which a class of Captum's, or of somebody else's, gives what it says.

    In-place activations work out of place there, since hooks would see what they have overwritten, and in front of the
    network the input is a layer, too.

    Args:
        factory: the class.
        model: the model; nothing of it is changed.
        layer: the qualified name of a layer, or "input".
        inputs: an example of what will be explained.

    Returns:
        What the class is to be given.

    Raises:
        LayerError: if the forward pass does not reach the layer just once: of several calls Captum explains the last.
        UnsupportedOperationError: if the class would overlook an operation, or weigh something else than channels.
    """
    if layer != "input":
        output = output_of(model, layer, inputs)
        if issubclass(factory, _WEIGHING):
            _refuse_what_has_no_channels(output, layer, inputs)
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    whole = nn.Sequential(OrderedDict(input=nn.Identity(), network=copied))
    name = layer if layer == "input" else f"network.{layer}"
    if issubclass(factory, captum_attr.DeepLift):
        _exchange(whole, nn.ReLU6, lambda _: _SplitReLU6())
        _exchange(whole, nn.MaxPool2d, _without_overlap)
        _refuse_what_deeplift_misses(whole, inputs)
        _keep_apart(whole, _RESCALED)
    elif issubclass(factory, _GUIDED):
        _exchange(whole, nn.ReLU6, lambda _: _GuidedReLU6())
        _refuse_what_is_not_guided(whole, inputs)
        _keep_apart(whole, (nn.ReLU,))
    elif issubclass(factory, captum_attr.LRP):
        _refuse_what_lrp_misses(whole, inputs)
        # It knows the relevance of modules that have a rule. Pooling single pixels has one, and changes nothing.
        whole.input = nn.AvgPool2d(1)
        if issubclass(factory, captum_attr.LayerLRP) and layer != "input":
            _put(whole, name, nn.Sequential(whole.get_submodule(name), nn.AvgPool2d(1)))
            name = f"{name}.1"
        _keep_apart(whole, (nn.Module,))
    # LRP deletes the rules that it finds.
    rules = {module: module.rule for module in whole.modules() if hasattr(module, "rule")}

    def restore_rules() -> None:
        for module, rule in rules.items():
            module.rule = rule

    # DeepLift's max pooling takes the gradients of the first example for those of all where nothing changed.
    one_by_one = issubclass(factory, captum_attr.DeepLift)
    return Prepared(whole, whole.get_submodule(name), restore_rules, one_by_one)


def output_of(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """What a layer gives for some inputs.

    Raises:
        LayerError: if it is not reached, or several times.
        CAVTypeError: if it does not give a tensor.
    """
    outputs: list[Any] = []
    with torch.no_grad(), model.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[2])):
        model(inputs.clone())
    if len(outputs) != 1:
        raise LayerError(
            f"layer {layer!r} was reached {len(outputs)} times by the forward pass; pick one that is reached once."
        )
    if not isinstance(outputs[0], torch.Tensor):
        raise CAVTypeError(f"layer {layer!r} gave a {type(outputs[0]).__name__}; expected a tensor.")
    return outputs[0]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _exchange(model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is kind:
            _put(model, name, make(module))


def _keep_apart(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Hand modules without children copies of their inputs.

    Captum's hooks replace the whole gradient of a module's input, also what comes from others that take it, as a skip
    connection does, and after the module that made it has noted its own.
    """
    for module in model.modules():
        if isinstance(module, kinds) and not any(module.children()):
            module.register_forward_pre_hook(lambda _, given: tuple(tensor.clone() for tensor in given))


def _operations(model: nn.Module, inputs: torch.Tensor) -> list[tuple[str, str, str, nn.Module | None]]:
    """Of each operation in a forward pass: its name, its rule, the innermost module's name, the module."""
    modules = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOperationWarning)
        table = InputCAV(model, on_unknown="gradient").explain_rules(inputs)
    return [(row.operation, row.rule, row.module, modules.get(row.module)) for row in table]


def _refuse(method: str, operation: str, where: str) -> None:
    place = where.removeprefix("network.") if where.startswith("network.") else "the model's own forward()"
    raise UnsupportedOperationError(
        f"Captum's {method} sees certain modules only, and would be wrong at {operation} in {place}."
    )


def _refuse_what_has_no_channels(output: torch.Tensor, layer: str, inputs: torch.Tensor) -> None:
    places = spatial_map(output, (inputs.shape[2], inputs.shape[3])).shape[1:]
    if output.dim() != 4 or output.shape[2:] != places:
        raise UnsupportedOperationError(
            f"Grad-CAM weighs dimension 1, but layer {layer!r} of shape {tuple(output.shape)} has no channels there."
        )


def _refuse_what_deeplift_misses(model: nn.Module, inputs: torch.Tensor) -> None:
    for operation, rule, where, module in _operations(model, inputs):
        if rule not in _LINEAR and type(module) not in _RESCALED:
            _refuse("DeepLift", operation, where)


def _refuse_what_is_not_guided(model: nn.Module, inputs: torch.Tensor) -> None:
    for operation, rule, where, module in _operations(model, inputs):
        if rule not in (*_LINEAR, _CHOOSING) and not isinstance(module, nn.ReLU):
            _refuse("guided backpropagation", operation, where)


def _refuse_what_lrp_misses(model: nn.Module, inputs: torch.Tensor) -> None:
    for operation, _, where, module in _operations(model, inputs):
        if (module is None or any(module.children())) and operation not in _PASSING:
            _refuse("LRP", operation, where)
