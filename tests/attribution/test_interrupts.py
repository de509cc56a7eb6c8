"""Ctrl-C at any line: the model, the process and the next attribution are as if nothing had happened."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules, verify
from captum_cav.operations import TABLE
from captum_cav.propagation.dispatch import Propagation
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.reentrancy import running
from captum_cav.propagation.trace import Trace
from captum_cav.torch_internals import end_innermost_mode, function_modes
from tests.propagation.engine import rulebook
from tests.support.small_networks import samples, small_net
from tests.support.tensors import tensors_of
from tests.support.traces import state_of

ROOT = str(Path(captum_cav.__file__).parent)
WAYS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "layer": lambda net, x: LayerCAV(net, "0").attribute(x, 1),
    "inputs, delta": lambda net, x: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
    "rule as one": lambda net, x: LayerCAV(net, "0", rules={"1": rules.PassThroughRule()}).attribute(x, 1),
    "neuron": lambda net, x: NeuronCAV(net, "1").attribute(x, 1),
    "with a graph": lambda net, x: InputCAV(net).attribute(x, 1, grad_kwargs={"create_graph": True}).detach(),
    "verify": lambda net, x: torch.tensor(verify(net, x, 1).delta),
    "inside another": lambda net, x: InputCAV(
        lambda x: net(x) * InputCAV(net).attribute(x.detach(), 1).sum(1, keepdim=True)
    ).attribute(x, 1),
}


class Interrupter:
    """Raises KeyboardInterrupt when the package reaches its line (or call) with a certain number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reached = 0

    def _step(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event in ("line", "call"):
            self.reached += 1
            if self.reached == self.number:
                raise KeyboardInterrupt
        return self._step

    def _start(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        return self._step(frame, event, argument) if frame.f_code.co_filename.startswith(ROOT) else None

    def run(self, act: Callable[[], Any]) -> bool:
        """Whether the interrupt came before the end."""
        before = sys.gettrace()
        sys.settrace(self._start)
        try:
            act()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return self.reached >= self.number


def interrupted_runs(act: Callable[[], Any], first: int, step: int) -> Iterator[int]:
    """Runs that are interrupted at every ``step``-th line, until the last line is reached."""
    number = first
    while Interrupter(number).run(act):
        yield number
        number += step


def in_another_thread(act: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()), daemon=True)
    thread.start()
    thread.join(10)
    return found[0]


# The one that is interrupted in a destructor prints that the exception was ignored.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 101], ids=["every line", "some lines"])
def test_an_interrupt_leaves_nothing_behind(way: str, step: int) -> None:
    net, x = small_net(), samples()
    expected = tensors_of(WAYS[way](net, x))
    before, apply = state_of(net, x), torch.autograd.Function.__dict__["apply"]
    count = 0
    for number in interrupted_runs(lambda: WAYS[way](net, x), 1 + step // 2, step):
        count += 1
        assert state_of(net, x) == before, number
        assert net(x).grad_fn is not None, number
        assert torch.autograd.Function.__dict__["apply"] is apply, number
        assert all(map(torch.equal, tensors_of(WAYS[way](net, x)), expected)), number
        if step > 1:
            assert all(map(torch.equal, in_another_thread(lambda: tensors_of(WAYS[way](net, x))), expected)), number
    assert count > 800 / step


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_under_no_grad_leaves_the_grad_mode() -> None:
    net, x = small_net(), samples()
    with torch.no_grad():
        for number in interrupted_runs(lambda: LayerCAV(net, "0").attribute(x, 1), 50, 97):
            assert not torch.is_grad_enabled(), number


class Interrupted(nn.Sequential):
    """Is interrupted where torch has taken the mode off its stack, as it does around each operation."""

    def __init__(self, passes: int) -> None:
        super().__init__(*small_net())
        self.passes = passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.passes:
            end_innermost_mode()
            raise KeyboardInterrupt
        self.passes -= 1
        return super().forward(x)


@pytest.mark.parametrize(("way", "passes"), [*((way, 0) for way in WAYS), ("with a graph", 1)])
def test_an_interrupt_while_torch_has_taken_the_mode_off_stays_an_interrupt(way: str, passes: int) -> None:
    net, x = Interrupted(passes), samples()
    with pytest.raises(KeyboardInterrupt) as caught:
        WAYS[way](net, x)
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, KeyboardInterrupt)
    assert not function_modes()
    net.passes = 9
    assert net(x).grad_fn is not None
    assert torch.equal(InputCAV(net).attribute(x, 1), InputCAV(small_net()).attribute(x, 1))


# Modes that were left ------------------------------------------------------------------------------------------------


def left_over() -> Propagation:
    """A propagation whose pass is over."""
    trace = Trace(with_shares=False, with_rules=False, audited=False)
    found: Rulebook = rulebook(None)
    propagation = Propagation(TABLE, found, "error", trace, lambda module: ())
    propagation.finish()
    return propagation


def test_a_finished_mode_does_nothing() -> None:
    net, x = small_net(), samples()
    with left_over():
        output = net(x)
        assert output.grad_fn is not None
        output.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_leftovers_are_dropped_at_the_next_attribution() -> None:
    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    for _ in range(2):
        left_over().__enter__()
    assert torch._C._len_torch_function_stack() == 2
    assert torch.equal(InputCAV(net).attribute(x, 1), expected)
    assert torch._C._len_torch_function_stack() == 0


def test_a_leftover_around_which_another_mode_was_entered_stays_inert() -> None:
    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    with left_over(), torch.overrides.BaseTorchFunctionMode():
        assert torch.equal(InputCAV(net).attribute(x, 1), expected)
        assert torch._C._len_torch_function_stack() == 2


def test_a_pass_that_is_over_is_not_taken_for_an_outer_one() -> None:
    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    propagation = left_over()
    with running(propagation):
        assert torch.equal(InputCAV(net).attribute(x, 1), expected)
    assert propagation.is_suspended
