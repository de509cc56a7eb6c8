"""The rules of products and sums against their formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.errors import ModelError, OptionError
from tests.support.networks import fixed
from tests.support.surrogates import SHARES, by_size, conserved, differs, summed, value_under_rules

Function = Callable[..., torch.Tensor]


# Products ------------------------------------------------------------------------------------------------------------


def gated(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a, torch.sigmoid(b)


def through(x: torch.Tensor) -> torch.Tensor:
    """sigmoid, passing on."""
    return x * (torch.sigmoid(x) / x).detach()


PRODUCTS: dict[str, tuple[Any, Function]] = {
    "mul": (torch.mul, lambda a, b: a * b),
    "mul by name": (torch.mul, lambda a, b: torch.mul(input=a, other=b)),
    "mul_": (torch.Tensor.mul_, lambda a, b: (a * 1.0).mul_(b)),
    "*=": (torch.multiply, lambda a, b: a.clone().__imul__(b)),
    "matmul": (torch.matmul, lambda a, b: a @ b.transpose(-1, -2)),
    "bmm": (torch.bmm, lambda a, b: torch.bmm(a, b.transpose(1, 2))),
    "einsum": (torch.einsum, lambda a, b: torch.einsum("nij,nkj->nik", a, b)),
}


@pytest.mark.parametrize("share", [share for share in SHARES if share != "magnitude"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_two_signals(name: str, share: str) -> None:
    key, times = PRODUCTS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    conserved(times, lambda a, b: SHARES[share](a, b, times), {key: rules.ProductRule(share)}, a, b)


@pytest.mark.parametrize("name", ["mul", "mul by name", "mul_", "*="])
def test_a_product_by_magnitude(name: str) -> None:
    key, times = PRODUCTS[name]
    conserved(times, by_size, {key: rules.ProductRule("magnitude")}, fixed(2, 3, 4), fixed(2, 3, 4, seed=2))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 1))], ids=str)
def test_factors_of_a_product_broadcast(share: str, shapes: Any) -> None:
    a, b = fixed(*shapes[0]), fixed(*shapes[1], seed=2)
    surrogate = lambda a, b: SHARES[share](*torch.broadcast_tensors(a, b), torch.mul)  # noqa: E731
    conserved(torch.mul, surrogate, {torch.mul: rules.ProductRule(share)}, a, b)


@pytest.mark.parametrize("name", ["mul", "mul_", "matmul", "einsum"])
def test_gates_are_constants_by_default_and_halves_only_on_demand(name: str) -> None:
    key, times = PRODUCTS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    with_gate = lambda a, b: times(*gated(a, b))  # noqa: E731
    weighed = lambda a, b: times(a, torch.sigmoid(b).detach())  # noqa: E731
    conserved(with_gate, weighed, {key: rules.ProductRule("gates")}, a, b)
    conserved(with_gate, weighed, {}, a, b)
    halved = lambda a, b: SHARES["halves"](a, through(b), times)  # noqa: E731
    conserved(with_gate, halved, {key: rules.ProductRule("halves")}, a, b)


def test_a_zero_factor_has_no_share_by_magnitude_and_gives_finite_maps() -> None:
    a, b = torch.tensor([[0.0, 0.0, 2.0]]).double(), torch.tensor([[3.0, 0.0, 1.0]]).double()
    cav = InputCAV(lambda a, b: (a * b).sum(1), rules={torch.mul: rules.ProductRule("magnitude")}, normalize=None)
    of_a, of_b = cav.attribute((a, b))
    torch.testing.assert_close(of_a, torch.tensor([[0, 0, 4 / 3]]).double())
    torch.testing.assert_close(of_b, torch.tensor([[0, 0, 2 / 3]]).double())


def test_magnitudes_are_for_elementwise_products() -> None:
    cav = InputCAV(lambda a, b: (a @ b.T).sum(1), rules={torch.matmul: rules.ProductRule("magnitude")})
    with pytest.raises(OptionError, match=r"ProductRule\(share='magnitude'\) is for elementwise products; 'matmul' is"):
        cav.attribute((fixed(2, 3), fixed(2, 3)))


@pytest.mark.parametrize("share", ["gates", "halves", "first", "second", "magnitude"])
def test_a_rule_for_products_does_not_govern_a_product_with_a_constant(share: str) -> None:
    x, factor = fixed(2, 3), fixed(3, seed=2)
    found = InputCAV(lambda x: (x * factor).sum(1), rules={torch.mul: rules.ProductRule(share)}, normalize=None)
    torch.testing.assert_close(found.attribute(x), x * factor)


@pytest.mark.parametrize("share", ["gates", "halves", "first", "second", "magnitude"])
def test_a_square_written_as_a_product_keeps_its_contributions(share: str) -> None:
    x = fixed(2, 3)
    found = InputCAV(lambda x: (x * x).sum(1), rules={torch.mul: rules.ProductRule(share)}, normalize=None).attribute(x)
    torch.testing.assert_close(found, x * x)


@pytest.mark.parametrize("share", ["first", "second"])
def test_a_constant_factor_passes_nothing_on(share: str) -> None:
    """Only the signal's branch carries; a layer in the other has nothing to do with the score."""
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}).double()
    chosen = {torch.mul: rules.ProductRule(share)}
    signal, weight = ("a", "b") if share == "first" else ("b", "a")
    x = fixed(2, 3)

    def score(x: torch.Tensor) -> torch.Tensor:
        return (net["a"](x) * net["b"](x)).sum(1)

    found = LayerCAV(score, net[signal], rules=chosen, normalize=None).attribute(x)
    torch.testing.assert_close(found, (net["a"](x) * net["b"](x)).detach())
    with pytest.raises(ModelError, match="the score does not depend on layer Linear"):
        LayerCAV(score, net[weight], rules=chosen, normalize=None).attribute(x)


# Sums ----------------------------------------------------------------------------------------------------------------


NUMBER = 0.7


SUMS: dict[str, tuple[Any, Function, tuple[float, float]]] = {
    "add": (torch.add, lambda a, b: a + b, (1, 1)),
    "add, alpha": (torch.add, lambda a, b: torch.add(a, b, alpha=-3), (1, -3)),
    "add_": (torch.add, lambda a, b: (a * 1.0).add_(b, alpha=2), (1, 2)),
    "+=": (torch.Tensor.add, lambda a, b: a.clone().__iadd__(b), (1, 1)),
    "sub": (torch.sub, lambda a, b: a - b, (1, -1)),
    "sub, alpha": (torch.subtract, lambda a, b: torch.sub(a, b, alpha=0.5), (1, -0.5)),
    "sub_": (torch.sub, lambda a, b: (a * 1.0).sub_(b), (1, -1)),
    "rsub": (torch.rsub, lambda a, b: torch.rsub(a, b, alpha=2), (-2, 1)),
    "by name": (torch.add, lambda a, b: torch.add(input=a, other=b), (1, 1)),
}


def by_magnitude(a: torch.Tensor, b: torch.Tensor, factors: tuple[float, float]) -> torch.Tensor:
    """R_a = |a'| / (|a'| + |b'|) R, with a' and b' the summands; the sum itself is R."""
    with torch.no_grad():
        of_a, of_b = factors[0] * a, factors[1] * b
        total, size = of_a + of_b, of_a.abs() + of_b.abs()
        slopes = total * of_a.abs() / size / a, total * of_b.abs() / size / b
    return a * slopes[0] + b * slopes[1]


@pytest.mark.parametrize("name", SUMS)
def test_summands_share_by_their_magnitude(name: str) -> None:
    key, plus, factors = SUMS[name]
    a, b = fixed(2, 3, 4), fixed(2, 3, 4, seed=2)
    conserved(plus, lambda a, b: by_magnitude(a, b, factors), {key: rules.AdditionRule("magnitude")}, a, b)
    signed = lambda a, b: factors[0] * a + factors[1] * b  # noqa: E731
    conserved(plus, signed, {key: rules.AdditionRule("signed")}, a, b)
    conserved(plus, signed, {}, a, b)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 1)), ((2, 1, 1), (2, 3, 4))], ids=str)
def test_summands_broadcast(shapes: Any) -> None:
    a, b = fixed(*shapes[0]), fixed(*shapes[1], seed=2)
    surrogate = lambda a, b: by_magnitude(*torch.broadcast_tensors(a, b), (1, -1))  # noqa: E731
    conserved(torch.sub, surrogate, {torch.sub: rules.AdditionRule("magnitude")}, a, b)


CONSTANT = fixed(3, 4, seed=3)


WITH_CONSTANTS: dict[str, tuple[Function, Any, tuple[float, float]]] = {
    "x + c": (lambda x: x + CONSTANT, CONSTANT, (1, 1)),
    "c + x": (lambda x: CONSTANT + x, CONSTANT, (1, 1)),
    "c - x": (lambda x: CONSTANT - x, CONSTANT, (-1, 1)),
    "x - c, alpha": (lambda x: torch.sub(x, CONSTANT, alpha=2), CONSTANT, (1, -2)),
    "x += c": (lambda x: (x * 1.0).add_(CONSTANT), CONSTANT, (1, 1)),
    "x + 1": (lambda x: x + 1, 1, (1, 1)),
    "x + number": (lambda x: x + NUMBER, NUMBER, (1, 1)),
    "1 - x": (lambda x: 1 - x, 1, (-1, 1)),
    "number - x": (lambda x: NUMBER - x, NUMBER, (-1, 1)),
    "x - 1": (lambda x: x - 1, 1, (1, -1)),
    "x -= number": (lambda x: (x * 1.0).sub_(NUMBER), NUMBER, (1, -1)),
}


ALL_SUMS = dict.fromkeys((torch.add, torch.sub, torch.rsub), rules.AdditionRule("magnitude"))


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_a_constant_summand_has_its_share_in_the_account(name: str) -> None:
    plus, constant, factors = WITH_CONSTANTS[name]
    x = fixed(2, 3, 4)
    constant = torch.as_tensor(constant, dtype=torch.float64).expand(2, 3, 4)
    conserved(plus, lambda x: by_magnitude(x, constant, factors), ALL_SUMS, x)
    cav = InputCAV(summed(plus), rules=ALL_SUMS, normalize=None)
    assert differs(cav.attribute(x), InputCAV(summed(plus), normalize=None).attribute(x))


@pytest.mark.parametrize(
    "function",
    [lambda x: x + 0.3, lambda x: 0.3 - x, lambda x: x - 0.3, lambda x: (x * 1.0).add_(0.3)],
    ids=["add", "rsub", "sub", "add_"],
)
def test_a_number_keeps_all_its_digits(function: Function) -> None:
    x = fixed(2, 3)
    torch.testing.assert_close(value_under_rules(function, ALL_SUMS, x), function(x), rtol=1e-14, atol=1e-15)


def test_summands_that_cancel_or_are_zero_give_finite_maps() -> None:
    a, b = torch.tensor([[0.0, 2.0, 0.0, 1.0]]).double(), torch.tensor([[0.0, -2.0, 3.0, 3.0]]).double()
    cav = InputCAV(lambda a, b: (a + b).sum(1), rules=ALL_SUMS, normalize=None)
    of_a, of_b = cav.attribute((a, b))
    assert of_a.tolist() == [[0, 0, 0, 1]]
    assert of_b.tolist() == [[0, 0, 3, 3]]


def test_a_residual_connection_shares_by_magnitude_at_every_layer() -> None:
    net = nn.ModuleDict({"stem": nn.Linear(3, 4), "branch": nn.Linear(4, 4), "head": nn.Linear(4, 2)}).double()
    x = fixed(2, 3)

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = net["stem"](x)
        return net["head"](h + torch.tanh(net["branch"](h)))

    layers = [net["branch"], net["stem"]]
    found = LayerCAV(forward, layers, rules=ALL_SUMS, normalize=None).attribute(x, 1)
    h = net["stem"](x).detach()
    inner = net["branch"](h).detach()
    added = torch.tanh(inner)
    r = (h + added) * net["head"].weight[1].detach()
    of_branch, of_shortcut = (part.abs() / (h.abs() + added.abs()) * r for part in (added, h))
    torch.testing.assert_close(found[0], of_branch)
    coefficients = (of_branch / inner) @ net["branch"].weight.detach()
    torch.testing.assert_close(found[1], of_shortcut + h * coefficients)
