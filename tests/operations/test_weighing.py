"""Gates that weigh constants: the product is a constant, unless the constant is a layer's weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, presets, verify
from captum_cav.errors import ModelError
from captum_cav.rules import AttentionRule, ProductRule
from tests.support.networks import fixed
from tests.support.surrogates import by_hand

Function = Callable[..., torch.Tensor]

N, L, C, S = 3, 4, 5, 6
X = fixed(N, L, C)


def explained(function: Function, x: torch.Tensor, *constants: torch.Tensor, rules: Any = None) -> torch.Tensor:
    """The contributions of the first argument. Contributions and shares of constants add up to the score."""
    cav = InputCAV(lambda *args: function(*args).reshape(len(x), -1).sum(1), normalize=None, rules=rules)
    found: torch.Tensor
    found, delta = cav.attribute(x, additional_forward_args=constants or None, return_convergence_delta=True)
    assert delta.abs().max() < 1e-10
    return found


def beside(product: Function) -> Function:
    """A score with a summand that carries in any case. The hyperbolic tangent shows what a product is made of."""
    return lambda x, *constants: (
        torch.tanh(product(torch.sigmoid(x), *constants)).flatten(1).sum(1) + x.flatten(1).sum(1)
    )


# Which constants are weighed, and which are weights ------------------------------------------------------------------

#: For each form, the product of the gate and a constant, and the constant for each number of samples.
WEIGHED: dict[str, tuple[Function, Callable[[int], torch.Tensor]]] = {
    "mul": (torch.mul, lambda n: fixed(n, L, C, seed=2)),
    "constant first": (lambda g, c: c * g, lambda n: fixed(n, L, C, seed=2)),
    "in place": (lambda g, c: g.mul_(c), lambda n: fixed(n, L, C, seed=2)),
    "augmented": (lambda g, c: g.__imul__(c), lambda n: fixed(n, L, C, seed=2)),
    "aten": (torch.ops.aten.mul.Tensor, lambda n: fixed(n, L, C, seed=2)),
    "broadcast gate": (lambda g, c: g[..., :1] * c, lambda n: fixed(n, L, S, seed=2)),
    "addcmul": (lambda g, c: torch.addcmul(c, g, c), lambda n: fixed(n, L, C, seed=2)),
    "lerp": (lambda g, c: torch.lerp(c, 2 * c, g), lambda n: fixed(n, L, C, seed=2)),
    "vecdot": (torch.linalg.vecdot, lambda n: fixed(n, L, C, seed=2)),
    "cross": (lambda g, c: torch.linalg.cross(g[..., :3], c), lambda n: fixed(n, L, 3, seed=2)),
    "matmul": (torch.matmul, lambda n: fixed(n, C, S, seed=2)),
    "operator": (lambda g, c: g @ c, lambda n: fixed(n, C, S, seed=2)),
    "constant first @": (lambda g, c: c @ g, lambda n: fixed(n, S, L, seed=2)),
    "bmm": (torch.bmm, lambda n: fixed(n, C, S, seed=2)),
    "heads": (lambda g, c: g[:, None] @ c, lambda n: fixed(n, 2, C, S, seed=2)),
    "baddbmm": (lambda g, c: torch.baddbmm(c[:, :L], g, c), lambda n: fixed(n, C, S, seed=2)),
    "einsum": (lambda g, c: torch.einsum("nlc,ncs->nls", g, c), lambda n: fixed(n, C, S, seed=2)),
    "einsum, elementwise": (lambda g, c: torch.einsum("nlc,nlc->nl", g, c), lambda n: fixed(n, L, C, seed=2)),
    "einsum, pooled": (lambda g, c: torch.einsum("nl,nld->nd", g[..., 0], c), lambda n: fixed(n, L, S, seed=2)),
    "einsum, ellipsis": (lambda g, c: torch.einsum("...lc,...cs->...ls", g, c), lambda n: fixed(n, C, S, seed=2)),
    "bilinear": (lambda g, c: F.bilinear(g[:, 0], c, fixed(2, C, S), fixed(2)), lambda n: fixed(n, S, seed=2)),
}

#: Products of a gate with what all samples share: the weights of a layer.
WEIGHTS: dict[str, tuple[Function, torch.Tensor]] = {
    "number": (lambda g, c: g * 2.5, fixed(1)),
    "scalar": (torch.mul, fixed(1)[0]),
    "one element": (torch.mul, fixed(1)),
    "vector": (torch.mul, fixed(C)),
    "matrix": (torch.mul, fixed(L, C)),
    "one for each row": (torch.mul, fixed(L, 1)),
    "boolean mask": (torch.mul, fixed(1, L, C).expand(N, L, C) > 0),
    "one-hot code": (torch.mul, F.one_hot(torch.arange(L), C).expand(N, L, C)),
    "linear": (lambda g, c: F.linear(g, c, c[:, 0]), fixed(S, C)),
    "convolution": (lambda g, c: F.conv1d(g, c), fixed(2, L, 3)),
    "matmul": (torch.matmul, fixed(C, S)),
    "constant first": (lambda g, c: c @ g, fixed(S, L)),
    "mv": (torch.matmul, fixed(C)),
    "mm": (lambda g, c: torch.mm(g[:, 0], c), fixed(C, S)),
    "addmm": (lambda g, c: torch.addmm(c[0], g[:, 0], c), fixed(C, S)),
    "einsum": (lambda g, c: torch.einsum("nlc,cs->nls", g, c), fixed(C, S)),
    "einsum, vector": (lambda g, c: torch.einsum("nlc,c->nlc", g, c), fixed(C)),
    "einsum, outer": (lambda g, c: torch.einsum("nl,ls->nls", g[..., 0], c), fixed(L, S)),
    "einsum, ellipsis": (lambda g, c: torch.einsum("...c,cs", g, c), fixed(C, S)),
}


def ratio(function: Function, x: torch.Tensor) -> torch.Tensor:
    """Equation 7: the output over the input, as a constant slope."""
    return x * (function(x) / x).nan_to_num(1.0).detach()  # The limit of tanh.


@pytest.mark.parametrize("name", WEIGHED)
def test_a_gate_that_weighs_a_constant_is_a_constant(name: str) -> None:
    product, constant = WEIGHED[name]
    torch.testing.assert_close(explained(beside(product), X, constant(N)), X)
    # The rest is as if the product were detached, also where the product is a factor.

    def weighed(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.tanh(product(torch.sigmoid(x), c)).flatten(1).sum(1)

    (expected,) = by_hand(lambda x: weighed(x.detach(), constant(N)) * x.flatten(1).sum(1), X)
    torch.testing.assert_close(explained(lambda x, c: weighed(x, c) * x.flatten(1).sum(1), X, constant(N)), expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_gate_that_meets_the_weights_of_a_layer_carries(name: str) -> None:
    product, constant = WEIGHTS[name]
    (expected,) = by_hand(lambda x: ratio(torch.tanh, product(ratio(torch.sigmoid, x), constant)), X)
    found = explained(lambda x, c: torch.tanh(product(torch.sigmoid(x), c)), X, constant)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("preset", [None, "attnlrp"])
@pytest.mark.parametrize("name", dict.fromkeys([*WEIGHED, *WEIGHTS]))
def test_a_batch_has_the_maps_of_its_samples(name: str, preset: str | None) -> None:
    product = (WEIGHED.get(name) or WEIGHTS[name])[0]
    constant = WEIGHED[name][1](N) if name in WEIGHED else WEIGHTS[name][1]
    cav = InputCAV(beside(product), normalize=None, rules=preset)

    def of_sample(number: int) -> torch.Tensor:
        is_own = name in WEIGHED or constant.shape[:1] == (N,)
        found: torch.Tensor = cav.attribute(
            X[number, None], additional_forward_args=(constant[number, None] if is_own else constant,)
        )
        return found

    found = cav.attribute(X, additional_forward_args=(constant,))
    torch.testing.assert_close(found, torch.cat([of_sample(number) for number in range(N)]))


# In which form a model is written -----------------------------------------------------------------------------------

PRESETS = [None, *presets.NAMES]


def check_forms(one: Function, other: Function, x: torch.Tensor, rules: Any) -> None:
    """Two forms of one function have one map, and leave the same unexplained."""
    found = []
    for function in (one, other):
        cav = InputCAV(lambda *args, function=function: function(*args).flatten(1).sum(1), normalize=None, rules=rules)
        found.append(cav.attribute(x, return_convergence_delta=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def attended_by_einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("nqc,nkc->nqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("nqk,nkc->nqc", scores.softmax(-1), v)


@pytest.mark.parametrize("written", [attended, attended_by_einsum])
@pytest.mark.parametrize("depends", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_attention_in_one_is_attention_written_out(
    preset: str | None, depends: tuple[bool, ...], written: Function
) -> None:
    weight, constants = fixed(3, C, C, seed=2), fixed(3, N, L, C, seed=3)

    def model(attend: Function, x: torch.Tensor) -> torch.Tensor:
        parts = [F.linear(x if on else constants[i], weight[i]) for i, on in enumerate(depends)]
        return torch.tanh(attend(*parts)) + x

    check_forms(lambda x: model(written, x), lambda x: model(F.scaled_dot_product_attention, x), X, rules=preset)


@pytest.mark.parametrize("preset", [None, "cp_lrp", "gamma"])
@pytest.mark.parametrize("attend", [attended, F.scaled_dot_product_attention], ids=["written", "in one"])
def test_constant_values_make_a_constant_output(attend: Function, preset: str | None) -> None:
    memory = fixed(N, S, C, seed=2)
    found = explained(lambda x, m: torch.tanh(attend(x, m, m)) + x, X, memory, rules=preset)
    torch.testing.assert_close(found, X)


@pytest.mark.parametrize("carry", ["values", "all"])
def test_the_rule_for_attention_holds_or_lets_carry(carry: Any) -> None:
    memory = fixed(N, S, C, seed=2)
    rule = {F.scaled_dot_product_attention: AttentionRule(carry)}
    found = InputCAV(
        lambda x, m: (F.scaled_dot_product_attention(x, m, m) + x).flatten(1).sum(1), normalize=None, rules=rule
    ).attribute(X, additional_forward_args=(memory,))
    if carry == "values":
        torch.testing.assert_close(found, X)
    else:
        (expected,) = by_hand(lambda x: attended(x, memory, memory) + x, X)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("share", ["gates", "halves", "first", "second"])
def test_the_rule_for_products_holds_gates_or_lets_them_carry(share: Any) -> None:
    constant = fixed(N, L, C, seed=2)
    found = explained(lambda x, c: torch.sigmoid(x) * c + x, X, constant, rules={torch.mul: ProductRule(share)})
    torch.testing.assert_close(found, X + torch.sigmoid(X) * constant if share == "halves" else X)


class Crossed(nn.Module):
    """Attention to a memory, by torch's own module."""

    def __init__(self, *, weights: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64, **options)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.weights = weights

    def forward(self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        output = self.attention(x, memory, memory, key_padding_mask=mask, need_weights=self.weights)[0]
        return (torch.tanh(output) + x).flatten(1).sum(1)


@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_multi_head_attention_with_and_without_its_weights(
    preset: str | None, options: dict[str, Any], is_masked: bool
) -> None:
    x, memory = fixed(N, L, 8), fixed(N, S, 8, seed=2)
    mask = torch.arange(S) >= torch.tensor([[S], [4], [2]]) if is_masked else None
    for explains_memory in (False, True):
        found = []
        for weights in (False, True):
            model = Crossed(weights=weights, **options).eval()
            inputs, additional = ((x, memory), (mask,)) if explains_memory else ((x,), (memory, mask))
            cav = InputCAV(model, normalize=None, rules=preset)
            maps, delta = cav.attribute(inputs, additional_forward_args=additional, return_convergence_delta=True)
            found.append((*maps, delta))
        # One form scales the queries before their product with the keys, where LRP-epsilon adds its epsilon.
        rtol, atol = (1e-3, 1e-4) if preset == "attnlrp" else (1e-9, 1e-11)
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
        if preset != "attnlrp":
            torch.testing.assert_close(found[0][0], x)
            assert found[0][-1].abs().max() < 1e-10


# Recurrent layers ---------------------------------------------------------------------------------------------------

STATES = ["argument", "buffer", "closure", "parameter"]
CELLS: dict[str, tuple[Any, Any, int]] = {
    "lstm": (nn.LSTM, nn.LSTMCell, 2),
    "gru": (nn.GRU, nn.GRUCell, 1),
    "rnn": (nn.RNN, nn.RNNCell, 1),
}
H = 4


class Recurrent(nn.Module):
    """A recurrent layer whose initial states are constants, in one, cell by cell or written out."""

    cell: nn.LSTMCell

    def __init__(self, kind: str, form: str, source: str, count: int) -> None:
        super().__init__()
        layer, cell, self.count = CELLS[kind]
        torch.manual_seed(0)
        self.kind, self.form, self.source = kind, form, source
        self.layer = layer(C, H, batch_first=True, dtype=torch.float64)
        self.cell = cell(C, H, dtype=torch.float64)
        for name, parameter in self.cell.named_parameters():
            parameter.data = getattr(self.layer, f"{name}_l0").data
        states = fixed(self.count, count, H, seed=5)
        if source == "buffer":
            self.register_buffer("states", states)
        elif source == "parameter":
            self.states = nn.Parameter(states)

        def closure(given: torch.Tensor) -> torch.Tensor:
            return given if source == "argument" else states

        self.closure = closure

    def forward(self, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        states: Any = self.states if self.source in ("buffer", "parameter") else self.closure(given)
        if self.form == "in one":
            initial = tuple(state[None] for state in states)
            sequence: torch.Tensor = self.layer(x, initial if self.count == 2 else initial[0])[0]
            return sequence.flatten(1).sum(1)
        step = self.cell_step if self.form == "cells" else getattr(self, f"{self.kind}_step")
        state, outputs = tuple(states.unbind()), []
        for one in x.unbind(1):
            state = step(one, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1).flatten(1).sum(1)

    def cell_step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return self.cell(x, state) if self.count == 2 else (self.cell(x, state[0]),)

    def parts(self, x: torch.Tensor, h: torch.Tensor, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        from_x = F.linear(x, self.cell.weight_ih, self.cell.bias_ih).chunk(count, -1)
        from_h = F.linear(h, self.cell.weight_hh, self.cell.bias_hh).chunk(count, -1)
        return list(zip(from_x, from_h, strict=True))

    def lstm_step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        i, f, g, o = (a + b for a, b in self.parts(x, state[0], 4))
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru_step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (r_x, r_h), (z_x, z_h), (n_x, n_h) = self.parts(x, state[0], 3)
        z = (z_x + z_h).sigmoid()
        return (state[0] * z + (1 - z) * torch.tanh(n_x + (r_x + r_h).sigmoid() * n_h),)

    def rnn_step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ((x_part, h_part),) = self.parts(x, state[0], 1)
        return (torch.tanh(x_part + h_part),)


def with_held_gates(net: Recurrent, x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The layer in plain torch. The gates are detached, and the hyperbolic tangent is its ratio."""
    h, outputs = states[0], []
    c = states[1] if net.count == 2 else None
    for one in x.unbind(1):
        parts = net.parts(one, h, {"lstm": 4, "gru": 3, "rnn": 1}[net.kind])
        sums = [a + b for a, b in parts]
        if c is not None:
            i, f, o = (sums[k].sigmoid().detach() for k in (0, 1, 3))
            c = f * c + i * ratio(torch.tanh, sums[2])
            h = o * ratio(torch.tanh, c)
        elif net.kind == "gru":
            r, z = (part.sigmoid().detach() for part in sums[:2])
            h = z * h + (1 - z) * ratio(torch.tanh, parts[2][0] + r * parts[2][1])
        else:
            h = ratio(torch.tanh, sums[0])
        outputs.append(h)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("count", [1, N])
@pytest.mark.parametrize("source", STATES)
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_layers_with_constant_states_hold_their_gates(kind: str, source: str, count: int) -> None:
    x, states = fixed(count, 3, C), fixed(CELLS[kind][2], count, H, seed=5)
    for form in ("in one", "cells", "written out"):
        net = Recurrent(kind, form, source, count)
        given = states if source == "argument" else torch.zeros(())
        (expected,) = by_hand(lambda x, net=net: with_held_gates(net, x, states), x)
        torch.testing.assert_close(explained(net, x, given), expected)


@pytest.mark.parametrize("kind", CELLS)
def test_a_constant_state_is_as_an_explained_state(kind: str) -> None:
    """The map of the sequence does not depend on whether the states are explained, too."""
    x, states = fixed(N, 3, C), fixed(N, CELLS[kind][2], H, seed=5)
    net = Recurrent(kind, "in one", "argument", N)
    model = lambda x, states: net(x, states.transpose(0, 1))  # noqa: E731
    alone = InputCAV(model, normalize=None).attribute(x, additional_forward_args=(states,))
    torch.testing.assert_close(alone, InputCAV(model, normalize=None).attribute((x, states))[0])


# Refusals, and what bypasses ----------------------------------------------------------------------------------------


def test_a_score_of_weighed_constants_alone_is_refused_with_its_reason_and_a_way_out() -> None:
    memory = fixed(N, S, C, seed=2)
    forms: list[Function] = [
        lambda x, m: attended(x, m, m),
        lambda x, m: F.scaled_dot_product_attention(x, m, m),
        lambda x, m: torch.sigmoid(x) * m[:, :L],
        lambda x, m: torch.sigmoid(x).mul_(m[:, :L]),
    ]
    for form, name in zip(forms, ("matmul", "scaled_dot_product_attention", "mul", "mul"), strict=True):
        score = lambda x, m, form=form: form(x, m).flatten(1).sum(1)  # noqa: E731
        said = f"In '{name}' a gate, such as attention weights or a sigmoid, multiplies only constants"
        with pytest.raises(ModelError, match=said):
            InputCAV(score).attribute(X, additional_forward_args=(memory,))
        with pytest.raises(ModelError, match=said):
            verify(score, X, additional_forward_args=(memory,))
        found = InputCAV(score, rules="attnlrp", normalize=None).attribute(X, additional_forward_args=(memory,))
        assert found.abs().max() > 1e-3
    with pytest.raises(ModelError, match=r"attention weights carry nothing\)\.$"):
        InputCAV(lambda x: x.detach().flatten(1).sum(1)).attribute(X)


class Parallel(nn.Module):
    """A gate in one branch weighs a constant, and the result is multiplied with another branch."""

    def __init__(self, weigh: Function) -> None:
        super().__init__()
        self.gate, self.signal, self.weigh = nn.Identity(), nn.Identity(), weigh

    def forward(self, x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        weighed = self.weigh(torch.softmax(self.gate(x), -1), constant)
        signal: torch.Tensor = self.signal(x.tanh())
        return (torch.tanh(weighed) * signal).flatten(1).sum(1) + x.flatten(1).sum(1)


@pytest.mark.parametrize("preset", [None, "cp_lrp", "attnlrp"])
@pytest.mark.parametrize(
    "weigh",
    [
        lambda g, c: g * c[:, :L],
        lambda g, c: g.clone().mul_(c[:, :L]),
        lambda g, c: g @ c,
        lambda g, c: torch.einsum("nlc,ncs->nls", g, c),
        lambda g, c: torch.baddbmm(c[:, :L], g, c),
        lambda g, c: F.scaled_dot_product_attention(g, c, c),
    ],
    ids=["mul", "mul in place", "matmul", "einsum", "baddbmm", "attention"],
)
def test_a_map_does_not_depend_on_whether_the_gate_bypasses_the_layer(weigh: Function, preset: str | None) -> None:
    net, arguments = Parallel(weigh), (fixed(N, C, C, seed=2),)
    together = LayerCAV(net, ["gate", "signal"], rules=preset, normalize=None).attribute(
        X, additional_forward_args=arguments, grad_kwargs={"materialize_grads": True}
    )[1]
    alone = LayerCAV(net, "signal", rules=preset, normalize=None).attribute(X, additional_forward_args=arguments)
    torch.testing.assert_close(together, alone)
    if preset is None:
        weighed = torch.tanh(weigh(torch.softmax(X, -1), *arguments))
        torch.testing.assert_close(alone, weighed * X.tanh())


# Divisors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "cp_lrp", "attnlrp"])
@pytest.mark.parametrize(
    "divide",
    [
        lambda x, c: c / x,
        lambda x, c: c * x.reciprocal(),
        lambda x, c: c * (1 / x),
        lambda x, c: c * x**-1,
        lambda x, c: c.clone().div_(x),
        lambda x, c: torch.einsum("nlc,nlc->nlc", c, x.reciprocal()),
    ],
    ids=["quotient", "reciprocal", "one over", "power", "in place", "einsum"],
)
def test_a_divisor_weighs_nothing(divide: Function, preset: str | None) -> None:
    constant = fixed(N, L, C, seed=2)
    positive = X.abs() + 0.5
    found = explained(divide, positive, constant, rules=preset)
    # The presets have LRP-epsilon for einsum.
    torch.testing.assert_close(found, constant / positive, rtol=1e-4, atol=1e-5)
