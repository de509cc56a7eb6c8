"""Recurrent layers, decomposed step by step: gates are constants, states and inputs carry contributions.

Torch runs ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as one fused operation. Here each step consists of affine operations,
gates and activations, and each of them has its own rule. Where all these rules are the default rules, a layer runs as
a whole, which is much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations import guards, whole_recurrent
from captum_cav.operations.table import TABLE
from captum_cav.operations.whole_recurrent import State, Weights
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.tensors import is_autocast_on

Step = Callable[[torch.Tensor, State, Weights], State]


def lstm_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    """One step of an LSTM. Five weights mean that the hidden state is projected."""
    h, c = state
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if len(weights) == 5:
        h = F.linear(h, weights[4])
    return h, c


def gru_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    """One step of a GRU. ``1 - sigmoid(z)`` is a function that is written out, so such functions are recognised."""
    (h,) = state
    w_ih, w_hh, b_ih, b_hh = weights
    r_x, z_x, n_x = F.linear(x, w_ih, b_ih).chunk(3, -1)
    r_h, z_h, n_h = F.linear(h, w_hh, b_hh).chunk(3, -1)
    reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    new = torch.tanh(n_x + reset * n_h)
    return ((1 - update) * new + update * h,)


def rnn_step(activation: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """One step of a plain RNN with the given activation."""

    def step(x: torch.Tensor, state: State, weights: Weights) -> State:
        w_ih, w_hh, b_ih, b_hh = weights
        return (activation(F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)),)

    return step


def recurrent(step: Step, states: int, recognises: bool, backward: whole_recurrent.Backward) -> Surrogate:
    """Rule of a recurrent layer.

    Args:
        step: one time step of one direction of one layer.
        states: the number of tensors in a state: 2 for an LSTM, otherwise 1.
        recognises: whether the step writes a function out.
        backward: the backward pass of all steps of one direction of one layer.
    """

    def rule(operation: Operation) -> Any:
        packed = not isinstance(operation.args[3], bool)  # A packed sequence has its batch sizes as second argument.
        x, *arguments = operation.args
        sizes = arguments.pop(0).tolist() if packed else None
        hx, parameters, biased, layers, _, _, bidirectional, *order = arguments
        dim = 1 if order and order[0] else 0
        hidden = tuple(hx) if states == 2 else (hx,)
        projected = states == 2 and hidden[0].shape[-1] != hidden[1].shape[-1]
        per_cell = (4 if biased else 2) + projected
        given = [parameters[k : k + per_cell] for k in range(0, len(parameters), per_cell)]
        if not (packed or projected) and _runs_as_a_whole(operation, x, hidden, layers, bool(bidirectional)):
            directions = 2 if bidirectional else 1
            return _as_a_whole(operation, x, hidden, given, directions, dim, backward)
        cells = [_weights(weights, biased) for weights in given]

        def all_steps() -> tuple[torch.Tensor, ...]:
            sequence = list(x.split(sizes) if sizes else x.unbind(dim))
            final: list[State] = []
            for _ in range(layers):
                outputs = []
                for direction in range(2 if bidirectional else 1):
                    cell = len(final)
                    state: State = tuple(part[cell] for part in hidden)
                    counts = sizes or [len(state[0])] * len(sequence)
                    way = -1 if direction else 1
                    steps, last = _run(step, sequence[::way], counts[::way], state, cells[cell])
                    outputs.append(steps[::-1] if direction else steps)
                    final.append(last)
                sequence = [torch.cat(both, -1) if bidirectional else both[0] for both in zip(*outputs, strict=True)]
            joined = torch.cat(sequence) if sizes else torch.stack(sequence, dim)
            return (joined, *(torch.stack(parts) for parts in zip(*final, strict=True)))

        return operation.decompose(all_steps, recognises=recognises)

    return rule


def _runs_as_a_whole(operation: Operation, x: torch.Tensor, hidden: State, layers: int, bidirectional: bool) -> bool:
    """Whether a recurrent layer may run as a whole, because its steps have the default rules.

    On a GPU the weights of all layers lie in one memory, which a part of the layers cannot use.
    """
    return (
        operation.has_default_rules_inside
        and all(any(source is tensor for tensor in (x, *hidden)) for source in operation.sources)
        and not is_autocast_on(x.device.type)
        and not (x.is_cuda and (layers > 1 or bidirectional))
    )


def _as_a_whole(
    operation: Operation,
    x: torch.Tensor,
    hidden: State,
    cells: Sequence[Weights],
    directions: int,
    dim: int,
    backward: whole_recurrent.Backward,
) -> tuple[torch.Tensor, ...]:
    """The value of recurrent layers, each of which runs as a whole.

    Args:
        operation: the operation.
        x: the input.
        hidden: the initial states of all layers.
        cells: the weights of each direction of each layer.
        directions: 2 for layers that run both ways.
        dim: the dimension of the steps.
        backward: the backward pass of one direction of one layer.
    """
    final = []
    for first in range(0, len(cells), directions):
        outputs = []
        for cell in range(first, first + directions):
            is_reversed = cell > first
            state = tuple(part[cell : cell + 1] for part in hidden)
            given = x.flip(dim) if is_reversed else x
            output, *last = whole_recurrent.one_direction(operation, given, state, cells[cell], dim, backward)
            outputs.append(output.flip(dim) if is_reversed else output)
            final.append(last)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    return (x, *(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*final, strict=True)))


def _run(
    step: Step, sequence: Sequence[torch.Tensor], counts: Sequence[int], initial: State, weights: Weights
) -> tuple[list[Any], State]:
    """One direction of one layer.

    Args:
        step: one time step.
        sequence: the input of each step. The samples of a packed sequence are sorted by length, and each step has only
            the samples that are long enough.
        counts: the number of samples of each step.
        initial: the state of all samples before the first step.
        weights: the weights of the cell.

    Returns:
        The output of each step, and the state of each sample after its last step.
    """
    samples, before = len(initial[0]), counts[0]
    state: State = initial if before == samples else tuple(part[:before] for part in initial)
    ended: list[State] = []
    steps = []
    for x, count in zip(sequence, counts, strict=True):
        if count < before:
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        if count > before:
            # A separate step, because the initial state of a new sample may be a constant.
            begun = step(x[before:], tuple(part[before:count] for part in initial), weights)
            known = step(x[:before], state, weights)
            state = tuple(torch.cat(parts) for parts in zip(known, begun, strict=True))
        else:
            state = step(x, state, weights)
        steps.append(state[0])
        before = count
    if before < samples:
        state = tuple(torch.cat(parts) for parts in zip(state, *ended[::-1], strict=True))
    return steps, state


def recurrent_cell(step: Step, states: int, recognises: bool) -> Surrogate:
    """Rule of ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``: one step."""

    def rule(operation: Operation) -> Any:
        x, hx, *weights = operation.args
        state = tuple(hx) if states == 2 else (hx,)
        padded = [*weights, *[None] * (4 - len(weights))]
        result = operation.decompose(step, x, state, padded, recognises=recognises)
        return result if states == 2 else result[0]

    return rule


def _weights(parameters: Sequence[torch.Tensor], biased: bool) -> Weights:
    """The weights of a cell, with None in the place of biases that it does not have."""
    return parameters if biased else [*parameters[:2], None, None, *parameters[2:]]


def _layers(step: Step, states: int, backward: whole_recurrent.Backward, recognises: bool = False) -> OperationSpec:
    return OperationSpec(rule=recurrent(step, states, recognises, backward), guard=guards.recurrent, has_weights=True)


def _cell(step: Step, states: int, recognises: bool = False) -> OperationSpec:
    return OperationSpec(rule=recurrent_cell(step, states, recognises), has_weights=True)


TABLE.register("lstm", _layers(lstm_step, 2, whole_recurrent.lstm))
# In a GRU 1 minus a sigmoid is a sigmoid.
TABLE.register("gru", _layers(gru_step, 1, whole_recurrent.gru, recognises=True))
TABLE.register("rnn_tanh", _layers(rnn_step(torch.tanh), 1, whole_recurrent.rnn(whole_recurrent.tanh_slope)))
TABLE.register("rnn_relu", _layers(rnn_step(torch.relu), 1, whole_recurrent.rnn(whole_recurrent.relu_slope)))
TABLE.register("lstm_cell", _cell(lstm_step, 2))
TABLE.register("gru_cell", _cell(gru_step, 1, recognises=True))
TABLE.register("rnn_tanh_cell", _cell(rnn_step(torch.tanh), 1))
TABLE.register("rnn_relu_cell", _cell(rnn_step(torch.relu), 1))
