"""The same layers and inputs explained by other methods and libraries.

What they cost is measured, not whether their maps are right: ``benchmarks.coverage`` says that. Each function makes a
call for a setup; what it raises, or the call, is the reason why there is no time.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch

from benchmarks.cost.measure import Call
from benchmarks.cost.setups import Setup

STEPS = 20


def _captum(setup: Setup, method: str, layers: list[str] | None = None, **options: Any) -> Call:
    kind = getattr(importlib.import_module("captum.attr"), method)
    model, inputs = _own_model(setup), setup.inputs
    if layers is None:
        explainer = kind(model)
    else:
        modules = [model.get_submodule(name) for name in layers]
        explainer = kind(model, modules if len(modules) > 1 else modules[0])
    return lambda: explainer.attribute(inputs, target=0, **options)


def _own_model(setup: Setup) -> torch.nn.Module:
    """A copy without operations in place, which several of them cannot have."""
    model = copy.deepcopy(setup.model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return model


def captum_lrp(setup: Setup) -> Call:
    """Captum's LRP with its default rules, down to the inputs."""
    return _captum(setup, "LRP")


def captum_layer_lrp(setup: Setup) -> Call:
    """Captum's LRP with its default rules, at the layers."""
    return _captum(setup, "LayerLRP", setup.layers)


def captum_grad_cam(setup: Setup) -> Call:
    """Captum's Grad-CAM."""
    return _captum(setup, "LayerGradCam", setup.layers)


def captum_gradient_x_activation(setup: Setup) -> Call:
    """Captum's gradient x activation."""
    return _captum(setup, "LayerGradientXActivation", setup.layers)


def captum_integrated_gradients(setup: Setup) -> Call:
    """Captum's integrated gradients at a layer, twenty steps, a batch at a time."""
    samples = len(setup.inputs)
    return _captum(setup, "LayerIntegratedGradients", setup.layers, n_steps=STEPS, internal_batch_size=samples)


def captum_input_x_gradient(setup: Setup) -> Call:
    """Captum's input x gradient."""
    return _captum(setup, "InputXGradient")


def zennit(setup: Setup) -> Call:
    """Zennit: its hooks are put on the model and taken off again in each call, as its users do."""
    composites, rules, types = (importlib.import_module(f"zennit.{name}") for name in ("composites", "rules", "types"))
    attribution = importlib.import_module("zennit.attribution")
    convolutional = {"gamma": rules.Gamma(0.25), "epsilon_plus": rules.ZPlus(), "alpha2_beta1": rules.AlphaBeta(2, 1)}
    dense = {"gamma": rules.Gamma(0.25)}
    if setup.preset not in ("paper", *convolutional):
        raise NotImplementedError(f"has no {setup.preset}")
    composite = composites.LayerMapComposite(
        [
            (types.Activation, rules.Pass()),
            (types.Convolution, convolutional.get(setup.preset, rules.Epsilon())),
            (types.Linear, dense.get(setup.preset, rules.Epsilon())),
            (types.BatchNorm, rules.Pass()),
            (types.AvgPool, rules.Norm()),
        ]
    )
    model, inputs = _own_model(setup), setup.inputs
    if not inputs.is_floating_point():
        raise TypeError("explains floating-point inputs only")

    with torch.no_grad():
        seed = torch.zeros_like(model(inputs))
    seed[:, 0] = 1

    def call() -> object:
        with attribution.Gradient(model, composite) as attributor:
            return attributor(inputs, seed)

    return call


def autolrp(setup: Setup) -> Call:
    """With autoLRP: its base rules, or those of its that mean the same as the preset."""
    library = importlib.import_module("autolrp")
    convolutions = {"gamma": ("gamma", {"gamma": 0.25}), "epsilon_plus": "zplus", "alpha2_beta1": "alpha_beta"}
    changed: dict[str, Any] = {}
    if setup.preset == "attnlrp":
        changed = library.ATTNLRP
    elif setup.preset in convolutions:
        changed = {"ConvolutionBackward": convolutions[setup.preset]}
    config = library.LRPConfig(rule={**library.BASE, **changed})
    model, inputs = _own_model(setup), setup.inputs
    if not inputs.is_floating_point():
        raise TypeError("explains floating-point inputs only")
    return lambda: model(library.tensor(inputs))[:, 0].sum().lrp(config=config)


RIVALS = {
    "Captum LRP": captum_lrp,
    "Captum LayerLRP": captum_layer_lrp,
    "Captum LayerGradCam": captum_grad_cam,
    "Captum LayerGradientXActivation": captum_gradient_x_activation,
    f"Captum LayerIntegratedGradients, {STEPS} steps": captum_integrated_gradients,
    "Captum InputXGradient": captum_input_x_gradient,
    "zennit": zennit,
    "autolrp": autolrp,
}
