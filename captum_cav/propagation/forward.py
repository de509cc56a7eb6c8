"""One forward pass under the propagation, and what is read off it backwards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from captum_cav.checks import acts_as_in_training, has_old_backward_hook, modules_of
from captum_cav.errors import ModelError, UnsupportedOperationError
from captum_cav.propagation.account import Account, Notes
from captum_cav.propagation.audit import Audit
from captum_cav.propagation.explanation import RuleLog
from captum_cav.propagation.marks import tensors_in
from captum_cav.propagation.mode import Propagation, Unknown
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.surroundings import set_aside
from captum_cav.propagation.taps import Tapped

# RemovableHandle numbers its hooks without a lock: two threads could get the same number and replace each other's.
_REGISTERING = threading.Lock()


_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Running(threading.local):
    """The propagation whose forward pass this thread is in."""

    mode: Propagation | None = None


_running = _Running()


def alone(attribution: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let an attribution run by itself wherever it is called.

    In the forward pass of a model that is being explained it is the model's own, and what it gives counts as a constant
    there. A compiler that traces the code around it leaves it out.
    """

    @functools.wraps(attribution)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            untraced: Callable[_P, _R] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
            return untraced(*args, **kwargs)
        with _suspended():
            return attribution(*args, **kwargs)

    return call


@contextmanager
def _suspended() -> Iterator[None]:
    """Suspend the propagation in whose forward pass this thread is."""
    outer, _running.mode = _running.mode, None
    if outer is not None:
        outer.suspended = True
    try:
        yield
    finally:
        _running.mode = outer
        if outer is not None:
            outer.suspended = False


class _Hook:
    """A hook on a module. A copy of the model that somebody makes meanwhile gets one that does nothing."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._act(*args, **kwargs)

    def __reduce__(self) -> tuple[type[_Idle], tuple[()]]:
        return _Idle, ()


class _Idle:
    """A hook that does nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None


class Site(NamedTuple):
    """Where to tap: a module's output or input."""

    module: torch.nn.Module
    of_input: bool


@dataclass
class Forward:
    """What a forward pass left: its output and the graph behind the taps.

    Attributes:
        args: what it was called with.
        output: what the model returned.
        carriers: for each call of a site, the tensors that carry contributions there, where they were to be kept.
        calls: for each site, the indices of its taps in ``taps``, one a call of the module.
        taps: what was tapped, in the order of the forward pass; the inputs first where they were tapped.
        account: the account of constants, or None.
        notes: what its rules had in common.
        log: which operation met which rule, or None.
        audit: what came of each operation in the backward pass, or None.
        unknown: operations without a rule, where they were to be noted.
    """

    args: tuple[Any, ...]
    output: Any
    carriers: list[Any]
    calls: list[list[int]]
    taps: list[Tapped]
    account: Account | None
    notes: Notes
    log: RuleLog | None
    audit: Audit | None
    unknown: list[Unknown]

    def coefficients(
        self, scores: torch.Tensor, seeds: torch.Tensor, chosen: Sequence[int], keep_graph: bool, **grad_kwargs: Any
    ) -> list[list[torch.Tensor | None]]:
        """Contribution coefficients ``c`` of the chosen taps: one backward pass for all of them.

        Args:
            scores: shape (N,), the scores to explain.
            seeds: shape (N,), the coefficient of each score: 1, or 1/score for ratios.
            chosen: indices of taps.
            keep_graph: whether another backward pass will follow.
            grad_kwargs: passed on to :func:`torch.autograd.grad`.

        Returns:
            For each chosen tap, the coefficient of each of its tensors; None where the score does not depend on it.
        """
        edges = [edge for index in chosen for edge in self.taps[index].edges]
        options = {"retain_graph": keep_graph or None, "allow_unused": True, **grad_kwargs}
        try:
            found = iter(torch.autograd.grad(scores, edges, seeds, **options))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ModelError(
                "the model writes over a tensor that its own gradient needs, so it could not be trained either; make "
                "that operation out of place, as nn.ReLU(inplace=False) or x = x + y."
            ) from error
        return [[next(found) for _ in self.taps[index].edges] for index in chosen]


def run(
    forward_func: Callable[..., Any],
    inputs: tuple[Any, ...],
    additional: tuple[Any, ...],
    sites: Sequence[Site],
    *,
    tap_inputs: bool = False,
    keep_carriers: bool = False,
    end_at_call: int | None = None,
    rules: Rulebook,
    on_unknown: str,
    with_account: bool,
    explained: bool = False,
    audited: bool = False,
) -> Forward:
    """Run a forward pass with every operation replaced by its surrogate.

    Args:
        forward_func: the model or any callable.
        inputs: the model's inputs; it gets copies of the tensors among them.
        additional: further arguments, passed on as they are.
        sites: where to tap.
        tap_inputs: whether to tap the inputs too, as the first tap.
        keep_carriers: whether to keep the tensors of each call of a site that carry its contributions.
        end_at_call: the call of a site at which contributions end and the model goes on with plain tensors.
        rules: the user's rules, which go before the defaults.
        on_unknown: ``"error"``, ``"gradient"`` or ``"note"``.
        with_account: whether to measure the shares of constants.
        explained: whether to note which operation meets which rule.
        audited: whether to compare what comes into each operation in the backward pass and out of it; needs the
            account.

    Returns:
        The output and what was tapped. Nothing is left on the model, whether this returns or raises.
    """
    with_modules = explained or audited or not _goes_by_itself(forward_func, rules)
    attempt = functools.partial(
        _run,
        forward_func,
        inputs,
        additional,
        sites,
        tap_inputs=tap_inputs,
        keep_carriers=keep_carriers,
        end_at_call=end_at_call,
        rules=rules,
        on_unknown=on_unknown,
        with_account=with_account,
        explained=explained,
        audited=audited,
    )
    try:
        return attempt(with_modules=with_modules)
    except UnsupportedOperationError:
        if with_modules:
            raise
    # Where an operation was that nobody saw, only a run that follows the modules can tell.
    return attempt(with_modules=True)


def _run(
    forward_func: Callable[..., Any],
    inputs: tuple[Any, ...],
    additional: tuple[Any, ...],
    sites: Sequence[Site],
    *,
    tap_inputs: bool,
    keep_carriers: bool,
    end_at_call: int | None,
    rules: Rulebook,
    on_unknown: str,
    with_account: bool,
    explained: bool,
    audited: bool,
    with_modules: bool,
) -> Forward:
    account = Account() if with_account else None
    names_of = names_in(forward_func)
    log = RuleLog(names_of) if explained else None
    mode = Propagation(rules, on_unknown, account, names_of, log, audited)
    # Clones: the model may write into what it is given.
    inputs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    calls: list[list[int]] = [[] for _ in sites]
    carriers: list[Any] = []

    def at_site(index: int, value: Any) -> Any:
        calls[index].append(len(mode.taps))
        ends = len(calls[index]) - 1 == end_at_call
        value = mode.tap(value)
        if keep_carriers:
            carriers.append(value)
            mode.take(value)
            # In memory of its own: the model may write into it.
            value = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)
        if ends:
            value = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value)
        return value

    for tensor in tensors_in(list(inputs)):
        mode.mark_input(tensor)
    with (
        _random_state_kept(inputs),
        set_aside(mode.apply, mode.is_at_rest),
        torch.enable_grad(),
        _hooked(sites, at_site, mode, with_modules),
    ):
        if tap_inputs:
            inputs = mode.tap(inputs)
        _running.mode = mode
        try:
            with mode:
                output = forward_func(*inputs, *additional)
        finally:
            _running.mode = None
        mode.check_seen(output)
        mode.take(output)
    return Forward(
        (*inputs, *additional), output, carriers, calls, mode.taps, account, mode.notes, log, mode.audit, mode.unknown
    )


def names_in(forward_func: Callable[..., Any]) -> Callable[[torch.nn.Module], Sequence[str]]:
    """Gives the qualified names of a module in a model; it may have several, or none."""

    @functools.cache
    def names() -> dict[torch.nn.Module, list[str]]:
        found: dict[torch.nn.Module, list[str]] = {}
        if isinstance(forward_func, torch.nn.Module):
            for name, module in forward_func.named_modules(remove_duplicate=False):
                found.setdefault(module, []).append(name)
        return found

    return lambda module: names().get(module, ())


@contextmanager
def _random_state_kept(inputs: tuple[Any, ...]) -> Iterator[None]:
    devices = {tensor.device for tensor in tensors_in(list(inputs)) if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        yield


def _goes_by_itself(forward_func: Callable[..., Any], rules: Rulebook) -> bool:
    """Whether nobody needs to know which module the forward pass is in: no rule and no refusal is for one."""
    return isinstance(forward_func, torch.nn.Module) and not any(
        rules.may_be_for(module) or acts_as_in_training(module) or has_old_backward_hook(module)
        for module in modules_of(forward_func)
    )


@contextmanager
def _hooked(
    sites: Sequence[Site], at_site: Callable[[int, Any], Any], mode: Propagation, with_modules: bool
) -> Iterator[None]:
    """Tap the modules of the sites in the forward pass of this thread.

    Args:
        sites: where to tap.
        at_site: called with the number of a site and what it gave; returns what the model goes on with.
        mode: the propagation.
        with_modules: whether to follow the forward pass through its modules; it slows each call of one.
    """
    thread = threading.get_ident()

    def is_elsewhere() -> bool:
        return mode.suspended or threading.get_ident() != thread

    tapped_before = {site.module for site in sites if site.of_input}
    ending: list[RemovableHandle] = []
    hooks = ExitStack()

    def enter(module: torch.nn.Module, args: Any) -> Any:
        if is_elsewhere():
            return None
        may_be_ruled = mode.enter_module(module)
        return begin_call(module, args) if may_be_ruled and module not in tapped_before else None

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        if not is_elsewhere() and mode.modules and mode.modules[-1] is module:
            mode.leave_module(output)

    def begin_call(module: torch.nn.Module, args: Any) -> Any:
        instead = mode.begin_call(module, args)
        if instead is not None:
            with _REGISTERING:
                handle = module.register_forward_hook(_Hook(end_call), prepend=True, with_kwargs=True, always_call=True)
            ending.append(handle)
            hooks.callback(handle.remove)
        return instead

    # Torch asks late whether a hook takes keyword arguments: one that is removed meanwhile is called without them, in
    # threads that had begun to call the module.
    def end_call(module: torch.nn.Module, args: Any, *kwargs_and_output: Any) -> Any:
        if is_elsewhere():
            return None
        ending.pop().remove()
        return mode.end_call(*kwargs_and_output)

    def tap_output(index: int) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            return None if is_elsewhere() else at_site(index, output)

        return hook

    def tap_input(index: int) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any = None) -> Any:
            if is_elsewhere():
                return None
            args, kwargs = at_site(index, (args, kwargs))
            # Behind the tap, so that the module's rule meets what was tapped.
            return (begin_call(module, args) if with_modules else None) or args, kwargs

        return hook

    with hooks:
        with _REGISTERING:
            following = (
                (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
                if with_modules
                else ()
            )
            handles = [
                *following,
                *(
                    site.module.register_forward_pre_hook(_Hook(tap_input(index)), with_kwargs=True)
                    if site.of_input
                    else site.module.register_forward_hook(_Hook(tap_output(index)))
                    for index, site in enumerate(sites)
                ),
            ]
            for handle in handles:
                hooks.callback(handle.remove)
        yield
