"""The exceptions and warnings of captum_cav.

Every exception is a :class:`CAVError` *and* the built-in exception that a caller would expect. So both
``except CAVError`` and ``except ValueError`` work.

Example::

    >>> from captum_cav import rules
    >>> try:
    ...     rules.GammaRule(-1.0)
    ... except ValueError as error:
    ...     print(type(error).__name__)
    OptionError
"""

from __future__ import annotations


class CAVError(Exception):
    """The base class of all exceptions that captum_cav raises on purpose."""


class OptionError(CAVError, ValueError):
    """An option has a value that is not allowed."""


class InputError(CAVError, ValueError):
    """The inputs cannot be explained: they are empty, not finite, or not on the model's device."""


class TargetError(CAVError, ValueError):
    """The target is missing, or does not fit the model's output."""


class CAVTypeError(CAVError, TypeError):
    """An argument, or something that a model or a function returned, has the wrong type."""


class LayerError(CAVError, ValueError):
    """A layer is unknown, belongs to another model, or was not reached exactly once."""


class ModelError(CAVError, RuntimeError):
    """The model is in a state that cannot be explained: in training mode, in inference mode, or scripted."""


class UnsupportedOperationError(CAVError, NotImplementedError):
    """An operation takes a tensor that carries contributions, and no rule says how to pass them on."""


class UnavailableError(CAVError, NotImplementedError):
    """A method of Captum's interface asks for something that only the backward pass can measure."""


class RecordingError(CAVError, RuntimeError):
    """An attribution cannot be recorded, or its recording does not give the maps of the attribution."""


class MethodError(CAVError, RuntimeError):
    """A method raised an exception in a comparison. ``__cause__`` is that exception."""


class MapError(CAVError, KeyError):
    """A comparison has no map of this method and layer."""

    __str__ = Exception.__str__  # KeyError would put the message in quotes.


class ScoreWarning(UserWarning):
    """Ratios to a score are hard to read: the score is 0 or nearly 0, so that ratios mean nothing, or see below."""


class SignWarning(ScoreWarning):
    """Positive numbers in a map lowered the score, and negative numbers raised the score.

    This happens if the score is negative, or if a squashing function such as a sigmoid is the last operation and the
    number before it is negative. It may happen if a score was computed from such a function in a way that cannot be
    followed. The text is the same for all maps, and Python names the line that asked for the map.
    So Python shows the warning once for each such line, unless its filters say something else.
    """


class RecordingWarning(UserWarning):
    """An attribution cannot be recorded and runs as usual, because ``on_break="eager"`` asked for that."""


class UnsupportedOperationWarning(UserWarning):
    """An operation without a rule passed its plain gradient on, because ``on_unknown="gradient"`` asked for that."""
