"""What tells one kind of arguments from another: each kind has a recording of its own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from captum_cav.attribution.input_checks import Arguments
from captum_cav.compilation.recording import has_samples
from captum_cav.errors import RecordingError
from captum_cav.tensors import is_autocast_on
from captum_cav.torch_graphs import tree_flatten

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout)


class _Itself:
    """An object that equals itself alone. It is kept alive, so that no other object gets its identity."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value


class _Form:
    """How arguments are nested. The forms of torch 2.6 can be compared, but have no hash."""

    def __init__(self, form: Any) -> None:
        self._form = form

    def __hash__(self) -> int:
        return hash(self._form.num_leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Form) and bool(self._form == other._form)


def key_of(arguments: Arguments, options: Sequence[Any], samples: int | None = None) -> Hashable:
    """A key that two calls share if one recording holds for both.

    Args:
        arguments: checked arguments of the call. Of tensors, the key has shapes, strides, types and devices.
        options: the options of ``attribute``.
        samples: the number of samples, if a recording holds for any number of them.

    Raises:
        RecordingError: for an argument of the model that is neither a tensor nor a plain value.
    """
    leaves, form = tree_flatten((arguments.inputs, arguments.additional))
    settings: tuple[Hashable, ...] = (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
    for device in _device_types(leaves):
        if is_autocast_on(device):
            settings += (device, torch.get_autocast_dtype(device))
    return (
        _Form(form),
        tuple(_of_argument(leaf, samples) for leaf in leaves),
        tuple(target is None for target in arguments.targets),
        arguments.part is None,
        arguments.names,
        arguments.keywords,
        tuple(map(_of_option, options)),
        settings,
    )


def _device_types(leaves: Sequence[Any]) -> set[str]:
    return {"cpu", *(leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor))}


def _of_argument(leaf: Any, samples: int | None) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        if samples is not None and has_samples(leaf, samples):
            return "samples", leaf.shape[1:], leaf.stride(), leaf.dtype, leaf.device
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    if isinstance(leaf, _PLAIN):
        return type(leaf), leaf
    raise RecordingError(
        f"an argument of the model holds a {type(leaf).__name__}, which may change between two calls; expected "
        "tensors, numbers and texts in additional_forward_args. Attribute without captum_cav.compile, or pass "
        'on_break="eager".'
    )


def _of_option(option: Any) -> Hashable:
    if isinstance(option, _PLAIN):
        return type(option), option
    if isinstance(option, (tuple, list)):
        return type(option), tuple(map(_of_option, option))
    if isinstance(option, slice):
        return slice, option.start, option.stop, option.step
    if isinstance(option, dict):
        return dict, tuple((name, _of_option(value)) for name, value in sorted(option.items()))
    return _Itself(option)
