"""What a rule is: how one kind of operation passes contributions on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar, cast

from captum_cav.errors import UnsupportedOperationError
from captum_cav.propagation.operation import Operation


class Rule:
    """How operations pass contributions on.

    A rule takes an :class:`Operation` and returns *the operation's value*, built so that its gradient carries
    contributions (a *surrogate*): where a tensor of value ``v`` has the gradient ``c``, its contribution is ``v * c``.

    A rule can be given for a module, a name pattern or a module type. Then it rules those operations inside the module
    that it :meth:`governs`. The other operations keep the rule that they would have without it. A plain function in the
    place of a rule rules a module as one operation.

    Attributes:
        operations: plain names of the functions that the rule governs; None for all functions.
        as_one: whether the rule, given for a module, rules the module's call as one operation instead of what is
            inside.
        is_derivative: whether the rule passes on the operation's own derivative.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> class Doubtful(Rule):
        ...     operations = frozenset({"special_i0"})
        ...     def __call__(self, operation):          # y_i comes from x_i alone: c_x = c_y * y / x
        ...         return rules.pass_through(operation)
        >>> from captum_cav import rules
        >>> InputCAV(torch.special.i0, rules={torch.special.i0: Doubtful()}).attribute(torch.tensor([2.0]))
        tensor([1.])
    """

    operations: ClassVar[frozenset[str] | None] = None
    as_one: ClassVar[bool] = False
    is_derivative: ClassVar[bool] = False

    def __repr__(self) -> str:
        """The call that makes the rule, with the options that are not as by default."""
        given: tuple[Field[Any], ...] = fields(cast("Any", self)) if is_dataclass(self) else ()
        options = sorted((field for field in given if field.init), key=lambda field: field.kw_only is True)
        values = [(field.name, getattr(self, field.name), field.default) for field in options]
        shown = [f"{name}={value!r}" for name, value, default in values if value is not default and value != default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def governs(self, operation: Operation) -> bool:
        """Whether the rule is for an operation."""
        return self.operations is None or operation.name in self.operations

    def __call__(self, operation: Operation, /) -> Any:
        """Return the operation's value as a surrogate."""
        raise UnsupportedOperationError(
            f"{type(self).__name__} does not say how to pass contributions on: define __call__."
        )


@dataclass(frozen=True, repr=False)
class FunctionRule(Rule):
    """A plain function as a rule; see :func:`captum_cav.rules.rule`.

    Args:
        function: takes an :class:`Operation`, returns its value as a surrogate.
        names: plain names of the functions that the rule governs. None for whatever the rule is given for; a module is
            then ruled as one operation.
    """

    function: Callable[[Operation], Any]
    names: frozenset[str] | None = None

    @property
    def as_one(self) -> bool:  # type: ignore[override]
        """A function that is for no functions in particular rules a module as one operation."""
        return self.names is None

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is one of the named functions, if any are named."""
        return self.names is None or operation.name in self.names

    def __call__(self, operation: Operation, /) -> Any:
        """What the function makes of the operation."""
        return self.function(operation)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))
