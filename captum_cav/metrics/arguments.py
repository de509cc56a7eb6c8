"""What measures are given: each check raises one clear error, or returns what a measure works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F

from captum_cav import _captum, checks
from captum_cav.errors import CAVTypeError, InputError, OptionError, TargetError

Model: TypeAlias = Callable[..., Any]
Output: TypeAlias = Literal["probability", "score"]
#: One target an example, or None where the model gives one score an example.
Targets: TypeAlias = list[Any] | None
#: Explains a model that it is given: model, inputs and targets to maps of shape (N, h, w).
Explain: TypeAlias = Callable[[Any, torch.Tensor, Targets], torch.Tensor]


def check_maps(maps: Any, name: str = "maps") -> torch.Tensor:
    """Maps of shape (N, h, w), finite, without a graph, in single precision at least."""
    _check_tensor(maps, name)
    if maps.dim() != 3:
        raise InputError(
            f"{name} has shape {tuple(maps.shape)}; expected (N, h, w), one number a place. Sum attributions over "
            "their channels, as captum_cav.visualization.spatial_map does."
        )
    checks._check_tensor(maps, name, set())
    found: torch.Tensor = maps.detach()
    return found.to(torch.promote_types(found.dtype, torch.float32))


def check_pictures(inputs: Any, maps: torch.Tensor | None = None) -> torch.Tensor:
    """Inputs of shape (N, C, H, W), as many as maps."""
    _check_tensor(inputs, "inputs")
    if inputs.dim() != 4 or not inputs.is_floating_point():
        raise InputError(
            f"inputs is a tensor of {inputs.dtype} and shape {tuple(inputs.shape)}; expected pictures, floating point "
            "numbers of shape (N, C, H, W)."
        )
    checks._check_tensor(inputs, "inputs", set())
    if maps is not None:
        check_as_many(maps, "maps", inputs, "inputs")
    found: torch.Tensor = inputs.detach()
    return found


def check_masks(masks: Any, maps: torch.Tensor) -> torch.Tensor:
    """Masks of shape (N, H, W), as many as maps, on their device; none is empty."""
    _check_tensor(masks, "masks")
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise InputError(
            f"masks is a tensor of {masks.dtype} and shape {tuple(masks.shape)}; expected booleans of shape (N, H, W), "
            "True where the object is."
        )
    check_as_many(maps, "maps", masks, "masks")
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"masks selects nothing in {checks._samples(empty)}; leave out what has no object.")
    found: torch.Tensor = masks.to(maps.device)
    return found


def check_as_many(first: torch.Tensor, its_name: str, other: torch.Tensor, other_name: str) -> None:
    """Refuse two batches of different numbers of examples."""
    if len(first) != len(other):
        raise InputError(f"{its_name} holds {len(first)} examples and {other_name} {len(other)}; expected as many.")


def _check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise CAVTypeError(f"{name} is a {type(value).__name__}; expected a tensor.")


def check_number(value: Any, name: str, least: int = 1) -> None:
    """Refuse what is no integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r}; expected an integer of at least {least}.")


def check_targets(target: Any, examples: int) -> Targets:
    """A target in any of Captum's forms as one entry an example; whether each selects a score, the output decides."""
    if isinstance(target, torch.Tensor):
        target = target.tolist() if target.numel() != 1 else target.item()
    if isinstance(target, list):
        if len(target) != examples:
            raise TargetError(f"target lists {len(target)} entries for {examples} examples; expected one for each.")
        return [entry.item() if isinstance(entry, torch.Tensor) else entry for entry in target]
    return None if target is None else [target] * examples


def check_model(model: Any) -> None:
    """Refuse what is no model, and one that would act at random."""
    if not callable(model):
        raise CAVTypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module or another callable.")
    checks.check_evaluation(model)


def check_module(model: Any) -> torch.nn.Module:
    """A model that can be copied and changed: the module itself, without what compiles or spreads it."""
    found = checks.check_model(model)
    if not isinstance(found, torch.nn.Module):
        raise CAVTypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module, of which a copy is changed."
        )
    check_model(found)
    return found


def outputs(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    """What a model returns for some inputs, one row each."""
    with torch.no_grad():
        found = checks.check_output(model(inputs))
    if len(found) != len(inputs):
        raise InputError(f"the model returned {tuple(found.shape)} for {len(inputs)} inputs; expected a row of each.")
    return found


def scores(model: Model, inputs: torch.Tensor, targets: Targets, output: Output) -> torch.Tensor:
    """The score of each input, or its probability."""
    found = outputs(model, inputs)
    indices = checks.resolve_target(found, targets)
    if output == "probability":
        if found.dim() != 2 or found.shape[1] < 2:
            raise InputError(
                'output="probability" is the softmax over classes: expected a model that returns (N, classes) with '
                f'several classes, got {tuple(found.shape)}; pass output="score".'
            )
        found = found.softmax(1, dtype=torch.promote_types(found.dtype, torch.float32))
    values = _captum.select_scores(found, indices)
    checks.check_finite_results("the score is", values, model, (inputs,))
    return values


def classes(model: Model, inputs: torch.Tensor, targets: Targets) -> tuple[list[int], int]:
    """The class of each input, and how many there are.

    Raises:
        InputError: if the model does not choose among several classes.
    """
    found = outputs(model, inputs)
    if found.dim() != 2 or found.shape[1] < 2:
        raise InputError(
            f"the model returned shape {tuple(found.shape)}; expected (N, classes) with several classes, of which "
            "others are to be explained."
        )
    indices = checks.resolve_target(found, targets)
    assert isinstance(indices, list)
    return [entry[0] % found.shape[1] for entry in indices], found.shape[1]


def explained(explain: Explain, model: Any, inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
    """The maps that a function gives, checked."""
    if not callable(explain):
        raise CAVTypeError(
            f"explain is a {type(explain).__name__}; expected a function of model, inputs and target that returns maps."
        )
    found = check_maps(explain(model, inputs, targets), "what explain returned")
    check_as_many(found, "what explain returned", inputs, "inputs")
    return found


def precise(maps: torch.Tensor) -> torch.Tensor:
    """In double precision, where the device has it."""
    return maps if maps.device.type == "mps" else maps.double()


def at_size(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps on another grid for measures of their order: an even map stays even, which no map of equal sum can promise.

    Bilinear, with antialiasing where a side gets smaller.
    """
    if maps.shape[1:] == size:
        return maps
    smaller = maps.shape[1] > size[0] or maps.shape[2] > size[1]
    found = F.interpolate(maps[:, None], size, mode="bilinear", antialias=smaller)[:, 0]
    # Weights that add up to 1 but for rounding would give an even map an order.
    first = maps[:, :1, :1]
    return torch.where((maps == first).all(2).all(1)[:, None, None], first, found)
