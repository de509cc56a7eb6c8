"""What captum_cav raises and warns of.

Every exception is a :class:`CAVError` *and* the built-in exception that a caller would expect, so that both
``except CAVError`` and ``except ValueError`` work.
"""

from __future__ import annotations


class CAVError(Exception):
    """Base of everything that captum_cav raises on purpose."""


class OptionError(CAVError, ValueError):
    """An option whose value is not one of those that it takes."""


class InputError(CAVError, ValueError):
    """Inputs that cannot be explained: empty, not finite, on another device."""


class TargetError(CAVError, ValueError):
    """A target that is missing or does not fit the model's output."""


class CAVTypeError(CAVError, TypeError):
    """An argument, or something that a model or function returned, of a type that does not fit."""


class LayerError(CAVError, ValueError):
    """A layer that is unknown, belongs to another model, or was not reached exactly once."""


class ModelError(CAVError, RuntimeError):
    """A model in a state that cannot be explained: training mode, inference mode, scripted."""


class UnsupportedOperationError(CAVError, NotImplementedError):
    """An operation met a contribution and no rule says how it passes contributions on."""


class UnavailableError(CAVError, NotImplementedError):
    """A method of Captum's interface that cannot be answered afterwards."""


class MethodError(CAVError, RuntimeError):
    """A method that is compared with others raised; what it raised is the cause."""


class MapError(CAVError, KeyError):
    """A map that a comparison does not hold."""

    __str__ = Exception.__str__  # a KeyError would quote the sentence


class ScoreWarning(UserWarning):
    """A score at or near zero: ratios to it are meaningless."""


class UnsupportedOperationWarning(UserWarning):
    """An unknown operation passed its gradient on, because ``on_unknown="gradient"`` asked for it."""
