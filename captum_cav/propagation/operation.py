"""One operation of the forward pass, as a rule sees it, and the row of its torch function in the table."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from captum_cav.propagation.constant_shares import OperationShares
from captum_cav.propagation.kinds import Derivative, Kind, Numbers, Role
from captum_cav.propagation.marks import Handoff, get_mark, let_be_constant, set_mark
from captum_cav.propagation.reductions import reduction_of
from captum_cav.propagation.saved_values import SavedValue
from captum_cav.propagation.trace import Trace
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import is_number, map_tensors, tensors_in
from captum_cav.torch_internals import body_of, tree_map

_GATE, _WEIGHTS, _RECIPROCAL = Trait.GATE.value, Trait.WEIGHTS.value, Trait.RECIPROCAL.value
_ACTIVATED, _NONNEGATIVE = Trait.ACTIVATED.value, Trait.NONNEGATIVE.value
_BEFORE_FIRST_LAYER = Trait.BEFORE_FIRST_LAYER.value


class Surrogate(Protocol):
    """A function that computes one operation so that the gradient carries contributions.

    It takes an :class:`Operation` and returns *the same value* as the operation. Only the gradient differs.
    """

    def __call__(self, operation: Operation, /) -> Any:
        """Return the operation's value as a surrogate."""
        ...


@dataclass(frozen=True, kw_only=True)
class OperationSpec:
    """All that is known of a torch function: a row of the table of operations.

    Attributes:
        rule: the default rule.
        is_as_is: whether the function is its own surrogate if one tensor depends on the inputs. This holds without a
            handoff from the operation before, and while shares of constants are not measured.
        derivative: when the default rule passes the function's own derivative on.
        keeps: traits that the output has if all tensors that depend on the inputs have them.
        keeps_without_constants: traits that the output keeps only if no constant takes part.
        makes: traits that the output always has.
        find_gate: recognises a gate that is written by hand. Takes the operation and the traits of its first tensor,
            and returns more traits of the output.
        recognise: recognises a function that is written out. Takes the operation before its rule runs. Returns the
            fused function that the operation completes, or None. May leave a handoff for the operations that follow.
        starts_function: whether ``recognise`` sees the operation even if no operation before left a handoff.
        has_weights: whether the function applies a layer's weights, so that its output is not before the first layer.
        kind: the kind of operation.
        numbers: what plain numbers among the arguments mean.
        first_only: whether only the first argument gives numbers. Another tensor gives the type or the shape.
        hands_on: whether the function is the identity in evaluation mode, so that its output keeps the handoff of its
            input.
        guard: refuses the operation if it would act at random or change statistics, as in training mode.
        weighs_constants: whether a gate weighs only constants, so that the output is a constant, too. None for never.
        view_as_affine: gives the operation as an affine one (:class:`captum_cav.operations.affine.AffineView`), or None
            if the arguments do not allow that. None for functions that are never affine.
        gives_constants: whether torch gives the output without a graph, as ``detach`` and ``zeros_like`` do.
        role: what the function does.
    """

    rule: Surrogate
    is_as_is: bool = False
    derivative: Derivative = Derivative.NEVER
    keeps: Trait = Trait.NONE
    keeps_without_constants: Trait = Trait.NONE
    makes: Trait = Trait.NONE
    find_gate: Callable[[Operation, Trait], Trait] | None = None
    recognise: Callable[[Operation], Operation | None] | None = None
    starts_function: bool = False
    has_weights: bool = False
    kind: Kind = Kind.NONE
    numbers: Numbers = Numbers.SETTINGS
    first_only: bool = False
    hands_on: bool = False
    guard: Callable[[Operation], None] | None = None
    weighs_constants: Callable[[Operation], bool] | None = None
    view_as_affine: Callable[[Operation], Any] | None = None
    gives_constants: bool = False
    role: Role = Role.COMPUTES


class Engine(Protocol):
    """The part of the propagation that an operation uses."""

    trace: Trace

    def decomposing(self, recognises: bool) -> AbstractContextManager[Any]:
        """While this context is active, each torch function meets its own rule.

        Args:
            recognises: whether to recognise functions that are written out.
        """
        ...

    def run_without_rule(self, operation: Operation) -> Any:
        """Run an operation that has no rule, or refuse it."""
        ...

    def where(self) -> str:
        """Where in the model the forward pass is, for messages."""
        ...

    def row_of(self, function: Callable[..., Any]) -> tuple[str, OperationSpec]:
        """The plain name and the row of a torch function."""
        ...

    @property
    def has_default_rules_only(self) -> bool:
        """Whether all operations have their default rules here, and nothing but contributions is recorded."""
        ...


_NOT_LOOKED = object()


class Operation:
    """One call of a torch function in the forward pass. Some of its arguments carry contributions.

    A rule reads the arguments, and returns the operation's value as a surrogate: the gradient carries contributions.

    Attributes:
        name: the plain name of the function: ``"relu"`` for ``torch.relu_`` and for ``F.relu``.
        spec: the row of the function in the table of operations.
        function: the function that was called.
        args: the positional arguments, with parameters detached.
        kwargs: the keyword arguments, with parameters detached.
        sources: the tensors among the arguments that depend on the inputs. Some of them carry contributions.
        in_place: whether the call writes into its first argument.
        detached: identities of tensors that the rule treats as constants.
        is_decomposed: whether the rule runs other operations in the place of this one. Each of them has its own rule.
        is_constant: whether the output is a constant, because a gate weighs nothing but constants.
        handoff: what the rule leaves for the rules of the operations that take the output. None for nothing.
        fused: the torch function that the model wrote out, if the operation stands for several operations. None
            otherwise.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> def twice(operation):                                # a rule: the value, and twice the contribution
        ...     output = operation.value()
        ...     return output.detach() + 2 * (output - output.detach())
        >>> InputCAV(torch.neg, rules={torch.neg: twice}, normalize=None).attribute(torch.tensor([3.0]))
        tensor([-6.])
    """

    __slots__ = (
        "_affine",
        "_engine",
        "args",
        "detached",
        "function",
        "fused",
        "handoff",
        "in_place",
        "is_constant",
        "is_decomposed",
        "kwargs",
        "name",
        "sources",
        "spec",
    )

    def __init__(
        self,
        name: str,
        spec: OperationSpec,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[torch.Tensor],
        in_place: bool,
        engine: Engine,
    ) -> None:
        self.name = name
        self.spec = spec
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.sources = sources
        self.in_place = in_place
        self.detached: frozenset[int] = frozenset()
        self.is_decomposed = False
        self.is_constant = False
        self.handoff: Handoff | None = None
        self.fused: Callable[..., Any] | None = None
        self._affine: Any = _NOT_LOOKED
        self._engine = engine

    @property
    def as_affine(self) -> Any:
        """The operation as an affine one (:class:`captum_cav.operations.affine.AffineView`), or None.

        A rule looks at it twice, to see whether the rule applies, and to apply. It is worked out once.
        """
        if self._affine is _NOT_LOOKED:
            view = self.spec.view_as_affine
            self._affine = None if view is None else view(self)
        return self._affine

    # The value ------------------------------------------------------------------------------------------------------

    def value(self) -> Any:
        """The output of the function, differentiated as torch does."""
        return self.function(*self.args, **self.kwargs)

    def evaluate(self, x: torch.Tensor) -> Any:
        """The output of the function with another tensor ``x`` as its first argument."""
        return self.evaluator()(x) if self.kwargs else self.function(x, *self.args[1:])

    def evaluator(self) -> Callable[[torch.Tensor], Any]:
        """A function that does what :meth:`evaluate` does. It holds no graph, so the backward pass may keep it."""
        function, others = self.function, self.args[1:]
        options = {key: value for key, value in self.kwargs.items() if key != "input"} if self.kwargs else {}
        return lambda x: function(x, *others, **options)

    def plain_value(self) -> Any:
        """The output of the function, without a graph. Nothing is written."""
        args = (self.args[0].detach().clone(), *self.args[1:]) if self.in_place else self.args
        with torch.no_grad():
            return self.function(*args, **self.kwargs)

    def by_default(self) -> Any:
        """The operation's value by its default rule."""
        return self.spec.rule(self)

    def gradient(self) -> Any:
        """The operation's value as if it had no rule: an error, or its plain gradient with a warning."""
        return self._engine.run_without_rule(self)

    def value_as_constant(self) -> Any:
        """The value as a constant: contributions end here."""
        if not self.in_place:
            return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, self.value())
        target, value = self.args[0], self.plain_value()
        if self.is_constant:
            let_be_constant(target)
        self.add_constant(target.copy_(value), value)
        return target

    def value_as_weighed_constant(self) -> Any:
        """The value of an operation in which a gate weighs nothing but constants. The value is a constant, too."""
        self.is_constant, self._engine.trace.weighed = True, f"{self.name!r}{self.where}"
        output = self.value_as_constant()
        self.detached |= {id(source) for source in self.sources}
        return output

    def decompose(self, composite: Callable[..., Any], *args: Any, recognises: bool = True, **kwargs: Any) -> Any:
        """Run torch code in the place of the operation. Each operation inside has its own rule.

        Args:
            composite: torch code that computes the operation's value.
            args, kwargs: its arguments.
            recognises: whether functions may be written out inside. If not, it is faster not to look for them.

        Returns:
            The operation's value.
        """
        self.is_decomposed = True
        with self._engine.decomposing(recognises):
            output = composite(*args, **kwargs)
            return self.args[0].copy_(output) if self.in_place else output

    def decompose_body(self) -> Any:
        """Run the Python body of the function, so that each operation inside has its own rule."""
        if not isinstance(self.function, types.FunctionType):
            return self.gradient()
        return self.decompose(body_of(self.function), *self.args, **self.kwargs)

    @property
    def has_default_rules_inside(self) -> bool:
        """Whether all parts of the operation have their default rules. Then a rule may treat them as one operation."""
        return self._engine.has_default_rules_only

    def on(self, stand_ins: dict[int, torch.Tensor]) -> Operation:
        """The same operation on other tensors.

        Args:
            stand_ins: maps the identity of a tensor to the tensor that replaces it.
        """

        def stand_in(tensor: torch.Tensor) -> torch.Tensor:
            return stand_ins.get(id(tensor), tensor)

        operation = Operation(
            self.name,
            self.spec,
            self.function,
            map_tensors(stand_in, self.args),
            {key: map_tensors(stand_in, value) for key, value in self.kwargs.items()},
            [stand_in(tensor) for tensor in self.sources],
            self.in_place,
            self._engine,
        )
        operation.handoff = self.handoff
        return operation

    def rewritten(
        self,
        fused: Callable[..., Any] | None,
        function: Callable[..., Any],
        x: torch.Tensor,
        *settings: Any,
        rule: Surrogate | None = None,
    ) -> Operation:
        """Another operation that makes the same value from an earlier tensor.

        Args:
            fused: the torch function that does the same. Its rules count. None for the rules of this operation.
            function: computes the value from the earlier tensor.
            x: the earlier tensor.
            settings: further arguments.
            rule: the default rule. None for that of the fused function.
        """
        name, spec = (self.name, self.spec) if fused is None else self._engine.row_of(fused)
        spec = spec if rule is None else replace(spec, rule=rule)
        operation = Operation(name, spec, function, (x, *settings), {}, [x], False, self._engine)
        operation.fused = fused
        return operation

    # The arguments --------------------------------------------------------------------------------------------------

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def carries(self, value: Any) -> bool:
        """Whether a value is a tensor that carries contributions."""
        return isinstance(value, torch.Tensor) and value.requires_grad

    def depends_on_inputs(self, value: Any) -> bool:
        """Whether a value contains a tensor that was computed from the inputs."""
        run = self._engine.trace.run
        return any(get_mark(tensor, run) is not None for tensor in tensors_in(value))

    def traits_of(self, tensor: torch.Tensor) -> Trait:
        """What is known of the values of a tensor."""
        mark = get_mark(tensor, self._engine.trace.run)
        return Trait.NONE if mark is None else Trait(mark.traits)

    def is_gate(self, value: Any) -> bool:
        """Whether a value is a gate, such as a sigmoid or a softmax: its product counts as the other factor's."""
        return isinstance(value, torch.Tensor) and self._has_trait(value, _GATE)

    @property
    def weighs_constants(self) -> bool:
        """Whether a gate weighs nothing but constants here, so that the output is a constant by default."""
        return self.spec.weighs_constants is not None and self.spec.weighs_constants(self)

    def is_softmax(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a softmax, such as attention weights."""
        return self._has_trait(tensor, _WEIGHTS)

    def is_reciprocal(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a reciprocal, so that a product with the tensor is a division."""
        return self._has_trait(tensor, _RECIPROCAL)

    def is_activated(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the output of an activation such as SiLU or GELU."""
        return self._has_trait(tensor, _ACTIVATED)

    def is_nonnegative(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is known to have no value below 0."""
        return self._has_trait(tensor, _NONNEGATIVE)

    @property
    def is_at_input(self) -> bool:
        """Whether no layer with weights lies between the inputs and the operation."""
        return all(self._has_trait(tensor, _BEFORE_FIRST_LAYER) for tensor in self.sources)

    @property
    def reduction(self) -> float | None:
        """How many times smaller than the network's input the map is that the operation takes; None for no map.

        Products with a weight and attention take rows of features, which are no maps.
        """
        if self.spec.kind & (Kind.DENSE | Kind.ATTENTION):
            return None
        return reduction_of(self.name, self.sources, self._engine.trace.input_sizes)

    def _has_trait(self, tensor: torch.Tensor, trait: int) -> bool:
        mark = get_mark(tensor, self._engine.trace.run)
        return mark is not None and bool(mark.traits & trait)

    def handoff_of(self, tensor: Any) -> Handoff | None:
        """The handoff of the operation that made a tensor, or None."""
        mark = get_mark(tensor, self._engine.trace.run)
        return None if mark is None else mark.handoff

    def mark_as(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Mark a tensor of a rule as another tensor of the forward pass."""
        mark = get_mark(other, self._engine.trace.run)
        if mark is not None:
            set_mark(tensor, mark)

    def taps_of(self, tensor: torch.Tensor) -> int:
        """The tapped layers whose contributions a tensor carries, as a bit set."""
        return self._engine.trace.descent([tensor], frozenset())

    def detach(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as a constant, such as a gate or a statistic. No contributions pass through the tensor."""
        self.detached |= {id(tensor)}
        return tensor.detach()

    def without_inputs(self, value: Any) -> Any:
        """A (nested) argument in which zeros replace every tensor that depends on the inputs, except for integers."""

        def zeros_for(tensor: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(tensor) if is_number(tensor) and self.depends_on_inputs(tensor) else tensor

        return map_tensors(zeros_for, value)

    # The backward pass ----------------------------------------------------------------------------------------------

    def save(self, tensor: torch.Tensor) -> SavedValue:
        """Save a tensor's value for the backward pass. The value stays, even if the model overwrites the tensor."""
        return SavedValue(tensor.clone()) if self.in_place else self._engine.trace.saved.save(tensor)

    def release(self, saved: SavedValue) -> None:
        """Note that a rule, which saved a value, does not keep it any more."""
        self._engine.trace.saved.release(saved)

    def let_zeros_carry(self) -> None:
        """Note that the rule gives contributions to units of value 0."""
        self._engine.trace.shares.rules_for_zeros += 1

    @property
    def counts_constants(self) -> bool:
        """Whether shares of constants are measured, which costs some time."""
        return self._engine.trace.shares.is_measured

    def shares(self) -> OperationShares:
        """Where a rule reports shares of constants in the backward pass. The backward pass may keep this object."""
        trace = self._engine.trace
        return OperationShares(trace.shares, trace.descent(self.sources, self.detached))

    def add_constant(self, output: torch.Tensor, part: torch.Tensor) -> None:
        """Report the part of an output that comes from constants.

        Args:
            output: the operation's output, which carries contributions.
            part: what the output would be if every input were zero, of a shape that broadcasts to the output's shape.
        """
        trace = self._engine.trace
        if trace.shares.is_measured and output.requires_grad:
            trace.shares.watch(output, part, trace.descent(self.sources, self.detached))

    @property
    def where(self) -> str:
        """Where the operation runs, for use in messages, such as `` in module 'layer1' (Layer)``. May be empty."""
        return self._engine.where()


#: The row for functions without a row: the operation is refused, or its gradient is passed on.
UNKNOWN = OperationSpec(rule=Operation.gradient)


def describe_rule(rule: object) -> str:
    """A rule as a user would write it: ``GammaRule(gamma=0.5)``, or the name of a function."""
    return getattr(rule, "__name__", None) or repr(rule)
