"""Recurrent layers: fused, cell by cell, written out; initial states; packed sequences; two directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import RULES, SUM_OF_LAYERS, Function, Pair, family, made

_GROUP = "recurrent"
_SIZE = 5
_SHARED_BIAS = "A bias behind a sum of two layers belongs to either of them."
_HIDDEN, _CELL = fixed(1, 2, _SIZE, seed=111), fixed(1, 2, _SIZE, seed=112)
_LENGTHS = torch.tensor([4, 3])

_LAYERS: dict[str, Any] = {
    "lstm": made(lambda: nn.LSTM(6, _SIZE, batch_first=True)),
    "gru": made(lambda: nn.GRU(6, _SIZE, batch_first=True)),
    "rnn": made(lambda: nn.RNN(6, _SIZE, batch_first=True)),
}
_CELLS: dict[str, Any] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    for kind in _LAYERS:
        yield from _of(kind)
    yield from _written_out()
    yield from _larger()


def _weights(kind: str) -> list[torch.Tensor]:
    return [weight.detach() for weight in _LAYERS[kind].all_weights[0]]


def _start(kind: str, of: torch.Tensor, cell: torch.Tensor) -> Any:
    return (of, cell) if kind == "lstm" else of


def _by_cells(kind: str, start: Any) -> Function:
    cell = made(lambda: _CELLS[kind](6, _SIZE))
    for parameter, weight in zip(cell.parameters(), _weights(kind), strict=True):
        parameter.data = weight.clone()

    def run(x: torch.Tensor) -> torch.Tensor:
        state, outputs = start, []
        for step in x.unbind(1):
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)

    return run


def _of(kind: str) -> Iterator[Pair]:
    layer = _LAYERS[kind]
    zeros = torch.zeros(1, 2, _SIZE, dtype=torch.float64)
    zero_state, state = _start(kind, zeros, zeros), _start(kind, _HIDDEN, _CELL)

    def packed(x: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([4, 4])
        return pad_packed_sequence(layer(pack_padded_sequence(x, lengths, batch_first=True))[0], batch_first=True)[0]

    def step_by_step(x: torch.Tensor) -> torch.Tensor:
        current, outputs = None, []
        for i in range(4):
            output, current = layer(x[:, i : i + 1], current)
            outputs.append(output)
        return torch.cat(outputs, 1)

    yield from family(
        _GROUP,
        kind,
        lambda x: layer(x)[0],
        {
            "states of zeros": lambda x: layer(x, zero_state)[0],
            "cells": _by_cells(kind, None),
            "cells, states of zeros": _by_cells(kind, _start(kind, zeros[0], zeros[0])),
            "packed": packed,
            "step by step": step_by_step,
            "sample by sample": lambda x: torch.stack([layer(one)[0] for one in x]),
            "time first": lambda x: _time_first(kind, x),
        },
    )
    yield from family(
        _GROUP,
        f"{kind} with states",
        lambda x: layer(x, state)[0],
        {"cells": _by_cells(kind, _start(kind, _HIDDEN[0], _CELL[0]))},
    )

    def shorter(x: torch.Tensor) -> torch.Tensor:
        sequence = pack_padded_sequence(x, _LENGTHS, batch_first=True)
        return pad_packed_sequence(layer(sequence)[0], batch_first=True)[0]

    yield from family(
        _GROUP,
        f"packed {kind}",
        shorter,
        {
            "unsorted": lambda x: pad_packed_sequence(
                layer(pack_padded_sequence(x.flip(0), _LENGTHS.flip(0), batch_first=True, enforce_sorted=False))[0],
                batch_first=True,
            )[0].flip(0),
            "padded by hand": lambda x: torch.stack([layer(x[:1])[0][0], F.pad(layer(x[1:, :3])[0][0], (0, 0, 0, 1))]),
            "masked": lambda x: layer(x)[0] * (torch.arange(4) < _LENGTHS[:, None])[..., None],
        },
    )
    yield from family(
        _GROUP,
        f"last state of {kind}",
        lambda x: layer(x)[0][:, -1],
        {"hidden state": lambda x: (layer(x)[1][0] if kind == "lstm" else layer(x)[1]).squeeze(0)},
    )


def _time_first(kind: str, x: torch.Tensor) -> torch.Tensor:
    layer = made(lambda: type(_LAYERS[kind])(6, _SIZE))
    layer.load_state_dict(_LAYERS[kind].state_dict())
    output: torch.Tensor = layer(x.transpose(0, 1))[0].transpose(0, 1)
    return output


def _written(kind: str, step: Callable[..., tuple[torch.Tensor, ...]]) -> Function:
    weights, states = _weights(kind), 2 if kind == "lstm" else 1

    def run(x: torch.Tensor) -> torch.Tensor:
        state, outputs = tuple(x.new_zeros(2, _SIZE) for _ in range(states)), []
        for i in range(4):
            state = step(x[:, i], *state, *weights)
            outputs.append(state[0])
        return torch.stack(outputs, 1)

    return run


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def _lstm_step(gate: Function, one_product: bool = False) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(x: Any, h: Any, c: Any, w: Any, u: Any, b: Any, d: Any) -> tuple[torch.Tensor, ...]:
        if one_product:
            gates = F.linear(torch.cat([x, h], -1), torch.cat([w, u], 1), b + d)
        else:
            gates = F.linear(x, w, b) + F.linear(h, u, d)
        i, f, g, o = gates.chunk(4, -1)
        c = gate(f) * c + gate(i) * torch.tanh(g)
        return gate(o) * torch.tanh(c), c

    return step


def _lstm_of_matmuls(x: Any, h: Any, c: Any, w: Any, u: Any, b: Any, d: Any) -> tuple[torch.Tensor, ...]:
    gates = x @ w.T + b + h @ u.T + d
    i, f, g, o = (gates[:, k * _SIZE : (k + 1) * _SIZE] for k in range(4))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _lstm_of_eight(x: Any, h: Any, c: Any, w: Any, u: Any, b: Any, d: Any) -> tuple[torch.Tensor, ...]:
    parts = zip(w.chunk(4), u.chunk(4), b.chunk(4), d.chunk(4), strict=True)
    i, f, g, o = (F.linear(x, wp, bp) + F.linear(h, up, dp) for wp, up, bp, dp in parts)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(mix: Callable[..., torch.Tensor], gate: Function) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(x: Any, h: Any, w: Any, u: Any, b: Any, d: Any) -> tuple[torch.Tensor, ...]:
        (rx, zx, nx), (rh, zh, nh) = F.linear(x, w, b).chunk(3, -1), F.linear(h, u, d).chunk(3, -1)
        r, z = gate(rx + rh), gate(zx + zh)
        return (mix(z, torch.tanh(nx + r * nh), h),)

    return step


def _rnn_step(product: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    return lambda *arguments: (torch.tanh(product(*arguments)),)


def _written_out() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "lstm",
        lambda x: _LAYERS["lstm"](x)[0],
        {
            "written out": _written("lstm", _lstm_step(torch.sigmoid)),
            "written out, sigmoid by hand": _written("lstm", _lstm_step(_sigmoid)),
            "written out, one product": _written("lstm", _lstm_step(torch.sigmoid, one_product=True)),
            "written out, matmuls": _written("lstm", _lstm_of_matmuls),
            "written out, eight layers": _written("lstm", _lstm_of_eight),
        },
        undecidable={"written out, one product": SUM_OF_LAYERS, "written out, matmuls": _SHARED_BIAS},
    )
    yield from family(
        _GROUP,
        "gru",
        lambda x: _LAYERS["gru"](x)[0],
        {
            "written out": _written("gru", _gru_step(lambda z, n, h: (1 - z) * n + z * h, torch.sigmoid)),
            "written out, n + z * (h - n)": _written("gru", _gru_step(lambda z, n, h: n + z * (h - n), torch.sigmoid)),
            "written out, lerp": _written("gru", _gru_step(lambda z, n, h: torch.lerp(n, h, z), torch.sigmoid)),
            "written out, n - z * n + z * h": _written(
                "gru", _gru_step(lambda z, n, h: n - z * n + z * h, torch.sigmoid)
            ),
            "written out, sigmoid by hand": _written("gru", _gru_step(lambda z, n, h: (1 - z) * n + z * h, _sigmoid)),
        },
        # AttnLRP is not for recurrent layers: there each product shares in halves.
        presets=tuple(name for name in RULES if name != "attnlrp"),
    )
    yield from family(
        _GROUP,
        "rnn",
        lambda x: _LAYERS["rnn"](x)[0],
        {
            "written out": _written("rnn", _rnn_step(lambda x, h, w, u, b, d: F.linear(x, w, b) + F.linear(h, u, d))),
            "written out, matmuls": _written("rnn", _rnn_step(lambda x, h, w, u, b, d: x @ w.T + b + h @ u.T + d)),
            "written out, one product": _written(
                "rnn",
                _rnn_step(lambda x, h, w, u, b, d: F.linear(torch.cat([x, h], -1), torch.cat([w, u], 1), b + d)),
            ),
        },
        undecidable={"written out, one product": SUM_OF_LAYERS, "written out, matmuls": _SHARED_BIAS},
    )


def _larger() -> Iterator[Pair]:
    both: Any = made(lambda: nn.GRU(6, _SIZE, batch_first=True, bidirectional=True))
    deep: Any = made(lambda: nn.LSTM(6, _SIZE, 2, batch_first=True))

    def part(whole: Any, kind: Any, width: int, suffix: str) -> Any:
        layer = made(lambda: kind(width, _SIZE, batch_first=True))
        names = {f"{name}_l0": f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        layer.load_state_dict({name: whole.state_dict()[other] for name, other in names.items()})
        return layer

    forth, back = part(both, nn.GRU, 6, "l0"), part(both, nn.GRU, 6, "l0_reverse")
    first, second = part(deep, nn.LSTM, 6, "l0"), part(deep, nn.LSTM, _SIZE, "l1")
    yield from family(
        _GROUP,
        "gru in two directions",
        lambda x: both(x)[0],
        {"two layers": lambda x: torch.cat([forth(x)[0], back(x.flip(1))[0].flip(1)], -1)},
    )
    yield from family(
        _GROUP, "lstm of two layers", lambda x: deep(x)[0], {"two lstms": lambda x: second(first(x)[0])[0]}
    )
