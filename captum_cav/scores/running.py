"""Models that return a score: a function of their output."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import torch

from captum_cav import checks
from captum_cav.errors import CAVTypeError

#: A function of what the model returns. It gives one score for each sample, shape (N,), or several, shape (N, ...), of
#: which ``target`` selects one. A function with a true attribute ``takes_inputs`` gets the arguments of the model, too.
ScoreFunction: TypeAlias = Callable[..., torch.Tensor]
_SCORE = "_captum_cav_score"


def check_score(score: Any) -> None:
    """Refuse what is no function of the model's output.

    Args:
        score: what was given as the score.

    Raises:
        CAVTypeError: for a class, of which an object was meant, and for what cannot be called.
    """
    if isinstance(score, type):
        raise CAVTypeError(f"score is the class {score.__name__}; expected an object of it, as {score.__name__}(...).")
    if not callable(score):
        raise CAVTypeError(f"score is a {type(score).__name__}; expected a function of what the model returns.")


def takes_inputs(score: Any) -> bool:
    """Whether a score is computed from the arguments of the model too."""
    return bool(getattr(score, "takes_inputs", False))


def scores_of(score: ScoreFunction, output: Any, args: tuple[Any, ...] = ()) -> torch.Tensor:
    """The scores that a function finds in the output of a model.

    Args:
        score: the function.
        output: what the model returned.
        args: the arguments of the model, for a score that takes them.

    Returns:
        Shape (N,) or (N, ...).

    Raises:
        CAVTypeError: if the function returns anything but a floating-point tensor.
    """
    found: Any = score(output, *args) if takes_inputs(score) else score(output)
    if not checks.is_floating(found):
        what = f"a tensor of {found.dtype}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise CAVTypeError(
            f"the score {describe(score)} returned {what}; expected a floating-point tensor with one score for each "
            "sample, shape (N,), or with several, shape (N, C), of which target selects one."
        )
    return found  # type: ignore[no-any-return]


def describe(score: Any) -> str:
    """A score as messages name it."""
    return getattr(score, "__name__", None) or repr(score)


def run_scored(model: Callable[..., Any], score: ScoreFunction | None, *args: Any) -> Any:
    """The score of the output of a model, or the output itself if ``score`` is None."""
    if score is None:
        return model(*args)
    # Copies, because the model may write into its arguments.
    given = checks.copied(args) if takes_inputs(score) else ()
    return scores_of(score, model(*args), given)


@overload
def with_score(model: torch.nn.Module, score: ScoreFunction) -> torch.nn.Module: ...


@overload
def with_score(model: Callable[..., Any], score: ScoreFunction) -> Callable[..., Any]: ...


def with_score(model: Callable[..., Any], score: ScoreFunction) -> Callable[..., Any]:
    """A model that returns a score, for whatever takes a model: metrics, drawings, ablations, the methods of Captum.

    Args:
        model: the model. It does not change.
        score: a score of this package, or another function of what the model returns.

    Returns:
        Of a module, a copy that shares all parameters and modules, under the same names. Of another callable, a
        function.

    Raises:
        CAVTypeError: if ``score`` is no function.

    Example::

        >>> from captum_cav import scores
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
        >>> difference = with_score(net, scores.Difference(0, 2))
        >>> difference(torch.tensor([[5.0, 0.0, 2.0]]))
        tensor([3.])
        >>> difference.get_submodule("0") is net[0]
        True
    """
    check_score(score)
    if not isinstance(model, torch.nn.Module):
        return functools.partial(run_scored, model, score)
    copied: Any = copy.copy(model)
    # A new class, because a forward in the object itself would go on to use this model in a deep copy.
    forward = vars(model).get("forward")
    base = type(model)

    def scored(self: torch.nn.Module, *args: Any) -> Any:
        return run_scored(base.forward.__get__(self) if forward is None else forward, score, *args)

    copied.__class__ = type(base.__name__, (base,), {"__module__": base.__module__, "forward": scored, _SCORE: score})
    vars(copied).pop("forward", None)
    return copied  # type: ignore[no-any-return]


def is_scored(model: Any) -> bool:
    """Whether :func:`with_score` made the model, so that its output is what the user wants to explain."""
    return hasattr(type(model), _SCORE) or (isinstance(model, functools.partial) and model.func is run_scored)
