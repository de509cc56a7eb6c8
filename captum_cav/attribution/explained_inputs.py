"""The inputs that are explained: floating-point inputs themselves, integers at the embedding layers that take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_cav import checks
from captum_cav.attribution.input_checks import Arguments
from captum_cav.errors import OptionError
from captum_cav.propagation.forward import Forward

#: The tap of the floating-point inputs.
_INPUTS = 0


def embeddings_for(arguments: Arguments, model: Callable[..., Any]) -> Callable[[torch.nn.Module], bool] | None:
    """A function that tells which modules are embedding layers; None if no input holds integers.

    A model of transformers says itself which module embeds its words. Adapters may have put another layer there, which
    has the usual embedding inside.
    """
    if all(map(checks.is_floating, arguments.inputs)):
        return None
    own = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    inside = set(own.modules()) - {own} if isinstance(own, torch.nn.Module) else set()

    def is_embedding(module: torch.nn.Module) -> bool:
        return module is own or (isinstance(module, torch.nn.Embedding) and module not in inside)

    return is_embedding


def explained_taps(passed: Forward, arguments: Arguments) -> list[int]:
    """The taps whose contributions are those of the inputs.

    Raises:
        CAVTypeError: for an integer input that no embedding layer takes. If the model takes its inputs by keyword, such
            an input may be a mask, and has no contributions.
    """
    embedded = {found.input for found in passed.embedded}
    floating = [checks.is_floating(given) for given in arguments.inputs]
    for number, given in enumerate(arguments.inputs):
        is_left_out = bool(arguments.names) and (any(floating) or bool(embedded))
        if not floating[number] and number not in embedded and not is_left_out:
            checks.refuse_integers(arguments.inputs, number, arguments.names)
        del given
    return [_INPUTS] * any(floating) + [found.tap for found in passed.embedded]


def tap_names(passed: Forward, arguments: Arguments, taps: Sequence[int]) -> list[str]:
    """What each of the taps stands for, as messages name it."""
    by_tap = {found.tap: checks.input_name(arguments.inputs, found.input, arguments.names) for found in passed.embedded}
    return [by_tap.get(tap, "the inputs") for tap in taps]


def check_explained(passed: Forward, *, multiplies_by_inputs: bool, with_graph: bool) -> None:
    """Refuse options that do not go with integer inputs.

    Raises:
        OptionError: says what to use instead.
    """
    if passed.embedded and not multiplies_by_inputs:
        raise OptionError(
            "multiply_by_inputs=False gives a coefficient for each unit, but inputs hold integers, which have none; "
            "use LayerCAV at the embedding layer."
        )
    if passed.embedded and with_graph:
        raise OptionError(
            "create_graph=True needs floating-point inputs, but inputs hold integers; use LayerCAV at the embedding "
            "layer."
        )


def contributions_of_inputs(
    passed: Forward, arguments: Arguments, taps: Sequence[int], found: Sequence[tuple[torch.Tensor, ...]]
) -> list[torch.Tensor | None]:
    """The contributions of each input; None for an input that has none.

    Args:
        passed: what the forward pass left.
        arguments: the arguments of the pass.
        taps: what :func:`explained_taps` gave.
        found: for each of these taps, the contributions of its tensors.
    """
    by_tap = dict(zip(taps, found, strict=True))
    floating = iter(by_tap.get(_INPUTS, ()))
    parts: list[torch.Tensor | None] = [next(floating) if checks.is_floating(x) else None for x in arguments.inputs]
    for one in passed.embedded:
        (contributions,) = by_tap[one.tap]
        given, before = arguments.inputs[one.input], parts[one.input]
        summed = one.of_input(contributions[None], given.numel(), contributions.dtype).reshape(given.shape)
        parts[one.input] = summed if before is None else before + summed
    return parts


def in_form(parts: Sequence[torch.Tensor | None], names: Sequence[str], is_tuple: bool) -> Any:
    """Contributions in the form of the inputs.

    Args:
        parts: the contributions of each input; None for an input that has none.
        names: the names of the inputs, if they are a dict. Then the result is a dict without the inputs that have none.
        is_tuple: whether the inputs are a tuple or a list. Then the result is a tuple, else a tensor.
    """
    if names:
        return {name: part for name, part in zip(names, parts, strict=True) if part is not None}
    return tuple(parts) if is_tuple else parts[0]
