"""The mode under which a forward pass runs: each operation that meets a contribution is replaced by its surrogate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from captum_cav.errors import ModelError, UnsupportedOperationError, UnsupportedOperationWarning
from captum_cav.propagation.account import Account
from captum_cav.propagation.marks import Mark, get_mark, set_mark, tensors_in
from captum_cav.propagation.operation import Identity, Operation, Rule, identify, writes_in_place
from captum_cav.propagation.taps import Tapped, tap
from captum_cav.rules import DEFAULTS, GUARDS, KEEPING_WEIGHTS, MAKING_WEIGHTS, QUERIES

_ADVICE = """{operation!r}{where} has no rule for how it passes contributions on. Define one for this attribution:
    from captum_cav import rules
    LayerCAV(..., rules={{{key}: rules.pass_through}})  # y_i comes from x_i alone (equation 7);
or rules.linear where y is linear in its input, or your own function of a rules.Operation.
on_unknown="gradient" goes on with its plain gradient instead."""


class Propagation(TorchFunctionMode):
    """Replaces, while active, every operation on a contribution-carrying tensor by its surrogate.

    The model is neither edited nor hooked by it: the mode sees module layers and functional calls alike. Parameters
    are detached as they are met, so nothing before the first tap builds a graph and no parameter ever joins one.

    Args:
        rules: rules that take precedence over the defaults, by torch function in any of its forms.
        on_unknown: ``"error"`` or ``"gradient"``: what to do where no rule is known.
        account: collects the shares of constants; None to leave them out.
        name_of: gives the qualified name of a module, for messages.
    """

    def __init__(
        self,
        rules: Mapping[Callable[..., Any], Rule],
        on_unknown: str,
        account: Account | None,
        name_of: Callable[[torch.nn.Module], str],
    ) -> None:
        super().__init__()
        self.account = account
        self.taps: list[Tapped] = []
        self.modules: list[torch.nn.Module] = []
        self._run = object()
        # By plain name, so that a rule for torch.relu governs F.relu and Tensor.relu_ too.
        self._rules = {identify(function).name or function: rule for function, rule in rules.items()}
        self._on_unknown = on_unknown
        self._name_of = name_of
        self._paused = False

    # What rules ask ---------------------------------------------------------------------------------------------

    def depends_on_inputs(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was computed from the inputs."""
        return get_mark(tensor, self._run) is not None

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is sigmoid- or softmax-like."""
        mark = get_mark(tensor, self._run)
        return mark is not None and mark.weight

    def add_constant(self, operation: Operation, output: torch.Tensor, part: torch.Tensor) -> None:
        """Enter a constant part of an operation's output in the account."""
        if self.account is not None and output.requires_grad:
            base = output._base
            if operation.in_place and base is not None:
                # What was written into a view goes on in its base.
                whole = torch.zeros_like(base)
                offset = output.storage_offset() - base.storage_offset()
                whole.as_strided(output.shape, output.stride(), offset).copy_(part)
                output, part = base, whole
            self.account.watch(output, part, self._descent(operation))

    def _descent(self, operation: Operation) -> int:
        """The tapped layers from which an operation's output comes."""
        taps = 0
        for tensor in operation.sources:
            mark = get_mark(tensor, self._run)
            taps |= mark.taps if mark is not None and id(tensor) not in operation.held else 0
        return taps

    # What the driver does ---------------------------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let torch calls through unseen."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def mark_input(self, tensor: torch.Tensor) -> None:
        """Note that a tensor is an input of the model."""
        set_mark(tensor, Mark(self._run, 0, False))

    def tap(self, value: Any) -> Any:
        """Tap a layer's input or output; returns what the model goes on with."""
        bit = 1 << len(self.taps)

        def mark(carrier: torch.Tensor, source: torch.Tensor) -> None:
            held = get_mark(source, self._run)
            set_mark(carrier, Mark(self._run, bit | (held.taps if held else 0), held is not None and held.weight))

        # A layer that the model runs under no_grad may carry all the same, once the model has left it.
        with self.paused(), torch.enable_grad():
            self.check_seen(value)
            handed_on, tapped = tap(value, mark)
        self.taps.append(tapped)
        return handed_on

    def check_seen(self, value: Any) -> None:
        """Refuse tensors of the forward pass that were made by something the mode did not see."""
        for tensor in tensors_in(value):
            if tensor.grad_fn is not None and get_mark(tensor, self._run) is None:
                raise self._unseen(tensor, "the end of the forward pass" if not self.modules else "a requested layer")

    def enter_module(self, module: torch.nn.Module) -> None:
        """Refuse a module that would act at random or change itself; remember where the forward pass is."""
        if module.training and _differs_in_training(module):
            raise ModelError(
                f"{self._describe(module)} is in training mode, where it acts at random or changes its statistics; "
                "call model.eval() first."
            )
        self.modules.append(module)

    def leave_module(self) -> None:
        """The innermost module returned or raised."""
        self.modules.pop()

    # Dispatch ---------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        identity = identify(func)
        if self._paused or identity.name in QUERIES:
            return func(*args, **kwargs)
        found: list[tuple[torch.Tensor, Mark]] = []
        args = tuple([self._admit(value, found, func) for value in args])
        if kwargs:
            kwargs = {key: self._admit(value, found, func) for key, value in kwargs.items()}
        guard = GUARDS.get(identity.name or "")
        if not found and guard is None:
            return func(*args, **kwargs)
        in_place = writes_in_place(identity, args, kwargs)
        sources = [tensor for tensor, _ in found]
        operation = Operation(identity, func, args, kwargs, sources, in_place, self)
        if guard is not None:
            guard(operation)
        if in_place:
            self._preserve(args[0])
            self._check_recorded(args[0], identity.name)
        if not any(tensor.requires_grad for tensor in sources):
            output = func(*args, **kwargs)
            if found:
                self._mark(args[0] if output is None else output, identity.name, found)
            return output
        output = self._rule(func, identity)(operation)
        if not operation.written_out:
            found = [(tensor, mark) for tensor, mark in found if id(tensor) not in operation.held]
            self._mark(args[0] if output is None else output, identity.name, found)
        return output

    def _admit(self, value: Any, found: list[tuple[torch.Tensor, Mark]], func: Callable[..., Any]) -> Any:
        """Pass an argument on, parameters detached; collect the tensors that depend on the inputs."""
        if isinstance(value, torch.Tensor):
            mark = get_mark(value, self._run)
            if mark is not None:
                found.append((value, mark))
            elif value.requires_grad:
                if value.grad_fn is not None:
                    raise self._unseen(value, repr(identify(func).name or getattr(func, "__name__", func)))
                return value.detach()
        elif type(value) in (tuple, list):
            return type(value)([self._admit(item, found, func) for item in value])
        return value

    def _rule(self, func: Callable[..., Any], identity: Identity) -> Rule:
        own = self._rules.get(identity.name or func)
        return own or DEFAULTS.get(identity.name or "", Operation.gradient)

    def _mark(self, output: Any, name: str | None, sources: list[tuple[torch.Tensor, Mark]]) -> None:
        """Mark what an operation made of its sources."""
        taps, bypassing = 0, False
        for tensor, mark in sources:
            if tensor.requires_grad:
                taps |= mark.taps
            else:
                bypassing = True
        weight = name in MAKING_WEIGHTS or (name in KEEPING_WEIGHTS and all(mark.weight for _, mark in sources))
        for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
            if tensor.is_floating_point():
                if tensor.requires_grad:
                    set_mark(tensor, Mark(self._run, taps, weight))
                elif bypassing:
                    set_mark(tensor, Mark(self._run, 0, weight))
                # Made of carriers alone and without a graph, it was detached by the model: a constant.

    def _preserve(self, target: Any) -> None:
        """Keep tapped values apart from a tensor that the model is about to write into."""
        if isinstance(target, torch.Tensor):
            storage = target.untyped_storage().data_ptr()
            for tapped in self.taps:
                tapped.preserve(storage)

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
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors_in(output)):
            if self._on_unknown == "error":
                raise self.unsupported(operation.name, operation.function)
            warnings.warn(
                f"{operation.name!r}{self.where()} has no rule; its plain gradient was passed on.",
                UnsupportedOperationWarning,
                stacklevel=2,
            )
        return output

    def unsupported(self, name: str, function: Callable[..., Any] | None = None) -> UnsupportedOperationError:
        """The error for an operation without a rule."""
        key = torch.overrides.resolve_name(function) if function is not None else None
        if isinstance(function, torch._ops.OpOverload):
            key = f"torch.ops.{key}"
        return UnsupportedOperationError(
            _ADVICE.format(operation=name, where=self.where(), key=key or f"the function {name}")
        )

    def _unseen(self, tensor: torch.Tensor, destination: str) -> UnsupportedOperationError:
        node = tensor.grad_fn
        assert node is not None
        return UnsupportedOperationError(
            f"A tensor of shape {tuple(tensor.shape)} that requires grad reached "
            f"{destination}{self.where()} but was made by "
            f"{node.name()!r}, which captum_cav could not see (a custom autograd.Function, a scripted function, or a "
            "tensor computed before the forward pass). Write that step in torch operations, or detach the tensor if "
            "it should count as a constant."
        )

    def where(self) -> str:
        """The innermost module of the forward pass, for messages."""
        return f" in {self._describe(self.modules[-1])}" if self.modules else ""

    def _describe(self, module: torch.nn.Module) -> str:
        name = self._name_of(module)
        return f"module {name!r} ({type(module).__name__})" if name else f"the module {type(module).__name__}"


def _differs_in_training(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        return module.track_running_stats
    return isinstance(module, torch.nn.RReLU)
