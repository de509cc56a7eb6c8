"""The mode of a forward pass: a surrogate replaces each operation that takes a tensor with contributions."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from captum_cav.errors import UnsupportedOperationWarning
from captum_cav.propagation import explanation, quantized_weights, unknown
from captum_cav.propagation.audit import run_audited
from captum_cav.propagation.constant_operations import run_on_constants, usable
from captum_cav.propagation.function_mode import FunctionMode
from captum_cav.propagation.kinds import Role
from captum_cav.propagation.marking import (
    Sources,
    follow_memory,
    has_unmarked,
    mark_alike,
    mark_result,
    plain_with_mark,
    put_behind_taps,
    without_graph,
)
from captum_cav.propagation.marks import Mark, get_mark
from captum_cav.propagation.module_operation import ModuleCall
from captum_cav.propagation.module_stack import ModuleStack
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.results import check_result, expected_of, is_users
from captum_cav.propagation.rule import Rule
from captum_cav.propagation.table import OperationTable, Treatment
from captum_cav.propagation.taps import comes_from_carrier
from captum_cav.propagation.trace import Trace
from captum_cav.tensors import is_number, map_tensors, separate_node, tensors_in
from captum_cav.torch_internals import DERIVING_MODULES, age_of, hooks_on_saved_tensors, is_called_by, save_as_they_are

OnUnknown: TypeAlias = Literal["error", "gradient", "note"]

_DEFAULT = "default"
# Types of arguments that contain no tensors.
_PLAIN = frozenset([int, float, bool, str, type(None), torch.dtype, torch.device])


class Propagation(FunctionMode):
    """While this mode is active, a surrogate replaces each operation on a tensor that carries contributions.

    The mode sees module layers and functional calls alike, so the model need not be edited. Parameters are detached
    when an operation takes them. So no graph begins before the first tap, and no parameter is in the graph.

    Args:
        table: what is known of each torch function.
        rules: the user's rules, which go before the defaults.
        on_unknown: what to do with an operation without a rule: ``"error"``, ``"gradient"`` with a warning, or
            ``"note"`` for the gradient and a note in the trace.
        trace: the state of the pass.
        names_of: gives the qualified names of a module.

    Attributes:
        trace: the state of the pass.
        modules: the modules in which the forward pass is.
        is_paused: whether the mode lets torch calls pass unchanged for now.
        is_suspended: whether another attribution runs inside the forward pass, or the forward pass is finished.
        is_finished: whether the forward pass is finished. The mode does nothing any more, wherever it was left.
    """

    def __init__(
        self,
        table: OperationTable,
        rules: Rulebook,
        on_unknown: OnUnknown,
        trace: Trace,
        names_of: Callable[[torch.nn.Module], Sequence[str]],
    ) -> None:
        super().__init__()
        self.trace = trace
        self.modules = ModuleStack(rules, names_of)
        self.is_suspended = False
        self.is_finished = False
        self._run = trace.run
        self._rules = rules
        self._has_rules_for_functions = rules.are_for_functions
        self._treatments = table.treatments
        self._on_unknown = on_unknown
        self._is_watched = trace.is_watched
        self.keeps_graphs = torch.is_grad_enabled()
        self.is_paused = False
        self._recognises = True
        self._saved_as = hooks_on_saved_tensors()

    # Dispatch -------------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_paused or self.is_suspended:
            return func(*args, **kwargs)
        treatment = self._treatments[func]
        if not treatment.computes:
            if self._passes_unchanged(treatment.role, args):
                return func(*args, **kwargs)
            # Contributions are no gradients. A hook that scales or records gradients must not meet them.
            if treatment.role is Role.REGISTERS_HOOK:
                return RemovableHandle(OrderedDict())
            if treatment.role is Role.READS_NODE:
                return separate_node(args[0])
        if types and types != (torch.Tensor,):
            if quantized_weights.are_in(args, kwargs):
                return quantized_weights.run(self, func, args, kwargs)
            plain = partial(plain_with_mark, self._run)
            args = map_tensors(plain, args)
            kwargs = {key: map_tensors(plain, value) for key, value in kwargs.items()}
        given, given_kwargs = args, kwargs
        sources: Sources = []
        args = self._admit_all(args, sources, func)
        if kwargs:
            kwargs = {
                key: value if value.__class__ in _PLAIN else self._admit(value, sources, func)
                for key, value in kwargs.items()
            }
        if not sources and treatment.guard is None:
            return run_on_constants(func, (args, kwargs), (given, given_kwargs), treatment, self.keeps_graphs)
        if treatment.spec.first_only:
            sources = [(tensor, mark) for tensor, mark in sources if tensor is args[0]]
        if "out" in kwargs and isinstance(kwargs["out"], torch.Tensor):
            return self._run_into(given_kwargs["out"], func, args, kwargs)
        in_place = treatment.writes_in_place(args, kwargs)
        if in_place and isinstance(given[0], torch.Tensor):
            args = self._prepare_writing(given[0], args, sources, treatment)
        if self._is_as_is(treatment, sources):
            output = func(*args, **kwargs)
            mark_alike(args[0] if output is None else output, *sources[0], treatment, in_place)
        else:
            output = self._run_by_rule(func, args, kwargs, treatment, sources, in_place)
        if in_place and isinstance(args[0], torch.Tensor):
            follow_memory(self.trace, args[0])
        return output

    def _admit_all(self, args: tuple[Any, ...], sources: Sources, func: Callable[..., Any]) -> tuple[Any, ...]:
        """Return the positional arguments as :meth:`_admit` returns them. Every operation passes here."""
        changed: list[Any] | None = None
        for position, value in enumerate(args):
            if value.__class__ in _PLAIN:
                continue
            admitted = self._admit(value, sources, func)
            if admitted is not value:
                if changed is None:
                    changed = list(args)
                changed[position] = admitted
        return args if changed is None else tuple(changed)

    def _admit(self, value: Any, sources: Sources, func: Callable[..., Any]) -> Any:
        """Return an argument with its parameters detached, and add the tensors that depend on the inputs to sources."""
        if isinstance(value, torch.Tensor):
            mark = get_mark(value, self._run)
            if mark is not None:
                sources.append((value, mark))
                if mark.handoff is not None:
                    mark.handoff.consumers += 1
            elif value.is_inference():
                return usable(value)
            elif value.requires_grad:
                if self._is_unseen(value):
                    name = self._treatments[func].name or getattr(func, "__name__", None) or func
                    raise unknown.unseen(value, f"reached {name!r}", self.where())
                return value.detach()
        elif isinstance(value, (tuple, list)):
            for item in value:
                if item.__class__ not in _PLAIN:
                    break
            else:
                return value
            admitted = [item if item.__class__ in _PLAIN else self._admit(item, sources, func) for item in value]
            # Exported graphs have lists of a class of their own.
            return tuple(admitted) if isinstance(value, tuple) else admitted
        return value

    def _passes_unchanged(self, role: Role, args: tuple[Any, ...]) -> bool:
        """Whether a function that does not compute is called with its arguments unchanged."""
        if role is Role.ASKS:
            return True
        if role is Role.DIFFERENTIATES:
            raise unknown.derivatives_taken(self.where())
        if get_mark(args[0], self._run) is not None:
            return role is Role.ASKS_FOR_GRADIENT or (role is Role.READS_NODE and not args[0].requires_grad)
        # A tensor that the model lets require grad is a constant, unless torch takes derivatives by it.
        if role is Role.ASKS_FOR_GRADIENT and is_called_by(DERIVING_MODULES, 3):
            raise unknown.derivatives_taken(self.where())
        # A model that sets the data of a parameter must change the parameter, not a detached copy.
        return True

    def _is_unseen(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor without a mark was made from carriers in this forward pass, but unseen by the mode."""
        return tensor.grad_fn is not None and age_of(tensor) > self.trace.began and comes_from_carrier(tensor)

    def _is_as_is(self, treatment: Treatment, sources: Sources) -> bool:
        """Whether the function is its own surrogate here. Most functions are, and run without an :class:`Operation`."""
        return (
            treatment.is_simple
            and len(sources) == 1
            and (treatment.is_as_is or not sources[0][0].requires_grad)
            and ((handoff := sources[0][1].handoff) is None or not (handoff.is_for_all or treatment.spec.recognise))
            and not sources[0][1].traits & treatment.weighing
            and not self._is_watched
            and not self.modules.candidates
            and not (self._has_rules_for_functions and self._rules.of_function(treatment.name))
            and hooks_on_saved_tensors() == self._saved_as
        )

    def _run_by_rule(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        treatment: Treatment,
        sources: Sources,
        in_place: bool,
    ) -> Any:
        """Run an operation by its rule, and mark its output."""
        name = treatment.name or str(getattr(func, "__qualname__", func))
        tensors = [tensor for tensor, _ in sources]
        carries = any(tensor.requires_grad for tensor in tensors)
        operation = Operation(name, treatment.spec, func, args, kwargs, tensors, in_place, self)
        if treatment.guard is not None:
            treatment.guard(operation)
        key = treatment.name or func
        if carries:
            recognise = treatment.spec.recognise
            fused = None if recognise is None or not self._recognises else recognise(operation)
            if fused is not None:
                return self._run_rewritten(operation, fused)
            output = self.apply_rule(operation, *self._choose_rule(operation, key), self.modules.innermost)
        elif treatment.weighing and operation.weighs_constants:
            output = self._run_bypassing(operation, *self._choose_rule(operation, key))
        else:
            output = operation.value()
        if not operation.is_decomposed or has_unmarked(self._run, output):
            result = args[0] if output is None else output
            mark_result(self.trace, result, operation, treatment, sources, in_place)
        return output

    def _choose_rule(self, operation: Operation, key: Any) -> tuple[Surrogate, str]:
        """The user's rule for an operation, or its default rule; and the key that chose the rule.

        Args:
            operation: the operation.
            key: the plain name of its function, or the function itself if it has no plain name.
        """
        rule, why = operation.spec.rule, _DEFAULT
        if self._has_rules_for_functions or self.modules.candidates:
            chosen = self._rules.choose(operation, key, self.modules.candidates)
            if chosen is not None:
                rule, why = chosen
                if chosen[0].operations is None and operation.handoff is not None:
                    # A rule for any operation shall not be passed over because a later operation completes a function.
                    operation.handoff.is_final = True
        return rule, why

    def _run_bypassing(self, operation: Operation, rule: Surrogate, why: str) -> Any:
        """Run an operation in which a gate weighs constants, and bypasses the explained layers."""
        # The output is a constant where the gate carries contributions, too. So no map depends on the other layers.
        if why is _DEFAULT or (isinstance(rule, Rule) and rule.holds_gates):
            with self.paused():
                return operation.by_default()
        return operation.value()

    def _run_rewritten(self, last: Operation, fused: Operation) -> Any:
        """Run a fused function in the place of the last operation of the same function, written out."""
        # Without a fused function, the output has the traits that the last operation gives it.
        marked = last if fused.fused is None else fused
        sources = [(x, mark) for x in marked.sources if (mark := get_mark(x, self._run)) is not None]
        output = self.apply_rule(fused, *self._choose_rule(fused, fused.name), self.modules.innermost)
        if last.in_place:
            output = last.args[0].copy_(output)
        marked.handoff = fused.handoff
        mark_result(self.trace, output, marked, self._treatments[fused.fused or last.function], sources, last.in_place)
        return output

    def apply_rule(self, operation: Operation, rule: Surrogate, why: str, module: torch.nn.Module | None) -> Any:
        """An operation's value by a rule.

        Args:
            operation: the operation.
            rule: its rule.
            why: the key that chose the rule, or "default".
            module: the module in which the operation runs.
        """
        # The torch calls of a rule are not operations of the model.
        before, self.is_paused = self.is_paused, True
        if why is _DEFAULT and not self._is_watched and hooks_on_saved_tensors() == self._saved_as:
            try:  # Most operations pass here.
                return rule(operation)
            finally:
                self.is_paused = before
        try:
            with save_as_they_are(self._saved_as):
                expected = expected_of(operation) if why is not _DEFAULT and is_users(rule) else None
                if self.trace.audited is None:
                    output = rule(operation)
                else:
                    output = run_audited(self.trace, operation, rule, module)
        finally:
            self.is_paused = before
        if expected is not None:
            where = f" in {self.modules.describe(module)}" if module is not None else self.where()
            check_result(expected, output, f"{rule!r} for {operation.name!r}{where}")
        if self.trace.rules is not None:
            explanation.note(self.trace.rules, operation, rule, why, self.modules.short_name(module))
        return output

    def _run_into(
        self, out: torch.Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operation with ``out=``. Autograd does not record ``out=``, so the result is copied into it."""
        # The operation may take the tensor into which it writes.
        put_behind_taps(self.trace, out, partial(unknown.output_of_several, self._treatments[func].name, self.where()))
        with self:
            result = func(*args, **{key: value for key, value in kwargs.items() if key != "out"})
            if result.shape != out.shape:
                raise unknown.resized(self._treatments[func].name, result, out, self.where())
            return out.copy_(result)

    def _prepare_writing(
        self, target: torch.Tensor, args: tuple[Any, ...], sources: Sources, treatment: Treatment
    ) -> tuple[Any, ...]:
        """Prepare that the model writes into a tensor values that carry contributions.

        Args:
            target: the tensor, as the model gave it.
            args: the arguments of the writing operation, the first of which stands for the tensor.
            sources: the tensors among the arguments that depend on the inputs. The tensor is added if it does so now.
            treatment: what is known of the operation.

        Returns:
            The arguments, the first of which is the tensor into which the operation must write.
        """
        self.trace.saved.before_writing(target)
        if target is not args[0]:
            refusal = partial(unknown.older_tensor, treatment.name, target, self.where())
            return (without_graph(target, self.trace.began, refusal), *args[1:])
        if target.requires_grad and not torch.is_grad_enabled():
            raise unknown.unrecorded(treatment.name, self.where())
        if put_behind_taps(self.trace, target, lambda: unknown.output_of_several(treatment.name, self.where())):
            marks = [(tensor, get_mark(tensor, self._run) or mark) for tensor, mark in sources]
            if all(tensor is not target for tensor, _ in sources):
                marks.insert(0, (target, cast(Mark, get_mark(target, self._run))))
            sources[:] = marks
        return args

    # Called by operations -------------------------------------------------------------------------------------------

    @contextmanager
    def decomposing(self, recognises: bool) -> Iterator[None]:
        """While this context is active, each torch function meets its own rule, also inside a rule.

        Args:
            recognises: whether to recognise functions that are written out.
        """
        before, self._recognises = self._recognises, recognises and self._recognises
        try:
            with self.paused(False), self:
                yield
        finally:
            self._recognises = before

    def run_without_rule(self, operation: Operation) -> Any:
        """Run an operation without a rule. If its output holds numbers, ``on_unknown`` says what happens then."""
        if unknown.is_quantized(operation.function):
            raise unknown.quantized(operation, self.where())
        output = operation.value()
        if any(map(is_number, tensors_in(output))):
            if self._on_unknown == "error":
                raise unknown.no_rule(operation, output, self.where())
            if self._on_unknown == "note":
                self.trace.unknown.append(unknown.noted(operation, output, self.modules.describe_innermost()))
            else:
                warnings.warn(
                    f"{operation.name!r}{self.where()} has no rule; its plain gradient was passed on.",
                    UnsupportedOperationWarning,
                    stacklevel=2,
                )
        return output

    def where(self) -> str:
        """Where in the model the forward pass is, for messages."""
        return self.modules.where()

    def row_of(self, function: Callable[..., Any]) -> tuple[str, OperationSpec]:
        """The plain name and the row of a torch function."""
        treatment = self._treatments[function]
        assert treatment.name is not None
        return treatment.name, treatment.spec

    @property
    def has_default_rules_only(self) -> bool:
        """Whether all operations have their default rules here, and nothing but contributions is recorded."""
        return not (self._is_watched or self._has_rules_for_functions or self.modules.candidates)

    # Called by the forward pass -------------------------------------------------------------------------------------

    @property
    def is_at_rest(self) -> bool:
        """Whether the mode lets torch calls pass unchanged for now."""
        return self.is_paused or self.is_suspended

    def finish(self) -> None:
        """Note that the forward pass is finished."""
        self.is_suspended = self.is_finished = True

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Go on with a finished forward pass while this context is active."""
        self.is_suspended = self.is_finished = False
        try:
            yield
        finally:
            self.finish()

    @contextmanager
    def paused(self, is_paused: bool = True) -> Iterator[None]:
        """Let torch calls pass unchanged while this context is active, or replace them again."""
        before, self.is_paused = self.is_paused, is_paused
        try:
            yield
        finally:
            self.is_paused = before

    def tap(self, value: Any) -> Any:
        """Tap a layer's input or output; returns the value with which the model goes on."""
        # The model may run the layer under no_grad, and use its output outside of no_grad.
        with self.paused(), torch.enable_grad():
            self.check_seen(value)
            return self.trace.tap(value)

    def check_seen(self, value: Any) -> None:
        """Refuse tensors that an operation made in this forward pass, unseen by the mode."""
        for tensor in (value,) if isinstance(value, torch.Tensor) else tensors_in(value):
            if get_mark(tensor, self._run) is None and self._is_unseen(tensor):
                raise unknown.unseen(tensor, "comes out", self.where() or " at the end of the forward pass")

    @contextmanager
    def saving_before_writing(self) -> Iterator[None]:
        """While this context is active, the model may write over what autograd saves for the backward pass.

        Torch records nothing inside a custom autograd function, so such a function may write over anything.
        """
        before = self._saved_as
        with saved_tensors_hooks(self.trace.saved.save, lambda saved: saved.value):
            self._saved_as = hooks_on_saved_tensors()
            try:
                yield
            finally:
                self._saved_as = before

    # A module as one operation --------------------------------------------------------------------------------------

    def run_module_call(
        self,
        module: torch.nn.Module,
        rule: tuple[Surrogate, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        written: list[torch.Tensor],
    ) -> Any:
        """The value of the whole call of a module as one operation, by its rule.

        Args:
            module: the module, which has run unseen.
            rule: its rule, and the key that chose the rule.
            args, kwargs: its arguments.
            output: what the module returned.
            written: the arguments into whose copies the module wrote.
        """
        sources: Sources = []
        args = tuple([self._admit(value, sources, module) for value in args])
        kwargs = {key: self._admit(value, sources, module) for key, value in kwargs.items()}
        tensors = [tensor for tensor, _ in sources]
        operation = ModuleCall(module, args, kwargs, tensors, output, self)
        with self.paused(), torch.enable_grad():
            if any(tensor.requires_grad for tensor in tensors):
                output = self.apply_rule(operation, *rule, module)
            else:
                output = operation.value_as_constant()
            for argument in written:
                # The module wrote into a copy. The model still uses the argument, which must get the new value.
                self.trace.saved.before_writing(argument)
                output = argument.copy_(output)
            mark_result(self.trace, output, operation, self._treatments[ModuleCall], sources, bool(written))
            if written:
                follow_memory(self.trace, output)
        return output
