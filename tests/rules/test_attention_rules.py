"""The rules of attention against attention written out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav import InputCAV, rules
from tests.support.networks import fixed
from tests.support.surrogates import SHARES, check, conserved

Function = Callable[..., torch.Tensor]


def attention_by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None, carry: str
) -> torch.Tensor:
    """``softmax(q k^T s + mask) v``: for "all" every product halves, and softmax is differentiated."""
    halve = SHARES["halves"] if carry == "all" else lambda a, b, times: times(a, b)
    scores = halve(q, k.transpose(-2, -1), torch.matmul) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    weights = weights / weights.sum(-1, keepdim=True)
    return halve(weights, v, torch.matmul) if carry == "all" else weights.detach() @ v


Q, K, V = fixed(2, 4, 3, 5), fixed(2, 4, 6, 5, seed=2), fixed(2, 4, 6, 7, seed=3)


TRIANGLE = torch.ones(3, 6, dtype=torch.bool).tril()


BOOLEAN = (fixed(3, 6, seed=4) > 0) | TRIANGLE


ADDED = fixed(2, 1, 3, 6, seed=5)


ATTENTIONS: dict[str, tuple[dict[str, Any], torch.Tensor | None, float | None]] = {
    "plain": ({}, None, None),
    "scale": ({"scale": 0.9}, None, 0.9),
    "causal": ({"is_causal": True}, TRIANGLE, None),
    "boolean mask": ({"attn_mask": BOOLEAN}, BOOLEAN, None),
    "added mask": ({"attn_mask": ADDED}, ADDED, None),
}


@pytest.mark.parametrize("carry", ["values", "all"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_carries_by_the_formula(name: str, carry: str) -> None:
    options, mask, scale = ATTENTIONS[name]
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)  # noqa: E731
    surrogate = lambda q, k, v: attention_by_hand(q, k, v, mask, scale, carry)  # noqa: E731
    chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
    # The softmax keeps a part to itself where queries and keys carry.
    (conserved if carry == "values" else check)(attend, surrogate, chosen, Q, K, V)
    if carry == "values":
        conserved(attend, surrogate, {}, Q, K, V)


#: The second query of the first sample attends to nothing.
EMPTY = torch.ones(2, 1, 3, 6, dtype=torch.bool)
EMPTY[0, 0, 1] = False


@pytest.mark.parametrize("mask", [EMPTY, torch.zeros(EMPTY.shape).double().masked_fill(~EMPTY, -math.inf)])
@pytest.mark.parametrize("carry", ["values", "all"])
def test_a_query_that_attends_to_nothing_gets_and_gives_nothing(carry: str, mask: torch.Tensor) -> None:
    chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}

    def explain(mask: torch.Tensor, *inputs: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum((1, 2, 3))  # noqa: E731
        cav = InputCAV(attend, rules=chosen, normalize=None)
        found: tuple[tuple[torch.Tensor, ...], torch.Tensor] = cav.attribute(inputs, return_convergence_delta=True)
        return found

    (q, k, v), delta = explain(mask, Q, K, V)
    assert not q[0, :, 1].any()
    others = [0, 2]
    without, delta_without = explain(mask[:1, :, others], Q[:1, :, others], K[:1], V[:1])
    for found, expected in zip((q[:1, :, others], k[:1], v[:1], delta[:1]), (*without, delta_without), strict=True):
        torch.testing.assert_close(found, expected)
    assert delta.isfinite().all()


@pytest.mark.parametrize("carry", ["values", "all"])
def test_attention_of_grouped_queries(carry: str) -> None:
    k, v = K[:, :2], V[:, :2]
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
    surrogate = lambda q, k, v: attention_by_hand(  # noqa: E731
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), None, None, carry
    )
    chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
    (conserved if carry == "values" else check)(attend, surrogate, chosen, Q, k, v)


def test_self_attention_of_one_tensor_in_all_its_places() -> None:
    x = fixed(2, 4, 5)
    for carry in ("values", "all"):
        attend = lambda x: F.scaled_dot_product_attention(x, x, x)  # noqa: E731
        surrogate = lambda x, carry=carry: attention_by_hand(x, x, x, None, None, carry)  # noqa: E731
        chosen = {F.scaled_dot_product_attention: rules.AttentionRule(carry)}
        (conserved if carry == "values" else check)(attend, surrogate, chosen, x)


@pytest.mark.parametrize("softmax", [F.softmax, torch.softmax, torch.Tensor.softmax], ids=["F", "torch", "Tensor"])
def test_attention_written_out_equals_attention_in_one(softmax: Function) -> None:
    def written(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return softmax(q @ k.transpose(-2, -1) / math.sqrt(5), -1) @ v

    for carry in ("values", "all"):
        share = "halves" if carry == "all" else "gates"
        chosen = {torch.softmax: rules.AttentionRule(carry), torch.matmul: rules.ProductRule(share)}
        surrogate = lambda q, k, v, carry=carry: attention_by_hand(q, k, v, None, None, carry)  # noqa: E731
        (conserved if carry == "values" else check)(written, surrogate, chosen, Q, K, V)


def test_the_softmax_passes_on_by_proposition_3_1() -> None:
    """R_i = x_i (R_i - s_i sum_j R_j), the R on the right those of the outputs."""
    x, weight = fixed(2, 4), fixed(4, seed=2)
    s = torch.softmax(x, 1)
    r = s * weight
    expected = x * (r - s * r.sum(1, keepdim=True))
    score = lambda x: (torch.softmax(x, 1) * weight).sum(1)  # noqa: E731
    found = InputCAV(score, rules={torch.softmax: rules.AttentionRule("all")}, normalize=None).attribute(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mask", [None, ADDED, BOOLEAN], ids=["no mask", "added", "boolean"])
@pytest.mark.parametrize("carriers", ["qkv", "qk", "kv", "qv", "q", "k", "v"])
@pytest.mark.parametrize(("carry", "share"), [("all", "halves"), ("values", "gates")])
def test_attention_in_one_and_in_steps_have_the_same_constants_and_weights(
    carriers: str, mask: torch.Tensor | None, carry: str, share: str
) -> None:
    """A constant factor of a product is a weight, so the product is a layer. A mask is a constant."""
    chosen: dict[Any, Any] = {
        F.scaled_dot_product_attention: rules.AttentionRule(carry),
        torch.softmax: rules.AttentionRule(carry),
        torch.matmul: [rules.ProductRule(share), rules.EpsilonRule(0.5)],
    }
    given = {"q": Q, "k": K, "v": V}
    inputs = tuple(given[name] for name in carriers)

    def score(attend: Function, *inputs: torch.Tensor) -> torch.Tensor:
        q, k, v = (given | dict(zip(carriers, inputs, strict=True))).values()
        # Where only queries and keys carry, the attended values may be constants. So the inputs are added.
        return sum((x.sum((1, 2, 3)) for x in inputs), attend(q, k, v).sum((1, 2, 3)))

    def in_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def in_steps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(5)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return torch.matmul(torch.softmax(scores, -1), v)

    (found, delta), (expected, delta_of_steps) = (
        InputCAV(functools.partial(score, attend), rules=chosen).attribute(inputs, return_convergence_delta=True)
        for attend in (in_one, in_steps)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(delta, delta_of_steps)


@pytest.mark.parametrize("in_place", [False, True])
def test_chosen_weights_over_their_sum_are_the_softmax_of_what_was_chosen(in_place: bool) -> None:
    """A router of experts divides the largest weights by their sum. A norm by a sum has a constant divisor."""
    x, of_experts = fixed(2, 5), fixed(2, seed=2)

    def divided(x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(x, -1).topk(2).values
        total = weights.sum(-1, keepdim=True)
        weights = weights.div_(total) if in_place else weights / total
        return (weights * of_experts).sum(-1)

    chosen = dict.fromkeys((torch.softmax, torch.div), rules.AttentionRule("all"))
    found = InputCAV(divided, rules=chosen, normalize=None).attribute(x)
    expected = InputCAV(
        lambda x: (torch.softmax(x.topk(2).values, -1) * of_experts).sum(-1), rules=chosen, normalize=None
    ).attribute(x)
    torch.testing.assert_close(found, expected)
    shares = InputCAV(lambda x: (x / x.sum(-1, keepdim=True))[:, 0], rules=chosen, normalize=None).attribute(x)
    torch.testing.assert_close(shares, x / x.sum(-1, keepdim=True) * torch.eye(5)[0].double())
