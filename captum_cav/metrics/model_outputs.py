"""What a model and an explanation function give for samples: outputs, scores, classes and maps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch

from captum_cav import checks
from captum_cav.attribution.logits import logit_model, probabilities, squashed_by
from captum_cav.captum_internals import select_scores
from captum_cav.checks.targets import Targets
from captum_cav.errors import CAVError, CAVTypeError, InputError

Model: TypeAlias = Callable[..., Any]
Output: TypeAlias = Literal["probability", "score"]
#: A function that explains any model: it takes the model, inputs and targets and returns maps, one number a place.
Explain: TypeAlias = Callable[[Any, torch.Tensor, Targets], torch.Tensor]


def outputs(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    """The output of a model for some inputs, one row for each input.

    Raises:
        CAVTypeError, InputError: for a model that does not return such a tensor.
    """
    with torch.no_grad():
        found = checks.check_output(model(inputs))
    if len(found) != len(inputs):
        raise InputError(
            f"the model returned {tuple(found.shape)} for {len(inputs)} inputs; expected one row for each input."
        )
    return found


def scored_model(model: Model, inputs: torch.Tensor) -> Model:
    """A model that gives scores before softmax, if the model can be seen into. Otherwise the model itself.

    Args:
        model: the model; it may end in a softmax, a sigmoid or another squashing function.
        inputs: shape (N, ...), examples.
    """
    try:
        return logit_model(model, inputs[:1])
    except (CAVError, RuntimeError, TypeError, ValueError):
        # A model that is measured need not be one that can be explained.
        return model


def class_outputs(model: Model, inputs: torch.Tensor, output: Output) -> torch.Tensor:
    """The scores of all classes, or their probabilities.

    Args:
        model: the model, as :func:`scored_model` returns it.
        inputs: shape (N, ...).
        output: ``"score"``, or ``"probability"``, as :func:`captum_cav.attribution.logits.probabilities` gives it.

    Returns:
        What the model returns, one row for each input, or the softmax of it.

    Raises:
        InputError, CAVTypeError, ModelError: for outputs that give no such numbers.
    """
    is_squashed = squashed_by(model) is not None
    read = functools.partial(probabilities, model) if output == "probability" and is_squashed else model
    found = outputs(read, inputs)
    if output == "probability" and not is_squashed:
        if found.dim() != 2 or found.shape[1] < 2:
            raise InputError(
                'output="probability" is the softmax over classes: expected a model that returns (N, classes) with '
                f'several classes, got {tuple(found.shape)}; pass output="score".'
            )
        found = found.softmax(1, dtype=torch.promote_types(found.dtype, torch.float32))
    return found


def scores(model: Model, inputs: torch.Tensor, targets: Targets, output: Output) -> torch.Tensor:
    """The score of the target of each input, or its probability.

    Args:
        model: the model, as :func:`scored_model` returns it.
        inputs: shape (N, ...).
        targets: one target for each input.
        output: as for :func:`class_outputs`.

    Returns:
        Shape (N,), finite numbers.

    Raises:
        InputError, TargetError, CAVTypeError, ModelError: for outputs and targets that give no such numbers.
    """
    found = class_outputs(model, inputs, output)
    indices = checks.resolve_target(found, targets)
    values = select_scores(found, indices)
    checks.check_finite_results("the score is", values, model, functools.partial(model, inputs))
    return values


def classes(model: Model, inputs: torch.Tensor, targets: Targets) -> tuple[list[int], int]:
    """The index of the target class of each input, and the number of classes.

    Raises:
        InputError: if the model does not choose among several classes.
        TargetError, CAVTypeError: for targets that are not classes.
    """
    found = outputs(model, inputs)
    if found.dim() != 2 or found.shape[1] < 2:
        raise InputError(
            f"the model returned shape {tuple(found.shape)}; expected (N, classes) with several classes, because maps "
            "of other classes are needed, too."
        )
    indices = checks.resolve_target(found, targets)
    assert isinstance(indices, list)
    return [entry[0] % found.shape[1] for entry in indices], found.shape[1]


def explained(explain: Explain, model: Any, inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
    """The maps that an explanation function returns, after a check.

    Raises:
        CAVTypeError, InputError: for what is no function, and for what does not return one map for each input.
    """
    if not callable(explain):
        raise CAVTypeError(
            f"explain is a {type(explain).__name__}; expected a function of model, inputs and target that returns maps."
        )
    found = checks.check_maps(explain(model, inputs, targets), "what explain returned", checks.sides_of(inputs))
    checks.check_same_length(found, "what explain returned", inputs, "inputs")
    return found
