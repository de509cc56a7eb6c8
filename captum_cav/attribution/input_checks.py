"""Everything that is checked before the propagation; no other module reads numbers of the arguments on the host.

What follows until :mod:`captum_cav.attribution.result_checks` only hands out work to the device: the forward pass, the
scores and the backward pass (:mod:`captum_cav.attribution.backward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from captum_cav import checks
from captum_cav.tensors import as_plain
from captum_cav.torch_internals import tree_map


class Arguments(NamedTuple):
    """Checked arguments of an attribution.

    Attributes:
        inputs: one entry for each of the explained arguments of the model.
        additional: further arguments of the model.
        targets: the targets, with their numbers on the host.
        part: the samples that are explained, if they are a part of the batch; None for the whole batch.
    """

    inputs: tuple[Any, ...]
    additional: tuple[Any, ...]
    targets: list[Any]
    part: range | None = None


def check_arguments(
    forward_func: Callable[..., Any],
    inputs: Any,
    additional_forward_args: Any,
    targets: Sequence[Any] = (),
    *,
    inputs_are_explained: bool = False,
) -> Arguments:
    """The arguments as the forward pass takes them.

    Args:
        forward_func: the model.
        inputs: as for :meth:`captum_cav.LayerCAV.attribute`. Of a subclass of :class:`torch.Tensor`, the model gets the
            plain tensor, because the propagation must see the operations and not what the subclass makes of them.
        additional_forward_args: as for :meth:`captum_cav.LayerCAV.attribute`.
        targets: targets in any of the forms that Captum takes. Whether they fit the output of the model is checked when
            the output is known.
        inputs_are_explained: whether the contributions of the inputs are asked for, not only those of a layer.

    Raises:
        CAVTypeError, InputError, ModelError: for inputs that cannot be explained.
    """
    if inputs_are_explained:
        checks.check_floating(inputs)
    inputs = tree_map(lambda leaf: as_plain(leaf) if isinstance(leaf, torch.Tensor) else leaf, inputs)
    given = checks.check_inputs(forward_func, inputs)
    return Arguments(
        given, checks.additional_arguments(additional_forward_args), list(map(checks.read_target, targets))
    )
