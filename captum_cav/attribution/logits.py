"""Models that give logits: what the last squashing function of another model takes.

The paper explains scores before softmax. Whatever compares maps with scores, or asks for the scores of many pictures,
uses the functions here, so that all scores are of one kind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from captum_cav import checks
from captum_cav.attribution.squashing import refuse_hidden, squashing_of
from captum_cav.operations import TABLE
from captum_cav.propagation.watching import watch
from captum_cav.scores.running import is_scored

_Model = TypeVar("_Model", bound=Callable[..., Any])
_LEFT_OUT = "_captum_cav_left_out"


class _LeftOut(NamedTuple):
    """What a model that gives logits leaves out.

    Attributes:
        forward: the ``forward`` of the model with the squashing function.
        name: of the function.
        is_logarithm: whether the function gives the logarithms of probabilities.
    """

    forward: Callable[..., Any]
    name: str
    is_logarithm: bool


class _Called(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def logit_model(model: _Model, *args: Any) -> _Model:
    """A model that gives logits: the numbers before the last squashing function of another model.

    Args:
        model: the model. It does not change.
        args: its arguments, an example of what it will be given. The model runs once.

    Returns:
        The model itself if its last operation does not squash, or if :func:`captum_cav.scores.with_score` made it.
        Otherwise a copy that shares all parameters and modules, under the same names, and returns the logits. Gradients
        are those of the logits.

    Raises:
        ModelError: if the output was computed further from a squashing function, so that the logits cannot be found.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Softmax(1))
        >>> with torch.no_grad():
        ...     logit_model(net, torch.tensor([[1.0, 2.0]]))(torch.tensor([[3.0, -1.0]]))
        tensor([[ 3., -1.]])
        >>> logit_model(net[0], torch.tensor([[1.0, 2.0]])) is net[0]     # nothing squashes
        True
    """
    if squashed_by(model) is not None or is_scored(model):
        return model
    output, run = watch(TABLE, model, *checks.copied(args))
    squashing = squashing_of(output, run)
    if squashing is None:
        refuse_hidden(output, run, "logit")
        return model
    is_class = isinstance(model, torch.nn.Module) and "forward" not in vars(model)
    copied: Any = copy.copy(model) if is_class else _Called(model).eval()
    base = type(copied)
    members = {
        "__module__": base.__module__,
        "forward": _forward(base.forward),
        _LEFT_OUT: _LeftOut(base.forward, squashing.name, squashing.is_logarithm),
    }
    copied.__class__ = type(base.__name__, (base,), members)
    return copied  # type: ignore[no-any-return]


def _forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The ``forward`` of a model that gives logits."""

    def logits(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        output, run = watch(TABLE, forward, self, *args, **kwargs)
        squashing = squashing_of(output, run)
        if squashing is None:
            refuse_hidden(output, run, "logit")
            return output
        found = squashing.logits()
        return found if torch.is_grad_enabled() else found.detach()

    return logits


def squashed_by(model: Any) -> str | None:
    """The name of the squashing function that :func:`logit_model` left out, such as ``"log_softmax"``; else None."""
    left_out = getattr(type(model), _LEFT_OUT, None)
    return None if left_out is None else left_out.name


def probabilities(model: Callable[..., Any], *args: Any) -> torch.Tensor:
    """The probabilities of classes: what the squashing function gives, or else the softmax over the classes.

    Args:
        model: a model that gives logits, as :func:`logit_model` returns it.
        args: its arguments.

    Returns:
        The shape of the model's output.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.LogSoftmax(1))
        >>> x = torch.tensor([[0.0, 0.0]])
        >>> probabilities(logit_model(net, x), x)     # no softmax of a log-softmax
        tensor([[0.5000, 0.5000]])
    """
    left_out = getattr(type(model), _LEFT_OUT, None)
    if left_out is None:
        output = checks.check_output(model(*args))
        return output.softmax(1, dtype=torch.promote_types(output.dtype, torch.float32))
    output = checks.check_output(left_out.forward(model, *args))
    return output.exp() if left_out.is_logarithm else output
