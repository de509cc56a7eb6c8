"""The mode under which a forward pass runs: each operation that meets a contribution is replaced by its surrogate."""

from __future__ import annotations

import functools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from captum_cav.checks import acts_as_in_training, has_old_backward_hook
from captum_cav.errors import (
    CAVTypeError,
    ModelError,
    OptionError,
    UnsupportedOperationError,
    UnsupportedOperationWarning,
)
from captum_cav.propagation.account import Account, Ledger, Notes
from captum_cav.propagation.audit import Audit
from captum_cav.propagation.kept import Keeper, Kept
from captum_cav.propagation.marks import NONNEGATIVE, RAW, Mark, Origin, get_mark, is_number, set_mark, tensors_in
from captum_cav.propagation.operation import Identity, ModuleCall, Operation, Surrogate, identify, writes_in_place
from captum_cav.propagation.overrides import Candidate, Rulebook
from captum_cav.propagation.surroundings import (
    age_of,
    apply_unfollowed,
    hooks_on_saved_tensors,
    innermost_called,
    now,
    run_as_written,
    saving_as_is,
)
from captum_cav.propagation.taps import Tapped, make_twins, tap, twins_of
from captum_cav.rules import (
    DEFAULTS,
    GUARDS,
    HANDING_ON,
    KEEPING,
    MAKING,
    NONNEGATIVE_TOGETHER,
    PLAIN,
    QUERIES,
    SHAPED_LIKE,
)
from captum_cav.rules.activation import GATES, written_gate
from captum_cav.rules.rule import FunctionRule, Rule

_ADVICE = """{operation!r}{where} has no rule for how it passes contributions on. Define one for this attribution:
    from captum_cav import rules
    LayerCAV(..., rules={{{key}: rules.pass_through}})  # y_i comes from x_i alone (equation 7);
or rules.linear where y is linear in its input, or your own function of a rules.Operation.
on_unknown="gradient" goes on with its plain gradient instead."""


_OF_ITS_MODULE = (
    "Write that step in torch operations, rule the module that does it as one by "
    "rules={module: rules.PassThroughRule()} or a function of your own, or detach the tensor if it should count as a "
    "constant."
)

Log: TypeAlias = Callable[[Operation, Surrogate, str, torch.nn.Module | None], None]


class Propagation(TorchFunctionMode):
    """Replaces, while active, every operation on a contribution-carrying tensor by its surrogate.

    The model is neither edited nor hooked by it: the mode sees module layers and functional calls alike. Parameters
    are detached as they are met, so nothing before the first tap builds a graph and no parameter ever joins one.

    Args:
        rules: the user's rules, which go before the defaults.
        on_unknown: ``"error"``, ``"gradient"``, or ``"note"`` for the gradient and a note: what to do where no rule is
            known.
        account: collects the shares of constants; None to leave them out.
        names_of: gives the qualified names of a module.
        log: called with each operation that meets a rule, that rule, why it was chosen and the module; None not to.
        audited: whether to compare what comes into each operation in the backward pass and out of it.
    """

    def __init__(
        self,
        rules: Rulebook,
        on_unknown: str,
        account: Account | None,
        names_of: Callable[[torch.nn.Module], Sequence[str]],
        log: Log | None = None,
        audited: bool = False,
    ) -> None:
        super().__init__()
        self.account = account
        self.taps: list[Tapped] = []
        self.modules: list[torch.nn.Module] = []
        self.notes = Notes(account)
        self.unknown: list[Unknown] = []
        # Set while another attribution runs inside the forward pass.
        self.suspended = False
        self._run = object()
        assert not audited or account is not None
        self.audit = Audit(account, self.notes, self._run) if audited and account is not None else None
        self._rules = rules
        # For each module that the forward pass is in, the rules for what runs there, best first.
        self._candidates: list[list[Candidate]] = []
        # The module whose call is ruled as one operation while it runs, its rule and its arguments.
        self._as_one: _AsOne | None = None
        self._on_unknown = on_unknown
        self._names_of = names_of
        self._log = log
        # Whether operations are to be counted, named or compared, not only followed.
        self._is_watched = account is not None or log is not None or audited
        self._keeper = Keeper()
        self._paused = False
        self._saved_as = hooks_on_saved_tensors()
        # Whoever asks for the attribution may be a module in its call itself.
        self._asking = innermost_called()
        self._began = now()

    # What rules ask ---------------------------------------------------------------------------------------------

    def depends_on_inputs(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was computed from the inputs."""
        return get_mark(tensor, self._run) is not None

    def has_trait(self, tensor: torch.Tensor, trait: int) -> bool:
        """Whether a tensor that depends on the inputs has a trait (see :mod:`captum_cav.propagation.marks`)."""
        mark = get_mark(tensor, self._run)
        return mark is not None and bool(mark.traits & trait)

    def origin_of(self, tensor: torch.Tensor) -> Origin | None:
        """What the rule of the operation that made a tensor left for the next one."""
        mark = get_mark(tensor, self._run)
        return None if mark is None else mark.origin

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Keep a value for the backward pass."""
        return self._keeper.keep(tensor)

    def by_default(self, operation: Operation) -> Any:
        """Build an operation's value by its default rule."""
        return DEFAULTS.get(operation.name, Operation.gradient)(operation)

    def add_constant(self, operation: Operation, output: torch.Tensor, part: torch.Tensor) -> None:
        """Enter a constant part of an operation's output in the account."""
        if self.account is not None and output.requires_grad:
            base = output._base
            if base is not None:
                # What is written into a view, now or later, goes on in its base.
                part = _in_base(output, base, part)
                output = base
            self.account.watch(output, part, self._descent(operation))

    def ledger(self, operation: Operation) -> Ledger:
        """What an operation's rule may keep to report shares of constants in the backward pass."""
        return Ledger(self.notes, self._descent(operation))

    def _descent(self, operation: Operation) -> int:
        """The tapped layers from which an operation's output comes."""
        taps = 0
        for tensor in operation.sources:
            mark = get_mark(tensor, self._run)
            taps |= mark.taps if mark is not None and id(tensor) not in operation.held else 0
        return taps

    # What the driver does ---------------------------------------------------------------------------------------

    @contextmanager
    def paused(self, paused: bool = True) -> Iterator[None]:
        """Let torch calls through unseen, or see them again."""
        before, self._paused = self._paused, paused
        try:
            yield
        finally:
            self._paused = before

    def mark_input(self, tensor: torch.Tensor) -> None:
        """Note that a tensor is an input of the model."""
        set_mark(tensor, Mark(self._run, 0, RAW))

    def tap(self, value: Any) -> Any:
        """Tap a layer's input or output; returns what the model goes on with."""
        bit = 1 << len(self.taps)

        def mark(carrier: torch.Tensor, source: torch.Tensor) -> None:
            held = get_mark(source, self._run)
            if held is not None:
                make_twins(source, carrier)
            set_mark(carrier, Mark(self._run, bit, 0) if held is None else held._replace(taps=held.taps | bit))

        # A layer that the model runs under no_grad may carry all the same, once the model has left it.
        with self.paused(), torch.enable_grad():
            self.check_seen(value)
            handed_on, tapped = tap(value, self.keep, mark)
        self.taps.append(tapped)
        return handed_on

    def check_seen(self, value: Any) -> None:
        """Refuse tensors of the forward pass that were made by something the mode did not see."""
        for tensor in (value,) if isinstance(value, torch.Tensor) else tensors_in(value):
            unmarked = get_mark(tensor, self._run) is None
            if unmarked and tensor.grad_fn is not None and age_of(tensor) > self._began:
                raise self._unseen(tensor, "comes out")

    def take(self, value: Any) -> None:
        """Note that the tensors of a value are read off as they are, by no operation."""
        for tensor in tensors_in(value):
            origin = self.origin_of(tensor)
            if origin is not None:
                origin.takers += 1

    def enter_module(self, module: torch.nn.Module) -> bool:
        """Refuse a module that would act at random or change itself; remember where the forward pass is.

        Args:
            module: the module whose call begins.

        Returns:
            Whether any rule may be for what runs inside.
        """
        if acts_as_in_training(module):
            raise ModelError(
                f"{self._describe(module)} is in training mode, where it acts at random or changes its statistics; "
                "call model.eval() first."
            )
        if has_old_backward_hook(module):
            raise ModelError(
                f"{self._describe(module)} has a hook by register_backward_hook, which torch attaches to what runs "
                "inside it; use register_full_backward_hook, or remove it meanwhile."
            )
        candidates = self._candidates[-1] if self._candidates else []
        if self._rules.may_be_for(module):
            own = self._rules.of_module(module, self._names_of(module), len(self.modules))
            if own:
                candidates = sorted([*candidates, *own], key=lambda candidate: candidate.rank, reverse=True)
        self.modules.append(module)
        self._candidates.append(candidates)
        return bool(candidates)

    def begin_call(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pause for a module that is ruled as one operation.

        Args:
            module: the module that was entered last.
            args: its positional arguments.

        Returns:
            What the module is to be given instead, None for no change: it may write into its arguments.
        """
        chosen = self._rule_of_call() if self._as_one is None else None
        if chosen is None:
            return None
        self._paused = True
        copies: tuple[Any, ...] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)
        self._as_one = _AsOne(module, *chosen, args, copies)
        return copies

    def _rule_of_call(self) -> tuple[Rule, str] | None:
        """The rule for the call of the innermost module as one operation, and why; None to rule what is inside."""
        depth = len(self.modules) - 1
        for candidate in self._candidates[-1]:
            for rule in candidate.rules if candidate.rank[1] == depth else ():
                if rule.as_one:
                    return rule, candidate.why
                if rule.operations is None:  # it rules all that is inside
                    return None
        return None

    def end_call(self, kwargs: dict[str, Any], output: Any) -> Any:
        """The module that is ruled as one operation returned or raised.

        Args:
            kwargs: its keyword arguments.
            output: what it returned, None if it raised.

        Returns:
            What it is to have returned instead, None for no change.
        """
        call, self._as_one, self._paused = self._as_one, None, False
        assert call is not None
        return None if output is None else self._rule_as_one(call, kwargs, output)

    def leave_module(self, output: Any) -> None:
        """The innermost module returned or raised.

        Args:
            output: what it returned, None if it raised.
        """
        if not self._paused:
            self.check_seen(output)
        self._candidates.pop()
        self.modules.pop()

    def is_at_rest(self) -> bool:
        """Whether torch calls go through unseen."""
        return self._paused or self.suspended

    def apply(self, function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a custom autograd function that the model applies.

        Its forward pass is followed like any other code. Its backward pass says nothing about contributions.
        """
        carriers = [tensor for tensor in tensors_in(args) if tensor.requires_grad and self.depends_on_inputs(tensor)]
        of_torch = function.__module__.startswith("torch.")  # hooks of modules, reentrant checkpoints
        if of_torch or not carriers:
            return apply_unfollowed(function, args, kwargs)
        output, constants = run_as_written(function, args, kwargs)
        if any(
            is_number(tensor) and not tensor.requires_grad and id(tensor) not in constants
            for tensor in tensors_in(output)
        ):
            raise UnsupportedOperationError(
                f"{function.__name__}, a custom autograd.Function{self.where()}, computes in a way that captum_cav "
                f"cannot see (a kernel of its own, or under torch.no_grad()). {_OF_ITS_MODULE}"
            )
        return output

    def _rule_as_one(self, call: _AsOne, kwargs: dict[str, Any], output: Any) -> Any:
        pairs = zip(tensors_in(call.args), tensors_in(call.copies), strict=True)
        written = [(argument, copy) for argument, copy in pairs if copy._version]
        if any(copy is not output for _, copy in written) or any(one is output for one in tensors_in(kwargs)):
            raise ModelError(
                f"{self._describe(call.module)} is ruled as one by {call.rule!r}, but writes into an argument "
                "that it does not return, or that came by keyword; call it by position, or rule what is inside it."
            )
        found: list[tuple[torch.Tensor, Mark]] = []
        args = tuple([self._admit(value, found, call.module) for value in call.args])
        kwargs = {key: self._admit(value, found, call.module) for key, value in kwargs.items()}
        sources = [tensor for tensor, _ in found]
        operation = ModuleCall(call.module, args, kwargs, sources, output, self)
        with self.paused(), torch.enable_grad():
            if any(tensor.requires_grad for tensor in sources):
                output = self._apply(operation, call.rule, call.why)
            else:
                output = operation.stopped()
            for argument, _ in written:
                # It worked on a copy; what the model holds is to have the new value too.
                self._preserve(argument)
                output = argument.copy_(output)
            self._mark(output, operation, _OF_MODULE, found, bool(written))
            if written:
                self._follow(output)
        return output

    # Dispatch ---------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or self.suspended:
            return func(*args, **kwargs)
        treatment = _treatment(func)
        if treatment.is_query:
            return func(*args, **kwargs)
        if func is torch.autograd.grad:
            raise self._derived()
        name = treatment.identity.name
        if name in _SETTING and self._is_setting(func, args):
            return func(*args, **kwargs)
        found: list[tuple[torch.Tensor, Mark]] = []
        args = tuple([value if value.__class__ in _PLAIN else self._admit(value, found, func) for value in args])
        if kwargs:
            kwargs = {key: self._admit(value, found, func) for key, value in kwargs.items()}
        if not found and treatment.guard is None:
            return func(*args, **kwargs)
        if name == "register_hook":
            # Contributions are no gradients: a hook that scales or records those has no business with them.
            return RemovableHandle(OrderedDict())
        if name in SHAPED_LIKE:
            # Another tensor gives the type or the shape alone.
            found = [(tensor, mark) for tensor, mark in found if tensor is args[0]]
        if "out" in kwargs and isinstance(kwargs["out"], torch.Tensor):
            return self._into(kwargs["out"], func, args, kwargs)
        in_place = writes_in_place(treatment.identity, args, kwargs)
        if in_place:
            self._preserve(args[0])
            self._check_recorded(args[0], name)
        if self._is_plain(treatment, found):
            output = func(*args, **kwargs)
            _mark_alike(args[0] if output is None else output, *found[0], treatment, in_place)
        else:
            operation = Operation(treatment.identity, func, args, kwargs, [one for one, _ in found], in_place, self)
            output = self._run_operation(operation, treatment, found)
        if in_place and isinstance(args[0], torch.Tensor):
            self._follow(args[0])
        return output

    def _run_operation(
        self, operation: Operation, treatment: _Treatment, found: list[tuple[torch.Tensor, Mark]]
    ) -> Any:
        """Run an operation by its rule, and mark what it gives."""
        if treatment.guard is not None:
            treatment.guard(operation)
        if any(tensor.requires_grad for tensor in operation.sources):
            output = self._apply(operation, *self._rule(operation, treatment))
        else:
            output = operation.value()
        if not operation.written_out or self._has_unmarked(output):
            result = operation.args[0] if output is None else output
            self._mark(result, operation, treatment, found, operation.in_place)
        return output

    def _is_plain(self, treatment: _Treatment, found: list[tuple[torch.Tensor, Mark]]) -> bool:
        """Whether an operation's surrogate is the operation: most are, and need not become an :class:`Operation`."""
        return (
            treatment.is_simple
            and len(found) == 1
            and (treatment.is_plain or not found[0][0].requires_grad)
            and found[0][1].origin is None
            and not self._is_watched
            and not (self._candidates and self._candidates[-1])
            and not self._rules.of_function(treatment.identity.name)
            and hooks_on_saved_tensors() == self._saved_as
        )

    def _is_setting(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Whether a gradient is asked for, or an attribute set of a tensor that has nothing to do with the inputs."""
        asks = identify(func).name == "requires_grad_"
        if get_mark(args[0], self._run) is not None:
            return asks
        # A tensor of its own that requires grad is a constant like any other, unless torch derives by it.
        if asks and sys._getframe(2).f_globals.get("__name__", "").startswith(_DERIVING):
            raise self._derived()
        # A model that sets its own parameter's data must find its own parameter.
        return True

    def _into(self, out: torch.Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that is to write into a given tensor, which autograd does not record."""
        with self:
            result = func(*args, **{key: value for key, value in kwargs.items() if key != "out"})
            if result.shape != out.shape:
                raise ModelError(
                    f"{identify(func).name!r}{self.where()} writes a result of shape {tuple(result.shape)} into "
                    f"out= of shape {tuple(out.shape)}, which would change that; give it one of the same shape."
                )
            return out.copy_(result)

    def _has_unmarked(self, output: Any) -> bool:
        """Whether a rule went on computing with what its operation, written out, gave."""
        return any(one.requires_grad and get_mark(one, self._run) is None for one in tensors_in(output))

    def _admit(self, value: Any, found: list[tuple[torch.Tensor, Mark]], func: Callable[..., Any]) -> Any:
        """Pass an argument on, parameters detached; collect the tensors that depend on the inputs."""
        if isinstance(value, torch.Tensor):
            mark = get_mark(value, self._run)
            if mark is not None:
                found.append((value, mark))
                if mark.origin is not None:
                    mark.origin.takers += 1
            elif value.requires_grad:
                if value.grad_fn is not None and age_of(value) > self._began:
                    raise self._unseen(value, f"reached {identify(func).name or getattr(func, '__name__', func)!r}")
                return value.detach()
        elif value.__class__ in _NESTED:
            if _PLAIN.issuperset([item.__class__ for item in value]):
                return value
            admitted = [item if item.__class__ in _PLAIN else self._admit(item, found, func) for item in value]
            return type(value)(admitted)
        return value

    def _rule(self, operation: Operation, treatment: _Treatment) -> tuple[Surrogate, str]:
        """The rule for an operation, and why it is that one."""
        for candidate in self._candidates[-1] if self._candidates else ():
            for rule in candidate.rules:
                if not rule.as_one and rule.governs(operation):
                    return rule, candidate.why
        for rule in self._rules.of_function(treatment.identity.name or operation.function):
            if rule.governs(operation):
                return rule, f"function {operation.name}"
        return treatment.default, _DEFAULT

    def _apply(self, operation: Operation, rule: Surrogate, why: str) -> Any:
        module = operation.module if isinstance(operation, ModuleCall) else self.modules[-1] if self.modules else None
        # What a rule does by itself is not the model's.
        before, self._paused = self._paused, True
        try:
            with saving_as_is(self._saved_as):
                expected = _expected(operation) if why is not _DEFAULT and _is_users(rule) else None
                output = rule(operation) if self.audit is None else self.audit.apply(operation, rule, module)
        finally:
            self._paused = before
        if expected is not None:
            where = f" in {self._describe(module)}" if module is not None else self.where()
            _check_result(expected, output, f"{rule!r} for {operation.name!r}{where}")
        if self._log is not None:
            self._log(operation, rule, why, module)
        return output

    def _mark(
        self,
        output: Any,
        operation: Operation,
        treatment: _Treatment,
        sources: list[tuple[torch.Tensor, Mark]],
        written: bool,
    ) -> None:
        """Mark what an operation made of its sources, or has written into."""
        taps, bypassing, traits = 0, False, treatment.keeping
        for tensor, mark in sources:
            traits &= mark.traits
            if not tensor.requires_grad:
                bypassing = True
            elif id(tensor) not in operation.held:
                taps |= mark.taps
        if traits & NONNEGATIVE and treatment.is_joining and not _are_all(operation, len(sources)):
            traits &= ~NONNEGATIVE
        traits |= treatment.making
        if treatment.may_be_gate and sources:
            traits |= written_gate(operation, sources[0][1].traits)
        origin = operation.origin
        if origin is None and treatment.hands_on and len(sources) == 1:
            origin = sources[0][1].origin
        for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
            if is_number(tensor):
                if tensor.requires_grad:
                    set_mark(tensor, Mark(self._run, taps, traits, origin), written=written)
                elif bypassing:
                    set_mark(tensor, Mark(self._run, 0, traits), written=written)
                # Made of carriers alone and without a graph, it was detached by the model: a constant.

    def _preserve(self, target: Any) -> None:
        """Keep tapped values apart from a tensor that the model is about to write into."""
        if isinstance(target, torch.Tensor):
            self._keeper.before_writing(target)

    def _follow(self, written: torch.Tensor) -> None:
        """Give what was written into a tensor to those that share its memory because a tap stands between them."""
        whole = written if written._base is None else written._base
        for twin in twins_of(whole):
            # Its values are there already, and what autograd saved of them is still right.
            with _unsafe_preserve_version_counter(twin):
                twin.copy_(whole)
            mark = get_mark(whole, self._run)
            if mark is not None:
                set_mark(twin, mark)

    def _derived(self) -> UnsupportedOperationError:
        """The error for derivatives that the model itself takes, whose graph is not followed."""
        return UnsupportedOperationError(
            f"The model takes derivatives in its forward pass{self.where()}, which captum_cav cannot follow. "
            f"{_OF_ITS_MODULE}"
        )

    def _check_recorded(self, target: Any, name: str | None) -> None:
        if isinstance(target, torch.Tensor) and target.requires_grad and not torch.is_grad_enabled():
            raise ModelError(
                f"{name!r}{self.where()} writes into a tensor that carries contributions while the model is under "
                "torch.no_grad(), so nothing records what became of them; pick a layer behind it."
            )

    # Messages ---------------------------------------------------------------------------------------------------

    def handle_unknown(self, operation: Operation) -> Any:
        """Run an operation without a rule if nothing is carried through it or its gradient was asked for."""
        output = operation.value()
        if any(map(is_number, tensors_in(output))):
            if self._on_unknown == "error":
                raise self.unsupported(operation.name, operation.function)
            if self._on_unknown == "note":
                module = self._describe(self.modules[-1]) if self.modules else ""
                self.unknown.append(Unknown(operation.name, module, _key_of(operation.name, operation.function)))
            else:
                warnings.warn(
                    f"{operation.name!r}{self.where()} has no rule; its plain gradient was passed on.",
                    UnsupportedOperationWarning,
                    stacklevel=2,
                )
        return output

    def unsupported(self, name: str, function: Callable[..., Any] | None = None) -> UnsupportedOperationError:
        """The error for an operation without a rule."""
        resolved = (torch.overrides.resolve_name(function) if function is not None else None) or ""
        if resolved.startswith(("quantized.", "torch.ops.quantized.")):
            return UnsupportedOperationError(
                f"{resolved.rpartition('.')[2]!r}{self.where()} runs on quantized numbers, which carry no "
                "contributions; pass the float model that it was made from."
            )
        return UnsupportedOperationError(
            _ADVICE.format(operation=name, where=self.where(), key=_key_of(name, function))
        )

    def _unseen(self, tensor: torch.Tensor, reached: str) -> UnsupportedOperationError:
        node = tensor.grad_fn
        assert node is not None
        return UnsupportedOperationError(
            f"A tensor of shape {tuple(tensor.shape)} that requires grad {reached}"
            f"{self.where() or ' at the end of the forward pass'} but was made by {node.name()!r}, which captum_cav "
            "could not see (a scripted function, reentrant checkpointing, or a custom autograd.Function whose apply "
            f"was taken beforehand). {_OF_ITS_MODULE}"
        )

    def where(self) -> str:
        """The innermost module of the forward pass, for messages."""
        module = self.modules[-1] if self.modules else innermost_called()
        return f" in {self._describe(module)}" if module not in (None, self._asking) else ""

    def _describe(self, module: torch.nn.Module) -> str:
        name = next(iter(self._names_of(module)), "")
        return f"module {name!r} ({type(module).__name__})" if name else f"the module {type(module).__name__}"


class _Treatment(NamedTuple):
    """What is known of a torch function before it is called: worked out once a function.

    Attributes:
        identity: its name, and how it writes in place.
        is_query: whether it asks something of a tensor without computing on it.
        guard: what refuses it where it acts at random, or None.
        default: its default rule.
        is_simple: whether what is known of its output follows from what is known of the tensors that it takes.
        is_plain: whether its default rule is the function itself where one tensor depends on the inputs.
        keeping: traits that its output has if all that depends on the inputs has them.
        making: traits that its output has.
        is_joining: whether constants that take part may be negative.
        may_be_gate: whether it may make a gate that is written by hand.
        hands_on: whether it is the identity at rest.
    """

    identity: Identity
    is_query: bool
    guard: Callable[[Operation], None] | None
    default: Surrogate
    is_simple: bool
    is_plain: bool
    keeping: int
    making: int
    is_joining: bool
    may_be_gate: bool
    hands_on: bool


@functools.cache
def _treatment(function: Callable[..., Any]) -> _Treatment:
    identity = identify(function)
    name = identity.name or ""
    default = DEFAULTS.get(name, Operation.gradient)
    special = name in GUARDS or name in GATES or name in NONNEGATIVE_TOGETHER or identity.name is None
    return _Treatment(
        identity,
        identity.name in QUERIES,
        GUARDS.get(name),
        default,
        not special,
        default in PLAIN,
        KEEPING.get(name, RAW),
        MAKING.get(name, 0),
        name in NONNEGATIVE_TOGETHER,
        name in GATES,
        name in HANDING_ON,
    )


_OF_MODULE = _treatment(ModuleCall)


def _mark_alike(output: Any, source: torch.Tensor, mark: Mark, treatment: _Treatment, written: bool) -> None:
    """Mark what an operation made of one tensor as that is, but for what the operation keeps and makes."""
    traits = mark.traits & treatment.keeping | treatment.making
    if traits != mark.traits:
        mark = Mark(mark.run, mark.taps, traits)
    bypassing = not source.requires_grad
    for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
        if (tensor.requires_grad or bypassing) and is_number(tensor):
            set_mark(tensor, mark, written=written)


_DEFAULT = "default"
# Types of arguments that hold no tensors.
_PLAIN = frozenset([int, float, bool, str, type(None), torch.dtype, torch.device])
_NESTED = (tuple, list)
# Modules of torch that take derivatives for their callers.
_DERIVING = ("torch.autograd.functional", "torch._functorch")
_SETTING = frozenset(["requires_grad_", "__set__"])


class Unknown(NamedTuple):
    """An operation without a rule.

    Attributes:
        operation: its plain name.
        module: the innermost module that it ran in, for messages; empty outside.
        key: what names it in ``rules``.
    """

    operation: str
    module: str
    key: str


def _key_of(name: str, function: Callable[..., Any] | None) -> str:
    key = torch.overrides.resolve_name(function) if function is not None else None
    if isinstance(function, torch._ops.OpOverload):
        key = f"torch.ops.{key}"
    return key or f"the function {name}"


class _AsOne(NamedTuple):
    """A running call of a module that is ruled as one operation."""

    module: torch.nn.Module
    rule: Rule
    why: str
    args: tuple[Any, ...]
    copies: tuple[Any, ...]


def _is_users(rule: Surrogate) -> bool:
    """Whether a rule was written by a user, who may err."""
    written = rule.function if isinstance(rule, FunctionRule) else type(rule) if isinstance(rule, Rule) else rule
    return not str(getattr(written, "__module__", "")).startswith("captum_cav.")


def _expected(operation: Operation) -> Any:
    """What an operation gives, without a graph and with nothing written over."""
    if not operation.in_place:
        with torch.no_grad():
            return operation.value()
    if identify(operation.function).name == "setitem":
        return None
    first = operation.args[0]
    with torch.no_grad():
        return operation.on({id(first): first.detach().clone()}).value()


def _check_result(expected: Any, found: Any, rule: str) -> None:
    """Refuse what a user's rule returned where the operation returns something else."""
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            raise CAVTypeError(
                f"the rule {rule} returned a {type(found).__name__}; expected a tuple of {len(expected)}, as the "
                "operation returns."
            )
        for part, made in zip(expected, found, strict=True):
            _check_result(part, made, rule)
        return
    if not isinstance(expected, torch.Tensor):
        return
    wanted = f"expected the operation's value, a tensor of shape {tuple(expected.shape)} and {expected.dtype}"
    if not isinstance(found, torch.Tensor):
        raise CAVTypeError(f"the rule {rule} returned {'None' if found is None else type(found).__name__}; {wanted}.")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise OptionError(f"the rule {rule} returned shape {tuple(found.shape)} and {found.dtype}; {wanted}.")
    if bool(torch.isfinite(expected).all()) and not bool(torch.isfinite(found.detach()).all()):
        raise OptionError(f"the rule {rule} returned NaN or infinity, where the operation's value has none.")


def _in_base(view: torch.Tensor, base: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A part of a view as a part of its base; both broadcast."""
    if part.dim() <= 1 and view.shape[-1:] == base.shape[-1:] == part.shape and view.numel() == base.numel():
        return part  # a bias, of a linear layer that torch gives as a view of its rows
    whole = torch.zeros_like(base)
    offset = view.storage_offset() - base.storage_offset()
    whole.as_strided(view.shape, view.stride(), offset).copy_(part)
    return whole


def _are_all(operation: Operation, sources: int) -> bool:
    """Whether an operation computes on its sources alone, without constants."""
    arguments = [*operation.args, *operation.kwargs.values()]
    # Joins name dimensions by numbers; a sum or product may take one, as a factor or its alpha, that is below 0.
    numbers = operation.name in ("add", "mul") and any(isinstance(value, (int, float)) for value in arguments)
    return not numbers and len(tensors_in(arguments)) == sources
