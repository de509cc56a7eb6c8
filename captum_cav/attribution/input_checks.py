"""Everything that is checked before the propagation; no other module reads numbers of the arguments on the host.

What follows until :mod:`captum_cav.attribution.result_checks` only hands out work to the device: the forward pass, the
scores and the backward pass (:mod:`captum_cav.attribution.backward`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
        names: the names of the inputs, if the model takes them by keyword; empty if it takes them by position.
        keywords: the names of the last of the further arguments, which the model takes by keyword.
    """

    inputs: tuple[Any, ...]
    additional: tuple[Any, ...]
    targets: list[Any]
    part: range | None = None
    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def called(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """A function that takes all arguments by position, and calls a model with each of them in its place."""
        if not (self.names or self.keywords):
            return model
        return functools.partial(_call, model, self.names, len(self.inputs), self.keywords)


def _call(model: Callable[..., Any], names: tuple[str, ...], count: int, keywords: tuple[str, ...], *args: Any) -> Any:
    """Call a model with arguments by keyword: see :class:`Arguments`.

    Args:
        model: the model.
        names: of the inputs.
        count: how many inputs there are.
        keywords: of the last arguments.
        args: all arguments.
    """
    by_position = args[count if names else 0 : len(args) - len(keywords)]
    named = dict(zip(names, args[:count], strict=True)) if names else {}
    return model(*by_position, **named, **dict(zip(keywords, args[len(args) - len(keywords) :], strict=True)))


def check_arguments(
    forward_func: Callable[..., Any],
    inputs: Any,
    additional_forward_args: Any,
    targets: Sequence[Any] = (),
    additional_forward_kwargs: Mapping[str, Any] | None = None,
    *,
    inputs_are_explained: bool = False,
) -> Arguments:
    """The arguments as the forward pass takes them.

    Args:
        forward_func: the model.
        inputs: as for :meth:`captum_cav.LayerCAV.attribute`. Of a subclass of :class:`torch.Tensor`, the model gets the
            plain tensor, because the propagation must see the operations and not what the subclass makes of them.
        additional_forward_args, additional_forward_kwargs: as for :meth:`captum_cav.LayerCAV.attribute`.
        targets: targets in any of the forms that Captum takes. Whether they fit the output of the model is checked when
            the output is known.
        inputs_are_explained: whether the contributions of the inputs are asked for, not only those of a layer.

    Raises:
        CAVTypeError, InputError, ModelError: for inputs that cannot be explained.
    """
    keywords = checks.keyword_arguments(additional_forward_kwargs)
    names: tuple[str, ...] = ()
    if isinstance(inputs, Mapping):
        tensors, others = checks.named_inputs(inputs)
        checks.check_different(tensors, keywords)
        names, inputs, keywords = tuple(tensors), tuple(tensors.values()), {**others, **keywords}
    if inputs_are_explained:
        checks.check_explained(inputs, names)
    inputs = tree_map(lambda leaf: as_plain(leaf) if isinstance(leaf, torch.Tensor) else leaf, inputs)
    given = checks.check_inputs(forward_func, inputs, names)
    additional = checks.additional_arguments(additional_forward_args)
    return Arguments(
        given,
        (*additional, *keywords.values()),
        list(map(checks.read_target, targets)),
        names=names,
        keywords=tuple(keywords),
    )
