"""Captum's methods get a copy of the model, and are refused for models that they would explain wrongly.

Captum registers hooks, attributes and rules on the modules of a model, and does not remove all of them. So its methods
run on a copy. Several methods have rules for a few types of modules and take the plain gradient of all other operations
without a warning. A model with such an operation is refused here, and the error names the operation.
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
from captum_cav.comparison.places import Places
from captum_cav.errors import CAVTypeError, LayerError, UnsupportedOperationError, UnsupportedOperationWarning

#: The maps of these methods tell how sensitive the score is, not what raised or lowered the score. So their absolute
#: values are compared.
UNSIGNED = (captum_attr.Saliency, captum_attr.GuidedBackprop, captum_attr.Deconvolution, captum_attr.GuidedGradCam)
#: The maps of these methods have another unit than the score, or count one change of the score several times, for each
#: window and channel.
WITHOUT_UNIT = (
    *UNSIGNED,
    captum_attr.InternalInfluence,
    captum_attr.LayerActivation,
    captum_attr.LayerGradCam,
    captum_attr.Occlusion,
)

_GUIDED = (captum_attr.GuidedBackprop, captum_attr.Deconvolution, captum_attr.GuidedGradCam)
# These methods give each channel a weight, and treat dimension 1 as the channels in every layer.
_WEIGHING = (captum_attr.LayerGradCam, captum_attr.GuidedGradCam)

# The rules, as explain_rules names them, of operations whose gradient is right for every method.
_LINEAR = ("affine", "batch_norm", "linear", "additive", "averaging")
_CHOOSING = "winner_takes_all"
# The exact types of modules for which DeepLift has a rule.
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
# Functions for which the gradient shares the relevance correctly. For sums and means, for example, it does not.
_PASSING = """
    cat chunk contiguous dropout flatten getitem max_pool2d pad permute relu relu_ reshape split squeeze transpose
    unflatten unsqueeze view
""".split()


class _GuidedReLU6(nn.ReLU):
    """A ReLU6 that Captum treats as a ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clipped: torch.Tensor = F.relu6(x)
        return clipped


class _SplitReLU6(nn.Module):
    """A ReLU6 as the difference of two ReLUs. The sum of DeepLift's contributions of both is right for the ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.rising = nn.ReLU()
        self.ceiling = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference: torch.Tensor = self.rising(x) - self.ceiling(x - 6)
        return difference


class _ApartMaxPool(nn.Module):
    """A max pooling that copies overlapping windows side by side before it pools them.

    If several windows have the same maximum, Captum's DeepLift counts this maximum for only one of the windows.
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
            pads = [before, (count - 1) * step + side - before - size, *pads]  # F.pad takes the last dimension first
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
    """What an attribution class of Captum gets.

    Attributes:
        model: a copy of the user's model.
        layer: the layer in the copy.
        before_each: a function to call before each attribution.
        one_by_one: whether each example needs a batch for itself.
    """

    model: nn.Module
    layer: nn.Module
    before_each: Callable[[], None]
    one_by_one: bool


def prepare(factory: type[Any], model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> Prepared:
    """Copy a model so that a class of Captum or of another library works correctly on the copy.

    In the copy activations do not work in place, because hooks would see overwritten values. In front of the network
    there is a layer for the input.

    Args:
        factory: the attribution class.
        model: the model; it does not change.
        layer: the qualified name of a layer, or "input".
        inputs: examples of the inputs that will be explained.
        places: where inputs and layers have their places.

    Returns:
        The copy, and how to use it.

    Raises:
        LayerError: if the forward pass does not reach the layer exactly once. Of several calls Captum would explain the
            last one.
        UnsupportedOperationError: if the class has no rule for an operation of the model, or would take another
            dimension for the channels.
    """
    if layer != "input":
        output = output_of(model, layer, inputs)
        if issubclass(factory, _WEIGHING):
            _refuse_what_has_no_channels(output, layer, places)
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
        whole.input = _with_a_rule(inputs)
        if issubclass(factory, captum_attr.LayerLRP) and layer != "input":
            _put(whole, name, nn.Sequential(whole.get_submodule(name), _with_a_rule(output)))
            name = f"{name}.1"
        _keep_apart(whole, (nn.Module,))
    # LRP deletes the rules from the modules.
    rules = {module: module.rule for module in whole.modules() if hasattr(module, "rule")}

    def restore_rules() -> None:
        for module, rule in rules.items():
            module.rule = rule

    # If nothing changed in a max pooling, DeepLift uses the gradients of the first example for all examples.
    one_by_one = issubclass(factory, captum_attr.DeepLift)
    return Prepared(whole, whole.get_submodule(name), restore_rules, one_by_one)


def _with_a_rule(values: torch.Tensor) -> nn.Module:
    """A module that changes nothing and has a rule, because LRP knows the relevance only at modules that have one."""
    return nn.MaxPool1d(1) if values.dim() == 2 else nn.AvgPool2d(1)


def output_of(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """Run a model and return the output of a layer.

    Args:
        model: the model.
        layer: the qualified name of the layer.
        inputs: the inputs of the model.

    Returns:
        The output of the layer.

    Raises:
        LayerError: if the forward pass does not reach the layer exactly once.
        CAVTypeError: if the output is no tensor.
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
    """Give copies of their inputs to modules without children.

    Captum's hooks replace the whole gradient of the input of a module. Other operations may take the same tensor, as in
    a skip connection, and their part of the gradient would be replaced too.
    """
    for module in model.modules():
        if isinstance(module, kinds) and not any(module.children()):
            module.register_forward_pre_hook(lambda _, given: tuple(tensor.clone() for tensor in given))


def _operations(model: nn.Module, inputs: torch.Tensor) -> list[tuple[str, str, str, nn.Module | None]]:
    """For each operation in a forward pass: its name, its rule, the name of the innermost module, and the module."""
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


def _refuse_what_has_no_channels(output: torch.Tensor, layer: str, places: Places) -> None:
    if not places.are_behind_channels(output):
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
