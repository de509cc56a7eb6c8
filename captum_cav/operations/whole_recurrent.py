"""Recurrent layers as a whole: the value by torch's own operation, and a backward pass written by hand.

Where all operations of the steps have their default rules, the steps need not run one by one. Gates are constants, so
contributions pass a step by sums and by factors. All factors follow from the inputs and the outputs of the layer, and
are computed for all steps at once. Only the sums run from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn import functional as F

from captum_cav.propagation.operation import Operation
from captum_cav.torch_internals import OwnFunction

Weights = Sequence[Any]
State = tuple[torch.Tensor, ...]


class Pass(NamedTuple):
    """What one direction of one layer took, and what it gave.

    Attributes:
        x: the inputs, shape (steps, samples, features).
        before: the hidden states before each step, shape (steps, samples, units).
        after: the hidden states after each step.
        state: the initial state. Its tensors have shape (samples, units).
        weights: the weights of the cell.
    """

    x: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    state: State
    weights: Weights


#: Takes what a layer took and gave, the coefficients of the hidden state after each step, and the coefficients of the
#: last state, in which None stands for 0. Gives the coefficients of the inputs, and of the initial state.
Backward: TypeAlias = Callable[[Pass, Sequence[torch.Tensor], Sequence[torch.Tensor | None]], tuple[torch.Tensor, ...]]


def lstm(taken: Pass, of_steps: Sequence[torch.Tensor], of_last: Sequence[torch.Tensor | None]) -> State:
    """``c = sigmoid(f) c + sigmoid(i) tanh(g)`` and ``h = sigmoid(o) tanh(c)``, in which the sigmoids are constants."""
    w_ih, w_hh, b_ih, b_hh = taken.weights
    i, f, g, o = F.linear(taken.x, w_ih, b_ih).add_(F.linear(taken.before, w_hh, b_hh)).chunk(4, -1)
    i, forget, new = torch.sigmoid(i), torch.sigmoid(f).unbind(), torch.tanh(g)
    cell, cells = taken.state[1], []
    for kept, added in zip(forget, (i * new).unbind(), strict=True):
        cell = torch.addcmul(added, kept, cell)
        cells.append(cell)
    values = torch.stack(cells)
    from_h = _ratio(torch.tanh(values), values).mul_(torch.sigmoid(o)).unbind()
    from_c = _ratio(new, g).mul_(i).unbind()
    weight = w_hh.chunk(4)[2]
    of_h, of_c = _sum(of_steps[-1], of_last[0]), of_last[1]
    found = []
    for step in range(len(of_steps) - 1, -1, -1):
        of_c = of_h * from_h[step] if of_c is None else torch.addcmul(of_c, of_h, from_h[step])
        found.append(of_c * from_c[step])
        of_c = of_c * forget[step]
        of_h = torch.addmm(of_steps[step - 1], found[-1], weight) if step else found[-1] @ weight
    assert of_c is not None
    return torch.stack(found[::-1]) @ w_ih.chunk(4)[2], of_h, of_c


def gru(taken: Pass, of_steps: Sequence[torch.Tensor], of_last: Sequence[torch.Tensor | None]) -> State:
    """``h = (1 - z) tanh(n_x + r n_h) + z h``, in which ``r`` and ``z``, the sigmoids, are constants."""
    w_ih, w_hh, b_ih, b_hh = taken.weights
    r_x, z_x, n_x = F.linear(taken.x, w_ih, b_ih).chunk(3, -1)
    r_h, z_h, n_h = F.linear(taken.before, w_hh, b_hh).chunk(3, -1)
    reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    sums = torch.addcmul(n_x, reset, n_h)
    from_h = _ratio(torch.tanh(sums), sums).mul_(1 - update)
    kept, through_reset = update.unbind(), (from_h * reset).unbind()
    weight = w_hh.chunk(3)[2]
    of_h, found = _sum(of_steps[-1], of_last[0]), []
    for step in range(len(of_steps) - 1, -1, -1):
        found.append(of_h)
        of_kept = torch.addcmul(of_steps[step - 1], kept[step], of_h) if step else kept[step] * of_h
        of_h = torch.addmm(of_kept, of_h * through_reset[step], weight)
    return (torch.stack(found[::-1]) * from_h) @ w_ih.chunk(3)[2], of_h


def rnn(slope_of: Callable[[Pass], torch.Tensor]) -> Backward:
    """``h = f(z)`` with an activation ``f`` of a sum ``z``.

    Args:
        slope_of: gives ``h / z`` for all steps.
    """

    def backward(taken: Pass, of_steps: Sequence[torch.Tensor], of_last: Sequence[torch.Tensor | None]) -> State:
        w_ih, w_hh, _, _ = taken.weights
        slopes = slope_of(taken).unbind()
        of_h, found = _sum(of_steps[-1], of_last[0]), []
        for step in range(len(of_steps) - 1, -1, -1):
            found.append(of_h * slopes[step])
            of_h = torch.addmm(of_steps[step - 1], found[-1], w_hh) if step else found[-1] @ w_hh
        return torch.stack(found[::-1]) @ w_ih, of_h

    return backward


def tanh_slope(taken: Pass) -> torch.Tensor:
    """The ratio of an RNN whose activation is tanh."""
    w_ih, w_hh, b_ih, b_hh = taken.weights
    sums = F.linear(taken.x, w_ih, b_ih).add_(F.linear(taken.before, w_hh, b_hh))
    return _ratio(torch.tanh(sums), sums)


def relu_slope(taken: Pass) -> torch.Tensor:
    """The ratio of an RNN whose activation is ReLU."""
    return (taken.after > 0).to(taken.after.dtype)


def _ratio(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``tanh(x) / x``, whose limit at 0 is 1."""
    return torch.div(value, x).nan_to_num_(nan=1.0, posinf=0.0, neginf=0.0)


def _sum(one: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    return one if other is None else one + other


class _Whole(OwnFunction):
    @staticmethod
    def forward(
        ctx: Any, value: Callable[[], tuple[torch.Tensor, ...]], backward: Callable[..., Any], *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.of_inputs = backward
        return value()

    @staticmethod
    def backward(ctx: Any, *coefficients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.of_inputs(*coefficients)


def one_direction(
    operation: Operation, x: torch.Tensor, state: State, weights: Weights, dim: int, backward: Backward
) -> tuple[torch.Tensor, ...]:
    """One direction of one layer.

    Args:
        operation: the operation of all layers.
        x: the input, with the steps in dimension ``dim``.
        state: the initial state. Its tensors have shape (1, samples, units).
        weights: the weights of the cell, without biases that it does not have.
        dim: the dimension of the steps.
        backward: the backward pass.

    Returns:
        The hidden states after each step, and the state after the last step, as the operation returns them.
    """
    hx = tuple(part.detach() for part in state)
    options = (weights, len(weights) == 4, 1, 0.0, False, False, dim == 1)

    def value() -> tuple[torch.Tensor, ...]:
        results = operation.function(x.detach(), hx if len(hx) == 2 else hx[0], *options)
        # Without this, a result is a view of another tensor, into which the model may not write.
        return tuple(result.detach() for result in results)

    saved = [operation.save(tensor) for tensor in (x, *state)]
    cell = weights if len(weights) == 4 else (*weights, None, None)

    def coefficients(of_output: torch.Tensor | None, *of_last: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        given, *initial = (one.value for one in saved)
        after = kept.value.transpose(0, dim)
        first = tuple(part[0] for part in initial)
        taken = Pass(given.transpose(0, dim), torch.cat([initial[0], after[:-1]]), after, first, cell)
        of_steps = torch.zeros_like(after) if of_output is None else of_output.transpose(0, dim)
        last = [None if part is None else part[0] for part in of_last]
        of_x, *of_state = backward(taken, of_steps.unbind(), last)
        return of_x.transpose(0, dim), *(part[None] for part in of_state)

    outputs: tuple[torch.Tensor, ...] = _Whole.apply(value, coefficients, x, *state)
    kept = operation.save(outputs[0])
    return outputs
