"""The table of operations: one row says everything that the engine and the rules know of a torch function.

The engine is given a table and knows no operation by name. :mod:`captum_cav.operations` fills the one table that the
attributions use.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from captum_cav.propagation.kinds import Kind, Role
from captum_cav.propagation.operation import UNKNOWN, Operation, OperationSpec
from captum_cav.propagation.traits import Trait
from captum_cav.torch_internals import TORCH_MODULES, Overload, overload_name


class Treatment(NamedTuple):
    """What the engine does with a torch function. This is the function's row, in a form that is fast to read.

    Attributes:
        name: plain name, the same for ``torch.relu``, ``Tensor.relu_``, ``F.relu`` and ``aten.relu``. None for a
            function that is not torch's own.
        writes: whether the function writes into its first argument, as its name tells (``relu_``, ``+=``,
            ``x[i] = y``).
        switch: position of its ``inplace`` argument. None if it has no such argument.
        spec: its row.
        role: what the function does.
        computes: whether the function computes (see :class:`captum_cav.propagation.kinds.Role`).
        guard: refuses the operation in training mode, or None.
        is_simple: whether the traits of the output depend only on the traits of the inputs.
        is_as_is: whether the function is its own surrogate, and simple.
        keeps: traits that the output has if all tensors that depend on the inputs have them.
        drops_with_constants: those of the traits in ``keeps`` that the output loses if a constant takes part.
        makes: traits that the output always has.
        weighing: traits of an input with which the output may be a constant (a gate that weighs constants).
    """

    name: str | None
    writes: bool
    switch: int | None
    spec: OperationSpec
    role: Role
    computes: bool
    guard: Callable[[Operation], None] | None
    is_simple: bool
    is_as_is: bool
    keeps: int
    drops_with_constants: int
    makes: int
    weighing: int

    def writes_in_place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call writes into its first argument."""
        if self.writes or "inplace" in kwargs:
            return self.writes or bool(kwargs["inplace"])
        return self.switch is not None and self.switch < len(args) and bool(args[self.switch])


class _Treatments(dict[Callable[..., Any], Treatment]):
    """The treatment of each function. It is resolved when the function is first called."""

    def __init__(self, resolve: Callable[[Callable[..., Any]], Treatment]) -> None:
        super().__init__()
        self._resolve = resolve

    def __missing__(self, function: Callable[..., Any]) -> Treatment:
        treatment = self[function] = self._resolve(function)
        return treatment


class OperationTable:
    """Rows of operations, by the plain names of torch functions.

    Attributes:
        treatments: the treatment of each torch function, also of functions without a row.

    Example::

        >>> table = OperationTable()
        >>> table.register("relu sigmoid|special_expit", OperationSpec(rule=Operation.value))
        >>> table.name_of(torch.special.expit)
        'sigmoid'
        >>> table.register("relu", OperationSpec(rule=Operation.value))
        Traceback (most recent call last):
        ...
        ValueError: 'relu' has a row in the table of operations already.
    """

    def __init__(self) -> None:
        self._rows: dict[str, OperationSpec] = {}
        self._plain_names: dict[str, str] = {}
        self._functions: dict[Callable[..., Any], OperationSpec] = {}
        self.treatments = _Treatments(self._resolve)

    # The rows -------------------------------------------------------------------------------------------------------

    def register(self, names: str | Callable[..., Any], spec: OperationSpec) -> None:
        """Add a row for torch functions.

        Args:
            names: plain names of torch functions, separated by blanks. Other names of the same function follow a bar,
                as in ``"acos|arccos"``. For a function without a plain name, such as ``torch.autograd.grad``, the
                function itself.
            spec: the row of each of them.

        Raises:
            ValueError: for a name that has a row already.
        """
        self.treatments.clear()
        if not isinstance(names, str):
            if names in self._functions:
                raise ValueError(f"{names!r} has a row in the table of operations already.")
            self._functions[names] = spec
            return
        for entry in names.split():
            name, *aliases = entry.split("|")
            for one in (name, *aliases):
                if one in self._plain_names:
                    raise ValueError(f"{one!r} has a row in the table of operations already.")
                self._plain_names[one] = name
            self._rows[name] = spec

    def __iter__(self) -> Iterator[tuple[str, OperationSpec]]:
        """Plain names and rows, in the order in which they were registered."""
        return iter(self._rows.items())

    def __len__(self) -> int:
        """How many functions have a row."""
        return len(self._rows)

    def row(self, name: str) -> OperationSpec:
        """The row of a plain name. For a name without a row, the row of unknown operations."""
        return self._rows.get(name, UNKNOWN)

    def names(self, *kinds: Kind) -> frozenset[str]:
        """Plain names of the operations of one or several kinds."""
        return frozenset(name for name, spec in self if any(spec.kind & kind for kind in kinds))

    def functions(self, kind: Kind) -> tuple[Callable[..., Any], ...]:
        """The public torch functions of a kind, which are keys for rules, in the order of the rows."""
        functions = (_public(name) for name, spec in self if spec.kind & kind)
        return tuple(function for function in functions if function is not None)

    # Names ----------------------------------------------------------------------------------------------------------

    def name_of(self, function: Callable[..., Any]) -> str | None:
        """Plain name of a torch function in any of its forms. None for a function that is not torch's own."""
        return self.treatments[function].name

    def _resolve(self, function: Callable[..., Any]) -> Treatment:
        name, writes, switch = self._identify(function)
        spec = self._functions.get(function, UNKNOWN) if name is None else self._rows.get(name, UNKNOWN)
        keeps = spec.keeps | spec.keeps_without_constants
        if keeps & Trait.GATE:
            keeps |= Trait.SQUASHED
        if not spec.has_weights:
            keeps |= Trait.BEFORE_FIRST_LAYER
        makes = spec.makes | (Trait.ACTIVATED if spec.kind & Kind.ACTIVATION else Trait.NONE)
        follows = spec.find_gate is None and not spec.keeps_without_constants and spec.guard is None
        is_simple = follows and name is not None and not spec.starts_function
        return Treatment(
            name=name,
            writes=writes,
            switch=switch,
            spec=spec,
            role=spec.role,
            computes=spec.role is Role.COMPUTES,
            guard=spec.guard,
            is_simple=is_simple,
            is_as_is=is_simple and spec.is_as_is,
            keeps=keeps.value,
            drops_with_constants=spec.keeps_without_constants.value,
            makes=makes.value,
            weighing=0 if spec.weighs_constants is None else Trait.GATE.value,
        )

    def _identify(self, function: Callable[..., Any]) -> tuple[str | None, bool, int | None]:
        """The plain name of a function, whether its name says that it writes in place, and its ``inplace`` argument.

        Args:
            function: a function as ``__torch_function__`` receives it: a method descriptor, a built-in, a function of
                ``torch.nn.functional``, an attribute's getter, an ``aten`` overload.

        Returns:
            The attributes ``name``, ``writes`` and ``switch`` of the function's :class:`Treatment`.
        """
        raw: str = getattr(function, "__name__", "")
        module = getattr(function, "__module__", None)
        if raw == "__get__":
            return getattr(function.__self__, "__name__", None), False, None  # type: ignore[attr-defined]
        if isinstance(function, Overload):
            module, raw = overload_name(function)
        if not (module is None or module == "torch" or module.startswith(TORCH_MODULES)):
            return None, False, None
        switch = None
        if isinstance(function, types.FunctionType):
            parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
            switch = parameters.index("inplace") if "inplace" in parameters else None
        if raw in self._plain_names:
            return self._plain_names[raw], raw in _WRITING, switch
        if raw.startswith("__") and raw.endswith("__"):
            plain = raw.strip("_")
            writes = plain in _WRITING or self._is_augmented(plain)
        else:
            plain = raw.rstrip("_")
            writes = plain != raw
        return self._plain_names.get(plain, plain), writes, switch

    def _is_augmented(self, plain: str) -> bool:
        """Whether an operator is an augmented assignment of Python, such as ``iadd`` for ``+=``."""
        known = self._plain_names.get(plain)
        return known is not None and plain[:1] == "i" and self._plain_names.get(plain[1:]) == known


#: Python's statements ``x[i] = y`` and ``x.attribute = y``, which write into ``x``.
_WRITING = frozenset(["setitem", "__set__"])


def _public(name: str) -> Callable[..., Any] | None:
    """The function of this plain name in ``torch.nn.functional`` or ``torch``, or None."""
    for namespace in (F, torch):
        function: Callable[..., Any] | None = getattr(namespace, name, None)
        if function is not None:
            return function
    return None
