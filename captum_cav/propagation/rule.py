"""The base class of all rules. A rule says how operations of one kind pass contributions on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar, cast

from captum_cav.errors import UnsupportedOperationError
from captum_cav.propagation.operation import Operation


class Rule:
    """The base class of rules: how operations pass contributions on.

    A rule takes an :class:`Operation` and returns *the operation's value* as a surrogate: its gradient carries
    contributions. If a tensor of value ``v`` has the gradient ``c``, its contribution is ``v * c``.

    A user can give a rule for a torch function, a module, a name pattern or a type of module. A rule for a module
    applies to the operations inside that it :meth:`governs`. The other operations keep the rule that they have without
    it. A plain function can take the place of a rule. For a module it treats the whole call as one operation.

    Attributes:
        operations: plain names of the functions that the rule governs. None for all functions.
        as_one: whether the rule, given for a module, treats the whole call of the module as one operation.
        is_derivative: whether the rule passes the operation's own derivative on.
        holds_gates: whether the output is a constant if a gate weighs nothing but constants, as it is by default.
        is_conserving: whether inputs and constants get as much as the output has. False for a rule that intends
            otherwise: then :func:`captum_cav.verify` tells how much is left, but does not call that a fault.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> class BesselRule(rules.Rule):
        ...     operations = frozenset({"special_i0"})
        ...     def __call__(self, operation):          # y_i comes from x_i alone: c_x = c_y * y / x
        ...         return rules.pass_through(operation)
        >>> InputCAV(torch.special.i0, rules={torch.special.i0: BesselRule()}).attribute(torch.tensor([2.0]))
        tensor([1.])
    """

    operations: ClassVar[frozenset[str] | None] = None
    as_one: ClassVar[bool] = False
    is_derivative: ClassVar[bool] = False
    holds_gates: ClassVar[bool] = False
    is_conserving: ClassVar[bool] = True

    def __repr__(self) -> str:
        """The call that makes the rule, with all options that differ from their defaults."""
        declared: tuple[Field[Any], ...] = fields(cast("Any", self)) if is_dataclass(self) else ()
        options = sorted((field for field in declared if field.init), key=lambda field: field.kw_only is True)
        values = [(field.name, getattr(self, field.name), field.default) for field in options]
        shown = [f"{name}={value!r}" for name, value, default in values if value is not default and value != default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def governs(self, operation: Operation) -> bool:
        """Whether the rule applies to an operation."""
        return self.operations is None or operation.name in self.operations

    def __call__(self, operation: Operation, /) -> Any:
        """Return the operation's value as a surrogate.

        Raises:
            UnsupportedOperationError: in this base class.
        """
        raise UnsupportedOperationError(
            f"{type(self).__name__} does not say how to pass contributions on: define __call__."
        )


@dataclass(frozen=True, repr=False)
class FunctionRule(Rule):
    """A plain function as a rule. :func:`captum_cav.rules.rule` makes such rules.

    Args:
        function: takes an :class:`Operation`, and returns its value as a surrogate.
        names: plain names of the functions that the rule governs. None for all functions. Then the rule treats a module
            as one operation.
    """

    function: Callable[[Operation], Any]
    names: frozenset[str] | None = None

    @property
    def as_one(self) -> bool:  # type: ignore[override]
        """Whether the rule treats a module as one operation, because no functions are named."""
        return self.names is None

    def governs(self, operation: Operation) -> bool:
        """Whether the operation is one of the named functions. True if no functions are named."""
        return self.names is None or operation.name in self.names

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value by the function."""
        return self.function(operation)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))
