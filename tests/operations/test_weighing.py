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
    return lambda x, *constants: torch.tanh(product(torch.sigmoid(x), *constants)).flatten(1).sum(1) + x.flatten(1).sum(
        1
    )


# Which constants are weighed, and which are weights ------------------------------------------------------------------

#: For each form, the product of the gate and a constant, and the constant for each number of samples.
WEIGHED: dict[str, tuple[Function, Callable[[int], torch.Tensor]]] = {
    "mul": (torch.mul, lambda n: fixed(n, L, C, seed=2)),
    "constant first": (lambda g, c: c * g, lambda n: fixed(n, L, C, seed=2)),
    "in place": (lambda g, c: g.mul_(c), lambda n: fixed(n, L, C, seed=2)),
    "augmented": (lambda g, c: g.__imul__(c), lambda n: fixed(n, L, C, seed=2)),
    "aten": (torch.ops.aten.mul.Tensor, lambda n: fixed(n, L, C, seed=2)),
    "broadcast gate": (lambda g, c: (g[..., :1] * c), lambda n: fixed(n, L, S, seed=2)),
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
    times = lambda x, c: torch.tanh(product(torch.sigmoid(x), c)).flatten(1).sum(1) * x.flatten(1).sum(1)  # noqa: E731
    (expected,) = by_hand(lambda x: times(x.detach(), constant(N)) / x.flatten(1).sum(1).detach() * x.flatten(1).sum(1), X)
    torch.testing.assert_close(explained(times, X, constant(N)), expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_gate_that_meets_the_weights_of_a_layer_carries(name: str) -> None:
    product, constant = WEIGHTS[name]
    outer = lambda g, c: ratio(torch.tanh, product(g, c))  # noqa: E731
    (expected,) = by_hand(lambda x: outer(ratio(torch.sigmoid, x), constant), X)
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
